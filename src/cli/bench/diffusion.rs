//! `dlc bench` with a diffusion model: time and quality of its images, and of the pruned model's
//! beside them.

use std::process::ExitCode;
use std::time::Instant;

use dlc_passes::Progress;
use dlc_runtime::{Bundle, SamplerChoice, Samples, Timing};
use serde_json::{Value, json};

use super::{Args, load_average};
use crate::cli::backend::describe;
use crate::cli::diffusion::{DiffusionModel, Wanted, sample};
use crate::cli::exit::INTERRUPTED;
use crate::cli::failure::{Result, bail};
use crate::cli::output::{Output, note};
use crate::cli::progress::Bar;
use crate::cli::{memory, phases};
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
}

/// What was measured of one of them.
struct Side {
    name: SideName,
    macs: f64,
    /// Seconds until the graphs were loaded, and from there until all images were made, of each
    /// run.
    times: Vec<[f64; 2]>,
    /// The images of the last run.
    samples: Option<Samples>,
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
    let choice = args.sampler.choose(&bundle, false)?;
    let wanted = args.sampler.wanted(&bundle, &[], usize::from(args.count))?;
    if let Some(name) = args.memory_of {
        return print_peak(
            &DiffusionModel::open(bundle, &args.backend)?,
            &wanted.first_batch()?,
            &choice,
            name,
        );
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
    let model = DiffusionModel::open(bundle, &args.backend)?;
    note(&format!("running on {}", describe(&model.backend)))?;
    let load = load_average()?;
    let side = |name, macs| Side {
        name,
        macs,
        times: vec![],
        samples: None,
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
    let agreement = match &sides[..] {
        [
            Side {
                samples: Some(full),
                ..
            },
            Side {
                samples: Some(pruned),
                ..
            },
        ] => Some(mean_psnr(full.images(), pruned.images()).unwrap_or(f64::INFINITY)),
        _ => None,
    };
    output.result(&table(&sides, &quality, agreement).to_string())?;
    let images = wanted.seeds.len();
    output.result(&format!(
        "{} in {} steps, guidance {}, {images} images of {} evaluations; seconds with the loading of the graphs, median of {} runs in alternation; \
         memory of a process that makes one batch by this model alone",
        choice.scheduler,
        choice.steps,
        choice.guidance,
        choice.plan.steps.len(),
        args.repeats
    ))?;
    let rows = sides
        .iter()
        .zip(&quality)
        .map(|(side, quality)| (side.name.as_str().to_owned(), side.json(quality)));
    let mut report = json!({
        "backend": model.backend.kind().name(), "scheduler": choice.scheduler, "steps": choice.steps, "guidance": choice.guidance,
        "images": images, "evaluations": choice.plan.steps.len(), "repeats": args.repeats, "load_average": load,
        "speedup": sides.get(1).map(|pruned| sides[0].seconds() / pruned.seconds()), "psnr": agreement,
        "equal": agreement.map(f64::is_infinite),
    });
    if let Value::Object(report) = &mut report {
        report.extend(rows);
    }
    output.json(&report)?;
    Ok(ExitCode::SUCCESS)
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
            &choice.plan,
            choice.guidance,
            prune,
            bar,
        )?;
        self.times
            .push([load, start.elapsed().as_secs_f64() - load]);
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

    fn load_seconds(&self) -> f64 {
        Timing::of(self.times.iter().map(|times| times[0])).median()
    }

    fn json(&self, quality: &Quality) -> Value {
        json!({
            "macs": self.macs, "seconds": self.seconds(), "seconds_range": self.timing().range(), "load_seconds": self.load_seconds(),
            "runs": self.times, "peak_memory": self.peak_memory, "as_asked": quality.as_asked, "frechet": quality.frechet,
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
    if sample(
        &mut session,
        wanted,
        &choice.plan,
        choice.guidance,
        name == SideName::Pruned,
        &Bar::new(),
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

fn table(sides: &[Side], quality: &[Quality], agreement: Option<f64>) -> Table {
    let mut table = Table::new(&[
        "model",
        "MACs",
        "seconds",
        "spread",
        "of it loading",
        "speedup",
        "memory, MB",
        "PSNR to full, dB",
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
                    .map(|psnr| format!("{psnr:.1}")),
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
