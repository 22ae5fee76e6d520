//! `dlc sample`.

mod init_image;
mod picture_file;
mod previews;
mod resample;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_bundle::{MANIFEST_CAP, MANIFEST_FILE};
use dlc_files::read_document;
use dlc_methods::diffusion::inputs;
use dlc_runtime::{
    Bundle, Conditions, ImageDecoder, Negative, SampleProgress, SamplerChoice, Samples,
    read_tensors,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::backend::BackendArgs;
use super::destination::{self, Destination, check_stdout};
use super::diffusion::{DiffusionModel, SamplerArgs, Wanted, decode, sample, show_sampling};
use super::exit::INTERRUPTED;
use super::failure::{Context, Failure, Result, bail};
use super::output::{Output, note, show};
use super::progress::Bar;
use super::{open, phases, prompts};
use crate::report::{Layout, Picture};
use init_image::InitImageArgs;
use previews::Previews;

/// The tensor of what a sampler leaves, and of what it starts from.
const LATENTS: &str = "latents";
/// The keyword of what is said of a picture in its file.
const PARAMETERS: &str = "parameters";
/// Characters in a line of a picture in the terminal.
const TERMINAL_COLUMNS: usize = 64;
/// The most images of one command.
const MOST_IMAGES: usize = 1 << 16;

/// Sample images from a diffusion model's bundle
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc sample out/ --class 3 -o three.png
  dlc sample out/ --count 10 --seed 7 -o grid.png
  dlc sample out/ --prompt \"a sneaker\" --negative-prompt \"a boot\" --guidance 3 -o sneaker.png
  dlc sample out/ --prompts prompts.txt --count 4 -o grid.png
  dlc sample out/ --prompt \"a boot\" --init-image shoe.jpg --strength 0.6 -o boot.png
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
    /// Prompts, one a line, or for .jsonl one {"prompt": ...} a line; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "embeddings"])]
    prompts: Option<PathBuf>,
    /// What guidance leads the images away from [default: the empty text, or none where the pipeline
    /// has it so]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Classes that the images should show [default: the model's, in turn]
    #[arg(long = "class", value_name = "K[,K..]", value_delimiter = ',')]
    classes: Vec<usize>,
    /// Images; with --class, of each class, with --prompts, of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Run the whole model at every step
    #[arg(long)]
    no_prune: bool,
    /// Height of the images in pixels; for latents without a decoder, in entries of what the
    /// sampler leaves. U-Nets take other sizes than their own [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    height: Option<u16>,
    /// Width of the images, likewise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    width: Option<u16>,
    #[command(flatten)]
    init_image: InitImageArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Noise that the images start from, tensor `latents` of a .safetensors file, as diffusers
    /// takes it under this name; schedulers that draw noise at every step draw that of --seed
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Write the numbers that the sampler leaves too, as tensor `latents` of a .safetensors file,
    /// or to stdout (`-`)
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Pixels that each pixel becomes, in both directions [default: so many that the short side has
    /// 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    scale: Option<u8>,
    /// Show the picture in the terminal too, in 24-bit colours
    #[arg(long, conflicts_with = "json")]
    show: bool,
    /// Show the first picture in the terminal after every N evaluations too, with the noise that it
    /// still has
    #[arg(long, value_name = "N", conflicts_with = "json", value_parser = clap::value_parser!(u16).range(1..))]
    preview: Option<u16>,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let picture = Destination::check(&args.output, &["png"])?;
    let latents = args
        .latents
        .as_deref()
        .map(|path| Destination::check(path, &["safetensors"]))
        .transpose()?;
    let destinations: Vec<&Destination> = [&picture].into_iter().chain(&latents).collect();
    check_stdout(&destinations, args.json)?;
    let bundle = open::bundle(&args.bundle)?;
    let strength = args.init_image.strength();
    let choice = args.sampler.choose(&bundle, args.no_prune, strength)?;
    let (prompts, mut wanted) = args.order(&bundle, &choice)?;
    let init_image = args.init_image.read(&bundle, wanted.size)?;
    let start = Instant::now();
    phases::begin("loading the model");
    let model = DiffusionModel::open(bundle, &args.backend)?;
    if let Some(text) = &choice.note {
        note(text)?;
    }
    if !prompts.is_empty() {
        wanted.conditions = Some(args.encode(&model, &prompts, &choice, wanted.size)?);
    }
    let start_image = init_image.map(|image| image.encode(&model));
    wanted.image = start_image.transpose()?;
    let Some((samples, pictures)) = make(&model, &wanted, &choice, args.preview)? else {
        return Ok(INTERRUPTED.into());
    };
    let seconds = start.elapsed().as_secs_f64();
    let shown = pictures.as_ref().unwrap_or(&samples);
    let size = [shown.shape[2], shown.shape[3]];
    let about = about(args, &model, &choice, (&prompts, &wanted), size)?;
    let (grid, png) = args.picture(shown, prompts.len(), &about)?;
    let mut files = vec![(&picture, png)];
    if let Some(to) = &latents {
        files.push((to, tensors(&wanted, &samples)?));
    }
    destination::write(&files)?;
    if args.show && !show(&grid.to_half_blocks(TERMINAL_COLUMNS))? {
        note("stdout is no terminal: the picture isn't shown")?;
    }
    let names_file = !destinations.iter().any(|to| to.is_stdout());
    let made = Made {
        wanted: &wanted,
        prompts: &prompts,
        size,
        seconds,
        names_file,
    };
    report(args, &model, &choice, &made)?;
    Ok(ExitCode::SUCCESS)
}

/// What was made, for the report.
struct Made<'m> {
    wanted: &'m Wanted,
    prompts: &'m [String],
    /// Height and width of a picture.
    size: [usize; 2],
    seconds: f64,
    /// Whether stdout is free for the name of the file.
    names_file: bool,
}

fn report(
    args: &Args,
    model: &DiffusionModel,
    choice: &SamplerChoice,
    made: &Made<'_>,
) -> Result<()> {
    let output = Output::new(args.json);
    let evaluations = choice.plan.steps.len();
    let sampling = model.bundle.manifest().sampling.as_ref();
    let sampling = sampling.filter(|_| choice.prune);
    let macs = sampling.map_or(1.0, |sampling| sampling.macs);
    let Made {
        wanted,
        seconds,
        size: [height, width],
        ..
    } = made;
    let images = wanted.seeds.len();
    note(&format!(
        "{images} image{} in {seconds:.1} s: {} with {} steps, guidance {}, {evaluations} evaluations, {:.0}% of the whole model's multiply-adds",
        if images == 1 { "" } else { "s" },
        choice.scheduler,
        choice.steps,
        choice.guidance,
        100.0 * macs
    ))?;
    if made.names_file {
        output.result(&args.output.display().to_string())?;
    }
    output.json(&json!({
        "output": args.output, "latents": args.latents, "prompt": args.prompt,
        "prompts": args.prompts.is_some().then_some(made.prompts), "negative_prompt": args.negative_prompt,
        "init_image": args.init_image.path(), "strength": args.init_image.strength(),
        "height": height, "width": width, "seeds": wanted.seeds, "classes": wanted.classes, "seconds": seconds,
        "scheduler": choice.scheduler, "steps": choice.steps, "guidance": choice.guidance, "pruned": choice.prune,
        "evaluations": evaluations, "whole_evaluations": choice.whole_plan.steps.len(), "macs": macs, "backend": model.backend.kind().name(),
    }))
}

impl Args {
    /// The prompts, and the images that are asked for.
    fn order(&self, bundle: &Bundle, choice: &SamplerChoice) -> Result<(Vec<String>, Wanted)> {
        let prompts = self.all_prompts(choice)?;
        let count = usize::from(self.count);
        for (several, what) in [(self.classes.len(), "classes"), (prompts.len(), "prompts")] {
            if several.max(1) * count > MOST_IMAGES {
                bail!(
                    "{several} {what} of {count} images each are more than the {MOST_IMAGES} images of one command"
                );
            }
        }
        if self.noise.is_some() && self.sampler.seed.is_some() && !choice.plan.draws_noise() {
            bail!(
                "{} draws no noise but what --noise gives, so --seed has no effect; leave it out",
                choice.scheduler
            );
        }
        let images = count * prompts.len().max(1);
        let mut wanted = Wanted {
            size: self.size(bundle)?,
            ..self.sampler.wanted(bundle, &self.classes, images)?
        };
        wanted.noise = self.noise(bundle, &wanted)?;
        Ok((prompts, wanted))
    }

    /// Height and width of what the sampler leaves, if one of them is asked for.
    fn size(&self, bundle: &Bundle) -> Result<Option<[usize; 2]>> {
        let Some(model) = bundle.manifest().model.diffusion.as_ref() else {
            return Ok(None);
        };
        let scale = ImageDecoder::scale(bundle)?.unwrap_or(1);
        for (flag, wanted) in [("height", self.height), ("width", self.width)] {
            let wanted = wanted.map(usize::from);
            if let Some(pixels) = wanted.filter(|pixels| !pixels.is_multiple_of(scale)) {
                let below = pixels / scale * scale;
                bail!(
                    "--{flag} {pixels}: the pipeline makes pictures of multiples of {scale} pixels; take {} or {}",
                    below.max(scale),
                    below + scale
                );
            }
        }
        let side = |wanted: Option<u16>, own| wanted.map_or(own, |n| usize::from(n) / scale);
        let size = [
            side(self.height, model.height),
            side(self.width, model.width),
        ];
        Ok(self.height.or(self.width).map(|_| size))
    }

    /// The prompts, of the flag or of a file; none where images are conditioned otherwise.
    fn all_prompts(&self, choice: &SamplerChoice) -> Result<Vec<String>> {
        let prompts = match &self.prompts {
            Some(file) => prompts::read(file)?
                .into_iter()
                .map(|text| text.content)
                .collect(),
            None => self.prompt.iter().cloned().collect::<Vec<String>>(),
        };
        if self.negative_prompt.is_some() && prompts.is_empty() {
            bail!(
                "--negative-prompt goes with --prompt or --prompts: give one of them, or leave it out"
            );
        }
        if self.negative_prompt.is_some() && !choice.is_guided() {
            bail!(
                "--negative-prompt has no effect without guidance: give --guidance, or leave it out"
            );
        }
        Ok(prompts)
    }

    /// The hidden states of the prompts, and of the negative one if there is guidance.
    fn encode(
        &self,
        model: &DiffusionModel,
        prompts: &[String],
        choice: &SamplerChoice,
        size: Option<[usize; 2]>,
    ) -> Result<Conditions> {
        let negative = match &self.negative_prompt {
            _ if !choice.is_guided() => Negative::None,
            None => Negative::Usual,
            Some(text) => Negative::Text(text),
        };
        let all = model.conditions(prompts, negative, size)?;
        Ok(Conditions::of_each(&all, usize::from(self.count))?)
    }

    /// The images side by side, and that as a PNG file.
    fn picture(&self, shown: &Samples, prompts: usize, about: &str) -> Result<(Picture, Vec<u8>)> {
        let [images, channels, height, width] = shown.shape;
        if channels > 3 {
            note(
                "the bundle has no decoder for latents: the picture shows their first three channels; --latents FILE keeps all",
            )?;
        }
        // Each class and prompt has a row of its own, if there are several images of several.
        let several = self.classes.len().max(prompts) > 1;
        let columns = Some(usize::from(self.count)).filter(|count| *count > 1 && several);
        let scale = self.scale.map(usize::from);
        let layout = Layout::new(images, columns, [height, width], scale);
        Picture::grid(shown.images(), [channels, height, width], layout)
            .and_then(|picture| {
                let png = picture.to_png(&[(PARAMETERS, about.to_owned())])?;
                Some((picture, png))
            })
            .context(
                "the picture would be too large: ask for fewer images, or for a smaller --scale",
            )
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
    preview: Option<u16>,
) -> Result<Option<(Samples, Option<Samples>)>> {
    let bar = Bar::new();
    phases::begin("sampling");
    let (plan, guidance) = (&choice.plan, choice.guidance);
    let mut session = model.session()?;
    let mut previews = preview
        .map(|every| Previews::new(model, every))
        .transpose()?
        .flatten();
    let mut failed = None;
    let mut watch = |run: &SampleProgress<'_>| {
        let shown = previews.as_mut().map(|previews| previews.show(run));
        if let Some(Err(failure)) = shown {
            failed = Some(failure);
            return ControlFlow::Break(());
        }
        show_sampling(&bar, run)
    };
    let samples = sample(
        &mut session,
        wanted,
        plan,
        guidance,
        choice.prune,
        &mut watch,
    )?;
    drop(session);
    if let Some(failure) = failed {
        return Err(failure);
    }
    let Some(samples) = samples else {
        return Ok(None);
    };
    let decoder = match previews {
        Some(previews) => previews.into_decoder(),
        None => model.image_decoder()?,
    };
    let pictures = match decoder {
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

/// How the images were made, as many programs write it into PNG files and read it there: the prompts,
/// what guidance leads away from, and settings.
fn about(
    args: &Args,
    model: &DiffusionModel,
    choice: &SamplerChoice,
    (prompts, wanted): (&[String], &Wanted),
    [height, width]: [usize; 2],
) -> Result<String> {
    let manifest = model.bundle.folder().join(MANIFEST_FILE);
    let hash = Sha256::digest(read_document(&manifest, MANIFEST_CAP)?);
    let mut lines = prompts.to_vec();
    lines.extend(
        args.negative_prompt
            .iter()
            .map(|text| format!("Negative prompt: {text}")),
    );
    let start = match (&args.noise, wanted.seeds.first()) {
        (Some(file), _) => format!("Noise: {}", file.display()),
        (None, seed) => format!("Seed: {}", seed.copied().unwrap_or_default()),
    };
    let strength = args.init_image.strength();
    let strength = strength.map_or_else(String::new, |x| format!("Denoising strength: {x}, "));
    lines.push(format!(
        "Steps: {}, Sampler: {}, CFG scale: {}, {}, {strength}Size: {width}x{height}, Model hash: {hash:x}, Model: {}, Pruned: {}, Version: dlc {}",
        choice.steps,
        choice.scheduler,
        choice.guidance,
        start,
        model.bundle.manifest().source.name,
        choice.prune,
        env!("CARGO_PKG_VERSION")
    ));
    Ok(lines.join("\n"))
}

/// What the sampler leaves as a safetensors file.
fn tensors(wanted: &Wanted, samples: &Samples) -> Result<Vec<u8>> {
    let data: Vec<u8> = samples.data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let classes: Vec<u8> = wanted
        .classes
        .iter()
        .flat_map(|class| (*class as i64).to_le_bytes())
        .collect();
    let mut named = vec![(
        LATENTS,
        TensorView::new(Dtype::F32, samples.shape.to_vec(), &data).map_err(Failure::bug)?,
    )];
    if !wanted.classes.is_empty() {
        named.push((
            inputs::CLASS_LABELS,
            TensorView::new(Dtype::I64, vec![wanted.classes.len()], &classes)
                .map_err(Failure::bug)?,
        ));
    }
    serialize(named, None).map_err(Failure::bug)
}
