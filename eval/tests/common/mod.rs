//! Graphs from text, with made-up weights and feeds.

#![allow(dead_code, clippy::expect_used, clippy::missing_panics_doc)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use dlc_eval::{Array, Values};
use dlc_ir::{Blob, DType, Expr, Graph, Operand, ValueId, WeightId, WeightTable, parse_graph};

pub const BATCH: usize = 2;
pub const SEQ: usize = 3;
pub const PAST: usize = 2;
/// Rows of every table that is gathered from.
pub const VOCAB: i64 = 5;

/// Numbers in [-1, 1) from a linear congruence.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn number(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 30) as f32 - 1.0
    }

    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

/// A graph, and the numbers of its weights.
pub struct Case {
    pub graph: Graph,
    declared: WeightTable,
    pub data: BTreeMap<WeightId, Vec<f32>>,
}

impl Case {
    pub fn parse(text: &str) -> Self {
        let (graph, declared) = parse_graph(text).expect("the case parses");
        let mut noise = Noise::new(7);
        let data = declared
            .entries()
            .map(|(id, w)| (id, noise.numbers(w.elements())))
            .collect();
        Self {
            graph,
            declared,
            data,
        }
    }

    pub fn load(name: &str) -> Self {
        let path = cases().join(format!("{name}.txt"));
        Self::parse(&fs::read_to_string(path).expect("the case is there"))
    }

    /// A table of weights with `data` in them.
    pub fn weights(&self) -> WeightTable {
        let mut table = WeightTable::default();
        for (id, weight) in self.declared.entries() {
            let bytes: Vec<u8> = self.data[&id]
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            let len = bytes.len();
            let blob = Blob::new(Arc::new(bytes), 0..len).expect("in range");
            let added = table
                .add(
                    &weight.name,
                    &weight.shape,
                    Expr::Mapped {
                        blob,
                        dtype: DType::F32,
                    },
                )
                .expect("fits");
            assert_eq!(added, id);
        }
        table
    }

    /// The numbers of a weight.
    pub fn weight(&self, id: WeightId) -> &[f32] {
        &self.data[&id]
    }

    /// Made-up inputs: sequences of which the first is padded on the left.
    pub fn feeds(&self, past: usize, seed: u64) -> BTreeMap<String, Array> {
        let mut noise = Noise::new(seed);
        let size = |symbol: &str| {
            [BATCH, SEQ, past][["batch", "seq", "past"]
                .iter()
                .position(|s| *s == symbol)
                .expect("a known symbol")]
        };
        let feed = |input: &dlc_ir::Input| {
            let ty = &self.graph.value(input.value).ty;
            let shape: Vec<usize> = ty
                .shape
                .0
                .iter()
                .map(|d| {
                    d.evaluate(|factor| Some(size(factor.symbol())))
                        .expect("is small")
                })
                .collect();
            let n = shape.iter().product();
            let array = match input.name.as_str() {
                _ if ty.dtype.is_float() => Array::f32(shape, noise.numbers(n)),
                "mask" => {
                    let total = shape[1];
                    Array::i64(
                        shape,
                        (0..n).map(|i| i64::from(i >= 1 || total == 1)).collect(),
                    )
                }
                "positions" => Array::i64(shape, (0..n).map(|i| (i % SEQ + past) as i64).collect()),
                _ => Array::i64(shape, (0..n).map(|_| noise.bits() as i64 % VOCAB).collect()),
            };
            (input.name.clone(), array.expect("fits"))
        };
        self.graph.inputs().iter().map(feed).collect()
    }

    /// [`feeds`](Self::feeds) by value.
    pub fn known(&self, feeds: &BTreeMap<String, Array>) -> Values {
        self.graph
            .inputs()
            .iter()
            .map(|i| (i.value, feeds[&i.name].clone()))
            .collect()
    }

    pub fn value(&self, boundary: &str) -> ValueId {
        let output = self.graph.find_output(boundary).map(|o| o.value);
        output
            .or_else(|| self.graph.find_input(boundary).map(|i| i.value))
            .expect("a boundary name")
    }

    pub fn uses(&self, weight: WeightId) -> bool {
        self.graph
            .nodes()
            .any(|(_, n)| n.inputs.contains(&Operand::Weight(weight)))
    }
}

pub fn cases() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

pub fn numbers(array: &Array) -> &[f32] {
    array.as_f32().expect("numbers")
}

#[track_caller]
pub fn assert_close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what}, entry {i}: {a} and {b}"
        );
    }
}
