//! tiny-llama under other configurations: what the goldens' narrow heads keep from
//! `GroupQueryAttention`.

use std::collections::BTreeMap;
use std::path::Path;

use dlc::pipeline::{Check, module_of_bundle, verify_bundle};
use dlc_bundle::Profile;
use dlc_methods::speculation::TokenModel;
use dlc_runtime::{Backend, Bundle, DecoderOptions, DecoderSession, SessionOptions};
use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::decoding::{compile_quietly, compile_request};
use super::fixture;

/// Another model on tiny-llama's weights: its name, what its configuration changes, and whether the
/// projections get biases.
pub type Variant = (&'static str, fn(&mut Value), bool);

pub const VARIANTS: [Variant; 4] = [
    ("as it is", |_| {}, false),
    (
        "window of 6",
        |c| {
            c["model_type"] = json!("mistral");
            c["architectures"] = json!(["MistralForCausalLM"]);
            c["sliding_window"] = json!(6);
            c.as_object_mut()
                .unwrap()
                .retain(|k, _| !k.ends_with("_bias") && k != "pretraining_tp");
        },
        false,
    ),
    (
        "llama3 rope scaling",
        |c| {
            c["rope_parameters"] = json!({
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            });
        },
        false,
    ),
    (
        "qwen2 with biases",
        |c| {
            c["model_type"] = json!("qwen2");
            c["architectures"] = json!(["Qwen2ForCausalLM"]);
            c.as_object_mut()
                .unwrap()
                .retain(|k, _| !k.ends_with("_bias") && k != "pretraining_tp" && k != "head_dim");
        },
        true,
    ),
];

/// Writes the variant as a checkpoint.
fn write(variant: Variant, folder: &Path) {
    let source = fixture("tiny-llama");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    variant.1(&mut config);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    let mut biases: BTreeMap<String, (usize, Vec<u8>)> = BTreeMap::new();
    if variant.2 {
        for name in weights
            .names()
            .into_iter()
            .filter(|n| ["q_proj", "k_proj", "v_proj"].iter().any(|p| n.contains(p)))
        {
            let rows = weights.tensor(name).unwrap().shape()[0];
            let numbers = (0..rows)
                .flat_map(|i| (((i * 7 % 13) as f32 - 6.0) / 20.0).to_le_bytes())
                .collect();
            biases.insert(name.replace(".weight", ".bias"), (rows, numbers));
        }
    }
    let mut views: Vec<(String, TensorView<'_>)> = weights.tensors();
    views.extend(biases.iter().map(|(n, (rows, data))| {
        (
            n.clone(),
            TensorView::new(Dtype::F32, vec![*rows], data).unwrap(),
        )
    }));
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn compiled(variant: Variant, profile: Profile, folder: &Path) -> Bundle {
    write(variant, folder);
    let request = compile_request(folder.to_owned(), profile, folder.join("bundle"));
    compile_quietly(&request).unwrap_or_else(|e| panic!("{}: {e}", variant.0));
    Bundle::open(&request.output).unwrap()
}

/// The backend agrees with the evaluator, on whole sequences, with padding, and after a cache.
pub fn check_against_evaluator(
    backend: &Backend,
    variant: Variant,
    profile: Profile,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = compiled(variant, profile, folder.path());
    let module = module_of_bundle(&bundle).unwrap();
    let checks = verify_bundle(&bundle, &module, backend, &SessionOptions::default(), None)
        .map_err(|e| e.to_string())?;
    let failed: Vec<&Check> = checks.iter().filter(|c| !c.passed()).collect();
    if failed.is_empty() && checks.len() >= 4 {
        Ok(())
    } else {
        Err(format!("{} {}: {failed:?}", variant.0, profile.name()))
    }
}

/// Appending and forgetting, again and again, leaves a cache that scores as a fresh one does, also
/// after it was squeezed.
pub fn check_forgetting(
    backend: &Backend,
    variant: Variant,
    profile: Profile,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = compiled(variant, profile, folder.path());
    let options = DecoderOptions {
        capacity: Some(8),
        ..DecoderOptions::default()
    };
    let open = || {
        DecoderSession::open(backend, &bundle, "target", None, &options).map_err(|e| e.to_string())
    };
    let (mut used, mut fresh) = (open()?, open()?);
    let token = |i: usize| (i * 131 % 2000) as u32;
    let mut text: Vec<u32> = Vec::new();
    for round in 0..30 {
        let guesses: Vec<u32> = (0..5).map(|i| token(round * 17 + i + 1000)).collect();
        used.extend(&guesses, 1).map_err(|e| e.to_string())?;
        used.rollback(text.len());
        let next = [token(2 * round), token(2 * round + 1)];
        text.extend(next);
        let logits = used.extend(&next, 2).map_err(|e| e.to_string())?;
        fresh.rollback(0);
        let expected = fresh.extend(&text, 2).map_err(|e| e.to_string())?;
        for row in 0..2 {
            let errors = logits
                .row(row)
                .iter()
                .zip(expected.row(row))
                .map(|(a, b)| (a - b).abs());
            let worst = errors.fold(
                0f32,
                |w, e| if e.is_nan() { f32::INFINITY } else { w.max(e) },
            );
            if worst > 1e-3 {
                return Err(format!(
                    "{} {}: round {round}: logits differ by {worst:e}",
                    variant.0,
                    profile.name()
                ));
            }
        }
    }
    Ok(())
}
