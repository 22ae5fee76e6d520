//! Pruned and quantised drafts of the goldens' decoders on a backend.

use dlc::pipeline::{Check, module_of_bundle, parse_pass_flag, verify_bundle};
use dlc_bundle::Profile;
use dlc_methods::speculation::DecodeOptions;
use dlc_runtime::{
    Backend, Bundle, DecoderOptions, DecoderSession, Equality, SessionOptions, SharedWeights,
    measure,
};

use super::batches::check_batch;
use super::decoding::{compile_quietly, compile_request};
use super::fixture;
use super::golden::Golden;

const TOKENS: usize = 48;
/// The golden's tokens before them.
const PROMPT: usize = 13;

/// Target and draft agree with the evaluator, and greedy decoding with the draft gives the tokens
/// that it gives without.
pub fn check_draft(backend: &Backend, name: &'static str, profile: Profile) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("bundle");
    let mut request = compile_request(fixture(&format!("goldens/{name}")), profile, output);
    let calibration = fixture("calibration-tokens.jsonl");
    let prune = format!("fit-prune:drop=1,calibration={}", calibration.display());
    request.passes = [prune.as_str(), "quantize-draft:symmetric=false"]
        .map(|pass| parse_pass_flag(pass).unwrap())
        .to_vec();
    let fail = |error: String| format!("{name} {}: {error}", profile.name());
    compile_quietly(&request).map_err(|e| fail(e.to_string()))?;
    let bundle = Bundle::open(&request.output).map_err(|e| fail(e.to_string()))?;
    let module = module_of_bundle(&bundle).map_err(|e| fail(e.to_string()))?;
    let options = SessionOptions::default();
    let checks = verify_bundle(&bundle, &module, backend, &options, None)
        .map_err(|e| fail(e.to_string()))?;
    let failed: Vec<&Check> = checks.iter().filter(|c| !c.passed()).collect();
    if !failed.is_empty() || checks.len() < 8 {
        return Err(fail(format!("of {} checks {failed:?}", checks.len())));
    }
    check_decoding(backend, name, &bundle).map_err(fail)?;
    check_batch(backend, &bundle, &beginnings(name), true).map_err(fail)
}

/// Texts of different lengths that begin alike, and others.
fn beginnings(name: &'static str) -> Vec<Vec<u32>> {
    let ids = &Golden::read(name).ids;
    let part = |(start, end): (usize, usize)| {
        let ids = ids[start..end.min(ids.len())].iter();
        ids.map(|id| *id as u32).collect()
    };
    let parts = [(0, PROMPT), (0, 5), (2, 11), (1, 2), (0, PROMPT), (0, 11)];
    parts.map(part).to_vec()
}

fn check_decoding(backend: &Backend, name: &'static str, bundle: &Bundle) -> Result<(), String> {
    let weights = SharedWeights::open(bundle, backend).map_err(|e| e.to_string())?;
    let options = DecoderOptions::default();
    let open = |graph| {
        DecoderSession::open(backend, bundle, graph, weights.as_ref(), &options)
            .map_err(|e| e.to_string())
    };
    let (mut target, mut draft) = (open("target")?, open("draft")?);
    let ids = &Golden::read(name).ids[..PROMPT];
    let prompt: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let options = DecodeOptions {
        max_tokens: TOKENS,
        ..DecodeOptions::default()
    };
    let measured =
        measure(&mut target, Some(&mut draft), &prompt, &options, 1).map_err(|e| e.to_string())?;
    match measured.equality {
        Equality::Equal | Equality::Tie { .. } if measured.tokens.len() == TOKENS => Ok(()),
        other => Err(format!("{other:?} in {} tokens", measured.tokens.len())),
    }
}
