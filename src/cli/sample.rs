//! `dlc sample`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_methods::diffusion::inputs;
use dlc_runtime::{Bundle, Conditions, Negative, SamplerChoice, Samples, read_tensors};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::json;

use super::backend::BackendArgs;
use super::destination::{self, Destination, check_stdout};
use super::diffusion::{DiffusionModel, SamplerArgs, Wanted, decode, sample};
use super::exit::INTERRUPTED;
use super::failure::{Context, Failure, Result, bail};
use super::output::{Output, note};
use super::progress::Bar;
use super::{open, phases};
use crate::report::{Layout, Picture};

/// The tensor of what a sampler leaves, and of what it starts from.
const LATENTS: &str = "latents";
/// The most images of one command.
const MOST_IMAGES: usize = 1 << 16;

/// Sample images from a diffusion model's bundle
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc sample out/ --class 3 -o three.png
  dlc sample out/ --count 10 --seed 7 -o grid.png
  dlc sample out/ --prompt \"a sneaker\" --negative-prompt \"a boot\" --guidance 3 -o sneaker.png
  dlc sample out/ --class 1,2,3 --count 4 --no-prune --steps 20 --scheduler dpm-solver++ -o grid.png")]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// The PNG to write: one image, or a grid; a file that stands there is replaced, and `-` is
    /// stdout
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// What the images should show, for a bundle of a whole pipeline
    #[arg(long, value_name = "TEXT", conflicts_with = "embeddings")]
    prompt: Option<String>,
    /// What guidance leads the images away from [default: the empty text, or none where the pipeline
    /// has it so]
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    negative_prompt: Option<String>,
    /// Classes that the images should show [default: the model's, in turn]
    #[arg(long = "class", value_name = "K[,K..]", value_delimiter = ',')]
    classes: Vec<usize>,
    /// Images; with --class, of each class
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Run the whole model at every step
    #[arg(long)]
    no_prune: bool,
    /// Height of the images, in entries of what the sampler leaves: of Stable Diffusion's latents
    /// an eighth of the picture's. U-Nets take other sizes than their own [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    height: Option<u16>,
    /// Width of the images, likewise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    width: Option<u16>,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Noise that the images start from, tensor `latents` of a .safetensors file, as diffusers
    /// takes it under this name
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    noise: Option<PathBuf>,
    /// Write the numbers that the sampler leaves too, as tensor `latents` of a .safetensors file,
    /// or to stdout (`-`)
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Pixels that each pixel becomes, in both directions [default: so many that the short side has
    /// 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    scale: Option<u8>,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let picture = Destination::check(&args.output, &["png"])?;
    let latents = args
        .latents
        .as_deref()
        .map(|path| Destination::check(path, &["safetensors"]))
        .transpose()?;
    check_stdout(
        &[&picture].into_iter().chain(&latents).collect::<Vec<_>>(),
        args.json,
    )?;
    let bundle = open::bundle(&args.bundle)?;
    let choice = args.sampler.choose(&bundle, args.no_prune)?;
    let count = usize::from(args.count);
    if args.classes.len().max(1) * count > MOST_IMAGES {
        bail!(
            "{} classes of {count} images each are more than the {MOST_IMAGES} images of one command",
            args.classes.len()
        );
    }
    args.check_negative(&choice)?;
    let mut wanted = Wanted {
        size: args.size(&bundle),
        ..args.sampler.wanted(&bundle, &args.classes, count)?
    };
    wanted.noise = args.noise(&bundle, &wanted)?;
    let start = Instant::now();
    phases::begin("loading the model");
    let model = DiffusionModel::open(bundle, &args.backend)?;
    if let Some(text) = &choice.note {
        note(text)?;
    }
    if let Some(prompt) = &args.prompt {
        wanted.conditions = Some(args.encode(&model, prompt, &choice, wanted.size)?);
    }
    let Some((samples, pictures)) = make(&model, &wanted, &choice)? else {
        return Ok(INTERRUPTED.into());
    };
    let seconds = start.elapsed().as_secs_f64();
    let shown = pictures.as_ref().unwrap_or(&samples);
    let [_, _, height, width] = shown.shape;
    write(args, &wanted, [&samples, shown], &picture, latents.as_ref())?;
    let evaluations = choice.plan.steps.len();
    let macs = model
        .bundle
        .manifest()
        .sampling
        .as_ref()
        .filter(|_| choice.prune)
        .map_or(1.0, |sampling| sampling.macs);
    let images = wanted.seeds.len();
    note(&format!(
        "{images} image{} in {seconds:.1} s: {} with {} steps, guidance {}, {evaluations} evaluations, {:.0}% of the whole model's multiply-adds",
        if images == 1 { "" } else { "s" },
        choice.scheduler,
        choice.steps,
        choice.guidance,
        100.0 * macs
    ))?;
    if !picture.is_stdout() && !latents.is_some_and(|latents| latents.is_stdout()) {
        output.result(&args.output.display().to_string())?;
    }
    output.json(&json!({
        "output": args.output, "latents": args.latents, "prompt": args.prompt, "negative_prompt": args.negative_prompt, "height": height, "width": width, "seeds": wanted.seeds, "classes": wanted.classes, "seconds": seconds,
        "scheduler": choice.scheduler, "steps": choice.steps, "guidance": choice.guidance, "pruned": choice.prune,
        "evaluations": evaluations, "macs": macs, "backend": model.backend.kind().name(),
    }))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Height and width, if one of them is asked for.
    fn size(&self, bundle: &Bundle) -> Option<[usize; 2]> {
        let model = bundle.manifest().model.diffusion.as_ref()?;
        let side = |wanted: Option<u16>, own: usize| wanted.map_or(own, usize::from);
        let size = [
            side(self.height, model.height),
            side(self.width, model.width),
        ];
        self.height.or(self.width).map(|_| size)
    }

    fn check_negative(&self, choice: &SamplerChoice) -> Result<()> {
        if self.negative_prompt.is_some() && !choice.is_guided() {
            bail!(
                "--negative-prompt has no effect without guidance: give --guidance, or leave it out"
            );
        }
        Ok(())
    }

    /// The hidden states of the prompt, and of the negative one if there is guidance.
    fn encode(
        &self,
        model: &DiffusionModel,
        prompt: &str,
        choice: &SamplerChoice,
        size: Option<[usize; 2]>,
    ) -> Result<Conditions> {
        phases::begin("encoding the prompt");
        let negative = match &self.negative_prompt {
            _ if !choice.is_guided() => Negative::None,
            None => Negative::Usual,
            Some(text) => Negative::Text(text),
        };
        let encoded = model.prompt_encoder()?.encode(prompt, negative, size)?;
        for text in &encoded.notes {
            note(text)?;
        }
        Ok(encoded.conditions)
    }

    /// What the images start from, if that is in a file.
    fn noise(&self, bundle: &Bundle, wanted: &Wanted) -> Result<Option<Vec<f32>>> {
        let Some(path) = &self.noise else {
            return Ok(None);
        };
        let mut tensors = read_tensors(path)?;
        let Some(noise) = tensors.remove(LATENTS) else {
            bail!("{} holds no tensor `{LATENTS}`", path.display());
        };
        let model = bundle.manifest().model.diffusion.as_ref();
        let own = model.map_or([0; 3], |m| [m.channels, m.height, m.width]);
        let [height, width] = wanted.size.unwrap_or([own[1], own[2]]);
        let shape = [wanted.seeds.len(), own[0], height, width];
        if noise.shape != shape {
            bail!(
                "{}: `{LATENTS}` has the shape {:?}, and the images start from {shape:?}: see --count, --height and --width",
                path.display(),
                noise.shape
            );
        }
        Ok(Some(noise.data))
    }
}

/// What the sampler leaves, and the pictures of it where the bundle has a decoder; none after
/// Ctrl-C.
fn make(
    model: &DiffusionModel,
    wanted: &Wanted,
    choice: &SamplerChoice,
) -> Result<Option<(Samples, Option<Samples>)>> {
    let bar = Bar::new();
    phases::begin("sampling");
    let (plan, guidance) = (&choice.plan, choice.guidance);
    let mut session = model.session()?;
    let samples = sample(&mut session, wanted, plan, guidance, choice.prune, &bar)?;
    drop(session);
    let Some(samples) = samples else {
        return Ok(None);
    };
    let pictures = match model.image_decoder()? {
        Some(mut decoder) => {
            phases::begin("decoding");
            match decode(&mut decoder, &samples, &bar)? {
                None => return Ok(None),
                pictures => pictures,
            }
        }
        None => None,
    };
    bar.finish();
    Ok(Some((samples, pictures)))
}

/// Writes the picture and, if asked for, the latents: both or none.
fn write(
    args: &Args,
    wanted: &Wanted,
    [samples, shown]: [&Samples; 2],
    to: &Destination,
    latents_to: Option<&Destination>,
) -> Result<()> {
    let [images, channels, height, width] = shown.shape;
    if channels > 3 {
        note(
            "the bundle has no decoder for latents: the picture shows their first three channels; --latents FILE keeps all",
        )?;
    }
    // Each class has a row of its own, if there are several images of several classes.
    let columns =
        Some(usize::from(args.count)).filter(|count| *count > 1 && args.classes.len() > 1);
    let layout = Layout::new(
        images,
        columns,
        [height, width],
        args.scale.map(usize::from),
    );
    let picture = Picture::grid(shown.images(), [channels, height, width], layout)
        .and_then(|picture| picture.to_png());
    let picture = picture.context(
        "the picture would be too large: ask for fewer images, or for a smaller --scale",
    )?;
    let mut files = vec![(to, picture)];
    if let Some(to) = latents_to {
        files.push((to, latents(wanted, samples)?));
    }
    destination::write(&files)
}

fn latents(wanted: &Wanted, samples: &Samples) -> Result<Vec<u8>> {
    let data: Vec<u8> = samples.data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let classes: Vec<u8> = wanted
        .classes
        .iter()
        .flat_map(|class| (*class as i64).to_le_bytes())
        .collect();
    let mut tensors = vec![(
        LATENTS,
        TensorView::new(Dtype::F32, samples.shape.to_vec(), &data).map_err(Failure::bug)?,
    )];
    if !wanted.classes.is_empty() {
        tensors.push((
            inputs::CLASS_LABELS,
            TensorView::new(Dtype::I64, vec![wanted.classes.len()], &classes)
                .map_err(Failure::bug)?,
        ));
    }
    serialize(tensors, None).map_err(Failure::bug)
}
