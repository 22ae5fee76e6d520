//! Golden checkpoints: inputs and reference outputs of transformers (float32, eager attention), see `fixtures/README.md`.

use std::collections::BTreeMap;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
/// Every golden has them: two whole sequences of 13 tokens; the same with 4 of padding on the left of the first; tokens 7 and 8 behind 0 to 6.
pub use dlc::pipeline::Case;
use dlc_ir::{DType, Module};
use safetensors::{Dtype, SafeTensors};

use super::fixture;

/// The llama-family goldens.
pub const DECODERS: [&str; 5] = ["llama", "llama3", "mistral", "qwen2", "qwen3"];

/// How far logits may be from the reference, absolute, in f32.
pub const TOLERANCE: f32 = 1e-4;

/// How far logits of f16 models may be from the f32 reference: weights and activations have 11 bits, and logits reach 3.
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

impl Golden {
    pub fn read(name: &'static str) -> Self {
        let bytes = std::fs::read(fixture(&format!("goldens/{name}/golden.safetensors"))).unwrap();
        let (mut integers, mut floats) = (BTreeMap::new(), BTreeMap::new());
        for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            match view.dtype() {
                Dtype::I64 => {
                    integers.insert(key, view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect());
                }
                Dtype::F32 => {
                    floats.insert(key, view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect());
                }
                other => panic!("{key} is {other:?}"),
            }
        }
        let ids: &Vec<i64> = &integers["input.input_ids"];
        assert_eq!(ids.len(), BATCH * LENGTH);
        Self { name, ids: ids.clone(), integers, floats }
    }

    pub fn module(&self, dtype: DType) -> Module {
        let checkpoint = Checkpoint::open(&fixture(&format!("goldens/{}", self.name))).unwrap();
        import(&checkpoint, &ImportOptions { dtype: Some(dtype) }).unwrap()
    }

    /// What to run before, if the case needs caches, and what to run.
    pub fn feeds(&self, case: Case) -> (Option<Feed>, Feed) {
        let whole = self.columns(0, LENGTH, LENGTH);
        match case {
            Case::Sequence => (None, whole),
            Case::LeftPadded => {
                let mask = self.integers["input.left_padded_attention_mask"].clone();
                let positions = self.integers["input.left_padded_position_ids"].clone();
                (None, Feed { mask, positions, ..whole })
            }
            Case::Cached => (Some(self.columns(0, 7, 7)), self.columns(7, 9, 9)),
        }
    }

    fn columns(&self, from: usize, to: usize, total: usize) -> Feed {
        Feed {
            shape: [BATCH, to - from],
            ids: self.ids.chunks(LENGTH).flat_map(|row| row[from..to].to_vec()).collect(),
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
        }];
        if logits.len() != expected.len() {
            return Err(format!("{} {case:?}: {} logits, not {}", self.name, logits.len(), expected.len()));
        }
        let feed = self.feeds(case).1;
        let rows = feed.shape[0] * feed.shape[1];
        let width = expected.len() / rows;
        let is_token = |row: usize| case != Case::LeftPadded || feed.mask[row] == 1;
        let errors = (0..expected.len()).filter(|i| is_token(i / width)).map(|i| (expected[i] - logits[i]).abs());
        let worst = errors.fold(0f32, |worst, e| if e.is_nan() { f32::INFINITY } else { worst.max(e) });
        if worst <= tolerance { Ok(()) } else { Err(format!("{} {case:?}: largest error {worst:e}, allowed {tolerance:e}", self.name)) }
    }
}

impl Feed {
    /// Name, shape and data of the integer inputs.
    pub fn integers(&self) -> [(&'static str, Vec<usize>, Vec<i64>); 3] {
        let total = self.mask.len() / self.shape[0];
        [
            ("input_ids", self.shape.to_vec(), self.ids.clone()),
            ("attention_mask", vec![self.shape[0], total], self.mask.clone()),
            ("position_ids", self.shape.to_vec(), self.positions.clone()),
        ]
    }

    /// The rows of one sequence only.
    pub fn row(&self, row: usize) -> Self {
        let cut = |data: &[i64]| data.chunks(data.len() / self.shape[0]).nth(row).unwrap().to_vec();
        Self { shape: [1, self.shape[1]], ids: cut(&self.ids), mask: cut(&self.mask), positions: cut(&self.positions) }
    }
}
