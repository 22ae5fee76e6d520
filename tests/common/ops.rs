//! Graphs of one op each, `fixtures/ops/KIND.dlc` or `KIND-variant.dlc`, over made-up weights.

use std::path::Path;
use std::sync::Arc;

use dlc_bundle::Profile;
use dlc_eval::Array;
use dlc_ir::{
    Blob, DType, Expr, Graph, ModelInfo, Module, OpKind, Scores, Task, ValueType, WeightTable,
    parse_graph,
};

use super::fixture;
use super::golden::{HALF_TOLERANCE, TOLERANCE};
use super::session::{Arrays, Engine, close};

/// Entries of ids and of columns are below this number.
const ROWS: u32 = 5;

/// The output that is compared.
const OUTPUT: &str = "last_hidden_state";

/// What the symbols of the graphs stand for.
const SIZES: [(&str, usize); 6] = [
    ("batch", 2),
    ("seq", 3),
    ("past", 0),
    ("keys", 4),
    ("height", 6),
    ("width", 4),
];

/// A graph that uses one op, and inputs for it.
pub struct Sample {
    pub name: String,
    pub kind: OpKind,
    pub module: Module,
    pub feeds: Arrays,
}

impl Sample {
    /// Every sample.
    pub fn all() -> Vec<Self> {
        let files = fixture("ops").read_dir().unwrap();
        let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let kind = OpKind::find(name.split('-').next().unwrap()).expect("the name of an op");
        let (graph, declared) = parse_graph(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(
            graph.nodes().any(|(_, node)| node.op.kind() == kind),
            "{name}"
        );
        let mut numbers = Numbers(kind as u32 + 1);
        let mut weights = WeightTable::default();
        for (_, weight) in declared.entries() {
            let bytes = numbers.bytes(weight.dtype, weight.elements());
            let blob = Blob::new(Arc::new(bytes.clone()), 0..bytes.len()).unwrap();
            let dtype = weight.dtype;
            let data = Expr::Mapped { blob, dtype };
            weights.add(&weight.name, &weight.shape, data).unwrap();
        }
        let feeds = feeds(&graph, &mut numbers);
        let module = Module {
            graphs: vec![graph],
            weights,
            model: model(),
            sampling: None,
            drafting: None,
            side_files: Vec::new(),
        };
        Self {
            name: name.to_owned(),
            kind,
            module,
            feeds,
        }
    }

    pub fn graph(&self) -> &Graph {
        &self.module.graphs[0]
    }

    /// Whether it multiplies with quantised matrices.
    pub fn is_quantized(&self) -> bool {
        self.graph().nodes().any(|(_, node)| node.op.is_quantized())
    }

    /// What `engine` computes.
    pub fn run(&self, engine: &Engine) -> Result<Vec<f32>, String> {
        let outputs = engine.load(self.module.clone())?.run(&self.feeds)?;
        let output = outputs.get(OUTPUT).ok_or("the output is missing")?;
        Ok(output.as_f32().unwrap().to_vec())
    }

    /// Fails unless `engine` computes what the evaluator does.
    pub fn check(&self, engine: &Engine) -> Result<(), String> {
        let what = format!("{} on {}", self.name, engine.name());
        let expected = self.run(&Engine::Evaluator)?;
        let found = self.run(engine).map_err(|e| format!("{what}: {e}"))?;
        let peak = expected.iter().fold(1f32, |peak, x| peak.max(x.abs()));
        close(&what, &found, &expected, self.tolerance(engine) * peak)
    }

    /// How far numbers may be from the evaluator's, which computes in single precision, in terms of
    /// the largest. `MatMulNBits` and `QMoE` round activations to 8 bits.
    fn tolerance(&self, engine: &Engine) -> f32 {
        let is_half = |ty: &ValueType| ty.dtype == DType::F16;
        let is_exact = engine.name() == Profile::Portable.name();
        if self.is_quantized() && !is_exact {
            3e-2
        } else if self.graph().values().any(|(_, value)| is_half(&value.ty)) {
            HALF_TOLERANCE
        } else {
            TOLERANCE
        }
    }
}

fn feeds(graph: &Graph, numbers: &mut Numbers) -> Arrays {
    let size = |symbol: &str| {
        let found = SIZES.iter().find(|(name, _)| *name == symbol);
        Some(found.expect("a symbol with a size").1)
    };
    let mut feed = |ty: &ValueType, name: &str| {
        let dims = ty.shape.0.iter();
        let shape: Vec<usize> = dims
            .map(|dim| dim.evaluate(|factor| size(factor.symbol())).unwrap())
            .collect();
        let length = shape.iter().product();
        match name {
            "attention_mask" => Array::i64(shape, (0..length).map(|i| i64::from(i > 0)).collect()),
            "position_ids" => {
                let columns = shape[1];
                Array::i64(shape, (0..length).map(|i| (i % columns) as i64).collect())
            }
            _ if ty.dtype == DType::I64 => Array::i64(shape, numbers.ids(length)),
            _ => Array::f32(shape, numbers.floats(length)),
        }
        .unwrap()
    };
    let inputs = graph.inputs().iter();
    inputs
        .map(|input| {
            let ty = &graph.value(input.value).ty;
            (input.name.clone(), feed(ty, &input.name))
        })
        .collect()
}

/// Numbers from a linear congruence.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn floats(&mut self, length: usize) -> Vec<f32> {
        (0..length)
            .map(|_| self.next() as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    fn ids(&mut self, length: usize) -> Vec<i64> {
        (0..length).map(|_| i64::from(self.next() % ROWS)).collect()
    }

    fn bytes(&mut self, dtype: DType, elements: usize) -> Vec<u8> {
        match dtype {
            DType::U8 => (0..elements).map(|_| (self.next() >> 8) as u8).collect(),
            DType::I64 => (self.ids(elements).into_iter())
                .flat_map(i64::to_le_bytes)
                .collect(),
            _ => (self.floats(elements).into_iter())
                .flat_map(f32::to_le_bytes)
                .collect(),
        }
    }
}

/// A model that says nothing of its graph.
fn model() -> ModelInfo {
    ModelInfo {
        task: Task::FeatureExtraction,
        labels: vec![],
        scores: Scores::OneClass,
        sentence: None,
        diffusion: None,
        prompts: None,
        family: "sample".into(),
        dtype: DType::F32,
        vocab_size: ROWS as usize,
        hidden_size: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context_length: 64,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
    }
}
