//! What any graph can be fed: seeded numbers in the ranges that it takes, found in how it reads its
//! inputs.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::{Diffusion, Dim, Factor, Graph, Input, Module, Op, Operand, ValueId, WeightTable};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::pipeline::error::PipelineError;

/// Length of an axis named `batch`.
const BATCH: usize = 2;
/// Length of the first other axis; each further one is shorter by 2.
const LONGEST: usize = 13;
/// Noise levels are below this.
const LEVELS: f32 = 1000.0;

/// Height and width of the images that the model is for.
pub(in crate::pipeline) fn own_size(module: &Module) -> [usize; 2] {
    let model = module.model.diffusion.as_ref();
    model.map_or([1, 1], |model| [model.height, model.width])
}

/// One array for each input of `graph`; of images where they may have any size, `size` is that.
pub(in crate::pipeline) fn random_feeds(
    graph: &Graph,
    module: &Module,
    size: [usize; 2],
    rng: &mut ChaCha8Rng,
) -> Result<BTreeMap<String, Array>, PipelineError> {
    let longest = match module.model.context_length {
        0 => LONGEST,
        most => LONGEST.min(most),
    };
    let (sizes, weights) = (sizes(graph, size, longest), &module.weights);
    let mut feeds = BTreeMap::new();
    for input in graph.inputs() {
        feeds.insert(
            input.name.clone(),
            feed(graph, weights, input, &sizes, rng)?,
        );
    }
    Ok(feeds)
}

fn feed(
    graph: &Graph,
    weights: &WeightTable,
    input: &Input,
    sizes: &BTreeMap<String, usize>,
    rng: &mut ChaCha8Rng,
) -> Result<Array, PipelineError> {
    let ty = &graph.value(input.value).ty;
    let length = |dim: &Dim| {
        let value = |factor: &Factor| {
            let symbol = sizes.get(&**factor.symbol())?;
            factor.rounding().divide(*symbol, factor.divisor())
        };
        dim.evaluate(value).unwrap_or_default()
    };
    let shape: Vec<usize> = ty.shape.0.iter().map(length).collect();
    let n: usize = shape.iter().product();
    let reads = |op: fn(&Op) -> bool, at: usize| {
        graph
            .nodes()
            .any(|(_, n)| op(&n.op) && n.inputs.get(at) == Some(&Operand::Value(input.value)))
    };
    if ty.dtype.is_float() {
        let is_level = reads(|op| matches!(op, Op::TimestepEmbedding(_)), 0);
        let range = if is_level { 0.0..LEVELS } else { -2.0..2.0 };
        return Ok(Array::f32(
            shape,
            (0..n).map(|_| rng.random_range(range.clone())).collect(),
        )?);
    }
    if reads(|op| matches!(op, Op::Attention(_)), 3) {
        // All tokens, but for the end of the last row.
        let padding = shape.last().copied().unwrap_or(1) / 4;
        return Ok(Array::i64(
            shape,
            (0..n).map(|i| i64::from(i + padding < n)).collect(),
        )?);
    }
    let rows = rows(graph, weights, input.value);
    Ok(Array::i64(
        shape,
        (0..n).map(|_| rng.random_range(0..rows)).collect(),
    )?)
}

/// Whether `graph` takes images of any height and width.
pub(in crate::pipeline) fn takes_any_size(graph: &Graph) -> bool {
    let mut types = graph.inputs().iter().map(|i| &graph.value(i.value).ty);
    types.any(|ty| {
        let mut symbols = ty.shape.0.iter().flat_map(Dim::symbols);
        symbols.any(|symbol| **symbol == *Diffusion::HEIGHT)
    })
}

/// How long each named axis is, `longest` the first one that isn't of images.
fn sizes(graph: &Graph, [height, width]: [usize; 2], longest: usize) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::from([("batch".to_owned(), BATCH)]);
    let sides = [(Diffusion::HEIGHT, height), (Diffusion::WIDTH, width)];
    for input in graph.inputs() {
        for symbol in graph
            .value(input.value)
            .ty
            .shape
            .0
            .iter()
            .flat_map(Dim::symbols)
        {
            let next = longest.saturating_sub(2 * (sizes.len() - 1)).max(1);
            let side = sides.iter().find(|(name, _)| *name == &**symbol);
            let size = side.map_or(next, |(_, side)| *side);
            sizes.entry(symbol.to_string()).or_insert(size);
        }
    }
    sizes
}

/// The rows of the smallest table that `value` chooses from; 2 if there is none.
fn rows(graph: &Graph, weights: &WeightTable, value: ValueId) -> i64 {
    let rows = |table: Operand| match table {
        Operand::Weight(table) => weights[table].shape.first().copied(),
        Operand::Value(table) => graph.value(table).ty.shape.0.first().and_then(Dim::known),
    };
    let lookups = graph.nodes().filter_map(|(_, node)| node.lookup());
    lookups
        .filter(|(_, ids)| *ids == Operand::Value(value))
        .filter_map(|(table, _)| rows(table))
        .min()
        .unwrap_or(2)
        .max(1) as i64
}
