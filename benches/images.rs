//! Ways to make the images of digits-dit with less arithmetic, against DDIM with 50 steps: guidance
//! 1.5, 200 images that nothing was fitted to.
//!
//! ```text
//! cargo bench --bench images                # all of the table, docs/images.svg and docs/images.json
//! cargo bench --bench images -- 0.35        # these shares of the multiply-adds only, no files
//! ```
//!
//! Measured of each: the share of images classified as asked; the PSNR to the full sampler's image
//! from the same noise, its mean and 5th percentile over images; the Frechet distance of the
//! pixels' statistics to those of the training digits; and seconds, with the loading of the graphs, over the
//! full sampler's, the median of runs in alternation.
#![allow(clippy::print_stdout, missing_docs)]

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use dlc::pipeline::{CompileRequest, compile, parse_pass_flag};
use dlc::quality::{Classifier, Statistics, psnr};
use dlc_bundle::Profile;
use dlc_methods::diffusion::SchedulerKind;
use dlc_runtime::{
    Backend, BackendSearch, Bundle, DiffusionSession, SampleRequest, SamplerWishes, Samples,
    SessionOptions, Timing, choose_sampler, start,
};

const SHARES: [f64; 4] = [0.60, 0.35, 0.25, 0.15];
const IMAGES: usize = 200;
const STEPS: usize = 50;
/// Timed runs of each way.
const TURNS: usize = 2;
/// How dip-go learns.
const LEARN: &str = "rounds=8,iterations=0,reuse=linear";

/// A way to do less: its name, and how for a share of the multiply-adds.
const WAYS: [(&str, Way); 9] = [
    ("fitted solver", Way::Passes(solver)),
    (
        "fitted solver, dip-go in it",
        Way::Passes(solver_and_dip_go),
    ),
    (
        "dip-go, linear",
        Way::Passes(|share| vec![format!("dip-go:{LEARN},macs={share}")]),
    ),
    (
        "interval, linear",
        Way::Passes(|share| vec![format!("skip:reuse=linear,macs={share}")]),
    ),
    (
        "interval, hold",
        Way::Passes(|share| vec![format!("skip:macs={share}")]),
    ),
    (
        "random, hold",
        Way::Passes(|share| vec![format!("skip:random=true,macs={share}")]),
    ),
    ("fewer steps, DDIM", Way::Steps(SchedulerKind::Ddim)),
    (
        "fewer steps, DPM-Solver++",
        Way::Steps(SchedulerKind::DpmSolverPlusPlus),
    ),
    ("fewer steps, UniPC", Way::Steps(SchedulerKind::UniPc)),
];

#[derive(Clone, Copy)]
enum Way {
    Passes(fn(f64) -> Vec<String>),
    Steps(SchedulerKind),
}

fn evaluations(share: f64) -> usize {
    (share * STEPS as f64).round() as usize
}

fn solver(share: f64) -> Vec<String> {
    vec![format!("fit-solver:steps={}", evaluations(share))]
}

/// A solver of half as many evaluations again, of which dip-go computes two thirds.
fn solver_and_dip_go(share: f64) -> Vec<String> {
    let steps = (1.5 * share * STEPS as f64).round();
    let kept = share * STEPS as f64 / steps;
    vec![
        format!("fit-solver:steps={steps}"),
        format!("dip-go:{LEARN},macs={kept}"),
    ]
}

#[derive(serde::Serialize)]
struct Quality {
    macs: f64,
    seconds: f64,
    classified: f64,
    psnr: f64,
    psnr_5th: f64,
    frechet: f64,
}

/// A measure of quality.
type Measure = fn(&Quality) -> f64;

struct Quiet;
impl dlc_passes::Progress for Quiet {
    fn update(&self, _: &str, _: usize, _: usize) {}
}
impl dlc_exporters::Progress for Quiet {}

fn main() {
    let asked: Vec<f64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let shares = if asked.is_empty() {
        SHARES.to_vec()
    } else {
        asked.clone()
    };
    let bench = Bench::start();
    println!(
        "| way | MACs kept | seconds | classified as asked | PSNR, dB | 5th percentile | Frechet | found in, s |\n|---|---|---|---|---|---|---|---|"
    );
    let full = bench.judge(&bench.full, 1.0, 1.0);
    println!("{}", row("full, DDIM with 50 steps", &full, "-"));
    let mut curves: Vec<(&str, Vec<Quality>)> = Vec::new();
    for (name, way) in WAYS {
        let mut curve = Vec::new();
        for &share in &shares {
            let (found, quality) = bench.measure(way, share);
            println!("{}", row(name, &quality, &found));
            curve.push(quality);
        }
        curves.push((name, curve));
    }
    if asked.is_empty() {
        let docs = bench.root.join("docs");
        let json = serde_json::to_string_pretty(&curves).expect("numbers");
        std::fs::write(docs.join("images.json"), json + "\n").expect("docs/ is there");
        std::fs::write(docs.join("images.svg"), plot(&curves, &full)).expect("docs/ is there");
    }
}

fn row(name: &str, quality: &Quality, found: &str) -> String {
    let share = |x: f64| format!("{:.1}%", 100.0 * x);
    let [psnr, low] = [quality.psnr, quality.psnr_5th].map(|x| {
        if x.is_finite() {
            format!("{x:.1}")
        } else {
            "equal".into()
        }
    });
    format!(
        "| {name} | {} | {} | {} | {psnr} | {low} | {:.3} | {found} |",
        share(quality.macs),
        share(quality.seconds),
        share(quality.classified),
        quality.frechet
    )
}

/// The model, and what its images are judged by.
struct Bench<'a> {
    root: &'a Path,
    backend: Backend,
    classifier: Classifier,
    digits: Statistics,
    plain: (tempfile::TempDir, Bundle),
    full: Samples,
}

impl Bench<'_> {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let data = std::env::home_dir().map(|home| home.join(".local/share/dlc/onnxruntime"));
        let env = std::env::var_os("ORT_DYLIB_PATH").map(Into::into);
        let backend = start(&BackendSearch {
            env,
            data_dir: data,
            ..BackendSearch::default()
        })
        .expect("a backend starts");
        let file = |name: &str| root.join("fixtures/digits").join(name);
        let mut bench = Self {
            root,
            backend,
            classifier: Classifier::read(&file("classifier.safetensors")).expect("reads"),
            digits: Statistics::read(&file("statistics.safetensors")).expect("reads"),
            plain: bundle(root, &[]),
            full: Samples {
                shape: [0; 4],
                data: vec![],
            },
        };
        bench.full = bench.whole().0;
        bench
    }

    /// The full sampler's images, and seconds.
    fn whole(&self) -> (Samples, f64) {
        let wishes = SamplerWishes {
            scheduler: Some("ddim".into()),
            steps: Some(STEPS),
            ..SamplerWishes::default()
        };
        self.sample(&self.plain.1, &wishes)
    }

    fn sample(&self, bundle: &Bundle, wishes: &SamplerWishes) -> (Samples, f64) {
        let choice = choose_sampler(bundle, wishes).expect("a sampler");
        let (seeds, classes): (Vec<u64>, Vec<usize>) =
            (0..IMAGES).map(|i| (i as u64, i % 10)).unzip();
        let request = SampleRequest {
            plan: &choice.plan,
            image: None,
            guidance: choice.guidance,
            seeds: &seeds,
            noise: None,
            classes: &classes,
            conditions: None,
            size: None,
            prune: choice.prune,
        };
        let before = Instant::now();
        let mut session =
            DiffusionSession::open(&self.backend, bundle, None, &SessionOptions::default())
                .expect("opens");
        let samples = session
            .sample(&request, &mut |_| ControlFlow::Continue(()))
            .expect("samples")
            .expect("isn't stopped");
        (samples, before.elapsed().as_secs_f64())
    }

    fn measure(&self, way: Way, share: f64) -> (String, Quality) {
        let before = Instant::now();
        match way {
            Way::Passes(passes) => {
                let (_folder, bundle) = bundle(self.root, &passes(share));
                let found = format!("{:.0}", before.elapsed().as_secs_f64());
                let macs = bundle.manifest().sampling.as_ref().map_or(1.0, |s| s.macs);
                (found, self.timed(&bundle, &SamplerWishes::default(), macs))
            }
            Way::Steps(scheduler) => {
                let steps = evaluations(share);
                let wishes = SamplerWishes {
                    scheduler: Some(scheduler.name().into()),
                    steps: Some(steps),
                    ..SamplerWishes::default()
                };
                let macs = steps as f64 / STEPS as f64;
                ("-".into(), self.timed(&self.plain.1, &wishes, macs))
            }
        }
    }

    /// Quality and time, in alternation with the full sampler.
    fn timed(&self, bundle: &Bundle, wishes: &SamplerWishes, macs: f64) -> Quality {
        let mut samples = None;
        let ratios = (0..TURNS).map(|_| {
            let whole = self.whole().1;
            let (images, seconds) = self.sample(bundle, wishes);
            samples = Some(images);
            seconds / whole
        });
        let seconds = Timing::of(ratios.collect::<Vec<_>>()).median();
        self.judge(&samples.expect("was sampled"), macs, seconds)
    }

    fn judge(&self, samples: &Samples, macs: f64, seconds: f64) -> Quality {
        let right = samples
            .images()
            .enumerate()
            .filter(|(i, image)| self.classifier.classify(image) == Some(i % 10))
            .count();
        let statistics =
            Statistics::of(samples.images(), self.digits.width()).expect("as wide as digits");
        let pairs = samples.images().zip(self.full.images());
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| psnr(a, b)).collect();
        ratios.sort_by(f64::total_cmp);
        Quality {
            macs,
            seconds,
            classified: right as f64 / IMAGES as f64,
            psnr: ratios.iter().sum::<f64>() / ratios.len() as f64,
            psnr_5th: ratios[ratios.len() / 20],
            frechet: statistics.distance(&self.digits).unwrap_or(f64::NAN),
        }
    }
}

fn bundle(root: &Path, passes: &[String]) -> (tempfile::TempDir, Bundle) {
    let folder = tempfile::tempdir().expect("there is room");
    let passes = passes.iter();
    let request = CompileRequest {
        passes: passes
            .map(|p| parse_pass_flag(p).expect("a pass"))
            .collect(),
        profile: Profile::Onnx,
        threads: 2,
        ..CompileRequest::new(
            root.join("fixtures/digits-dit"),
            folder.path().join("bundle"),
        )
    };
    compile(&request, None, &Quiet).expect("compiles");
    let bundle = Bundle::open(&request.output).expect("opens");
    (folder, bundle)
}

/// Where a panel's numbers lie.
struct Panel {
    left: f64,
    low: f64,
    high: f64,
}

impl Panel {
    const WIDTH: f64 = 280.0;
    /// Seconds at the right, of the full sampler's.
    const MOST: f64 = 0.8;

    fn x(&self, seconds: f64) -> f64 {
        self.left + Self::WIDTH * seconds.min(Self::MOST) / Self::MOST
    }

    fn y(&self, value: f64) -> f64 {
        300.0 - 250.0 * (value - self.low) / (self.high - self.low).max(1e-9)
    }

    fn frame(&self, title: &str) -> String {
        let (left, width) = (self.left, Self::WIDTH);
        let mut svg = format!(
            "<text x=\"{left}\" y=\"30\" font-size=\"14\">{title}</text>\n<rect x=\"{left}\" y=\"50\" width=\"{width}\" height=\"250\" fill=\"none\" stroke=\"#999\"/>\n"
        );
        for tick in [0.0, 0.2, 0.4, 0.6, 0.8] {
            let (x, share) = (self.x(tick), 100.0 * tick);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.0}\" y=\"318\" text-anchor=\"middle\">{share:.0}%</text>"
            );
        }
        for value in [self.low, f64::midpoint(self.low, self.high), self.high] {
            let (x, y) = (left - 5.0, self.y(value) + 4.0);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"end\">{value:.1}</text>"
            );
        }
        svg
    }
}

/// The measures over the share of the full sampler's seconds, side by side.
fn plot(curves: &[(&str, Vec<Quality>)], full: &Quality) -> String {
    const COLOURS: [&str; 9] = [
        "#d62728", "#ff7f0e", "#1f77b4", "#17becf", "#9467bd", "#7f7f7f", "#2ca02c", "#bcbd22",
        "#8c564b",
    ];
    let panels: [(&str, Measure); 3] = [
        ("PSNR to the full sampler, dB", |q| q.psnr),
        ("its 5th percentile, dB", |q| q.psnr_5th),
        ("Frechet distance (less is better)", |q| q.frechet),
    ];
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1080 440\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"1080\" height=\"440\" fill=\"white\"/>\n",
    );
    for (at, (title, of)) in panels.into_iter().enumerate() {
        let all = curves.iter().flat_map(|(_, c)| c).map(of);
        let all = all.chain([of(full)]).filter(|v| v.is_finite());
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        let left = 60.0 + 350.0 * at as f64;
        let panel = Panel { left, low, high };
        svg += &panel.frame(title);
        if of(full).is_finite() {
            let (right, y) = (left + Panel::WIDTH, panel.y(of(full)));
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{right:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#333\" stroke-dasharray=\"4\"/>"
            );
        }
        for ((_, curve), colour) in curves.iter().zip(COLOURS) {
            let point = |q: &Quality| format!("{:.1},{:.1}", panel.x(q.seconds), panel.y(of(q)));
            let points: Vec<String> = curve.iter().map(point).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            );
        }
    }
    svg + &legend(curves.iter().map(|(name, _)| *name).zip(COLOURS))
}

fn legend<'n>(lines: impl Iterator<Item = (&'n str, &'n str)>) -> String {
    let mut svg = String::new();
    for (at, (name, colour)) in lines.enumerate() {
        let (x, y) = (
            60.0 + 350.0 * (at / 3) as f64,
            350.0 + 24.0 * (at % 3) as f64,
        );
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            x + 24.0,
            x + 32.0,
            y + 4.0
        );
    }
    svg + "<text x=\"60\" y=\"432\" fill=\"#555\">x: seconds, with loading, over those of the full sampler, DDIM with 50 steps; dashed: that sampler</text>\n</svg>\n"
}
