//! Rotations scaled for longer contexts are read as transformers reads them:
//! `fixtures/rotations.json`, which `make_rotations.py` recorded.

use std::fs;

use dlc_errors::Fault;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::FAMILIES;
use super::super::config::ConfigReader;
use super::super::defaults::Resolved;
use super::super::rope::{Rotary, Share, read};
use super::{Folder, fixture, refuses};

/// What transformers makes of one configuration.
#[derive(Debug, Deserialize)]
struct Answer {
    golden: String,
    /// What the configuration says beside the golden's keys.
    keys: Map<String, Value>,
    /// The factor on cosines and sines.
    attention: f32,
    /// Frequencies up to the length trained on.
    short: Vec<f32>,
    /// Frequencies far beyond it.
    long: Vec<f32>,
}

/// How wide the heads of both goldens are.
const HEAD_DIM: usize = 12;

fn rotary(answer: &Answer) -> (Rotary, usize) {
    let path = fixture(&format!("goldens/{}", answer.golden)).join("config.json");
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(path).expect("fixture")).expect("JSON");
    config.retain(|key, _| key != "rope_parameters" && key != "head_dim");
    config.extend(answer.keys.clone());
    let family = FAMILIES
        .iter()
        .find(|family| family.model_type == answer.golden)
        .expect("a family");
    let resolved = Resolved::new(&config, (family.keys)(&config), family.aliases);
    let mut reader = ConfigReader::whole(&resolved);
    let head_dim = reader.size("head_dim", 1024).unwrap_or(HEAD_DIM);
    let share = if answer.golden == "phi3" {
        Share::Partial { default: 1.0 }
    } else {
        Share::Whole
    };
    let rotary = read(&mut reader, head_dim, share);
    assert!(reader.is_clean(), "{:?}", answer.keys);
    (rotary, head_dim)
}

#[test]
fn frequencies_and_factors_are_those_of_transformers() {
    let text = fs::read(fixture("rotations.json")).expect("fixture");
    let answers: Vec<Answer> = serde_json::from_slice(&text).expect("answers");
    assert!(answers.len() >= 18, "{}", answers.len());
    let close = |a: f32, b: f32| (a - b).abs() <= 5e-7 * b.abs();
    for answer in answers {
        let (rotary, head_dim) = rotary(&answer);
        let rope = rotary.rope(1);
        assert!(
            close(rope.attention_factor(), answer.attention),
            "{:?}: {} instead of {}",
            answer.keys,
            rope.attention_factor(),
            answer.attention
        );
        for (length, expected) in [(1, &answer.short), (1 << 20, &answer.long)] {
            let found = rope.frequencies_at(head_dim, length);
            let fits = found.len() == expected.len()
                && found.iter().zip(expected).all(|(a, b)| close(*a, *b));
            assert!(
                fits,
                "{:?} at {length}: {found:?} instead of {expected:?}",
                answer.keys
            );
        }
    }
}

#[test]
fn rotations_that_say_too_little_or_nonsense_are_refused_by_name() {
    let [six, five] = [[1.0; 6].as_slice(), &[1.0; 5]];
    let cases = [
        (
            "llama",
            json!({"type": "yarn", "original_max_position_embeddings": 16}),
            "`rope_scaling.factor` is missing",
        ),
        (
            "llama",
            json!({"type": "yarn", "factor": 2, "beta_fast": "many"}),
            "`rope_scaling.beta_fast` is \"many\"",
        ),
        (
            "llama",
            json!({"type": "longrope", "short_factor": six}),
            "`rope_scaling.long_factor` is missing",
        ),
        (
            "llama",
            json!({"type": "longrope", "short_factor": six, "long_factor": [1, 0]}),
            "`rope_scaling.long_factor` is [1,0]; it must be a list of numbers",
        ),
        (
            "llama",
            json!({"type": "longrope", "short_factor": six, "long_factor": five}),
            "`rope_scaling.long_factor` has 5 numbers; it must have 6",
        ),
        (
            "llama",
            json!({"type": "longrope", "short_factor": six, "long_factor": six, "original_max_position_embeddings": 1}),
            "`rope_scaling.original_max_position_embeddings` is 1",
        ),
        (
            "phi3",
            json!({"type": "linear", "factor": 2.0}),
            "`rope_scaling` has a type",
        ),
    ];
    for (golden, scaling, part) in cases {
        let patch = json!({"rope_parameters": null, "rope_scaling": scaling});
        let folder = Folder::patched(&format!("goldens/{golden}"), &patch);
        refuses(&patch.to_string(), &folder, Fault::BadInput, &[part]);
    }
}
