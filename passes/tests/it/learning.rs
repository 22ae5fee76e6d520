//! dip-go: what was learned survives a run that is stopped, and models conditioned on a text are
//! learned on texts.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::{Diffusion, Module};
use dlc_passes::dip_go::supernet_sample;
use dlc_passes::{PassError, PassRun, Prompt};

use super::fakes::{Given, Memory, Outside, Watcher, run_with};
use super::skipping::{Fixed, STEPS, dit, module, plan, unet};

fn learn(
    options: &str,
    module: &mut Module,
    samplers: &Fixed,
    progress: &Watcher,
    cache: Option<&Memory>,
) -> Result<Vec<PassRun>, PassError> {
    let calibration = Given::new(vec![]);
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: Some(samplers),
        progress,
        cache,
        key: "",
        threads: 1,
    };
    run_with(
        "dip-go",
        &format!("steps: {STEPS}, {options}"),
        module,
        &outside,
    )
}

const QUICK: &str = "macs: 0.5, rounds: 3, iterations: 3, batch: 1";

/// How far learning is, at each update of the progress.
fn counts(progress: &Watcher) -> Vec<usize> {
    progress
        .updates
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, _, total)| *total == 6)
        .map(|(_, done, _)| *done)
        .collect()
}

#[test]
fn learning_that_was_stopped_goes_on_where_it_was_and_ends_alike() {
    let (mut whole, progress) = (dit(), Watcher::default());
    learn(QUICK, &mut whole, &Fixed::default(), &progress, None).unwrap();
    assert_eq!(counts(&progress), [1, 2, 3, 4, 5, 6]);
    let updates = progress.updates.lock().unwrap().len();
    for patience in 2..=updates {
        let cache = Memory::default();
        let stopped = Watcher {
            patience: Some(patience),
            ..Watcher::default()
        };
        let error =
            learn(QUICK, &mut dit(), &Fixed::default(), &stopped, Some(&cache)).unwrap_err();
        assert!(matches!(error, PassError::Interrupted), "{error}");
        let (mut module, progress) = (dit(), Watcher::default());
        learn(
            QUICK,
            &mut module,
            &Fixed::default(),
            &progress,
            Some(&cache),
        )
        .unwrap();
        let done = counts(&stopped).last().copied().unwrap_or(0);
        assert_eq!(
            counts(&progress),
            (done + 1..=6).collect::<Vec<_>>(),
            "after {patience} updates"
        );
        assert_eq!(module.sampling, whole.sampling, "after {patience} updates");
    }
}

/// A U-Net conditioned on a text.
fn told() -> Module {
    let diffusion = Diffusion {
        channels: 4,
        height: 8,
        width: 8,
        size_step: None,
        out_channels: 4,
        classes: None,
        text_width: Some(24),
    };
    module(include_str!("../graphs/unet-sd15.dlc"), diffusion)
}

/// A text of numbers, and one of zeros for images without a text.
fn prompt(first: f32) -> Prompt {
    let text = (0..5 * 24).map(|i| first + 0.1 * (i as f32).sin());
    let numbers = text.chain(std::iter::repeat_n(0.0, 5 * 24)).collect();
    BTreeMap::from([(
        "encoder_hidden_states".to_owned(),
        Array::f32([2, 5, 24], numbers).unwrap(),
    )])
}

#[test]
fn models_told_a_text_are_learned_on_texts() {
    let texts = Fixed {
        prompts: vec![prompt(0.3), prompt(-0.3)],
        ..Fixed::default()
    };
    let mut module = told();
    let options = "macs: 0.6, rounds: 1, iterations: 1, batch: 1";
    let runs = learn(
        &format!("{options}, embeddings: texts"),
        &mut module,
        &texts,
        &Watcher::default(),
        None,
    )
    .unwrap();
    let sampling = module.sampling.as_ref().unwrap();
    assert!((sampling.macs - 0.6).abs() <= 0.0125, "{}", sampling.macs);
    assert!(
        runs[0]
            .report
            .facts
            .iter()
            .any(|(name, value)| name == "consistency" && value.contains("mean square"))
    );
    // The conditioning counts.
    let noise: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
    let sample = |first: f32| {
        supernet_sample(
            &module,
            &plan(STEPS),
            1.5,
            &sampling.schedule,
            (&noise, 0),
            (None, Some(prompt(first))),
        )
        .unwrap()
    };
    assert_ne!(sample(0.3), sample(-0.3));
    let error = learn(options, &mut told(), &texts, &Watcher::default(), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("conditioned on encoder_hidden_states") && error.contains("embeddings=FILE"),
        "{error}"
    );
    let error = learn(
        "embeddings: texts, macs: 0.5",
        &mut dit(),
        &texts,
        &Watcher::default(),
        None,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("takes no text"), "{error}");
}

#[test]
fn a_model_told_nothing_is_learned_without_guidance() {
    let mut module = unet();
    learn(
        "macs: 0.6, rounds: 1, iterations: 1, batch: 1",
        &mut module,
        &Fixed::default(),
        &Watcher::default(),
        None,
    )
    .unwrap();
    assert_eq!(
        module.sampling.unwrap().guidance.to_bits(),
        f64::to_bits(1.0)
    );
    let error = learn(
        "macs: 0.6, guidance: 3",
        &mut unet(),
        &Fixed::default(),
        &Watcher::default(),
        None,
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("guidance=3: the model is conditioned on neither class nor text"),
        "{error}"
    );
}

#[test]
fn similarity_needs_images_that_its_window_fits() {
    let error = learn(
        "distance: ssim, macs: 0.5",
        &mut dit(),
        &Fixed::default(),
        &Watcher::default(),
        None,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("11 pixels"), "{error}");
}
