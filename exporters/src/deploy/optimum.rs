//! Optimum's classes on ONNX Runtime. A model of text lies in the bundle's own folder. A pipeline of
//! Stable Diffusion lies as diffusers writes one, each component's graph in its folder, with the
//! ports that `ORTDiffusionPipeline` feeds.

use std::collections::BTreeMap;

use dlc_bundle::Profile;
use dlc_files::read_text;
use dlc_ir::{
    BlockKind, DType, Diffusion, Graph, ModelInfo, Module, Node, NodeId, Op, Operand, Output, Task,
    TextEncoder, ValueId, WeightTable,
};
use serde_json::{Map, Value};

use super::json::with_entries;
use super::layout::{Layout, TOKENIZER};
use super::{DeploymentTarget, Fitted, plain};
use crate::error::ExportError;

pub(super) const TARGET: DeploymentTarget = DeploymentTarget {
    refuses,
    layout: |model| {
        if is_pipeline(model) {
            COMPONENTS
        } else {
            Layout::FLAT
        }
    },
    fit,
    edits: &[
        ("model_index.json", index),
        ("unet/config.json", denoiser),
        ("text_encoder/config.json", |text, module| {
            text_encoder(text, module, Diffusion::TEXT_ENCODER)
        }),
        ("text_encoder_2/config.json", |text, module| {
            text_encoder(text, module, Diffusion::SECOND_TEXT_ENCODER)
        }),
        (DECODER_CONFIG, |text, _| autoencoder(text)),
        ("vae_encoder/config.json", |text, _| autoencoder(text)),
    ],
    ..plain(
        "optimum",
        "Optimum's ORTModel classes, and its pipelines of Stable Diffusion",
        Profile::Portable,
    )
};

const COMPONENTS: Layout = Layout {
    weights: "model.onnx_data",
    components: true,
    ..Layout::FLAT
};

/// The denoiser of Stable Diffusion.
const DENOISER: &str = "UNet2DConditionModel";
/// The configuration of the decoder.
const DECODER_CONFIG: &str = "vae_decoder/config.json";
/// The largest configuration that is read.
const CONFIG_CAP: u64 = 16 << 20;
/// The key of what latents are divided by, and what it is where it is absent.
const SCALING: &str = "scaling_factor";
const USUAL_SCALING: f64 = 0.18215;
/// The components that the bundle has something of.
const KEPT: [&str; 7] = [
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
];

/// Whether it is a pipeline with the text encoders, which those of Stable Diffusion alone have
/// beside such a denoiser.
fn is_pipeline(model: &ModelInfo) -> bool {
    model.family == DENOISER && model.prompts.is_some()
}

fn refuses(model: &ModelInfo) -> Option<String> {
    if model.task != Task::ImageGeneration {
        return None;
    }
    let way = "or use --deploy onnxruntime";
    if model.family != DENOISER {
        let family = &model.family;
        return Some(format!(
            "of models of images it runs pipelines of Stable Diffusion (1.x, 2.x and XL), and a {family} is the denoiser of another; use --deploy onnxruntime"
        ));
    }
    if !is_pipeline(model) {
        return Some(format!(
            "it runs whole pipelines of Stable Diffusion, and this is the denoiser by itself; compile the folder with model_index.json, {way}"
        ));
    }
    let dtype = model.dtype;
    (!matches!(dtype, DType::F32 | DType::F16)).then(|| {
        format!("it feeds a pipeline numpy arrays, which have no {dtype}; compile with --dtype f32 or --dtype f16, {way}")
    })
}

/// The pipeline with Optimum's ports: text encoders give the states of every layer, the decoder
/// takes and the encoder gives latents that are divided.
fn fit(module: &Module) -> Result<Option<Fitted>, ExportError> {
    if !is_pipeline(&module.model) {
        return Ok(None);
    }
    let mut module = module.clone();
    let mut latents_divisors = BTreeMap::new();
    let scaling = scaling(&module)?;
    let Module {
        graphs,
        weights,
        model,
        ..
    } = &mut module;
    let encoders = model.prompts.iter_mut().flat_map(|p| &mut p.encoders);
    for encoder in encoders {
        if encoder.tokenizer.is_empty() {
            TOKENIZER.clone_into(&mut encoder.tokenizer);
        }
        if let Some(graph) = graphs.iter_mut().find(|graph| graph.name == encoder.graph) {
            give_states(graph, weights)?;
        }
    }
    for graph in graphs.iter_mut() {
        match graph.name.as_str() {
            Diffusion::IMAGE_DECODER => take_divided(graph, weights, scaling as f32)?,
            Diffusion::IMAGE_ENCODER => give_divided(graph, weights, scaling as f32)?,
            _ => continue,
        }
        latents_divisors.insert(graph.name.clone(), scaling as f32);
    }
    Ok(Some(Fitted {
        module,
        whole_texts: true,
        latents_divisors,
    }))
}

/// Makes a text encoder give the states before each layer as `hidden_states.N`. The state of the
/// whole text comes first, which is how diffusers knows that there is one.
fn give_states(graph: &mut Graph, weights: &WeightTable) -> Result<(), ExportError> {
    let pooled = |output: &Output| output.name == TextEncoder::POOLED;
    let (mut outputs, own): (Vec<Output>, Vec<Output>) =
        graph.outputs().iter().cloned().partition(pooled);
    let is_pooled = !outputs.is_empty();
    outputs.extend(own);
    let output = |name: String, value| Output {
        name,
        value,
        cache: None,
    };
    if is_pooled && let Some(last) = pooled_states(graph) {
        outputs.push(output(TextEncoder::LAST.to_owned(), last));
    }
    for (layer, value) in states(graph).into_iter().enumerate() {
        outputs.push(output(format!("hidden_states.{layer}"), value));
    }
    Ok(graph.set_outputs(weights, outputs)?)
}

/// The states before each layer; the last layer may be left out.
fn states(graph: &Graph) -> Vec<ValueId> {
    let attention = graph
        .blocks()
        .filter(|(_, block)| block.kind == BlockKind::Attention);
    let mut states: Vec<ValueId> = attention.map(|(_, block)| block.input).collect();
    let early = graph.find_output(TextEncoder::PENULTIMATE);
    states.extend(
        early
            .map(|output| output.value)
            .filter(|value| !states.contains(value)),
    );
    states
}

/// The states after the last layer and norm, which the state of a whole text is made of.
fn pooled_states(graph: &Graph) -> Option<ValueId> {
    let mut nodes = graph.nodes();
    let (_, node) = nodes.find(|(_, node)| matches!(node.op, Op::FirstToken { .. }))?;
    match node.inputs.first()? {
        Operand::Value(value) => Some(*value),
        Operand::Weight(_) => None,
    }
}

/// Makes the decoder `latent_sample` -> `sample`, of latents that are divided by `scaling`.
fn take_divided(graph: &mut Graph, weights: &WeightTable, scaling: f32) -> Result<(), ExportError> {
    let latents = graph
        .find_input(Diffusion::LATENTS)
        .map(|input| input.value);
    let first = |node: &Node| latents.is_some_and(|x| node.inputs.contains(&Operand::Value(x)));
    let scale = scales(graph)
        .find(|(_, node)| first(node))
        .map(|(id, _)| id);
    rescale(graph, weights, scale, scaling)?;
    graph.rename_input(weights, Diffusion::LATENTS, "latent_sample")?;
    rename_output(graph, weights, Diffusion::IMAGES, "sample")
}

/// Makes the encoder `sample` -> `latent_sample`, of latents that aren't multiplied by `scaling` yet.
fn give_divided(graph: &mut Graph, weights: &WeightTable, scaling: f32) -> Result<(), ExportError> {
    let scale = scales(graph).last().map(|(id, _)| id);
    rescale(graph, weights, scale, 1.0 / scaling)?;
    graph.rename_input(weights, Diffusion::IMAGES, "sample")?;
    rename_output(graph, weights, Diffusion::LATENTS, "latent_sample")
}

fn scales(graph: &Graph) -> impl Iterator<Item = (NodeId, &Node)> {
    let is_scale = |op: &Op| matches!(op, Op::Scale { .. });
    graph.nodes().filter(move |(_, node)| is_scale(&node.op))
}

/// Multiplies the factor of a node that scales.
fn rescale(
    graph: &mut Graph,
    weights: &WeightTable,
    scale: Option<NodeId>,
    by: f32,
) -> Result<(), ExportError> {
    if scale.is_none() {
        let problem = "doesn't scale its latents, so they can't be divided beside it";
        return Err(ExportError::module(
            format!("graph {}", graph.name),
            problem,
        ));
    }
    graph.replace_nodes(weights, |id, node| match node.op {
        Op::Scale { factor } if Some(id) == scale => {
            // Rounding aside, that of most autoencoders is 1.
            let factor = factor * by;
            let factor = if (factor - 1.0).abs() < 1e-6 {
                1.0
            } else {
                factor
            };
            Some((Op::Scale { factor }, node.inputs.clone()))
        }
        _ => None,
    })?;
    Ok(())
}

fn rename_output(
    graph: &mut Graph,
    weights: &WeightTable,
    from: &str,
    to: &str,
) -> Result<(), ExportError> {
    let mut outputs = graph.outputs().to_vec();
    for output in &mut outputs {
        if output.name == from {
            to.clone_into(&mut output.name);
        }
    }
    Ok(graph.set_outputs(weights, outputs)?)
}

/// What the configuration of the decoder says that latents are divided by.
fn scaling(module: &Module) -> Result<f64, ExportError> {
    let file = module
        .side_files
        .iter()
        .find(|file| file.name == DECODER_CONFIG);
    let file = file.ok_or_else(|| ExportError::module(DECODER_CONFIG, "is missing"))?;
    let text = read_text(&file.path, CONFIG_CAP)?;
    let config = object(&text).map_err(|problem| ExportError::module(DECODER_CONFIG, problem))?;
    Ok(scaling_of(&config))
}

fn scaling_of(config: &Map<String, Value>) -> f64 {
    let usual = match config.get("_class_name").and_then(Value::as_str) {
        Some("AutoencoderTiny") => 1.0,
        _ => USUAL_SCALING,
    };
    config.get(SCALING).and_then(Value::as_f64).unwrap_or(usual)
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// `text` with these entries where it has none.
fn with_missing(text: &str, entries: &[(&str, String)]) -> Result<String, String> {
    let own = object(text)?;
    let missing = entries.iter().filter(|(key, _)| !own.contains_key(*key));
    let missing: Vec<(&str, String)> = missing.cloned().collect();
    with_entries(text, &[], &missing)
}

/// The index names no component that isn't in the bundle: Optimum would look for it.
fn index(text: &str, _: &Module) -> Result<String, String> {
    let index = object(text)?;
    let left_out = index.iter().filter(|(name, value)| {
        let is_there = value.get(0).is_some_and(|library| !library.is_null());
        is_there && !KEPT.contains(&name.as_str())
    });
    let entries = left_out.map(|(name, _)| (name.as_str(), "[null, null]".to_owned()));
    with_entries(text, &[], &entries.collect::<Vec<_>>())
}

/// Keys of which Optimum doesn't know the default.
fn denoiser(text: &str, module: &Module) -> Result<String, String> {
    let Some(model) = &module.model.diffusion else {
        return Ok(text.to_owned());
    };
    let size = format!("[{}, {}]", model.height, model.width);
    let square = model.height == model.width;
    with_missing(
        text,
        &[
            (
                "sample_size",
                if square {
                    model.height.to_string()
                } else {
                    size
                },
            ),
            ("in_channels", model.channels.to_string()),
            ("time_cond_proj_dim", "null".to_owned()),
        ],
    )
}

fn text_encoder(text: &str, module: &Module, graph: &str) -> Result<String, String> {
    let layers = module.graph(graph).map_or(0, |graph| states(graph).len());
    with_missing(text, &[("num_hidden_layers", layers.to_string())])
}

/// Mean and deviation of latents are taken into account by the graphs.
fn autoencoder(text: &str) -> Result<String, String> {
    let config = object(text)?;
    let heeded = ["latents_mean", "latents_std"]
        .into_iter()
        .filter(|key| config.contains_key(*key));
    let heeded: Vec<(&str, String)> = heeded.map(|key| (key, "null".to_owned())).collect();
    let text = with_entries(text, &[], &heeded)?;
    with_missing(&text, &[(SCALING, scaling_of(&config).to_string())])
}
