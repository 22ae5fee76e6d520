//! DiP-GO against its controls on digits-dit: quality at equal multiply-adds, DDIM with 50 steps
//! and guidance 1.5, 200 images.
//!
//! ```text
//! cargo bench --bench dip_go                # all of the table, and docs/dip-go.svg
//! cargo bench --bench dip_go -- 0.35        # these shares of the multiply-adds only, no plot
//! ```
//!
//! Three measures: the share of images classified as asked, the mean over images of the PSNR to the
//! full sampler's image from the same noise, and the Frechet distance of the pixels' statistics to
//! those of the training digits.
#![allow(clippy::print_stdout, missing_docs)]

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use dlc::pipeline::{CompileRequest, compile, parse_pass_flag};
use dlc::quality::{Classifier, Statistics, mean_psnr};
use dlc_bundle::Profile;
use dlc_methods::diffusion::{SchedulerKind, parse_scheduler_config, sampling_plan};
use dlc_runtime::{
    Backend, BackendSearch, Bundle, DiffusionSession, SampleRequest, Samples, SessionOptions, start,
};

const SHARES: [f64; 5] = [0.60, 0.45, 0.35, 0.25, 0.15];
const IMAGES: usize = 200;
const STEPS: usize = 50;

/// A way to do less: its name, and the pass for a share of the multiply-adds; without one, fewer
/// steps of a scheduler.
const WAYS: [(&str, Way); 9] = [
    (
        "dip-go, hold",
        Way::Pass("dip-go:rounds=8,iterations=0,reuse=hold,macs="),
    ),
    (
        "dip-go, linear",
        Way::Pass("dip-go:rounds=8,iterations=0,reuse=linear,macs="),
    ),
    (
        "dip-go, quadratic",
        Way::Pass("dip-go:rounds=8,iterations=0,reuse=quadratic,macs="),
    ),
    ("interval, hold", Way::Pass("skip:reuse=hold,macs=")),
    ("interval, linear", Way::Pass("skip:reuse=linear,macs=")),
    (
        "interval, quadratic",
        Way::Pass("skip:reuse=quadratic,macs="),
    ),
    (
        "random, hold",
        Way::Pass("skip:random=true,reuse=hold,macs="),
    ),
    ("fewer steps, DDIM", Way::Steps(SchedulerKind::Ddim)),
    (
        "fewer steps, DPM-Solver++",
        Way::Steps(SchedulerKind::DpmSolverPlusPlus),
    ),
];

#[derive(Clone, Copy)]
enum Way {
    Pass(&'static str),
    Steps(SchedulerKind),
}

struct Quality {
    macs: f64,
    classified: f64,
    psnr: f64,
    frechet: f64,
}

/// A measure of quality.
type Measure = fn(&Quality) -> f64;

struct Quiet;
impl dlc_passes::Progress for Quiet {
    fn update(&self, _: &str, _: usize, _: usize) {}
}
impl dlc_exporters::Progress for Quiet {}

/// The model, and what its images are judged by.
struct Bench<'a> {
    root: &'a Path,
    backend: Backend,
    classifier: Classifier,
    digits: Statistics,
    full: Samples,
}

fn main() {
    let asked: Vec<f64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let shares = if asked.is_empty() {
        SHARES.to_vec()
    } else {
        asked.clone()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::home_dir().map(|home| home.join(".local/share/dlc/onnxruntime"));
    let env = std::env::var_os("ORT_DYLIB_PATH").map(Into::into);
    let backend = start(&BackendSearch {
        env,
        data_dir: data,
        ..BackendSearch::default()
    })
    .expect("a backend starts");
    let classifier = Classifier::read(&root.join("fixtures/digits/classifier.safetensors"))
        .expect("the classifier reads");
    let digits = Statistics::read(&root.join("fixtures/digits/statistics.safetensors"))
        .expect("the statistics read");
    let full = Samples {
        shape: [0; 4],
        data: vec![],
    };
    let mut bench = Bench {
        root,
        backend,
        classifier,
        digits,
        full,
    };
    println!(
        "| way | MACs kept | classified as asked | PSNR, dB | Frechet | found in, s |\n|---|---|---|---|---|---|"
    );
    let plain = bench.bundle(None);
    bench.full = bench.sample(&plain.1, SchedulerKind::Ddim, STEPS, false);
    let whole = bench.judge(&bench.full.clone(), 1.0);
    println!(
        "| full, DDIM with {STEPS} steps | 100% | {:.1}% | - | {:.3} | - |",
        100.0 * whole.classified,
        whole.frechet
    );
    let mut curves: Vec<(&str, Vec<Quality>)> = Vec::new();
    for (name, way) in WAYS {
        let mut curve = Vec::new();
        for &share in &shares {
            let before = Instant::now();
            let (found, quality) = bench.measure(&plain.1, way, share, before);
            let psnr = if quality.psnr.is_finite() {
                format!("{:.1}", quality.psnr)
            } else {
                "equal".into()
            };
            let (macs, classified) = (100.0 * quality.macs, 100.0 * quality.classified);
            println!(
                "| {name} | {macs:.1}% | {classified:.1}% | {psnr} | {:.3} | {found} |",
                quality.frechet
            );
            curve.push(quality);
        }
        curves.push((name, curve));
    }
    if asked.is_empty() {
        std::fs::write(root.join("docs/dip-go.svg"), plot(&curves, &whole))
            .expect("docs/ is there");
    }
}

impl Bench<'_> {
    fn bundle(&self, pass: Option<&str>) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().expect("there is room");
        let request = CompileRequest {
            passes: pass
                .map(|p| parse_pass_flag(p).expect("a pass"))
                .into_iter()
                .collect(),
            profile: Profile::Onnx,
            threads: 2,
            ..CompileRequest::new(
                self.root.join("fixtures/digits-dit"),
                folder.path().join("bundle"),
            )
        };
        compile(&request, None, &Quiet).expect("compiles");
        let bundle = Bundle::open(&request.output).expect("opens");
        (folder, bundle)
    }

    fn sample(
        &self,
        bundle: &Bundle,
        scheduler: SchedulerKind,
        steps: usize,
        prune: bool,
    ) -> Samples {
        let config = std::fs::read_to_string(
            self.root
                .join("fixtures/digits-dit/scheduler/scheduler_config.json"),
        )
        .expect("is there");
        let plan = sampling_plan(
            &parse_scheduler_config(&config).expect("is one"),
            Some(scheduler),
            steps,
        )
        .expect("a plan");
        let mut session =
            DiffusionSession::open(&self.backend, bundle, None, &SessionOptions::default())
                .expect("opens");
        let (seeds, classes): (Vec<u64>, Vec<usize>) =
            (0..IMAGES).map(|i| (i as u64, i % 10)).unzip();
        let request = SampleRequest {
            plan: &plan,
            image: None,
            guidance: 1.5,
            seeds: &seeds,
            noise: None,
            classes: &classes,
            conditions: None,
            size: None,
            prune,
        };
        session
            .sample(&request, &mut |_| ControlFlow::Continue(()))
            .expect("samples")
            .expect("isn't stopped")
    }

    fn measure(&self, plain: &Bundle, way: Way, share: f64, before: Instant) -> (String, Quality) {
        match way {
            Way::Pass(pass) => {
                let (_folder, bundle) = self.bundle(Some(&format!("{pass}{share}")));
                let found = format!("{:.0}", before.elapsed().as_secs_f64());
                let macs = bundle.manifest().sampling.as_ref().map_or(1.0, |s| s.macs);
                (
                    found,
                    self.judge(
                        &self.sample(&bundle, SchedulerKind::Ddim, STEPS, true),
                        macs,
                    ),
                )
            }
            Way::Steps(scheduler) => {
                let steps = (share * STEPS as f64).round() as usize;
                (
                    "-".into(),
                    self.judge(
                        &self.sample(plain, scheduler, steps, false),
                        steps as f64 / STEPS as f64,
                    ),
                )
            }
        }
    }

    fn judge(&self, samples: &Samples, macs: f64) -> Quality {
        let right = samples
            .images()
            .enumerate()
            .filter(|(i, image)| self.classifier.classify(image) == Some(i % 10))
            .count();
        let statistics =
            Statistics::of(samples.images(), self.digits.width()).expect("as wide as digits");
        Quality {
            macs,
            classified: right as f64 / IMAGES as f64,
            psnr: mean_psnr(samples.images(), self.full.images()).unwrap_or(f64::INFINITY),
            frechet: statistics.distance(&self.digits).unwrap_or(f64::NAN),
        }
    }
}

/// The measures over the share of multiply-adds kept, side by side.
fn plot(curves: &[(&str, Vec<Quality>)], full: &Quality) -> String {
    const COLOURS: [&str; 9] = [
        "#d62728", "#ff7f0e", "#8c564b", "#1f77b4", "#17becf", "#9467bd", "#7f7f7f", "#2ca02c",
        "#bcbd22",
    ];
    let panels: [(&str, Measure); 3] = [
        ("classified as asked, %", |q| 100.0 * q.classified),
        ("PSNR to the full sampler, dB", |q| q.psnr),
        ("Frechet distance (less is better)", |q| q.frechet),
    ];
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1080 440\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"1080\" height=\"440\" fill=\"white\"/>\n",
    );
    for (at, (title, of)) in panels.into_iter().enumerate() {
        let left = 60.0 + 350.0 * at as f64;
        let all = curves
            .iter()
            .flat_map(|(_, c)| c)
            .map(of)
            .chain([of(full)])
            .filter(|v| v.is_finite());
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        let x = |macs: f64| left + 280.0 * (macs - 0.1) / 0.55;
        let y = |value: f64| 300.0 - 250.0 * (value - low) / (high - low).max(1e-9);
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"30\" font-size=\"14\">{title}</text>\n<rect x=\"{left}\" y=\"50\" width=\"280\" height=\"250\" fill=\"none\" stroke=\"#999\"/>"
        );
        for tick in [0.15, 0.25, 0.35, 0.45, 0.6] {
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"318\" text-anchor=\"middle\">{:.0}%</text>",
                x(tick),
                100.0 * tick
            );
        }
        for value in [low, f64::midpoint(low, high), high] {
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{value:.1}</text>",
                left - 5.0,
                y(value) + 4.0
            );
        }
        if of(full).is_finite() {
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" x2=\"{0:.0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#333\" stroke-dasharray=\"4\"/>",
                left + 280.0,
                y(of(full))
            );
        }
        for ((_, curve), colour) in curves.iter().zip(COLOURS) {
            let points: Vec<String> = curve
                .iter()
                .filter(|q| of(q).is_finite())
                .map(|q| format!("{:.1},{:.1}", x(q.macs), y(of(q))))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            );
        }
    }
    for (at, ((name, _), colour)) in curves.iter().zip(COLOURS).enumerate() {
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
    svg + "<text x=\"60\" y=\"432\" fill=\"#555\">x: multiply-adds kept; dashed: the full sampler, DDIM with 50 steps</text>\n</svg>\n"
}
