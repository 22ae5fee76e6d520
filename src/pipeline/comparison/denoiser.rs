//! Denoisers: what each takes for noise in the same seeded inputs.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::Task;
use dlc_methods::difference::Difference;
use dlc_passes::Progress;
use dlc_runtime::{RuntimeError, Session, SharedWeights};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Comparison, Outcome, Runner, Side, misfit, step};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feeds::{SEED, host_inputs, own_size, random_feeds};

/// Batches of noise.
const BATCHES: usize = 4;

pub(super) fn compare(
    reference: &Side<'_>,
    other: &Side<'_>,
    progress: &dyn Progress,
) -> Result<Comparison, PipelineError> {
    let names = |side: &Side<'_>| -> Vec<String> {
        let mut names: Vec<String> = side.graph.inputs().iter().map(|i| i.name.clone()).collect();
        names.sort();
        names
    };
    if names(reference) != names(other) {
        let difference = format!(
            "takes the inputs {}, {} the inputs {}",
            names(reference).join(", "),
            other.name,
            names(other).join(", ")
        );
        let way_out = "compare graphs of one kind";
        return Err(misfit(reference, other, &difference, way_out));
    }
    progress.phase("loading the models");
    let (mut a, mut b) = (Denoiser::open(reference)?, Denoiser::open(other)?);
    progress.phase("denoising");
    let rng = &mut ChaCha8Rng::seed_from_u64(SEED);
    let mut difference = Difference::default();
    for batch in 0..BATCHES {
        step(progress, "batches", batch, BATCHES)?;
        let module = reference.module;
        let feeds = random_feeds(reference.graph, module, own_size(module), rng)?;
        let (images, x) = a.predict(&feeds)?;
        let (_, y) = b.predict(&feeds)?;
        let image = x.len() / images.max(1);
        for (x, y) in x.chunks(image.max(1)).zip(y.chunks(image.max(1))) {
            difference.add(x, y).map_err(RuntimeError::from)?;
        }
    }
    Ok(Comparison {
        inputs: difference.count(),
        outcome: Outcome::Predictions(difference),
    })
}

/// A denoiser.
enum Denoiser<'m> {
    Session(Box<Session>, Runner<'m>, &'m Side<'m>),
    Evaluator(&'m Side<'m>),
}

impl<'m> Denoiser<'m> {
    fn open(side: &'m Side<'m>) -> Result<Self, PipelineError> {
        let Some(runner) = side.bundle else {
            return Ok(Self::Evaluator(side));
        };
        let weights = SharedWeights::open(runner.bundle, runner.backend)?;
        let session = Session::load(
            runner.backend,
            runner.bundle,
            &side.graph.name,
            weights.as_ref(),
            runner.session,
        )?;
        Ok(Self::Session(Box::new(session), runner, side))
    }

    /// How many images there are, and the numbers of all.
    fn predict(
        &mut self,
        feeds: &BTreeMap<String, Array>,
    ) -> Result<(usize, Vec<f32>), PipelineError> {
        let output = Task::ImageGeneration.output();
        match self {
            Self::Session(session, runner, side) => {
                let record = runner.bundle.graph(&side.graph.name)?;
                let made = session.run_host(&host_inputs(record, feeds))?;
                let found = made.into_iter().find(|(name, _)| name == output);
                Ok(found.map_or_else(Default::default, |(_, tensor)| {
                    let images = tensor.shape.first().copied().unwrap_or_default();
                    (images, tensor.to_f32().unwrap_or_default())
                }))
            }
            Self::Evaluator(side) => {
                let mut made = dlc_eval::run(side.graph, &side.module.weights, feeds)?;
                let found = made.remove(output);
                Ok(found.map_or_else(Default::default, |array| {
                    let images = array.shape().first().copied().unwrap_or_default();
                    (images, array.into_f32().unwrap_or_default())
                }))
            }
        }
    }
}
