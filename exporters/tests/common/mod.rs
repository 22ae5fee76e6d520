//! Small modules for the tests: the graphs of `tests/graphs`, over pseudo-random half-precision
//! weights.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_bundle::{Profile, Source};
use dlc_exporters::BundleRequest;
use dlc_ir::{Blob, DType, Expr, ModelInfo, Module, Scores, Task, WeightTable, parse_graph};

pub const TARGET: &str = include_str!("../graphs/target.dlc");
pub const DRAFT: &str = include_str!("../graphs/draft.dlc");

/// A module of graphs in text form, which all declare the same weights in the same order. Weights
/// of type f32 are stored as f16.
pub fn module(texts: &[&str]) -> Module {
    let parsed: Vec<_> = texts
        .iter()
        .map(|text| parse_graph(text).unwrap())
        .collect();
    let mut weights = WeightTable::default();
    let mut state = 1u32;
    for (_, weight) in parsed[0].1.entries() {
        let half = (0..weight.elements()).flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::f16::from_f32((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
        });
        let bytes: Vec<u8> = half.collect();
        let length = bytes.len();
        let data = Expr::Mapped {
            blob: Blob::new(Arc::new(bytes), 0..length).unwrap(),
            dtype: DType::F16,
        }
        .cast(weight.dtype);
        weights.add(&weight.name, &weight.shape, data).unwrap();
    }
    Module {
        graphs: parsed.into_iter().map(|(graph, _)| graph).collect(),
        weights,
        model: model(),
        sampling: None,
        drafting: None,
        side_files: Vec::new(),
    }
}

fn model() -> ModelInfo {
    ModelInfo {
        task: Task::TextGeneration,
        labels: vec![],
        scores: Scores::OneClass,
        sentence: None,
        diffusion: None,
        prompts: None,
        family: "llama".into(),
        dtype: DType::F32,
        vocab_size: 20000,
        hidden_size: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        context_length: 64,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
    }
}

pub fn request(profile: Profile) -> BundleRequest {
    BundleRequest {
        deploy: None,
        profile,
        source: Source {
            name: "tiny".into(),
            files: BTreeMap::new(),
        },
        passes: Vec::new(),
        force: false,
        rewritten: std::collections::BTreeMap::new(),
        search: dlc_exporters::SearchDefaults::default(),
        version: "0.0.0".into(),
    }
}
