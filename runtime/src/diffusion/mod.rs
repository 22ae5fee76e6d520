//! Diffusion models: images out of noise, by running a sampler's table around the graphs of a
//! bundle.
//!
//! A pruned bundle says in its manifest which graph each evaluation runs, and graphs say by the
//! names of their inputs and outputs what they take from earlier evaluations and leave for later
//! ones; or its whole sampler is one graph. Such values never leave the device that computed them.
//! Knows nothing of files of images.

mod autoencoder;
mod choice;
mod feeds;
mod memory;
mod ports;
mod prompt;
mod prompt_reader;
mod prompt_tensors;
mod prompt_tokenizer;
mod tensors;
mod unrolled;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use dlc_ir::{Diffusion, Evaluation, Sampling};
use dlc_methods::diffusion::SamplingPlan;

pub use self::autoencoder::{ImageDecoder, ImageEncoder};
pub use self::choice::{SamplerChoice, SamplerWishes, choose_sampler};
pub use self::feeds::Conditions;
pub use self::prompt::PromptEncoder;
pub use self::prompt_reader::{EncodedPrompt, Negative, PromptReader, TextStates};
pub use self::prompt_tensors::{TextState, TextTokens};
pub use self::prompt_tokenizer::{PromptTokenizer, PromptTokens};
pub use self::tensors::{FloatTensor, read_tensors};
use dlc_methods::diffusion::{OutputLayout, SamplerState, noise};

use self::feeds::Feeds;
use self::memory::Memory;
use self::ports::StepPorts;
use super::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
};

const TARGET: &str = "target";

/// A diffusion model's bundle, whose graphs are loaded as they are needed.
#[derive(Debug)]
pub struct DiffusionSession {
    backend: Backend,
    bundle: Bundle,
    weights: Option<Arc<SharedWeights>>,
    options: SessionOptions,
    model: Diffusion,
    /// The graphs that are loaded, by name.
    steps: BTreeMap<String, Step>,
}

#[derive(Debug)]
struct Step {
    session: Session,
    ports: StepPorts,
}

/// The images that are asked for.
#[derive(Debug, Clone)]
pub struct SampleRequest<'a> {
    /// The sampler.
    pub plan: &'a SamplingPlan,
    /// The strength of classifier-free guidance; 1 is none, and half the work.
    pub guidance: f64,
    /// One for each image: the seed of the [`noise`] that it starts from, and of the noise that the
    /// sampler draws at every step, if it does.
    pub seeds: &'a [u64],
    /// Noise of unit variance that the images start from instead, row-major; none for that of the
    /// seeds.
    pub noise: Option<&'a [f32]>,
    /// Latents of a picture, row-major, that all images start from beside the noise, where the plan
    /// [has it so](SamplingPlan::image_scale).
    pub image: Option<&'a [f32]>,
    /// What each image should show; none for models that take no class.
    pub classes: &'a [usize],
    /// Height and width of the images, in entries of the sampler's numbers; none for the model's
    /// own.
    pub size: Option<[usize; 2]>,
    /// What else the images are conditioned on.
    pub conditions: Option<&'a Conditions>,
    /// Whether to run the graphs of the manifest's schedule, where there is one, instead of the
    /// whole model.
    pub prune: bool,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct SampleProgress<'s> {
    /// Evaluations that were made.
    pub done: usize,
    /// Evaluations of the whole run.
    pub total: usize,
    /// What the network is given next, the latents with the noise that they still have, scaled to
    /// the size that it takes, row-major; empty where the whole run is one graph.
    pub input: &'s [f32],
    /// Images, channels, height, width.
    pub shape: [usize; 4],
}

impl SampleRequest<'_> {
    fn is_guided(&self) -> bool {
        is_guided(self.guidance)
    }
}

/// Whether guidance of this strength changes anything.
fn is_guided(guidance: f64) -> bool {
    guidance.to_bits() != Diffusion::NO_GUIDANCE.to_bits()
}

/// Images as the sampler leaves them: pixels or latents, mostly within -1 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Images, channels, height, width.
    pub shape: [usize; 4],
    /// Row-major.
    pub data: Vec<f32>,
}

impl Samples {
    /// The images one by one.
    pub fn images(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data
            .chunks_exact(self.shape[1..].iter().product::<usize>().max(1))
    }
}

impl DiffusionSession {
    /// Opens a bundle; loads no graph yet.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a bundle that makes no images, [`RuntimeError::Unsupported`] for
    /// one that the backend can't run.
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        let record = &bundle.manifest().model;
        let Some(model) = record.diffusion.clone() else {
            return Err(RuntimeError::Input(format!(
                "the bundle is a {} for {}, which makes no images",
                record.family,
                record.task.name()
            )));
        };
        backend.check(bundle.manifest(), options.provider)?;
        let (backend, bundle, weights, options) = (
            backend.clone(),
            bundle.clone(),
            weights.cloned(),
            options.clone(),
        );
        Ok(Self {
            backend,
            bundle,
            weights,
            options,
            model,
            steps: BTreeMap::new(),
        })
    }

    /// Loads the graphs that sampling needs; [`sample`](Self::sample) does so itself.
    ///
    /// # Errors
    /// [`RuntimeError::Port`] for a boundary that isn't a denoiser's; else as [`Session::load`].
    pub fn load(&mut self, prune: bool) -> Result<()> {
        let graphs = match self.schedule(prune) {
            None => vec![TARGET.to_owned()],
            Some(Sampling {
                unrolled: Some(graph),
                ..
            }) => vec![graph.clone()],
            Some(sampling) => sampling
                .evaluations
                .iter()
                .map(|e| e.graph.clone())
                .collect(),
        };
        let loaded = self.steps.len();
        for name in graphs {
            if self.steps.contains_key(&name) {
                continue;
            }
            let ports = StepPorts::read(self.bundle.graph(&name)?)?;
            let session = Session::load(
                &self.backend,
                &self.bundle,
                &name,
                self.weights.as_ref(),
                &self.options,
            )?;
            self.steps.insert(name, Step { session, ports });
        }
        if let Some(weights) = self.weights.as_ref().filter(|_| self.steps.len() > loaded) {
            weights.release_pages();
        }
        Ok(())
    }

    /// The pruned sampler, where there is one.
    fn schedule(&self, prune: bool) -> Option<&Sampling> {
        self.bundle.manifest().sampling.as_ref().filter(|_| prune)
    }

    /// Makes all images of the request as one batch. Calls `progress` before each evaluation; none
    /// if it breaks.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a request that doesn't fit the model or the schedule, and what
    /// the backend says.
    pub fn sample(
        &mut self,
        request: &SampleRequest<'_>,
        progress: &mut dyn FnMut(&SampleProgress<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Samples>> {
        let (sampling, total) = (
            self.schedule(request.prune).cloned(),
            request.plan.steps.len(),
        );
        if let Some(scheduled) = sampling
            .as_ref()
            .map(|s| s.schedule.steps.len())
            .filter(|scheduled| *scheduled != total)
        {
            return Err(RuntimeError::Input(format!(
                "the bundle is pruned for {scheduled} evaluations, and the sampler makes {total}: take its own steps and scheduler, or `--no-prune`"
            )));
        }
        self.load(request.prune)?;
        if let Some(sampling) = &sampling {
            unrolled::check(sampling, request)?;
        }
        let feeds = Feeds::new(request, &self.model)?;
        let Diffusion {
            channels,
            out_channels,
            ..
        } = self.model;
        let [height, width] = feeds.size();
        let image = channels * height * width;
        let shape = [request.seeds.len(), channels, height, width];
        let start = start(request, image)?;
        if let Some(graph) = sampling
            .as_ref()
            .and_then(|sampling| sampling.unrolled.as_deref())
        {
            let data = self.sample_unrolled(graph, &feeds, &start, shape, progress)?;
            return Ok(data.map(|data| Samples { shape, data }));
        }
        let whole = || {
            vec![
                Evaluation {
                    graph: TARGET.to_owned(),
                    forecast: vec![]
                };
                total
            ]
        };
        let evaluations = sampling.map_or_else(whole, |sampling| sampling.evaluations);
        let layout = OutputLayout {
            channels: out_channels,
            latent_channels: channels,
            plane: height * width,
        };
        let mut state = match request.image {
            None => SamplerState::new(request.plan, &start)?,
            Some(image) => {
                SamplerState::of_image(request.plan, &start, &image.repeat(request.seeds.len()))?
            }
        };
        let mut memory = Memory::new(
            evaluations
                .iter()
                .filter_map(|Evaluation { graph, .. }| Some(&self.steps.get(graph)?.ports)),
        );
        let mut input = vec![0.0; start.len()];
        for (done, Evaluation { graph, forecast }) in evaluations.iter().enumerate() {
            let Some(timestep) = state.model_input(&mut input)? else {
                break;
            };
            let now = SampleProgress {
                done,
                total,
                input: &input,
                shape,
            };
            if progress(&now).is_break() {
                return Ok(None);
            }
            let step = self
                .steps
                .get_mut(graph)
                .ok_or_else(|| RuntimeError::Bug(format!("graph `{graph}` isn't loaded")))?;
            let inputs = feeds.inputs(&step.ports, &input, timestep, forecast, &memory)?;
            let mut found = step.run(inputs, &mut memory)?;
            let guided = guide(&mut found, request, layout)?;
            if !guided.iter().all(|x| x.is_finite()) {
                let problem = format!(
                    "isn't finite at evaluation {done}: the model or its weights are broken (check with `dlc verify`)"
                );
                return Err(RuntimeError::port(graph, step.ports.output, problem));
            }
            let noise = state.fresh_noise(request.seeds);
            state.advance(guided, noise.as_deref())?;
        }
        Ok(Some(Samples {
            shape,
            data: state.latents().to_vec(),
        }))
    }
}

/// What the images start from, `numbers` each.
fn start(request: &SampleRequest<'_>, numbers: usize) -> Result<Vec<f32>> {
    let Some(given) = request.noise else {
        let of_seeds = request.seeds.iter();
        return Ok(of_seeds.flat_map(|&seed| noise(seed, numbers)).collect());
    };
    let wanted = request.seeds.len() * numbers;
    if given.len() == wanted && given.iter().all(|x| x.is_finite()) {
        return Ok(given.to_vec());
    }
    Err(RuntimeError::Input(format!(
        "the noise has {} numbers, and the images {wanted}: give {numbers} finite ones for each image",
        given.len()
    )))
}

impl Step {
    /// The network's output in host memory; what later evaluations look back at goes to `memory`.
    fn run(
        &mut self,
        inputs: Vec<(
            std::borrow::Cow<'_, str>,
            ort::session::SessionInputValue<'_>,
        )>,
        memory: &mut Memory,
    ) -> Result<Vec<f32>> {
        let kept: Vec<&str> = self
            .ports
            .remembered
            .iter()
            .map(|(_, name)| name.as_str())
            .collect();
        let (value, remembered) = self.session.run_keeping(inputs, self.ports.output, &kept)?;
        for ((block, _), value) in self.ports.remembered.iter().zip(remembered) {
            memory.remember(block, value);
        }
        let fail =
            |problem: String| RuntimeError::port(&self.ports.graph, self.ports.output, problem);
        HostTensor::from_value(&value)
            .map_err(fail)?
            .to_f32()
            .ok_or_else(|| fail("holds integers".to_owned()))
    }
}

/// What the sampler takes: the guided output, without a learned variance.
fn guide<'o>(
    found: &'o mut [f32],
    request: &SampleRequest<'_>,
    layout: OutputLayout,
) -> Result<&'o [f32]> {
    if !request.is_guided() {
        return Ok(layout.without_variance(found)?);
    }
    let (with, without) = found.split_at_mut(found.len() / 2);
    layout.guide(with, without, request.guidance as f32)?;
    Ok(layout.without_variance(with)?)
}
