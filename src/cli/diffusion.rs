//! What commands that sample images share: flags, the model, batches.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use dlc_methods::diffusion::{DenoiserInput, SamplingPlan};
use dlc_runtime::{
    Backend, Bundle, Conditions, DiffusionSession, ImageDecoder, ImageEncoder, Negative,
    PromptEncoder, SampleProgress, SampleRequest, SamplerChoice, SamplerWishes, Samples,
    SessionOptions, SharedWeights, choose_sampler,
};

use super::backend::BackendArgs;
use super::failure::{Result, bail};
use super::output::note;
use super::phases;
use super::progress::Bar;

/// Flags of a sampler.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SamplerArgs {
    /// Steps of the sampler [default: those that the bundle is pruned for, else 50, with lcm 4]
    #[arg(long, value_name = "N", help_heading = "Sampler")]
    steps: Option<usize>,
    /// The scheduler: ddim, pndm, euler, heun, lms, dpm-solver++, deis, unipc, ddpm,
    /// euler-ancestral, lcm or flow-match-euler [default: the bundle's]
    #[arg(long, value_name = "NAME", help_heading = "Sampler")]
    scheduler: Option<String>,
    /// Strength of classifier-free guidance; 1 is none [default: what the bundle is pruned for,
    /// else 7.5 for models of texts, 1.5 for models of classes]
    #[arg(long, value_name = "G", help_heading = "Sampler")]
    guidance: Option<f64>,
    /// Seed of the first image's noise; each further one has the next seed [default: 0]
    #[arg(long, value_name = "S", help_heading = "Sampler")]
    pub seed: Option<u64>,
    /// Images that are computed together: more take less time and more memory
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Sampler")]
    pub batch: u16,
    /// What the images are conditioned on beside a class: a .safetensors file with the graph's
    /// inputs, such as `encoder_hidden_states`, and `negative_...` for guidance
    #[arg(long, value_name = "FILE", help_heading = "Sampler")]
    embeddings: Option<PathBuf>,
}

/// The images of one command.
#[derive(Debug)]
pub(super) struct Wanted {
    pub seeds: Vec<u64>,
    /// What they start from instead of their seeds' noise.
    pub noise: Option<Vec<f32>>,
    /// Latents of the picture that all start from.
    pub image: Option<Vec<f32>>,
    /// One for each image, or none.
    pub classes: Vec<usize>,
    pub conditions: Option<Conditions>,
    /// Height and width; none for the model's own.
    pub size: Option<[usize; 2]>,
    pub batch: usize,
}

/// A diffusion model's bundle on a backend.
#[derive(Debug)]
pub(super) struct DiffusionModel {
    pub bundle: Bundle,
    pub backend: Backend,
    options: SessionOptions,
}

impl SamplerArgs {
    /// The sampler for `bundle`; `strength` is the share of the steps that are taken from a picture.
    pub fn choose(
        &self,
        bundle: &Bundle,
        no_prune: bool,
        strength: Option<f64>,
    ) -> Result<SamplerChoice> {
        let wishes = SamplerWishes {
            steps: self.steps,
            scheduler: self.scheduler.clone(),
            guidance: self.guidance,
            no_prune,
            strength,
        };
        Ok(choose_sampler(bundle, &wishes)?)
    }

    /// `count` images of each of the classes; without any, `count` images, of the model's classes
    /// in turn.
    pub fn wanted(&self, bundle: &Bundle, classes: &[usize], count: usize) -> Result<Wanted> {
        let classes: Vec<usize> = match (
            classes,
            bundle
                .manifest()
                .model
                .diffusion
                .as_ref()
                .and_then(|model| model.classes),
        ) {
            ([], Some(known)) => (0..count)
                .filter_map(|image| image.checked_rem(known.count))
                .collect(),
            (given, _) => given
                .iter()
                .flat_map(|class| std::iter::repeat_n(*class, count))
                .collect(),
        };
        let images = classes.len().max(count);
        let seeds = (0..images as u64)
            .map(|image| self.seed.unwrap_or(0).wrapping_add(image))
            .collect();
        let conditions = self
            .embeddings
            .as_deref()
            .map(Conditions::read)
            .transpose()?;
        if conditions.is_some() && !takes_conditions(bundle)? {
            bail!(
                "the model is conditioned on nothing but a class, so --embeddings has no effect; leave it out"
            );
        }
        Ok(Wanted {
            seeds,
            noise: None,
            image: None,
            classes,
            conditions,
            size: None,
            batch: usize::from(self.batch),
        })
    }
}

/// Whether the model takes more than images, their noise levels and classes.
fn takes_conditions(bundle: &Bundle) -> Result<bool> {
    let inputs = &bundle.graph("target")?.inputs;
    Ok(inputs
        .iter()
        .any(|port| DenoiserInput::of(&port.name) == DenoiserInput::Conditioning))
}

impl Wanted {
    /// Its first batch.
    pub fn first_batch(&self) -> Result<Self> {
        let images = self.seeds.len();
        let range = 0..images.min(self.batch);
        let conditions = self
            .conditions
            .as_ref()
            .map(|conditions| conditions.of(range.clone(), images))
            .transpose()?;
        let classes = self.classes.get(range.clone()).unwrap_or_default().to_vec();
        Ok(Self {
            noise: self.noise_of(&range).map(<[f32]>::to_vec),
            image: self.image.clone(),
            seeds: self.seeds[range].to_vec(),
            classes,
            conditions,
            size: self.size,
            batch: self.batch,
        })
    }

    /// What some of the images start from, if that is given.
    fn noise_of(&self, images: &Range<usize>) -> Option<&[f32]> {
        let noise = self.noise.as_ref()?;
        let numbers = noise.len() / self.seeds.len().max(1);
        noise.get(images.start * numbers..images.end * numbers)
    }

    fn batches(&self) -> impl Iterator<Item = Range<usize>> {
        let images = self.seeds.len();
        (0..images)
            .step_by(self.batch)
            .map(move |from| from..images.min(from + self.batch))
    }
}

impl DiffusionModel {
    pub fn open(bundle: Bundle, backend: &BackendArgs) -> Result<Self> {
        Ok(Self {
            bundle,
            options: backend.session(),
            backend: backend.start()?,
        })
    }

    /// A session without graphs yet, on its own view of the weights.
    pub fn session(&self) -> Result<DiffusionSession> {
        let (backend, bundle, weights) = (&self.backend, &self.bundle, self.weights()?);
        let session = DiffusionSession::open(backend, bundle, weights.as_ref(), &self.options);
        Ok(session?)
    }

    /// What images of each prompt are conditioned on, by the bundle's text encoder; the first has
    /// what they are led away from too. `size` is height and width of what the sampler leaves.
    /// Notes what is cut off.
    pub fn conditions(
        &self,
        prompts: &[String],
        negative: Negative<'_>,
        size: Option<[usize; 2]>,
    ) -> Result<Vec<Conditions>> {
        phases::begin("encoding the prompts");
        let encoded = self.prompt_encoder()?.encode(prompts, negative, size)?;
        for text in encoded.iter().flat_map(|prompt| &prompt.notes) {
            note(text)?;
        }
        Ok(encoded
            .into_iter()
            .map(|prompt| prompt.conditions)
            .collect())
    }

    /// The bundle's text encoder, on its own view of the weights.
    pub fn prompt_encoder(&self) -> Result<PromptEncoder> {
        let (backend, bundle, weights) = (&self.backend, &self.bundle, self.weights()?);
        let encoder = PromptEncoder::open(backend, bundle, weights.as_ref(), &self.options);
        Ok(encoder?)
    }

    /// The bundle's decoder of latents, likewise, if there is one.
    pub fn image_decoder(&self) -> Result<Option<ImageDecoder>> {
        let (backend, bundle, weights) = (&self.backend, &self.bundle, self.weights()?);
        let decoder = ImageDecoder::open(backend, bundle, weights.as_ref(), &self.options);
        Ok(decoder?)
    }

    /// The bundle's encoder of pictures, likewise.
    pub fn image_encoder(&self) -> Result<ImageEncoder> {
        let (backend, bundle, weights) = (&self.backend, &self.bundle, self.weights()?);
        let encoder = ImageEncoder::open(backend, bundle, weights.as_ref(), &self.options);
        Ok(encoder?)
    }

    fn weights(&self) -> Result<Option<Arc<SharedWeights>>> {
        Ok(SharedWeights::open(&self.bundle, &self.backend)?)
    }
}

/// Shows how far sampling is, and breaks after Ctrl-C.
pub(super) fn show_sampling(bar: &Bar, run: &SampleProgress<'_>) -> ControlFlow<()> {
    advance(bar, "sampling", run.done, run.total)
}

/// Shows how much is done, and breaks after Ctrl-C.
fn advance(bar: &Bar, what: &str, done: usize, total: usize) -> ControlFlow<()> {
    dlc_passes::Progress::update(bar, what, done, total);
    if dlc_passes::Progress::interrupted(bar) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// The pictures of latents; none if Ctrl-C came between two of them.
pub(super) fn decode(
    decoder: &mut ImageDecoder,
    latents: &Samples,
    bar: &Bar,
) -> Result<Option<Samples>> {
    let mut progress = |done: usize, total: usize| advance(bar, "decoding", done, total);
    Ok(decoder.decode(latents, &mut progress)?)
}

/// Samples all images, in batches; none if Ctrl-C came between two steps.
pub(super) fn sample(
    session: &mut DiffusionSession,
    wanted: &Wanted,
    plan: &SamplingPlan,
    guidance: f64,
    prune: bool,
    watch: &mut dyn FnMut(&SampleProgress<'_>) -> ControlFlow<()>,
) -> Result<Option<Samples>> {
    let mut all: Option<Samples> = None;
    let images = wanted.seeds.len();
    let batches: Vec<Range<usize>> = wanted.batches().collect();
    for (number, range) in batches.iter().enumerate() {
        let conditions = wanted
            .conditions
            .as_ref()
            .map(|conditions| conditions.of(range.clone(), images))
            .transpose()?;
        let request = SampleRequest {
            plan,
            guidance,
            seeds: &wanted.seeds[range.clone()],
            noise: wanted.noise_of(range),
            image: wanted.image.as_deref(),
            classes: wanted.classes.get(range.clone()).unwrap_or_default(),
            size: wanted.size,
            conditions: conditions.as_ref(),
            prune,
        };
        let mut progress = |run: &SampleProgress<'_>| {
            watch(&SampleProgress {
                done: number * run.total + run.done,
                total: batches.len() * run.total,
                ..*run
            })
        };
        let Some(samples) = session.sample(&request, &mut progress)? else {
            return Ok(None);
        };
        match &mut all {
            None => all = Some(samples),
            Some(all) => {
                all.shape[0] += samples.shape[0];
                all.data.extend(samples.data);
            }
        }
    }
    Ok(all)
}
