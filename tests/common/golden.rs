//! Golden checkpoints: inputs and reference outputs of transformers (float32, eager attention), see
//! `fixtures/README.md`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use dlc::checkpoint::Checkpoint;
use dlc::import::{FAMILIES, ImportOptions, import};
pub use dlc::pipeline::Case;
use dlc_eval::{Array, ArrayData};
use dlc_ir::{DType, Module, Task};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::session::{Arrays, Runner, same_length, within, worst_error};
use super::{fixture, folders};

/// The goldens of decoders: every folder whose configuration names one.
static DECODERS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let is_decoder = |name: &String| {
        let config = std::fs::read(fixture(&format!("goldens/{name}/config.json"))).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        FAMILIES
            .iter()
            .flat_map(|family| family.architectures)
            .any(|(name, task)| {
                config["architectures"][0] == *name && *task == Task::TextGeneration
            })
    };
    let mut names: Vec<String> = folders("goldens").into_iter().filter(is_decoder).collect();
    assert!(names.len() >= 14, "{names:?}");
    names.sort();
    names
});

/// What every golden has: two whole sequences of 13 tokens; the same with 4 of padding on the left
/// of the first; tokens 7 and 8 after 0 to 6.
pub const CASES: [Case; 3] = [Case::Sequence, Case::LeftPadded, Case::Cached];

/// The goldens of decoders.
pub fn all_decoders() -> impl Iterator<Item = &'static str> {
    DECODERS.iter().map(String::as_str)
}

/// Those with the usual settings of their families. The others' names have a second word; most have
/// heads 16 wide.
pub fn plain_decoders() -> impl Iterator<Item = &'static str> {
    all_decoders().filter(|name| !name.contains('-'))
}

/// The goldens of encoders: two sequences, of which the second ends in padding.
pub const ENCODERS: &[&str] = &[
    "bert",
    "bert-encoder",
    "bert-classifier",
    "bert-tokens",
    "bert-answers",
    "roberta",
    "roberta-encoder",
    "roberta-classifier",
    "roberta-tokens",
    "roberta-answers",
    "distilbert",
    "distilbert-encoder",
    "distilbert-classifier",
    "distilbert-tokens",
    "distilbert-answers",
    "xlm-roberta",
    "xlm-roberta-encoder",
    "xlm-roberta-classifier",
    "xlm-roberta-tokens",
    "xlm-roberta-answers",
    "mpnet",
    "mpnet-encoder",
    "mpnet-classifier",
    "mpnet-tokens",
    "mpnet-answers",
    "electra",
    "electra-encoder",
    "electra-classifier",
    "electra-tokens",
    "electra-answers",
    "electra-discriminator",
    "modernbert",
    "modernbert-encoder",
    "modernbert-classifier",
    "modernbert-tokens",
    "modernbert-answers",
    "deberta",
    "deberta-lm",
    "deberta-v2-lm",
    "deberta-v3",
    "deberta-v3-encoder",
    "deberta-v3-tokens",
    "deberta-v3-answers",
    "qwen3-encoder",
    "llama-classifier",
    "gemma3_text-classifier",
];

/// How far logits may be from the reference, absolute, in f32.
pub const TOLERANCE: f32 = 1e-4;

/// How far logits of f16 models may be from the f32 reference: weights and activations have 11
/// bits, and logits reach 3.
pub const HALF_TOLERANCE: f32 = 2e-2;

/// Inputs of one run by boundary name; caches come from a run before.
#[derive(Debug, Clone)]
pub struct Feed {
    pub shape: [usize; 2],
    pub ids: Vec<i64>,
    pub mask: Vec<i64>,
    pub positions: Vec<i64>,
}

pub struct Golden {
    pub name: &'static str,
    pub ids: Vec<i64>,
    integers: BTreeMap<String, Vec<i64>>,
    floats: BTreeMap<String, Vec<f32>>,
}

const BATCH: usize = 2;
const LENGTH: usize = 13;

/// The tensors of a `golden.safetensors`.
pub fn recorded(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap();
    let array = |(key, view): (String, TensorView<'_>)| {
        let shape = view.shape().to_vec();
        let array = match view.dtype() {
            Dtype::I64 => Array::i64(
                shape,
                view.data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| i64::from_le_bytes(*b))
                    .collect(),
            ),
            Dtype::F32 => Array::f32(
                shape,
                view.data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect(),
            ),
            other => panic!("{key} is {other:?}"),
        };
        (key, array.unwrap())
    };
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(array)
        .collect()
}

/// A golden's checkpoint.
pub fn module(name: &str, dtype: DType) -> Module {
    let checkpoint = Checkpoint::open(&fixture(&format!("goldens/{name}"))).unwrap();
    import(
        &checkpoint,
        &ImportOptions {
            dtype: Some(dtype),
            ..ImportOptions::default()
        },
    )
    .unwrap()
}

/// What an encoder was fed, by boundary name, and what it returned.
pub struct EncoderGolden {
    pub name: &'static str,
    pub inputs: BTreeMap<String, Array>,
    outputs: BTreeMap<String, Array>,
}

impl EncoderGolden {
    pub fn read(name: &'static str) -> Self {
        let recorded = recorded(&fixture(&format!("goldens/{name}/golden.safetensors")));
        let part = |side: &'static str| {
            recorded.iter().filter_map(move |(k, array)| {
                Some((k.strip_prefix(side)?.to_owned(), array.clone()))
            })
        };
        Self {
            name,
            inputs: part("input.").collect(),
            outputs: part("output.").collect(),
        }
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(String::as_str)
    }

    /// How large the reference's numbers are, as a multiple of the 3 that half precision's
    /// tolerance is meant for; 1 or more.
    pub fn scale(&self) -> f32 {
        self.outputs
            .values()
            .flat_map(|output| output.as_f32().unwrap())
            .fold(3f32, |peak, x| peak.max(x.abs()))
            / 3.0
    }

    /// Fails unless `found`, one of the outputs, is within `tolerance` of the reference; of `DeBERTa`,
    /// which masks queries too, of `ModernBERT`, whose windows leave padding nothing to see, and of
    /// decoders, of which padding before a text sees nothing, wherever there is a token.
    pub fn check(&self, output: &str, found: &[f32], tolerance: f32) -> Result<(), String> {
        let expected = self.outputs[output].as_f32().unwrap();
        same_length(self.name, found, expected)?;
        let mask = self.inputs["attention_mask"].as_i64().unwrap();
        let width = expected.len() / mask.len();
        let blind = ["deberta", "modernbert", "qwen3"]
            .iter()
            .any(|family| self.name.starts_with(family));
        let counts = |i: usize| !(blind && expected.len() >= mask.len()) || mask[i / width] == 1;
        let pairs = found.iter().zip(expected).enumerate();
        let pairs = pairs.filter(|(i, _)| counts(*i)).map(|(_, pair)| pair);
        within(self.name, worst_error(pairs), tolerance)
    }
}

impl Golden {
    pub fn read(name: &'static str) -> Self {
        Self::read_of("goldens", name)
    }

    /// That of a checkpoint in another folder than that of the goldens.
    pub fn read_of(folder: &str, name: &'static str) -> Self {
        let recorded = recorded(&fixture(&format!("{folder}/{name}/golden.safetensors")));
        let (mut integers, mut floats) = (BTreeMap::new(), BTreeMap::new());
        for (key, array) in recorded {
            match array.data() {
                ArrayData::I64(data) => _ = integers.insert(key, data.clone()),
                ArrayData::F32(data) => _ = floats.insert(key, data.clone()),
            }
        }
        let ids: &Vec<i64> = &integers["input.input_ids"];
        assert_eq!(ids.len(), BATCH * LENGTH);
        Self {
            name,
            ids: ids.clone(),
            integers,
            floats,
        }
    }

    pub fn module(&self, dtype: DType) -> Module {
        module(self.name, dtype)
    }

    /// What to run before, if the case needs caches, and what to run.
    pub fn feeds(&self, case: Case) -> (Option<Feed>, Feed) {
        let whole = self.columns(0, LENGTH, LENGTH);
        match case {
            Case::Sequence => (None, whole),
            Case::LeftPadded => {
                let mask = self.integers["input.left_padded_attention_mask"].clone();
                let positions = self.integers["input.left_padded_position_ids"].clone();
                (
                    None,
                    Feed {
                        mask,
                        positions,
                        ..whole
                    },
                )
            }
            Case::Cached => (Some(self.columns(0, 7, 7)), self.columns(7, 9, 9)),
            Case::CachedPadded | Case::Random | Case::OtherSize | Case::Range => {
                panic!("{case:?} is not recorded")
            }
        }
    }

    fn columns(&self, from: usize, to: usize, total: usize) -> Feed {
        Feed {
            shape: [BATCH, to - from],
            ids: self
                .ids
                .chunks(LENGTH)
                .flat_map(|row| row[from..to].to_vec())
                .collect(),
            mask: vec![1; BATCH * total],
            positions: (0..BATCH).flat_map(|_| from as i64..to as i64).collect(),
        }
    }

    /// Fails unless `logits` are within `tolerance` of the reference wherever there is a token.
    pub fn check(&self, case: Case, logits: &[f32], tolerance: f32) -> Result<(), String> {
        let expected = &self.floats[match case {
            Case::Sequence => "output.logits",
            Case::LeftPadded => "output.left_padded_logits",
            Case::Cached => "output.logits_after_7_for_2",
            Case::CachedPadded | Case::Random | Case::OtherSize | Case::Range => {
                panic!("{case:?} is not recorded")
            }
        }];
        let what = format!("{} {case:?}", self.name);
        same_length(&what, logits, expected)?;
        let feed = self.feeds(case).1;
        let rows = feed.shape[0] * feed.shape[1];
        let width = expected.len() / rows;
        let is_token = |row: usize| case != Case::LeftPadded || feed.mask[row] == 1;
        let pairs = logits.iter().zip(expected).enumerate();
        let pairs = pairs
            .filter(|(i, _)| is_token(i / width))
            .map(|(_, pair)| pair);
        within(&what, worst_error(pairs), tolerance)
    }
}

impl Feed {
    /// The integer inputs, and empty caches where `caches` of a run before are none.
    pub fn arrays(&self, runner: &Runner, caches: &Arrays) -> Arrays {
        let total = self.mask.len() / self.shape[0];
        let integers = [
            ("input_ids", self.shape[1], &self.ids),
            ("attention_mask", total, &self.mask),
            ("position_ids", self.shape[1], &self.positions),
        ];
        let integers = integers.into_iter().map(|(name, length, data)| {
            let array = Array::i64([self.shape[0], length], data.clone());
            (name.to_owned(), array.unwrap())
        });
        let empty = |heads, width| Array::f32([self.shape[0], heads, 0, width], vec![]).unwrap();
        let caches = runner.caches().into_iter().map(|(name, heads, width)| {
            let present = caches.get(&name.replace("past_key_values", "present"));
            let cache = present.cloned().unwrap_or_else(|| empty(heads, width));
            (name, cache)
        });
        integers.chain(caches).collect()
    }

    /// The rows of one sequence only.
    pub fn row(&self, row: usize) -> Self {
        let cut = |data: &[i64]| {
            data.chunks(data.len() / self.shape[0])
                .nth(row)
                .unwrap()
                .to_vec()
        };
        Self {
            shape: [1, self.shape[1]],
            ids: cut(&self.ids),
            mask: cut(&self.mask),
            positions: cut(&self.positions),
        }
    }
}
