//! Texts of a batch against the same texts alone.

use std::collections::BTreeMap;

use dlc_methods::speculation::{
    Batch, BatchModel, BatchOptions, CostTable, DecodeOptions, Progress, TextId, TokenModel,
};
use dlc_runtime::{Backend, Bundle, DecoderOptions, DecoderSession, SharedWeights, decode};

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
    // Small, so that caches kept in place must grow.
    let options = |sequences| DecoderOptions {
        capacity: Some(8),
        sequences,
        ..DecoderOptions::default()
    };
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
        Batch::new(Box::new(target), draft, shared).map_err(|error| error.to_string())?;
    let found = together(&mut batch, prompts)?;
    if batches && batch.stats().steps == 0 {
        return Err("no pass was over several texts".to_owned());
    }
    let mut alone = open("target", 1)?;
    for (prompt, found) in prompts.iter().zip(found) {
        let expected = decode(&mut alone, None, prompt, &options_of(prompt))
            .map_err(|error| error.to_string())?
            .tokens;
        if found != expected {
            return Err(format!(
                "after {} tokens in company {found:?}, alone {expected:?}",
                prompt.len()
            ));
        }
    }
    Ok(())
}

/// Of different lengths, so that texts leave at different times.
fn options_of(prompt: &[u32]) -> DecodeOptions {
    DecodeOptions {
        max_tokens: TOKENS - prompt.len() % 7,
        lookup: Some(1),
        ..DecodeOptions::default()
    }
}

fn together(batch: &mut Batch, prompts: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, String> {
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
        let id = batch.begin(prompt, options_of(prompt));
        tokens.insert(id.map_err(|error| error.to_string())?, Vec::new());
        (0..i % 3).for_each(|_| turn(batch, &mut tokens));
    }
    while batch.active() > 0 {
        turn(batch, &mut tokens);
    }
    failed.map_or(Ok(tokens.into_values().collect()), Err)
}
