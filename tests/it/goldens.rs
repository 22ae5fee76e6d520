//! Every golden through the evaluator and through tract.

use std::collections::BTreeMap;

use dlc_bundle::Profile;
use dlc_eval::Array;
use dlc_ir::{DType, Dim, Module};
use dlc_runtime::{BackendKind, BackendSearch, start};

use crate::common::diffusion::{DIFFUSION, DiffusionGolden, check_diffusion};
use crate::common::golden::{
    CASES, Case, ENCODERS, EncoderGolden, Feed, Golden, HALF_TOLERANCE, TOLERANCE, all_decoders,
    module,
};
use crate::common::padding::check_padding;
use crate::common::session::{check_encoder, check_golden};

/// All outputs of the target, computed by the evaluator.
pub fn evaluate(
    module: &Module,
    feed: &Feed,
    caches: &BTreeMap<String, Array>,
) -> BTreeMap<String, Array> {
    let graph = module.graph("target").unwrap();
    let mut feeds = BTreeMap::new();
    for (name, shape, data) in feed.integers() {
        feeds.insert(name.to_owned(), Array::i64(shape, data).unwrap());
    }
    for input in graph.inputs().iter().filter(|i| i.cache.is_some()) {
        let dims = &graph.value(input.value).ty.shape.0;
        let width = |axis: usize| dims.get(axis).and_then(Dim::known).unwrap();
        let empty = || Array::f32([feed.shape[0], width(1), 0, width(3)], vec![]).unwrap();
        let cache = caches
            .get(&input.name.replace("past_key_values", "present"))
            .cloned();
        feeds.insert(input.name.clone(), cache.unwrap_or_else(empty));
    }
    dlc_eval::run(graph, &module.weights, &feeds).unwrap()
}

#[test]
fn the_evaluator_agrees_with_transformers() {
    for name in all_decoders() {
        let golden = Golden::read(name);
        let module = golden.module(DType::F32);
        for case in CASES {
            let (before, feed) = golden.feeds(case);
            let caches = before
                .map(|b| evaluate(&module, &b, &BTreeMap::new()))
                .unwrap_or_default();
            let outputs = evaluate(&module, &feed, &caches);
            golden
                .check(case, outputs["logits"].as_f32().unwrap(), TOLERANCE)
                .unwrap();
        }
    }
}

#[test]
fn the_evaluator_agrees_with_transformers_on_encoders() {
    for &name in ENCODERS {
        let (golden, module) = (EncoderGolden::read(name), module(name, DType::F32));
        let outputs = dlc_eval::run(
            module.graph("target").unwrap(),
            &module.weights,
            &golden.inputs,
        )
        .unwrap();
        for output in golden.outputs() {
            let found = outputs[output].as_f32().unwrap();
            golden.check(output, found, TOLERANCE).unwrap();
        }
    }
}

#[test]
fn tract_agrees_with_transformers() {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap();
    let mut failures = Vec::new();
    for name in all_decoders() {
        for profile in [Profile::Portable, Profile::Onnx] {
            for case in CASES {
                failures.extend(
                    check_golden(&backend, name, profile, DType::F32, case, TOLERANCE)
                        .err()
                        .map(|e| format!("{} {e}", profile.name())),
                );
            }
            failures.extend(
                check_padding(&backend, name, profile)
                    .err()
                    .map(|e| format!("{} padded: {e}", profile.name())),
            );
            let half = check_golden(
                &backend,
                name,
                profile,
                DType::F16,
                Case::Sequence,
                HALF_TOLERANCE,
            );
            failures.extend(half.err().map(|e| format!("{} f16 {e}", profile.name())));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn tract_agrees_with_transformers_on_encoders() {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    let mut failures = Vec::new();
    for &name in ENCODERS {
        for profile in [Profile::Portable, Profile::Onnx] {
            failures.extend(
                check_encoder(&backend, name, profile, DType::F32, TOLERANCE)
                    .err()
                    .map(|e| format!("{} {e}", profile.name())),
            );
        }
        let half = check_encoder(
            &backend,
            name,
            Profile::Portable,
            DType::F16,
            HALF_TOLERANCE,
        );
        failures.extend(half.err().map(|e| format!("portable f16 {e}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_evaluator_agrees_with_diffusers() {
    let mut failures = Vec::new();
    for &name in DIFFUSION {
        let (golden, module) = (DiffusionGolden::read(name), module(name, DType::F32));
        let sizes = golden.other_sizes();
        let free = module.model.diffusion.as_ref().unwrap().size_step.is_some();
        assert_eq!(!sizes.is_empty(), free, "{name}");
        for golden in [golden].into_iter().chain(sizes) {
            let outputs = dlc_eval::run(
                module.graph("target").unwrap(),
                &module.weights,
                &golden.inputs,
            )
            .unwrap();
            failures.extend(
                golden
                    .check(outputs["out_sample"].as_f32().unwrap(), TOLERANCE)
                    .err(),
            );
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn tract_agrees_with_diffusers() {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    let mut failures = Vec::new();
    for &name in DIFFUSION {
        for profile in [Profile::Portable, Profile::Onnx] {
            let check = check_diffusion(&backend, name, profile, DType::F32, TOLERANCE);
            failures.extend(check.err().map(|e| format!("{} {e}", profile.name())));
        }
        let half = check_diffusion(
            &backend,
            name,
            Profile::Portable,
            DType::F16,
            HALF_TOLERANCE,
        );
        failures.extend(half.err().map(|e| format!("portable f16 {e}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
