//! Lowering: one graph of the IR to one ONNX model, with the operators of a profile.
//!
//! The IR's ops are lowered one by one, by free functions `lower(cx, node)`. A value may stand in
//! the ONNX graph in several *forms* ([`Form`]); whoever reads it asks for the form that suits, and
//! conversions are made once. No weight is touched: initializers are references, see
//! [`crate::weights`].

mod blocks;
mod context;
mod entrywise;
mod experts;
mod forms;
mod image;
mod layout;
mod masks;
mod onnx23;
mod optional;
mod optional_nodes;
mod ort;
mod padding;
mod parts;
mod portable;
mod quantized;
mod queries;
mod relative;
mod rotation;
mod rows;
mod shared;

use dlc_ir::{DType, Graph, Module, Node, NodeId, Op, WeightTable};

use self::context::Context;
pub(crate) use self::optional::{KEPT, OPTIONAL_INPUTS, kept_values};
pub(crate) use self::queries::noise_levels;
use dlc_bundle::{CacheLayout, Profile};
use dlc_onnx::proto::{
    DataLocation, DimensionProto, DimensionValue, GraphProto, ModelProto, OperatorSetIdProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type, entry,
};
use dlc_onnx::{GRAPH_KEY, TRANSPOSED_KEY};

use super::operators::Operators;
use crate::error::ExportError;
use crate::weights::{Stored, WeightPlan};

use layout::{Transposed, transposed};

/// Key of dlc's version in an ONNX file's metadata.
pub(crate) const VERSION_KEY: &str = "dlc.version";

/// The axis of [`noise_levels`]: 1 or as long as the batch.
pub(crate) const LEVELS: &str = "steps";

/// What stays the same for all graphs of a bundle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub profile: Profile,
    pub caches: CacheLayout,
    pub weights: &'a WeightTable,
    /// The weights that are stored transposed.
    pub transposed: &'a Transposed,
    /// The operators that there are.
    operators: &'a Operators,
    /// Longest sequence; the length of tables that are indexed by position.
    pub context_length: usize,
    /// Version of dlc.
    pub version: &'a str,
}

/// An ONNX model whose stored initializers have no place in the weight file yet.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub model: ModelProto,
    /// What stands in the weight file, in order of first use.
    pub stored: Vec<Stored>,
}

/// Every graph of a module with the operators of a profile. With `whole_texts` the text encoders
/// that are shown the padding of prompts take no mask.
pub(crate) fn lower_all(
    module: &Module,
    profile: Profile,
    version: &str,
    whole_texts: bool,
) -> Result<Vec<Lowered>, ExportError> {
    let transposed = transposed(&module.graphs, &module.weights, profile)?;
    let target = Target {
        profile,
        caches: cache_layout(&module.graphs, profile),
        weights: &module.weights,
        transposed: &transposed,
        operators: &Operators::table(),
        context_length: module.model.context_length,
        version,
    };
    let encoders = module.model.prompts.iter().flat_map(|p| &p.encoders);
    let shown: Vec<&str> = encoders
        .filter(|encoder| whole_texts && !encoder.masked)
        .map(|encoder| encoder.graph.as_str())
        .collect();
    let sees_all = |graph: &Graph| shown.contains(&graph.name.as_str());
    let graphs = module.graphs.iter();
    graphs
        .map(|graph| lower(graph, target, sees_all(graph)))
        .collect()
}

/// A graph with the operators of a profile; one that sees every token takes no mask.
fn lower(graph: &Graph, target: Target<'_>, sees_all: bool) -> Result<Lowered, ExportError> {
    let mut cx = Context::new(graph, target)?;
    if sees_all {
        masks::see_every_token(&mut cx)?;
    }
    let folds = if target.profile == Profile::Ort {
        ort::Folds::find(graph, target.caches)
    } else {
        ort::Folds::default()
    };
    image::spread_noise_levels(&mut cx)?;
    let rows = rows::Rows::find(graph);
    if let Some(rows) = rows
        .as_ref()
        .filter(|_| target.caches == CacheLayout::InPlace)
    {
        let lowered = graph.nodes().filter(|(id, _)| !folds.rope_is_fused(*id));
        rows.order(
            &mut cx,
            &lowered
                .flat_map(|(_, node)| &node.inputs)
                .copied()
                .collect(),
        )?;
    }
    for (id, node) in graph.nodes() {
        let answered = rows
            .as_ref()
            .map_or(Ok(None), |rows| rows.answered(&mut cx, id, node))?;
        let given = answered.map(|(value, name)| (value, cx.stand_in(value, name)));
        let outer = cx.enter_node(id);
        lower_node(&mut cx, &folds, id, node).map_err(|error| locate(error, &cx, id, node))?;
        cx.b.enter(outer);
        if let Some((value, forms)) = given {
            cx.put_back(value, forms);
        }
    }
    cx.finish_outputs()?;
    finish(cx)
}

/// How the caches of a bundle pass from run to run: in place if the profile, the width of every
/// head and the way of its tokens allow it.
pub(crate) fn cache_layout(graphs: &[Graph], profile: Profile) -> CacheLayout {
    let fits = |graph| ort::takes_grouped_attention(graph) && rows::Rows::find(graph).is_some();
    if profile == Profile::Ort && graphs.iter().all(fits) {
        CacheLayout::InPlace
    } else {
        CacheLayout::Appended
    }
}

/// Whether attention keeps its scores in single precision whatever the graph computes in:
/// `GroupQueryAttention` and `MultiHeadAttention` do, the operators of ai.onnx don't.
pub fn keeps_scores_single(graph: &Graph, profile: Profile) -> bool {
    let is_causal = graph
        .nodes()
        .any(|(_, node)| matches!(&node.op, Op::Attention(attention) if attention.causal));
    profile == Profile::Ort
        && (!is_causal
            || cache_layout(std::slice::from_ref(graph), profile) == CacheLayout::InPlace)
}

fn lower_node(
    cx: &mut Context<'_>,
    folds: &ort::Folds,
    id: NodeId,
    node: &Node,
) -> Result<(), ExportError> {
    let profile = cx.target.profile;
    match &node.op {
        Op::Gather => shared::gather(cx, node),
        Op::Linear if profile == Profile::Ort => ort::linear(cx, node),
        Op::Linear => shared::linear(cx, node),
        Op::QuantizedLinear(format) if profile == Profile::Ort => {
            quantized::by_matmul_nbits(cx, node, *format)
        }
        Op::QuantizedLinear(format) if profile == Profile::Portable => {
            quantized::by_primitives(cx, node, *format)
        }
        Op::QuantizedLinear(format) => blocks::quantized_linear(cx, node, *format),
        Op::QuantizedGather(format) if profile == Profile::Ort => {
            quantized::by_gather_block_quantized(cx, node, *format)
        }
        Op::QuantizedGather(format) => quantized::gather_by_primitives(cx, node, *format),
        Op::Experts(op) if profile == Profile::Ort => experts::by_moe(cx, node, *op),
        Op::Experts(op) => experts::densely(cx, node, *op),
        Op::GatherColumns => quantized::gather_columns(cx, node),
        Op::RmsNorm { .. } | Op::LayerNorm { .. } if folds.norm_is_fused(id) => Ok(()),
        Op::RmsNorm { eps } => match profile {
            Profile::Portable => portable::rms_norm(cx, node, *eps),
            Profile::Onnx | Profile::Ort => onnx23::rms_norm(cx, node, *eps),
        },
        Op::Rope(_) if folds.rope_is_fused(id) => Ok(()),
        Op::Rope(rope) => match profile {
            Profile::Portable => portable::rope(cx, node, rope),
            Profile::Onnx | Profile::Ort => onnx23::rope(cx, node, rope),
        },
        Op::Attention(attention) if attention.causal => match profile {
            Profile::Portable => portable::attend_causally(cx, node, attention),
            Profile::Ort if cx.target.caches == CacheLayout::InPlace => {
                ort::attend_causally(cx, node, attention, folds.rope_of(id))
            }
            Profile::Onnx | Profile::Ort if attention.softcap.is_some() => {
                portable::attend_causally(cx, node, attention)
            }
            Profile::Onnx | Profile::Ort => onnx23::attend_causally(cx, node, attention),
        },
        Op::Attention(attention) => match profile {
            Profile::Portable => portable::attend_both_ways(cx, node, attention),
            Profile::Ort if attention.heads == attention.kv_heads => {
                ort::attend_both_ways(cx, node, attention)
            }
            Profile::Onnx | Profile::Ort => onnx23::attend_both_ways(cx, node, attention),
        },
        Op::DisentangledBias(bias) => relative::disentangled_bias(cx, node, bias),
        Op::BucketedBias(bias) => relative::bucketed_bias(cx, node, bias),
        Op::Positions { padding } => relative::positions(cx, node, *padding),
        Op::LastToken { padding } => relative::last_token(cx, node, *padding),
        Op::FirstToken { id } => relative::first_token(cx, node, *id),
        Op::LayerNorm { eps } => shared::layer_norm(cx, node, *eps),
        Op::Add => match folds.norm_after(id) {
            Some(norm) => ort::add_and_norm(cx, node, norm),
            None => entrywise::binary(cx, node, "Add"),
        },
        Op::Mul => entrywise::binary(cx, node, "Mul"),
        Op::Modulate => entrywise::modulate(cx, node),
        Op::GroupNorm { groups, eps } => image::group_norm(cx, node, *groups, *eps),
        Op::Conv2d { stride, padding } => image::conv2d(cx, node, *stride, *padding),
        Op::Upsample { factor } => image::upsample(cx, node, *factor),
        Op::TimestepEmbedding(embedding) => image::timestep_embedding(cx, node, embedding),
        Op::Concat { axis } => shared::concat(cx, node, *axis),
        Op::Transpose { axes } => shared::transpose(cx, node, axes),
        Op::Scale { factor } => entrywise::scale(cx, node, *factor),
        Op::Clip { limit } => entrywise::clip(cx, node, *limit),
        Op::Silu => entrywise::silu(cx, node),
        Op::Gelu { tanh } => entrywise::gelu(cx, node, *tanh),
        Op::Tanh => entrywise::unary(cx, node, "Tanh"),
        Op::Relu => entrywise::unary(cx, node, "Relu"),
        Op::Slice { axis, start, len } => shared::slice(cx, node, *axis, *start, *len),
        Op::Reshape { shape } => shared::reshape(cx, node, shape),
        Op::Cast { dtype } => entrywise::cast(cx, node, *dtype),
    }
}

/// Puts the node's place into an error that has none.
fn locate(error: ExportError, cx: &Context<'_>, id: NodeId, node: &Node) -> ExportError {
    match error {
        ExportError::Module { problem, .. } => ExportError::Node {
            graph: cx.graph.name.clone(),
            node: cx.place(id),
            op: node.op.name(),
            problem,
        },
        other => other,
    }
}

/// The model, in the lowest opset that has all its operators as they are used.
fn finish(cx: Context<'_>) -> Result<Lowered, ExportError> {
    let (graph, target) = (cx.graph, cx.target);
    let used = cx.used_inputs();
    let ports = |name: &str, value| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(cx.value_info(value)),
    };
    let input = graph
        .inputs()
        .iter()
        .filter(|i| used.contains(&i.name))
        .map(|i| ports(&i.name, i.value))
        .chain(
            OPTIONAL_INPUTS
                .into_iter()
                .filter(|name| used.contains(*name))
                .map(optional::port),
        )
        .collect();
    let output = graph
        .outputs()
        .iter()
        .map(|o| ports(&o.name, o.value))
        .collect();
    let value_info = cx.inner_types();
    let body = GraphProto {
        node: cx.b.nodes,
        name: graph.name.clone(),
        initializer: cx.b.initializers,
        input,
        output,
        value_info,
    };
    let operators = target.operators;
    let opset = operators.lowest_opset(&operators.typed(&body));
    let opset = opset.ok_or_else(|| {
        let problem = "no opset of ai.onnx has all its operators in these element types";
        ExportError::module(format!("graph {}", graph.name), problem)
    })?;
    let mut opset_import = vec![OperatorSetIdProto {
        domain: String::new(),
        version: opset,
    }];
    opset_import.extend(cx.b.domains.iter().map(|domain| OperatorSetIdProto {
        domain: (*domain).to_owned(),
        version: 1,
    }));
    let mut metadata_props = vec![
        entry(GRAPH_KEY, graph.to_text(target.weights)),
        entry(VERSION_KEY, target.version),
    ];
    let transposed = names_of_transposed(&cx.b.stored);
    if !transposed.is_empty() {
        metadata_props.push(entry(TRANSPOSED_KEY, transposed.join("\n")));
    }
    let model = ModelProto {
        ir_version: ir_version(opset),
        producer_name: "dlc".to_owned(),
        producer_version: target.version.to_owned(),
        graph: Some(body),
        opset_import,
        metadata_props,
    };
    Ok(Lowered {
        model,
        stored: cx.b.stored,
    })
}

fn names_of_transposed(stored: &[Stored]) -> Vec<&str> {
    let names = stored.iter().map(|stored| match stored {
        Stored::Transposed(matrix) => Some(matrix.name.as_str()),
        _ => None,
    });
    names.flatten().collect()
}

/// The version of the format that came with an opset.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        _ => 11,
    }
}

/// The type of a boundary value, axes named as Optimum and onnxruntime-genai name them.
fn tensor_type(dtype: DType, dims: Vec<DimensionValue>) -> TypeProto {
    let dim = dims
        .into_iter()
        .map(|value| DimensionProto { value: Some(value) })
        .collect();
    TypeProto {
        tensor_type: Some(TensorTypeProto {
            elem_type: data_type(dtype),
            shape: Some(TensorShapeProto { dim }),
        }),
    }
}

impl Lowered {
    /// The inputs of the ONNX graph, in order.
    pub fn input_names(&self) -> Vec<String> {
        self.model
            .graph
            .iter()
            .flat_map(|graph| &graph.input)
            .map(|input| input.name.clone())
            .collect()
    }

    /// Says where in the weight file, which lies beside the ONNX file, each stored initializer lies.
    pub fn place(&mut self, plan: &WeightPlan, weights_file: &str) -> Result<(), ExportError> {
        let initializers = self
            .model
            .graph
            .iter_mut()
            .flat_map(|graph| &mut graph.initializer);
        for tensor in
            initializers.filter(|t| t.data_location == Some(DataLocation::External as i32))
        {
            let record = plan.record(tensor.weight_name()).ok_or_else(|| {
                ExportError::module(&tensor.name, "has no place in the weight file")
            })?;
            tensor.external_data = vec![
                entry("location", weights_file),
                entry("offset", record.offset.to_string()),
                entry("length", record.bytes.to_string()),
            ];
        }
        Ok(())
    }
}
