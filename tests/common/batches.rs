//! Texts of a batch against the same texts alone.

use std::collections::BTreeMap;

use dlc_methods::speculation::{
    Batch, BatchModel, BatchOptions, CostTable, DecodeOptions, Progress, TextId, TokenModel,
};
use dlc_runtime::{
    Backend, Bundle, DecoderOptions, DecoderSession, PrefixFile, Provider, SharedWeights,
    Verification, decode,
};

const TOKENS: usize = 24;
/// Texts that are held at once.
const SLOTS: usize = 3;

/// Prompts that join while others are under way are continued as they are alone, and none waits for
/// another to end while there is room.
pub fn check_batch(
    backend: &Backend,
    bundle: &Bundle,
    prompts: &[Vec<u32>],
    draft: bool,
) -> Result<(), String> {
    let weights = SharedWeights::open(bundle, backend).map_err(|error| error.to_string())?;
    let verification = Verification::of(bundle.manifest(), "target", Provider::Cpu);
    // Small, so that caches kept in place must grow.
    let options = |sequences| DecoderOptions {
        capacity: Some(8),
        sequences,
        fillers: verification.fillers(SLOTS),
        ..DecoderOptions::default()
    };
    // Where passes round otherwise, nothing is guessed.
    let lookup = (verification == Verification::Alike).then_some(1);
    let open = |graph, sequences| {
        let weights = weights.as_ref();
        DecoderSession::open(backend, bundle, graph, weights, &options(sequences))
            .map_err(|error| error.to_string())
    };
    let target = open("target", SLOTS)?;
    let draft = draft.then(|| open("draft", 1)).transpose()?;
    let draft = draft.map(|mut draft| {
        draft.share_cache(&target);
        Box::new(draft) as Box<dyn TokenModel + Send>
    });
    let batches = target.batches();
    let shared = BatchOptions {
        piece: 3,
        costs: CostTable::default(),
    };
    let mut batch =
        Batch::new(Box::new(target), draft, shared.clone()).map_err(|error| error.to_string())?;
    let found = together(&mut batch, prompts, lookup)?;
    if batches && batch.stats().steps == 0 {
        return Err("no pass was over several texts".to_owned());
    }
    let mut alone = open("target", 1)?;
    for (prompt, found) in prompts.iter().zip(found) {
        let expected = decode(&mut alone, None, prompt, &options_of(prompt, lookup))
            .map_err(|error| error.to_string())?
            .tokens;
        if found != expected {
            return Err(format!(
                "after {} tokens in company {found:?}, alone {expected:?}",
                prompt.len()
            ));
        }
    }
    let other = Batch::new(Box::new(open("target", SLOTS)?), None, shared);
    check_kept(
        bundle,
        &mut batch,
        &mut other.map_err(|error| error.to_string())?,
    )
}

/// What a batch holds at its end goes through a file to another one, and isn't read again there.
fn check_kept(bundle: &Bundle, batch: &mut Batch, other: &mut Batch) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let folder = tempfile::tempdir().map_err(|error| told(&error))?;
    let file = PrefixFile::new(folder.path().join("kept"), bundle).map_err(|e| told(&e))?;
    let prefixes = batch.prefixes().map_err(|error| told(&error))?;
    file.write(&prefixes).map_err(|error| told(&error))?;
    let read = file.read().map_err(|error| told(&error))?;
    if read != prefixes {
        return Err("prefixes come otherwise from their file".to_owned());
    }
    for prefix in &read {
        if !other.restore(prefix).map_err(|error| told(&error))? {
            return Err("another batch has no place for a prefix".to_owned());
        }
    }
    if other.prefixes().map_err(|error| told(&error))? != prefixes {
        return Err("another batch holds other prefixes".to_owned());
    }
    let prompts: Vec<Vec<u32>> = prefixes.into_iter().map(|prefix| prefix.tokens).collect();
    let before = batch.stats().reused;
    let expected = together(batch, &prompts, None)?;
    let found = together(other, &prompts, None)?;
    let reused = other.stats().reused;
    if (found, reused) != (expected, batch.stats().reused - before) {
        return Err(format!(
            "prefixes are continued otherwise, {reused} tokens of them held"
        ));
    }
    Ok(())
}

/// Of different lengths, so that texts leave at different times.
fn options_of(prompt: &[u32], lookup: Option<usize>) -> DecodeOptions {
    DecodeOptions {
        max_tokens: TOKENS - prompt.len() % 7,
        lookup,
        ..DecodeOptions::default()
    }
}

fn together(
    batch: &mut Batch,
    prompts: &[Vec<u32>],
    lookup: Option<usize>,
) -> Result<Vec<Vec<u32>>, String> {
    let mut tokens: BTreeMap<TextId, Vec<u32>> = BTreeMap::new();
    let mut failed = None;
    let mut turn = |batch: &mut Batch, tokens: &mut BTreeMap<TextId, Vec<u32>>| {
        batch.turn(&mut |id, progress| match progress {
            Progress::Tokens(new, _) => tokens.entry(id).or_default().extend(new),
            Progress::Ended(_) => {}
            Progress::Failed(error) => failed = Some(error.to_string()),
        });
    };
    for (i, prompt) in prompts.iter().enumerate() {
        while !batch.has_room() {
            turn(batch, &mut tokens);
        }
        let id = batch.begin(prompt, options_of(prompt, lookup));
        tokens.insert(id.map_err(|error| error.to_string())?, Vec::new());
        (0..i % 3).for_each(|_| turn(batch, &mut tokens));
    }
    while batch.active() > 0 {
        turn(batch, &mut tokens);
    }
    failed.map_or(Ok(tokens.into_values().collect()), Err)
}
