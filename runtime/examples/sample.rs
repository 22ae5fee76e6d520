//! Samples one image of a diffusion model's bundle, and prints how its values are spread.
//!
//!   cargo run -p dlc-runtime --example sample -- BUNDLE CLASS
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use dlc_runtime::{
    BackendSearch, Bundle, DiffusionSession, SampleRequest, SamplerWishes, Samples, SessionOptions,
    SharedWeights, choose_sampler, start,
};

/// Samples an image of a class.
///
/// # Errors
/// What is wrong with the bundle or the backend, and a class that isn't there.
pub fn sample(folder: &Path, class: usize) -> Result<Samples, Box<dyn Error>> {
    let bundle = Bundle::open(folder)?;
    let backend = start(&BackendSearch::default())?;
    let weights = SharedWeights::open(&bundle, &backend)?;
    let wishes = SamplerWishes {
        steps: Some(4),
        ..SamplerWishes::default()
    };
    let sampler = choose_sampler(&bundle, &wishes)?;
    let request = SampleRequest {
        plan: &sampler.plan,
        image: None,
        guidance: sampler.guidance,
        seeds: &[0],
        noise: None,
        classes: &[class],
        size: None,
        conditions: None,
        prune: sampler.prune,
    };
    let mut session = DiffusionSession::open(
        &backend,
        &bundle,
        weights.as_ref(),
        &SessionOptions::default(),
    )?;
    let samples = session.sample(&request, &mut |_| ControlFlow::Continue(()))?;
    samples.ok_or_else(|| "interrupted".into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, class] = &arguments[..] else {
        return Err("give a bundle of a diffusion model, and a class".into());
    };
    let samples = sample(Path::new(bundle), class.parse()?)?;
    let (least, most) = (samples.data.iter()).fold((f32::MAX, f32::MIN), |(least, most), x| {
        (least.min(*x), most.max(*x))
    });
    println!("{:?}, from {least} to {most}", samples.shape);
    Ok(())
}
