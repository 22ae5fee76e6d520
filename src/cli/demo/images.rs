//! `dlc demo images`: from a prompt to a picture, by a whole pipeline and by a pruned one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlc_passes::ScoreCache;
use dlc_runtime::{
    Bundle, Conditions, Negative, SampleProgress, SamplerChoice, SamplerWishes, Samples,
    choose_sampler,
};

use super::embedded;
use crate::cli::backend::BackendArgs;
use crate::cli::destination::{self, Destination};
use crate::cli::diffusion::{DiffusionModel, Wanted, decode, sample, show_sampling};
use crate::cli::exit::INTERRUPTED;
use crate::cli::failure::{Context, Result};
use crate::cli::output::{Output, show};
use crate::cli::progress::Bar;
use crate::cli::{environment, phases};
use crate::pipeline::{CompileRequest, compile, parse_pass_flag};
use crate::quality::psnr;
use crate::report::{Layout, Picture, pass_summary};

const PRUNE: &str = "skip:macs=0.35,reuse=linear";
/// What the pipeline was trained for.
const GUIDANCE: f64 = 3.0;
/// Pixels that a pixel of the pipeline becomes, in both directions.
const SCALE: usize = 8;

/// Make a picture of a prompt by a small trained pipeline, whole and pruned
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What the picture should show: a t-shirt, trousers, a pullover, a dress, a coat, a sandal, a
    /// shirt, a sneaker, a bag or an ankle boot, dark or light
    #[arg(long, value_name = "TEXT", default_value = "a photo of a sneaker")]
    prompt: String,
    /// Seed of the noise that the picture starts from
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// The PNG to write: the whole pipeline's picture, and the pruned one's beside it
    #[arg(short, long, value_name = "FILE", default_value = "dlc-demo.png")]
    output: PathBuf,
    #[command(flatten)]
    backend: BackendArgs,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(false);
    let to = Destination::check(&args.output, &["png"])?;
    let backend = args.backend.start()?;
    let temporary = environment::scratch("demo")
        .context("can't make a temporary folder; name another by the variable TMPDIR")?;
    let model = embedded::IMAGES.unpack(temporary.path())?;
    let profile = super::profile(&backend);
    output.result(&format!(
        "1. compile {} with {PRUNE}, profile {}\n",
        embedded::IMAGES.name,
        profile.name()
    ))?;
    let bundle = temporary.path().join("bundle");
    let request = CompileRequest {
        passes: vec![parse_pass_flag(PRUNE)?],
        profile,
        backend: args.backend.search(),
        threads: environment::cores(),
        ..CompileRequest::new(&model, &bundle)
    };
    let bar = Bar::new();
    let outcome = compile(&request, None::<&dyn ScoreCache>, &bar)?;
    bar.finish();
    for run in outcome
        .runs
        .iter()
        .filter(|run| run.report.schedule.is_some())
    {
        output.result(&pass_summary(run))?;
    }
    let model = DiffusionModel::open(Bundle::open(&bundle)?, &args.backend)?;
    let Some([whole, pruned]) = both(args, output, &model)? else {
        return Ok(INTERRUPTED.into());
    };
    let sampling = model.bundle.manifest().sampling.as_ref();
    let macs = sampling.map_or(1.0, |sampling| sampling.macs);
    let data = [&whole.picture.data[..], &pruned.picture.data[..]];
    let [_, channels, height, width] = whole.picture.shape;
    let layout = Layout::new(2, Some(2), [height, width], Some(SCALE));
    let picture = Picture::grid(data.into_iter(), [channels, height, width], layout)
        .context("the pipeline made no picture")?;
    let png = picture
        .to_png(&[])
        .context("the pipeline made no picture")?;
    destination::write(&[(&to, png)])?;
    show(&picture.to_half_blocks(2 * width + 1))?;
    output.result(&format!(
        "whole    {:>6.2} s\npruned   {:>6.2} s, {:.0}% of the multiply-adds, {:.1} dB from the whole model's picture\npicture  {}: the whole model's, and the pruned one's beside it",
        whole.seconds,
        pruned.seconds,
        100.0 * macs,
        psnr(data[0], data[1]),
        args.output.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A picture, and what it took.
struct Made {
    picture: Samples,
    /// With the loading of the graphs.
    seconds: f64,
}

/// The picture by the whole model and by the pruned one, from the same noise; none after Ctrl-C.
fn both(args: &Args, output: Output, model: &DiffusionModel) -> Result<Option<[Made; 2]>> {
    let wishes = SamplerWishes {
        guidance: Some(GUIDANCE),
        ..SamplerWishes::default()
    };
    let choice = choose_sampler(&model.bundle, &wishes)?;
    output.result(&format!(
        "\n2. sample {:?}, {} steps of {}, guidance {}\n",
        args.prompt, choice.steps, choice.scheduler, choice.guidance
    ))?;
    let prompts = std::slice::from_ref(&args.prompt);
    let conditions = model.conditions(prompts, Negative::Usual, None)?;
    let wanted = Wanted {
        seeds: vec![args.seed],
        noise: None,
        image: None,
        classes: vec![],
        conditions: Some(Conditions::of_each(&conditions, 1)?),
        size: None,
        batch: 1,
    };
    let Some(whole) = make(model, &wanted, &choice, false)? else {
        return Ok(None);
    };
    let pruned = make(model, &wanted, &choice, true)?;
    Ok(pruned.map(|pruned| [whole, pruned]))
}

fn make(
    model: &DiffusionModel,
    wanted: &Wanted,
    choice: &SamplerChoice,
    prune: bool,
) -> Result<Option<Made>> {
    let bar = Bar::new();
    phases::begin("sampling");
    let start = Instant::now();
    let mut session = model.session()?;
    let mut watch = |run: &SampleProgress<'_>| show_sampling(&bar, run);
    let plan = if prune {
        &choice.plan
    } else {
        &choice.whole_plan
    };
    let guidance = choice.guidance;
    let Some(latents) = sample(&mut session, wanted, plan, guidance, prune, &mut watch)? else {
        return Ok(None);
    };
    let seconds = start.elapsed().as_secs_f64();
    let mut decoder = model
        .image_decoder()?
        .context("the pipeline has no decoder")?;
    let picture = decode(&mut decoder, &latents, &bar)?;
    bar.finish();
    Ok(picture.map(|picture| Made { picture, seconds }))
}
