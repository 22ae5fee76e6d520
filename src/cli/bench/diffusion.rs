//! `dlc bench` with a diffusion model: time and quality of its images, and of the pruned model's
//! beside them.

use std::process::ExitCode;
use std::time::Instant;

use dlc_methods::diffusion::SamplingPlan;
use dlc_passes::Progress;
use dlc_passes::dip_go::similarity;
use dlc_runtime::{Bundle, Conditions, Negative, SamplerChoice, Samples, Timing};
use serde_json::{Value, json};

use super::{Args, load_average};
use crate::cli::backend::describe;
use crate::cli::diffusion::{DiffusionModel, Wanted, decode, sample, show_sampling};
use crate::cli::exit::INTERRUPTED;
use crate::cli::failure::{Result, bail};
use crate::cli::output::{Output, note};
use crate::cli::progress::Bar;
use crate::cli::{memory, phases, prompts};
use crate::pipeline::built_in_prompts;
use crate::quality::{Classifier, Statistics, mean_psnr};
use crate::report::{Table, ranged};

/// What images are judged by, where it was given.
struct Judges {
    classifier: Option<Classifier>,
    statistics: Option<Statistics>,
}

/// The whole model, or the pruned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SideName {
    Full,
    Pruned,
}

impl SideName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Pruned => "pruned",
        }
    }

    /// What it is sampled by.
    fn plan(self, choice: &SamplerChoice) -> &SamplingPlan {
        match self {
            Self::Full => &choice.whole_plan,
            Self::Pruned => &choice.plan,
        }
    }
}

/// What was measured of one of them.
struct Side {
    name: SideName,
    macs: f64,
    /// Seconds until the graphs were loaded, and from there until all images were made, of each
    /// run.
    times: Vec<[f64; 2]>,
    /// What the sampler left in the last run, and the pictures of it where there is a decoder.
    samples: Option<Samples>,
    /// Seconds until they were decoded, of each run.
    decoding: Vec<f64>,
    /// The most bytes that a process holds which makes one batch by this side alone; none where
    /// that isn't known.
    peak_memory: Option<u64>,
}

pub(super) fn run(args: &Args, bundle: Bundle) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let macs = bundle
        .manifest()
        .sampling
        .as_ref()
        .map(|sampling| sampling.macs);
    let choice = args.sampler.choose(&bundle, false, None)?;
    let mut wanted = args.sampler.wanted(&bundle, &[], usize::from(args.count))?;
    let model = DiffusionModel::open(bundle, &args.backend)?;
    let start = Instant::now();
    let encoded = condition(args, &model, &mut wanted, &choice)?;
    let encoding = encoded.then(|| start.elapsed().as_secs_f64());
    if let Some(name) = args.memory_of {
        return print_peak(&model, &wanted.first_batch()?, &choice, name);
    }
    let judges = Judges {
        classifier: args
            .classifier
            .as_deref()
            .map(Classifier::read)
            .transpose()?,
        statistics: args
            .statistics
            .as_deref()
            .map(Statistics::read)
            .transpose()?,
    };
    note(&format!("running on {}", describe(&model.backend)))?;
    let load = load_average()?;
    let side = |name, macs| Side {
        name,
        macs,
        times: vec![],
        samples: None,
        decoding: vec![],
        peak_memory: None,
    };
    let mut sides = vec![side(SideName::Full, 1.0)];
    sides.extend(macs.map(|macs| side(SideName::Pruned, macs)));
    if !measure(&mut sides, &model, &wanted, &choice, args.repeats)? {
        return Ok(INTERRUPTED.into());
    }
    let quality = sides
        .iter()
        .map(|side| judges.quality(&wanted, side.samples.as_ref()))
        .collect::<Result<Vec<_>>>()?;
    let agreement = agreement(&sides);
    output.result(&table(&sides, &quality, agreement).to_string())?;
    if let Some(seconds) = encoding {
        output.result(&format!(
            "{seconds:.3} s for encoding the prompts, with the loading of the text encoder, which is beside the seconds above"
        ))?;
    }
    let images = wanted.seeds.len();
    let (own, whole) = (choice.plan.steps.len(), choice.whole_plan.steps.len());
    let evaluations = if own == whole {
        whole.to_string()
    } else {
        format!("{whole} and {own}")
    };
    output.result(&format!(
        "{} in {} steps, guidance {}, {images} images of {evaluations} evaluations; seconds with the loading of the graphs, median of {} runs in alternation; \
         memory of a process that makes one batch by this model alone",
        choice.scheduler,
        choice.steps,
        choice.guidance,
        args.repeats
    ))?;
    let rows = sides
        .iter()
        .zip(&quality)
        .map(|(side, quality)| (side.name.as_str().to_owned(), side.json(quality)));
    let mut report = json!({
        "backend": model.backend.kind().name(), "scheduler": choice.scheduler, "steps": choice.steps, "guidance": choice.guidance,
        "images": images, "evaluations": choice.plan.steps.len(), "whole_evaluations": choice.whole_plan.steps.len(), "repeats": args.repeats, "load_average": load,
        "speedup": sides.get(1).map(|pruned| sides[0].seconds() / pruned.seconds()), "psnr": agreement.map(|a| a.psnr),
        "ssim": agreement.and_then(|a| a.ssim), "equal": agreement.map(|a| a.psnr.is_infinite()), "encoding_seconds": encoding,
    });
    if let Value::Object(report) = &mut report {
        report.extend(rows);
    }
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// How the pruned model's images agree with the whole one's.
#[derive(Debug, Clone, Copy)]
struct Agreement {
    psnr: f64,
    ssim: Option<f64>,
}

fn agreement(sides: &[Side]) -> Option<Agreement> {
    let [full, pruned] = sides else {
        return None;
    };
    let (full, pruned) = (full.samples.as_ref()?, pruned.samples.as_ref()?);
    Some(Agreement {
        psnr: mean_psnr(full.images(), pruned.images()).unwrap_or(f64::INFINITY),
        ssim: mean_similarity(full, pruned),
    })
}

/// The mean structural similarity of pairs of images; none where its window doesn't fit.
fn mean_similarity(full: &Samples, pruned: &Samples) -> Option<f64> {
    let [images, channels, height, width] = full.shape;
    let shape = [channels, height, width];
    let pairs = full.images().zip(pruned.images());
    let sum: Option<f64> = pairs.map(|(a, b)| similarity(a, b, shape)).sum();
    Some(sum? / images.max(1) as f64)
}

/// Conditions the images on prompts, in turn, where the bundle has a text encoder and nothing else
/// is given; says whether it did.
fn condition(
    args: &Args,
    model: &DiffusionModel,
    wanted: &mut Wanted,
    choice: &SamplerChoice,
) -> Result<bool> {
    let asked = args.prompts.is_some();
    let has_encoder = model.bundle.manifest().model.prompts.is_some();
    if wanted.conditions.is_some() || !(has_encoder || asked) {
        return Ok(false);
    }
    let texts: Vec<String> = match &args.prompts {
        Some(file) => prompts::read(file)?
            .into_iter()
            .map(|text| text.content)
            .collect(),
        None => built_in_prompts().map(str::to_owned).collect(),
    };
    let images = wanted.seeds.len();
    let texts = texts.get(..images).unwrap_or(&texts);
    let negative = if choice.is_guided() {
        Negative::Usual
    } else {
        Negative::None
    };
    let conditions = model.conditions(texts, negative, wanted.size)?;
    let each: Vec<Conditions> = conditions.iter().cycle().take(images).cloned().collect();
    wanted.conditions = Some(Conditions::of_each(&each, 1)?);
    Ok(true)
}

/// Times all sides in alternation, and then looks at what memory each takes; false if Ctrl-C came.
fn measure(
    sides: &mut [Side],
    model: &DiffusionModel,
    wanted: &Wanted,
    choice: &SamplerChoice,
    repeats: u8,
) -> Result<bool> {
    let bar = Bar::new();
    phases::begin("timing images");
    for _ in 0..repeats {
        for side in &mut *sides {
            if !side.measure(model, wanted, choice, &bar)? {
                return Ok(false);
            }
        }
    }
    for side in sides {
        side.peak_memory = memory::peak_of_rerun(&["--memory-of", side.name.as_str()])?;
    }
    Ok(!bar.interrupted())
}

impl Side {
    /// Loads the graphs anew and makes all images; false if Ctrl-C came between two steps.
    fn measure(
        &mut self,
        model: &DiffusionModel,
        wanted: &Wanted,
        choice: &SamplerChoice,
        bar: &Bar,
    ) -> Result<bool> {
        let start = Instant::now();
        let mut session = model.session()?;
        let prune = self.name == SideName::Pruned;
        session.load(prune)?;
        let load = start.elapsed().as_secs_f64();
        self.samples = sample(
            &mut session,
            wanted,
            self.name.plan(choice),
            choice.guidance,
            prune,
            &mut |run| show_sampling(bar, run),
        )?;
        self.times
            .push([load, start.elapsed().as_secs_f64() - load]);
        drop(session);
        let start = Instant::now();
        if let Some(latents) = &self.samples
            && let Some(mut decoder) = model.image_decoder()?
        {
            self.samples = decode(&mut decoder, latents, bar)?;
            self.decoding.push(start.elapsed().as_secs_f64());
        }
        Ok(self.samples.is_some())
    }

    /// What whole runs took.
    fn timing(&self) -> Timing {
        Timing::of(self.times.iter().map(|times| times[0] + times[1]))
    }

    /// The median of whole runs.
    fn seconds(&self) -> f64 {
        self.timing().median()
    }

    /// The median of what decoding took, with the loading of the decoder.
    fn decoding_seconds(&self) -> Option<f64> {
        let runs = self.decoding.iter().copied();
        (!self.decoding.is_empty()).then(|| Timing::of(runs).median())
    }

    fn load_seconds(&self) -> f64 {
        Timing::of(self.times.iter().map(|times| times[0])).median()
    }

    fn json(&self, quality: &Quality) -> Value {
        json!({
            "macs": self.macs, "seconds": self.seconds(), "seconds_range": self.timing().range(), "load_seconds": self.load_seconds(),
            "runs": self.times, "decoding_seconds": self.decoding_seconds(), "peak_memory": self.peak_memory, "as_asked": quality.as_asked, "frechet": quality.frechet,
        })
    }
}

/// Makes the images by one side, and prints the most bytes that this process has held by then.
fn print_peak(
    model: &DiffusionModel,
    wanted: &Wanted,
    choice: &SamplerChoice,
    name: SideName,
) -> Result<ExitCode> {
    let mut session = model.session()?;
    let bar = Bar::new();
    if sample(
        &mut session,
        wanted,
        name.plan(choice),
        choice.guidance,
        name == SideName::Pruned,
        &mut |run| show_sampling(&bar, run),
    )?
    .is_none()
    {
        return Ok(INTERRUPTED.into());
    }
    Output::new(false)
        .result(&memory::peak().map_or_else(String::new, |bytes| bytes.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// How good images are, where there was something to judge them by.
struct Quality {
    /// The share that shows the class that was asked for.
    as_asked: Option<f64>,
    /// The distance of their numbers from the wanted statistics.
    frechet: Option<f64>,
}

impl Judges {
    fn quality(&self, wanted: &Wanted, samples: Option<&Samples>) -> Result<Quality> {
        let Some(samples) = samples else {
            return Ok(Quality {
                as_asked: None,
                frechet: None,
            });
        };
        let width = samples.shape[1..].iter().product();
        let unfit = |what: &str, numbers: usize| {
            format!("the {what} is for images of {numbers} numbers, and the bundle's have {width}")
        };
        if let Some(classifier) = self
            .classifier
            .as_ref()
            .filter(|classifier| classifier.inputs() != width)
        {
            bail!(unfit("classifier", classifier.inputs()));
        }
        if self.classifier.is_some() && wanted.classes.is_empty() {
            bail!(
                "the model takes no class, so its images can't be classified as asked: leave --classifier out"
            );
        }
        let right = |classifier: &Classifier| {
            let found = samples
                .images()
                .zip(&wanted.classes)
                .filter(|(image, class)| classifier.classify(image) == Some(**class));
            found.count() as f64 / wanted.classes.len() as f64
        };
        let frechet = match &self.statistics {
            None => None,
            Some(statistics) if statistics.width() != width => {
                bail!(unfit("statistics", statistics.width()))
            }
            Some(statistics) => Statistics::of(samples.images(), width)?.distance(statistics),
        };
        Ok(Quality {
            as_asked: self.classifier.as_ref().map(right),
            frechet,
        })
    }
}

fn table(sides: &[Side], quality: &[Quality], agreement: Option<Agreement>) -> Table {
    let mut table = Table::new(&[
        "model",
        "MACs",
        "seconds",
        "spread",
        "of it loading",
        "decoding",
        "speedup",
        "memory, MB",
        "PSNR to full, dB",
        "SSIM",
        "as asked",
        "Frechet",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for (side, quality) in sides.iter().zip(quality) {
        let is_pruned = side.name == SideName::Pruned;
        table.row([
            side.name.as_str().to_owned(),
            format!("{:.1}%", 100.0 * side.macs),
            format!("{:.3}", side.seconds()),
            ranged(side.timing().range(), 3),
            format!("{:.3}", side.load_seconds()),
            or_dash(
                side.decoding_seconds()
                    .map(|seconds| format!("{seconds:.3}")),
            ),
            or_dash(
                sides
                    .first()
                    .filter(|_| is_pruned)
                    .map(|full| format!("{:.2}x", full.seconds() / side.seconds())),
            ),
            side.peak_memory.map_or_else(
                || "unknown".into(),
                |bytes| format!("{:.0}", bytes as f64 / 1e6),
            ),
            or_dash(
                agreement
                    .filter(|_| is_pruned)
                    .map(|agreement| format!("{:.1}", agreement.psnr)),
            ),
            or_dash(
                agreement
                    .filter(|_| is_pruned)
                    .and_then(|agreement| Some(format!("{:.3}", agreement.ssim?))),
            ),
            or_dash(
                quality
                    .as_asked
                    .map(|share| format!("{:.1}%", 100.0 * share)),
            ),
            or_dash(quality.frechet.map(|distance| format!("{distance:.3}"))),
        ]);
    }
    table
}
