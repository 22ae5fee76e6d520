//! A decoder of 3 layers with made-up weights, and what the evaluator says of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_eval::{Array, run};
use dlc_ir::{
    Blob, DType, Dim, Expr, Graph, ModelInfo, Module, Scores, Task, WeightTable, parse_graph,
    parse_graph_over,
};

const DECODER: &str = include_str!("../graphs/decoder.dlc");

/// Three experts, of which a token goes through two, in the place of the second layer's MLP.
pub const EXPERTS: [(&str, &str); 2] = [
    (
        "    %layers.1.mlp.1 = linear %layers.1.mlp.0, @1.gate : f32[batch, seq, 20]
    %layers.1.mlp.2 = silu %layers.1.mlp.1 : f32[batch, seq, 20]
    %layers.1.mlp.3 = linear %layers.1.mlp.0, @1.up : f32[batch, seq, 20]
    %layers.1.mlp.4 = mul %layers.1.mlp.2, %layers.1.mlp.3 : f32[batch, seq, 20]
    %layers.1.mlp.5 = linear %layers.1.mlp.4, @1.down : f32[batch, seq, 12]
",
        "    %layers.1.mlp.1 = linear %layers.1.mlp.0, @1.router : f32[batch, seq, 3]
    %layers.1.mlp.5 = experts %layers.1.mlp.0, %layers.1.mlp.1, @1.a.gate, @1.a.up, @1.a.down, @1.b.gate, @1.b.up, @1.b.down, \
         @1.c.gate, @1.c.up, @1.c.down top=2 normalized=true : f32[batch, seq, 12]
",
    ),
    (
        "weight @1.gate: f32[20, 12]
weight @1.up: f32[20, 12]
weight @1.down: f32[12, 20]
",
        "weight @1.router: f32[3, 12]
weight @1.a.gate: f32[8, 12]
weight @1.a.up: f32[8, 12]
weight @1.a.down: f32[12, 8]
weight @1.b.gate: f32[8, 12]
weight @1.b.up: f32[8, 12]
weight @1.b.down: f32[12, 8]
weight @1.c.gate: f32[8, 12]
weight @1.c.up: f32[8, 12]
weight @1.c.down: f32[12, 8]
",
    ),
];

pub const VOCAB: usize = 23;
pub const CONTEXT: usize = 16;

/// Samples of different lengths.
pub fn samples() -> Vec<Vec<u32>> {
    vec![
        vec![3, 1, 4, 1, 5, 9, 2, 6],
        vec![22, 7],
        vec![0, 11, 11, 19, 8],
    ]
}

/// Text and numbers of a target; every weight is stored in single precision and cast to the type
/// that the text gives it.
pub struct Model {
    text: String,
    numbers: BTreeMap<String, Vec<f32>>,
}

impl Model {
    pub fn decoder() -> Self {
        Self::edited(&[])
    }

    /// The decoder with texts replaced wherever they stand.
    pub fn edited(edits: &[(&str, &str)]) -> Self {
        let text = edits.iter().fold(DECODER.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "the decoder has no `{from}`");
            text.replace(from, to)
        });
        Self::of(&text)
    }

    /// Numbers depend on the weight's name only, so that edits of the text leave those of other
    /// weights alone.
    pub fn of(text: &str) -> Self {
        let (_, declared) = parse_graph(text).unwrap();
        let numbers = declared.entries().map(|(_, w)| {
            let mut noise = Noise::new(&w.name);
            let (centre, spread) = if w.name.contains("norm") {
                (1.0, 0.5)
            } else {
                (0.0, 0.6)
            };
            (
                w.name.clone(),
                (0..w.elements())
                    .map(|_| centre + spread * noise.number())
                    .collect(),
            )
        });
        Self {
            text: text.to_owned(),
            numbers: numbers.collect(),
        }
    }

    pub fn numbers(&mut self, weight: &str) -> &mut Vec<f32> {
        self.numbers.get_mut(weight).unwrap()
    }

    pub fn weights(&self) -> WeightTable {
        let mut weights = WeightTable::default();
        for (_, declared) in parse_graph(&self.text).unwrap().1.entries() {
            let bytes: Vec<u8> = self.numbers[&declared.name]
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            let length = bytes.len();
            let blob = Blob::new(Arc::new(bytes), 0..length).unwrap();
            weights
                .add(
                    &declared.name,
                    &declared.shape,
                    Expr::Mapped {
                        blob,
                        dtype: DType::F32,
                    }
                    .cast(declared.dtype),
                )
                .unwrap();
        }
        weights
    }

    pub fn module(&self) -> Module {
        let weights = self.weights();
        let target = parse_graph_over(&self.text, &weights).unwrap();
        Module {
            graphs: vec![target],
            weights,
            model: info(),
            sampling: None,
            drafting: None,
            side_files: vec![],
        }
    }
}

fn info() -> ModelInfo {
    ModelInfo {
        task: Task::TextGeneration,
        labels: vec![],
        scores: Scores::OneClass,
        sentence: None,
        diffusion: None,
        prompts: None,
        family: "llama".into(),
        dtype: DType::F32,
        vocab_size: VOCAB,
        hidden_size: 12,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        context_length: CONTEXT,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
    }
}

/// Numbers in [-1, 1) from a linear congruence.
struct Noise(u64);

impl Noise {
    fn new(name: &str) -> Self {
        Self(name.bytes().fold(17, |seed: u64, byte| {
            seed.wrapping_mul(257).wrapping_add(u64::from(byte))
        }))
    }

    fn number(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// What `tokens` feed by boundary name: no padding, empty caches.
pub fn feeds(graph: &Graph, tokens: &[u32]) -> BTreeMap<String, Array> {
    let n = tokens.len();
    let array = |name: &str, dims: &[Dim]| match name {
        "input_ids" => Array::i64([1, n], tokens.iter().map(|t| i64::from(*t)).collect()),
        "attention_mask" => Array::i64([1, n], vec![1; n]),
        "position_ids" => Array::i64([1, n], (0..n as i64).collect()),
        _ => Array::f32(
            [1, dims[1].known().unwrap(), 0, dims[3].known().unwrap()],
            vec![],
        ),
    };
    let feed = |input: &dlc_ir::Input| {
        (
            input.name.clone(),
            array(&input.name, &graph.value(input.value).ty.shape.0).unwrap(),
        )
    };
    graph.inputs().iter().map(feed).collect()
}

/// Log-probabilities of the next token at every position, in double precision from the evaluator's
/// logits.
pub fn log_probabilities(graph: &Graph, weights: &WeightTable, tokens: &[u32]) -> Vec<Vec<f64>> {
    let outputs = run(graph, weights, &feeds(graph, tokens)).unwrap();
    let rows = outputs["logits"].as_f32().unwrap().chunks(VOCAB);
    rows.map(|row| {
        let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        row.iter().map(|x| f64::from(*x) - total.ln()).collect()
    })
    .collect()
}

/// Mean next-token cross-entropy of one sample, in nats.
pub fn loss(graph: &Graph, weights: &WeightTable, tokens: &[u32]) -> f64 {
    let rows = log_probabilities(graph, weights, tokens);
    let targets = &tokens[1..];
    targets
        .iter()
        .zip(&rows)
        .map(|(t, row)| -row[*t as usize])
        .sum::<f64>()
        / targets.len() as f64
}

/// Fails unless `actual` is within `tolerance` of `expected`, relative to it; exact zeros must be
/// met.
#[track_caller]
pub fn assert_close(what: &str, actual: f64, expected: f64, tolerance: f64) {
    let error = (actual - expected).abs();
    assert!(
        error <= tolerance * expected.abs(),
        "{what}: {actual:e}, not {expected:e}: relative error {:e}",
        error / expected.abs()
    );
}
