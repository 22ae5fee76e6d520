//! Decodes a bundle with its draft.
//!
//!   cargo run -p dlc-runtime --example decode -- BUNDLE "And it came to pass"
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use dlc_runtime::methods::speculation::{DecodeOptions, Decoder, TokenModel};
use dlc_runtime::{
    BackendSearch, Bundle, DecoderOptions, DecoderSession, SharedWeights, TextTokenizer, start,
};

/// Continues a prompt with the bundle's draft.
///
/// # Errors
/// What is wrong with the bundle, the backend or the prompt.
pub fn decode(folder: &Path, prompt: &str) -> Result<String, Box<dyn Error>> {
    let bundle = Bundle::open(folder)?;
    let backend = start(&BackendSearch::default())?;
    let weights = SharedWeights::open(&bundle, &backend)?;
    let open = |graph| {
        DecoderSession::open(
            &backend,
            &bundle,
            graph,
            weights.as_ref(),
            &DecoderOptions::default(),
        )
    };
    let (mut target, mut draft) = (open("target")?, open("draft")?);
    draft.share_cache(&target);

    let tokenizer = TextTokenizer::of_bundle(&bundle)?.ok_or("the bundle has no tokenizer")?;
    let prompt = tokenizer.encode(prompt, true)?;
    let options = DecodeOptions {
        max_tokens: 32,
        stop_tokens: bundle.manifest().model.eos_token_ids.clone(),
        ..DecodeOptions::default()
    };
    let draft: &mut dyn TokenModel = &mut draft;
    let mut decoder = Decoder::new(&mut target, Some(draft), options)?;
    let generation = decoder.generate(&prompt, &mut |_| ControlFlow::Continue(()))?;
    Ok(tokenizer.decode(&generation.tokens)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, prompt] = &arguments[..] else {
        return Err("give a bundle with a draft, and a prompt".into());
    };
    println!("{}", decode(Path::new(bundle), prompt)?);
    Ok(())
}
