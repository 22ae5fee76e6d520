//! Plans against diffusers' own runs, against the textbook, and what is refused.

mod properties;
mod refusals;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::diffusion::{SamplerState, SamplingPlan, SamplingStep};

/// The largest distance to diffusers, relative where numbers are larger than 1. Nearly all runs
/// stay below 1e-5; those that begin where almost no signal is left, and take few steps from there,
/// multiply rounding errors of single precision (diffusers' and ours) by the noise.
const TOLERANCE: f64 = 5e-5;
/// The same for fractional timesteps, which diffusers finds from logarithms in single precision.
/// Whole ones are equal.
const TIMESTEP_TOLERANCE: f64 = 5e-4;

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(object) = value {
        object
    } else {
        panic!("{value} is no object")
    }
}

fn plan(config: Value, steps: usize) -> SamplingPlan {
    sampling_plan(&object(config), None, steps).unwrap_or_else(|error| panic!("{error}"))
}

/// The latents after each step from noise and perhaps an image, if the network answers
/// `network(input, timestep)` and step `i` draws `fresh(i)`.
fn run(
    plan: &SamplingPlan,
    (noise, image): (&[f32], Option<&[f32]>),
    mut network: impl FnMut(&[f32], f64) -> Vec<f32>,
    fresh: impl Fn(usize) -> Option<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let state = match image {
        None => SamplerState::new(plan, noise),
        Some(image) => SamplerState::of_image(plan, noise, image),
    };
    let mut state = state.unwrap();
    let mut input = vec![0.0; noise.len()];
    let mut latents = Vec::new();
    while let Some(timestep) = state.model_input(&mut input).unwrap() {
        let output = network(&input, timestep);
        let noise = fresh(state.taken());
        state.advance(&output, noise.as_deref()).unwrap();
        latents.push(state.latents().to_vec());
    }
    latents
}

fn numbers(value: &Value) -> Vec<f32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect()
}

/// The largest distance of `found` from `expected`, relative where numbers are larger than 1.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let distances = found
        .iter()
        .zip(expected)
        .map(|(a, b)| f64::from((a - b).abs() / b.abs().max(1.0)));
    distances.fold(0.0, f64::max)
}

#[test]
fn every_run_of_diffusers_is_followed_step_by_step() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/schedulers.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut far = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let scheduler = case["scheduler"]
            .as_str()
            .map(|name| SchedulerKind::from_name(name).unwrap());
        let steps = case["steps"].as_u64().unwrap() as usize;
        let config = case["config"].as_object().unwrap();
        let image = case.get("image").map(numbers);
        let plan = match case.get("strength").and_then(Value::as_f64) {
            None => sampling_plan(config, scheduler, steps),
            Some(strength) => image_sampling_plan(config, scheduler, steps, strength),
        };
        let plan = plan.unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = case["rows"].as_array().unwrap();
        assert_eq!(plan.steps.len(), rows.len(), "{name}");
        if let Some(scale) = case.get("initial_scale").and_then(Value::as_f64) {
            let apart = distance(&[plan.initial_scale as f32], &[scale as f32]);
            assert!(apart < TOLERANCE && image.is_none(), "{name}");
        }
        let mut index = 0;
        let mut check = |what: &str, row: usize, found: &[f32], expected: &[f32]| {
            let distance = distance(found, expected);
            if distance >= TOLERANCE {
                far.push(format!("{name}: {what} of step {row} is off by {distance:e}: {found:?} for {expected:?}"));
            }
        };
        let answer = |input: &[f32], timestep: f64| {
            let row = &rows[index];
            let expected = row["timestep"].as_f64().unwrap();
            let exact = expected.fract() == 0.0;
            let apart = (timestep - expected).abs();
            assert!(
                apart == 0.0 || (!exact && apart < TIMESTEP_TOLERANCE),
                "{name}: timestep {timestep} for {expected} in step {index}"
            );
            check("the input", index, input, &numbers(&row["input"]));
            index += 1;
            numbers(&row["output"])
        };
        let drawn = |step: usize| rows[step].get("noise").map(numbers);
        let noise = numbers(&case["noise"]);
        let latents = run(&plan, (&noise, image.as_deref()), answer, drawn);
        for (index, (row, latents)) in rows.iter().zip(&latents).enumerate() {
            check("the result", index, latents, &numbers(&row["latents"]));
        }
    }
    assert!(far.is_empty(), "\n{}", far.join("\n"));
}

/// diffusers' linear multistep method takes coefficients for predictions that a run from an image
/// doesn't have; here it begins with fewer.
#[test]
fn a_run_from_an_image_looks_back_no_further_than_its_first_step() {
    for class in SchedulerKind::ALL.map(SchedulerKind::class) {
        let config = object(json!({"_class_name": class, "skip_prk_steps": true}));
        let plan = image_sampling_plan(&config, None, 10, 0.5).unwrap();
        assert!(plan.check().is_ok() && plan.image_scale > 0.0, "{class}");
        let whole = sampling_plan(&config, None, 10).unwrap();
        let ends = [&plan, &whole].map(|plan| plan.steps[plan.steps.len() - 1].timestep);
        assert!((ends[0] - ends[1]).abs() < 1e-9, "{class}: {ends:?}");
        // Where the predictions are all alike, weights are those of a step of first order.
        if class == "LMSDiscreteScheduler" {
            let sum = |step: &SamplingStep| step.estimates.iter().sum::<f64>();
            for (step, of_whole) in plan.steps.iter().zip(&whole.steps[5..]) {
                assert!((sum(step) - sum(of_whole)).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn strengths_that_take_no_step_or_too_many_are_refused() {
    let config = object(json!({"_class_name": "DDIMScheduler"}));
    for strength in [0.0, -1.0, 0.09, 1.01, f64::NAN] {
        let error = image_sampling_plan(&config, None, 10, strength).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("at least 0.1"), "{text}");
    }
    let runge_kutta = object(json!({"_class_name": "PNDMScheduler"}));
    let error = image_sampling_plan(&runge_kutta, None, 10, 0.5).unwrap_err();
    assert!(
        error.to_string().contains("`skip_prk_steps` is false"),
        "{error}"
    );
    let plan = image_sampling_plan(&config, None, 10, 0.5).unwrap();
    let error = SamplerState::new(&plan, &[0.0; 4]).unwrap_err();
    assert!(
        error.to_string().contains("begins from an image"),
        "{error}"
    );
    let error = SamplerState::of_image(&plan, &[0.0; 4], &[0.0; 3]).unwrap_err();
    assert!(error.to_string().contains("3 numbers"), "{error}");
}

#[test]
fn a_plan_survives_its_file_form() {
    let plan = plan(
        json!({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}),
        7,
    );
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<SamplingPlan>(&text).unwrap(), plan);
}

#[test]
fn plans_look_back_no_further_than_their_method() {
    let configs = [
        (json!({"_class_name": "DDIMScheduler"}), (1, 1)),
        (json!({"_class_name": "EulerDiscreteScheduler"}), (1, 1)),
        (json!({"_class_name": "HeunDiscreteScheduler"}), (2, 2)),
        (json!({"_class_name": "LMSDiscreteScheduler"}), (1, 4)),
        (json!({"_class_name": "UniPCMultistepScheduler"}), (1, 3)),
        (
            json!({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}),
            (1, 4),
        ),
        (
            json!({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}),
            (1, 3),
        ),
        (
            json!({"_class_name": "DPMSolverMultistepScheduler"}),
            (1, 2),
        ),
        (
            json!({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}),
            (1, 1),
        ),
        (
            json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true}),
            (2, 5),
        ),
        (json!({"_class_name": "PNDMScheduler"}), (4, 13)),
    ];
    for (config, expected) in configs {
        let plan = plan(config.clone(), 20);
        assert_eq!(
            (plan.latent_history(), plan.estimate_history()),
            expected,
            "{config}"
        );
    }
}

#[test]
fn defaults_of_another_scheduler_are_not_taken_over() {
    let own = json!({"_class_name": "DDPMScheduler", "timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]});
    let plan = sampling_plan(&object(own), Some(SchedulerKind::DpmSolverPlusPlus), 10).unwrap();
    // Evenly spread, this scheduler's own default, reaches the last timestep of the training.
    assert_eq!(plan.steps[0].timestep as u32, 999);
}

#[test]
fn python_constants_are_read_outside_of_strings_only() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "note": "NaN \" Infinity", "b": [NaN,Infinity]}"#;
    let config = parse_scheduler_config(text).unwrap();
    assert_eq!(Value::Object(config)["b"], json!(["NaN", "Infinity"]));
    let config = parse_scheduler_config(
        &text
            .replace(r#""b""#, r#""_b""#)
            .replace(r#""note""#, r#""_note""#),
    )
    .unwrap();
    assert_eq!(config["_note"], "NaN \" Infinity");
    assert!(sampling_plan(&config, None, 10).is_ok());
}
