//! skip: the graphs of any schedule do what the SuperNet does with the same gates, and schedules
//! that don't fit are refused.

use std::collections::BTreeMap;
use std::path::Path;

use dlc_errors::Faulty;
use dlc_eval::Array;
use dlc_ir::schedule::memory;
use dlc_ir::{
    Classes, DType, Diffusion, Expr, Granularity, Module, Reuse, SkipSchedule, Task, WeightTable,
    parse_graph, parse_graph_over,
};
use dlc_methods::diffusion::{Estimate, SamplingPlan, SamplingStep};
use dlc_passes::dip_go::supernet_sample;
use dlc_passes::{PassContext, PassError, PassRun, Prompt, Samplers};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fakes::{Given, Outside, run_with};
use super::model::Model;

pub const STEPS: usize = 6;

/// A denoiser of these facts over made-up weights.
pub fn module(text: &str, diffusion: Diffusion) -> Module {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut weights = WeightTable::default();
    for (_, w) in parse_graph(text).unwrap().1.entries() {
        let fan = if w.shape.len() > 1 {
            w.shape.iter().skip(1).product::<usize>() as f32
        } else {
            16.0
        };
        let centre = if w.shape.len() == 1 && w.name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        let bytes: Vec<u8> = (0..w.elements())
            .flat_map(|_| (centre + rng.random_range(-0.8..0.8f32) / fan.sqrt()).to_le_bytes())
            .collect();
        weights
            .add(&w.name, &w.shape, Expr::constant(bytes, DType::F32))
            .unwrap();
    }
    let mut module = Model::decoder().module();
    module.graphs = vec![parse_graph_over(text, &weights).unwrap()];
    module.weights = weights;
    (module.model.task, module.model.diffusion) = (Task::ImageGeneration, Some(diffusion));
    module
}

pub fn dit() -> Module {
    let classes = Some(Classes {
        count: 10,
        unconditional: Some(10),
    });
    module(
        include_str!("../graphs/dit.dlc"),
        Diffusion {
            channels: 4,
            height: 8,
            width: 8,
            size_step: None,
            out_channels: 8,
            classes,
            text_width: None,
        },
    )
}

/// A U-Net without conditioning.
pub fn unet() -> Module {
    let diffusion = Diffusion {
        channels: 1,
        height: 16,
        width: 16,
        size_step: None,
        out_channels: 1,
        classes: None,
        text_width: None,
    };
    module(include_str!("../graphs/unet-ddpm.dlc"), diffusion)
}

pub fn plan(steps: usize) -> SamplingPlan {
    let step = |i: usize| SamplingStep {
        timestep: 900.0 - 100.0 * i as f64,
        input_scale: 1.0,
        estimate: Estimate::OUTPUT,
        latents: vec![0.9],
        estimates: if i == 0 { vec![0.3] } else { vec![0.4, -0.1] },
        output: 0.0,
        noise: 0.0,
    };
    SamplingPlan {
        image_scale: 0.0,
        initial_scale: 1.0,
        steps: (0..steps).map(step).collect(),
    }
}

/// Gives one plan, and one schedule and the same prompts for every file.
#[derive(Default)]
pub struct Fixed {
    pub schedule: Option<SkipSchedule>,
    pub prompts: Vec<Prompt>,
}

/// With this schedule in every file.
fn scheduled(schedule: SkipSchedule) -> Fixed {
    Fixed {
        schedule: Some(schedule),
        ..Fixed::default()
    }
}

impl Samplers for Fixed {
    fn plan(&self, _: Option<&str>, steps: usize) -> Result<(String, SamplingPlan), PassError> {
        Ok(("ddim".into(), plan(steps)))
    }

    fn prompts(&self, _: &Path, _: &[(&str, DType)], _: bool) -> Result<Vec<Prompt>, PassError> {
        Ok(self.prompts.clone())
    }

    fn texts(&self, _: Option<&Path>) -> Result<Vec<String>, PassError> {
        Ok(vec![])
    }

    fn check_texts(&self, _: &[String], _: &Module) -> Result<(), PassError> {
        Ok(())
    }

    fn encode(
        &self,
        _: &[String],
        _: &Module,
        _: &[(&str, DType)],
        _: bool,
        _: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        Ok(self.prompts.clone())
    }

    fn schedule(&self, file: &Path) -> Result<SkipSchedule, PassError> {
        let problem = "holds no schedule".to_owned();
        self.schedule.clone().ok_or_else(|| PassError::Sampler {
            place: file.display().to_string(),
            problem,
            unsupported: false,
        })
    }
}

fn skip(options: &str, module: &mut Module, samplers: &Fixed) -> Result<Vec<PassRun>, PassError> {
    let calibration = Given::new(vec![]);
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: Some(samplers),
        progress: &(),
        cache: None,
        key: "",
        threads: 1,
    };
    run_with("skip", options, module, &outside)
}

/// Samples by the graphs that the pass made, as `Evaluation` says.
fn sample(module: &Module, noise: &[f32], class: Option<i64>, guidance: f32) -> Vec<f32> {
    let (sampling, diffusion) = (
        module.sampling.as_ref().unwrap(),
        module.model.diffusion.as_ref().unwrap(),
    );
    let rows = if class.is_some() { 2 } else { 1 };
    let (mut x, mut before) = (noise.to_vec(), Vec::new());
    let mut memories: BTreeMap<String, Vec<Array>> = BTreeMap::new();
    for (step, evaluation) in plan(STEPS).steps.iter().zip(&sampling.evaluations) {
        let graph = module.graph(&evaluation.graph).unwrap();
        let mut feeds = BTreeMap::new();
        for input in graph.inputs() {
            let array = match (input.name.as_str(), memory::parse_input(&input.name)) {
                (_, Some((block, age))) => memories[block][age].clone(),
                (memory::FORECAST, _) => Array::f32(
                    [evaluation.forecast.len()],
                    evaluation.forecast.iter().map(|w| *w as f32).collect(),
                )
                .unwrap(),
                ("timestep", _) => Array::f32([rows], vec![step.timestep as f32; rows]).unwrap(),
                ("class_labels", _) => Array::i64([2], vec![class.unwrap(), 10]).unwrap(),
                _ => Array::f32(
                    [rows, diffusion.channels, diffusion.height, diffusion.width],
                    x.repeat(rows),
                )
                .unwrap(),
            };
            feeds.insert(input.name.clone(), array);
        }
        let outputs = dlc_eval::run(graph, &module.weights, &feeds).unwrap();
        for (name, array) in &outputs {
            if let Some(block) = memory::parse_output(name) {
                memories
                    .entry(block.to_owned())
                    .or_default()
                    .insert(0, array.clone());
            }
        }
        let out = outputs["out_sample"].as_f32().unwrap();
        let row = out.len() / rows;
        let guided = |i: usize| {
            if rows == 2 {
                out[row + i] + guidance * (out[i] - out[row + i])
            } else {
                out[i]
            }
        };
        let estimate: Vec<f32> = (0..x.len()).map(guided).collect();
        let next = |i: usize| {
            let earlier = step
                .estimates
                .get(1)
                .map_or(0.0, |c| *c as f32 * before_at(&before, i));
            step.latents[0] as f32 * x[i] + step.estimates[0] as f32 * estimate[i] + earlier
        };
        x = (0..x.len()).map(next).collect();
        before = estimate;
    }
    x
}

fn before_at(before: &[f32], i: usize) -> f32 {
    before.get(i).copied().unwrap_or(0.0)
}

#[derive(Debug, Clone)]
struct Case {
    denoiser: &'static str,
    granularity: Granularity,
    reuse: Reuse,
    share: f64,
    graphs: Option<usize>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let granularity = prop_oneof![Just(Granularity::Branch), Just(Granularity::Layer)];
    let reuse = prop_oneof![
        Just(Reuse::Hold),
        Just(Reuse::Linear),
        Just(Reuse::Quadratic)
    ];
    let graphs = prop_oneof![Just(None), Just(Some(1)), Just(Some(3))];
    (
        prop_oneof![Just("dit"), Just("unet")],
        granularity,
        reuse,
        0.0..1.0,
        graphs,
        any::<u64>(),
    )
        .prop_map(|(denoiser, granularity, reuse, share, graphs, seed)| Case {
            denoiser,
            granularity,
            reuse,
            share,
            graphs,
            seed,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_graphs_of_any_schedule_do_what_the_supernet_does(case in cases()) {
        let mut module = if case.denoiser == "dit" { dit() } else { unet() };
        let whole = SkipSchedule::new(case.granularity, case.reuse, names(&module, case.granularity), &[]);
        let mut rng = ChaCha8Rng::seed_from_u64(case.seed);
        let table: Vec<Vec<bool>> =
            (0..STEPS).map(|step| whole.units.iter().map(|_| step == 0 || rng.random_bool(case.share)).collect()).collect();
        let schedule = SkipSchedule::new(case.granularity, case.reuse, whole.units, &table);
        let limit = case.graphs.map_or(String::new(), |n| format!(", max_graphs: {n}"));
        let mut unrolled = module.clone();
        let runs = skip(&format!("schedule: file, steps: {STEPS}{limit}"), &mut module, &scheduled(schedule)).unwrap();
        let sampling = module.sampling.clone().unwrap();
        prop_assert_eq!(sampling.evaluations.len(), STEPS);
        // A full first step and as many patterns as were allowed, at least one for the rest.
        let most = case.graphs.map_or(STEPS, |n| n.max(2));
        prop_assert!(module.graphs.len() - 1 <= most || case.graphs == Some(1), "{} graphs", module.graphs.len() - 1);
        prop_assert_eq!(runs[0].report.schedule.as_ref(), Some(&sampling.schedule));

        let diffusion = module.model.diffusion.clone().unwrap();
        let noise: Vec<f32> = (0..diffusion.channels * diffusion.height * diffusion.width).map(|_| rng.random_range(-1.5..1.5)).collect();
        let class = diffusion.classes.map(|_| 4);
        let expected = supernet_sample(&module, &plan(STEPS), 1.5, &sampling.schedule, (&noise, 0), (class, None)).unwrap();
        let found = sample(&module, &noise, class, 1.5);
        prop_assert!(error(&expected, &found) <= 1e-4, "{:e}", error(&expected, &found));
        let closed = sampling.schedule.clone();
        skip(&format!("schedule: file, steps: {STEPS}, unroll: true"), &mut unrolled, &scheduled(closed)).unwrap();
        prop_assert_eq!(unrolled.graphs.len(), 2);
        prop_assert_eq!(&unrolled.sampling.as_ref().unwrap().schedule, &sampling.schedule);
        let found = sample_at_once(&unrolled, &noise, class);
        prop_assert!(error(&expected, &found) <= 1e-4, "unrolled: {:e}", error(&expected, &found));
    }
}

/// Samples by the one graph that the pass made.
fn sample_at_once(module: &Module, noise: &[f32], class: Option<i64>) -> Vec<f32> {
    let (graph, diffusion) = (
        module.graph("sampler").unwrap(),
        module.model.diffusion.as_ref().unwrap(),
    );
    let shape = [1, diffusion.channels, diffusion.height, diffusion.width];
    let mut feeds = BTreeMap::from([(
        "latents".to_owned(),
        Array::f32(shape, noise.to_vec()).unwrap(),
    )]);
    feeds.extend(class.map(|class| {
        (
            "class_labels".to_owned(),
            Array::i64([2], vec![class, 10]).unwrap(),
        )
    }));
    dlc_eval::run(graph, &module.weights, &feeds).unwrap()["out_latents"]
        .as_f32()
        .unwrap()
        .to_vec()
}

/// Largest difference, as a share of the largest number.
fn error(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let peak = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
    expected
        .iter()
        .zip(found)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max)
        / peak
}

/// Names of a module's units: those of a schedule that computes everything.
fn names(module: &Module, granularity: Granularity) -> Vec<String> {
    let mut module = module.clone();
    let granularity = granularity.name();
    skip(
        &format!("interval: 1, steps: {STEPS}, granularity: {granularity}"),
        &mut module,
        &Fixed::default(),
    )
    .unwrap();
    module.sampling.unwrap().schedule.units
}

#[test]
fn units_are_branches_or_the_blocks_of_the_paper() {
    let layers = |names: &[String]| names.join(" ");
    assert_eq!(
        layers(&names(&dit(), Granularity::Layer)),
        "layers.0 layers.1 layers.2 layers.3"
    );
    assert!(
        layers(&names(&dit(), Granularity::Branch))
            .starts_with("layers.0.attn layers.0.mlp layers.1.attn")
    );
    assert_eq!(
        layers(&names(&unet(), Granularity::Layer)),
        "down.0 down.1 mid up.0 up.1"
    );
}

#[test]
fn computing_everything_is_the_target() {
    let mut module = dit();
    skip("interval: 1, steps: 6", &mut module, &Fixed::default()).unwrap();
    assert_eq!(module.graphs.len(), 1);
    let sampling = module.sampling.unwrap();
    assert!(sampling.evaluations.iter().all(|e| e.graph == "target"));
    assert!((sampling.macs - 1.0).abs() < 1e-12);
}

#[test]
fn budgets_are_met() {
    for options in [
        "macs: 0.5, random: true",
        "macs: 0.5, random: true, granularity: layer",
        "macs: 0.5",
        "macs: 0.6, random: true, max_graphs: 4",
    ] {
        let mut module = dit();
        skip(
            &format!("{options}, steps: 40"),
            &mut module,
            &Fixed::default(),
        )
        .unwrap();
        let sampling = module.sampling.unwrap();
        let share = if options.contains("0.6") { 0.6 } else { 0.5 };
        assert!(
            (sampling.macs - share).abs() <= 0.0125,
            "{options}: {}",
            sampling.macs
        );
    }
}

#[test]
fn nothing_is_computed_that_nobody_reads() {
    let mut module = dit();
    // The last layer's output is all that the rest needs, so only it decides.
    let table: Vec<Vec<bool>> = (0..STEPS)
        .map(|step| {
            if step % 3 == 0 {
                vec![true; 4]
            } else {
                vec![true, true, true, false]
            }
        })
        .collect();
    let units = (0..4).map(|i| format!("layers.{i}")).collect();
    let schedule = SkipSchedule::new(Granularity::Layer, Reuse::Hold, units, &table);
    skip(
        "schedule: file, steps: 6",
        &mut module,
        &scheduled(schedule),
    )
    .unwrap();
    assert_eq!(
        module.sampling.as_ref().unwrap().schedule.steps,
        ["####", "....", "....", "####", "....", "...."]
    );
    insta::assert_snapshot!(module.graph("step.1").unwrap().to_text(&module.weights));
}

#[test]
fn what_is_reused_is_a_connection_of_the_unrolled_sampler() {
    let mut module = dit();
    let units = (0..4).map(|i| format!("layers.{i}")).collect();
    let table = vec![
        vec![true; 4],
        vec![false, false, false, true],
        vec![false; 4],
    ];
    let schedule = SkipSchedule::new(Granularity::Layer, Reuse::Linear, units, &table);
    let runs = skip(
        "schedule: file, steps: 3, unroll: true",
        &mut module,
        &scheduled(schedule),
    )
    .unwrap();
    let sampling = module.sampling.as_ref().unwrap();
    assert_eq!(
        (sampling.unrolled.as_deref(), sampling.evaluations.len()),
        (Some("sampler"), 0)
    );
    assert_eq!(runs[0].report.schedule.as_ref(), Some(&sampling.schedule));
    insta::assert_snapshot!(module.graph("sampler").unwrap().to_text(&module.weights));
}

#[test]
fn a_model_told_nothing_is_sampled_without_guidance() {
    for unroll in [false, true] {
        let mut module = unet();
        skip(
            &format!("interval: 2, steps: 3, unroll: {unroll}"),
            &mut module,
            &Fixed::default(),
        )
        .unwrap();
        assert_eq!(
            module.sampling.as_ref().unwrap().guidance.to_bits(),
            f64::to_bits(1.0)
        );
        // Once for each image: nothing is doubled.
        let text = module
            .graphs
            .iter()
            .map(|graph| graph.to_text(&module.weights))
            .collect::<String>();
        assert!(!text.contains("2*batch"), "{text}");
        let mut module = dit();
        skip(
            &format!("interval: 2, steps: 3, unroll: {unroll}"),
            &mut module,
            &Fixed::default(),
        )
        .unwrap();
        assert_eq!(
            module.sampling.as_ref().unwrap().guidance.to_bits(),
            f64::to_bits(1.5)
        );
    }
}

#[test]
fn guidance_is_refused_where_there_is_nothing_to_guide_to() {
    skip(
        "interval: 2, steps: 3, guidance: 1",
        &mut unet(),
        &Fixed::default(),
    )
    .unwrap();
    let error = skip(
        "interval: 2, steps: 3, guidance: 2",
        &mut unet(),
        &Fixed::default(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("guidance=2: the model is conditioned on neither class nor text"),
        "{error}"
    );
    let mut classes = dit();
    classes.model.diffusion.as_mut().unwrap().classes = Some(Classes {
        count: 10,
        unconditional: None,
    });
    let error = skip(
        "interval: 2, steps: 3, guidance: 2",
        &mut classes,
        &Fixed::default(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("guidance=2: the model wasn't trained without a class"),
        "{error}"
    );
}

#[test]
fn schedules_and_options_that_do_not_fit_are_refused() {
    let units: Vec<String> = names(&dit(), Granularity::Layer);
    let schedule = |units: &[String], steps: &[&str]| {
        let schedule = SkipSchedule::new(Granularity::Layer, Reuse::Hold, units.to_vec(), &[]);
        Some(SkipSchedule {
            steps: steps.iter().map(ToString::to_string).collect(),
            ..schedule
        })
    };
    let full = ["####"; 6];
    let mut report = Vec::new();
    for (options, given) in [
        ("interval: 2, macs: 0.5", None),
        ("random: true, interval: 2", None),
        ("interval: 0.5", None),
        ("macs: 1.5", None),
        ("macs: 0.001, random: true", None),
        ("interval: 2, guidance: -1", None),
        ("interval: 2, steps: 0", None),
        ("interval: 2, reuse: cubic", None),
        ("interval: 2, granularity: head", None),
        ("interval: 2, unroll: true, max_graphs: 2", None),
        ("intervall: 2", None),
        ("schedule: missing", None),
        ("schedule: file", schedule(&units, &full[..5])),
        ("schedule: file", schedule(&units[..3], &["###"; 6])),
        ("schedule: file", schedule(&["layers.9".into()], &["#"; 6])),
        (
            "schedule: file",
            schedule(&units, &["####", "###", "####", "####", "####", "####"]),
        ),
        (
            "schedule: file",
            schedule(&units, &["####", "##x#", "####", "####", "####", "####"]),
        ),
        (
            "schedule: file",
            schedule(&units, &["#.##", "####", "####", "####", "####", "####"]),
        ),
    ] {
        let steps = if options.contains("steps") {
            ""
        } else {
            ", steps: 6"
        };
        let error = skip(
            &format!("{options}{steps}"),
            &mut dit(),
            &Fixed {
                schedule: given,
                ..Fixed::default()
            },
        )
        .unwrap_err();
        report.push(format!("{options}\n    {:?}: {error}", error.fault()));
    }
    let error = skip(
        "interval: 2",
        &mut Model::decoder().module(),
        &Fixed::default(),
    )
    .unwrap_err();
    report.push(format!("a model of text\n    {:?}: {error}", error.fault()));
    insta::assert_snapshot!(report.join("\n"));
}
