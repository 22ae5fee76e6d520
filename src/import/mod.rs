//! Import: a checkpoint becomes a module with the graph `target`. One file per family of
//! architectures; what families share is in `decoder.rs` (the llama kind), `encoder.rs` (the BERT
//! kind), `patches.rs` (diffusion transformers) and `unet.rs` (U-Nets). The parts of a pipeline
//! beside its denoiser have a file each too, and graphs of their own (`parts.rs`).
//!
//! What a family's importer doesn't understand is refused by name, never ignored. No tensor's data
//! is read, except to compare a head with the embedding it is tied to.

mod activation;
mod auto_map;
mod autoencoder_kl;
mod autoencoder_stage;
mod autoencoder_tiny;
mod bert;
mod causal;
mod clip_text;
mod config;
mod deberta;
mod deberta_v2;
mod decoder;
mod defaults;
mod diffusers;
mod distilbert;
mod dit;
mod electra;
mod encoder;
mod encoder_spec;
mod error;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod granite;
mod heads;
mod keys;
mod llama;
mod mistral;
mod mixtral;
mod mixture;
mod modernbert;
mod mpnet;
mod net;
mod olmo2;
mod parts;
mod patches;
mod phi3;
mod pixart;
mod quantization;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod rope;
mod smollm3;
mod spec;
mod t5;
mod tensors;
mod tokens;
mod transformer;
mod transformer_2d;
mod unet;
mod unet_2d;
mod unet_2d_condition;
mod unet_blocks;
mod unet_config;
mod unet_spec;
mod windows;
mod xlm_roberta;

#[cfg(test)]
mod tests;

use std::fmt;

use dlc_ir::{DType, Diffusion, EntityId, IrError, ModelInfo, Module, Scores, Task, WeightId};
use rayon::prelude::*;
use serde_json::{Map, Value};

pub use error::{ConfigProblem, ImportError};
pub use net::Sources;

use config::ConfigReader;
use defaults::{Aliases, Key, Resolved};
use net::Net;

use crate::checkpoint::{Checkpoint, Role, shown};

/// A family of architectures that can be imported.
#[derive(Clone, Copy)]
pub struct Family {
    /// `model_type` of its configurations; of diffusers, whose configurations have none,
    /// `_class_name`.
    pub model_type: &'static str,
    /// `architectures` of its configurations, the usual one first, with what each is for; of
    /// diffusers `_class_name`.
    pub architectures: &'static [(&'static str, Task)],
    /// Models that belong to it.
    pub summary: &'static str,
    /// The keys of its class, for this configuration.
    keys: fn(&Map<String, Value>) -> &'static [Key],
    /// Other names of keys.
    aliases: Aliases,
    read: fn(&mut ConfigReader<'_>, Task) -> Box<dyn Architecture>,
}

/// Every family that can be imported.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    smollm3::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    phi3::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    granite::FAMILY,
    olmo2::FAMILY,
    gpt2::FAMILY,
    gpt_neox::FAMILY,
    bert::FAMILY,
    roberta::FAMILY,
    distilbert::FAMILY,
    xlm_roberta::FAMILY,
    mpnet::FAMILY,
    electra::FAMILY,
    modernbert::FAMILY,
    deberta::FAMILY,
    deberta_v2::FAMILY,
    dit::FAMILY,
    pixart::FAMILY,
    transformer_2d::FAMILY,
    unet_2d::FAMILY,
    unet_2d_condition::FAMILY,
];

/// A class of models that are parts of pipelines.
struct PartFamily {
    /// The class, of transformers or of diffusers.
    class: &'static str,
    /// The keys of its class.
    keys: &'static [Key],
    read: fn(&mut ConfigReader<'_>, Role) -> Box<dyn Architecture>,
}

/// What a configuration says of a model, read and checked: enough to build its graph.
trait Architecture {
    /// What consumers of the graph ask for.
    fn facts(&self) -> Facts;

    /// What names of the model's body begin with in checkpoints that have a head.
    fn base(&self) -> &'static str {
        ""
    }

    /// Builds the graph.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError>;
}

/// Facts about a model that its graph doesn't state.
#[derive(Debug, Clone, Default)]
struct Facts {
    vocab_size: usize,
    hidden_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context_length: usize,
    labels: Vec<String>,
    scores: Scores,
    /// The token that pads texts, if the graph itself asks for it.
    padding: Option<u32>,
    diffusion: Option<Diffusion>,
    /// Width of the state of a whole text, if it is a text encoder that makes one.
    pooled: Option<usize>,
    /// Channels of the latents that it decodes or makes, if it is an autoencoder of images.
    decodes: Option<usize>,
    /// Whether it computes in single precision where the denoiser computes in half.
    upcast: bool,
}

/// A module, and the tensors that its weights were made of.
#[derive(Debug)]
pub struct Imported {
    /// The module.
    pub module: Module,
    /// The weight that each tensor of the checkpoint became; tensors that became none are no keys.
    pub sources: Sources,
    /// The same of each of the checkpoint's parts.
    pub of_parts: Vec<Sources>,
    /// What the user should know: keys and tensors that were left out.
    pub warnings: Vec<String>,
}

impl Family {
    /// Names of its architectures.
    pub fn names(&self) -> Vec<&'static str> {
        self.architectures.iter().map(|(name, _)| *name).collect()
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("model_type", &self.model_type)
            .field("architectures", &self.architectures)
            .finish_non_exhaustive()
    }
}

/// How to import.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportOptions {
    /// Element type of weights and activations; f32 if absent. Other types than f32 still give f32
    /// logits and samples.
    pub dtype: Option<DType>,
    /// Keys of the configuration that are refused, as they may change the model, and of which the
    /// user knows that they don't.
    pub ignore_keys: Vec<String>,
}

/// The checkpoint as a module with the graph `target`, and one for each of its
/// [`parts`](Checkpoint::parts), that verifies.
///
/// # Errors
/// [`ImportError`] with everything that is wrong: an architecture that isn't one of [`FAMILIES`],
/// keys or tensors that are missing, unfit or unknown, or a type that holds no floats.
pub fn import(checkpoint: &Checkpoint, options: &ImportOptions) -> Result<Module, ImportError> {
    import_with_sources(checkpoint, options).map(|imported| imported.module)
}

/// As [`import`], with where the weights came from.
///
/// # Errors
/// As [`import`].
pub fn import_with_sources(
    checkpoint: &Checkpoint,
    options: &ImportOptions,
) -> Result<Imported, ImportError> {
    let dtype = options.dtype.unwrap_or(DType::F32);
    if !dtype.is_float() {
        return Err(ImportError::DType(dtype));
    }
    let (family, task) = family(checkpoint)?;
    let resolved = Resolved::new(
        checkpoint.config(),
        (family.keys)(checkpoint.config()),
        family.aliases,
    );
    let mut config = ConfigReader::whole(&resolved);
    let architecture = (family.read)(&mut config, task);
    auto_map::read_auto_map(&mut config, family);
    quantization::read(&mut config);
    let mut generation = checkpoint
        .generation_config()
        .map(|values| ConfigReader::new(values, "generation_config.json: ", &[]));
    let tokens = tokens::read(&mut config, generation.as_mut());
    if let Some(generation) = generation {
        config.absorb_reported(generation);
    }
    let ignored = parts::ignored_of_denoiser(checkpoint, &options.ignore_keys);
    let mut warnings = config.finish(&checkpoint.config_path(), &ignored)?;
    if let Some(architecture) = checkpoint.retargeted() {
        warnings.push(format!(
            "read as {architecture}, for {}, whatever config.json says",
            task.name()
        ));
    }

    let mut net = Net::new(checkpoint, architecture.base(), dtype);
    let headless = checkpoint.makes_vectors() && task == Task::FeatureExtraction;
    if headless || checkpoint.retargeted().is_some() {
        net.leave_out_head();
    }
    let built = architecture.build(&mut net);
    let (graph, weights, sources, left_out) = net.finish(built)?;
    warnings.extend(left_out);
    let facts = architecture.facts();
    let mut model = ModelInfo {
        family: family.model_type.to_owned(),
        task,
        labels: facts.labels,
        scores: facts.scores,
        sentence: if task == Task::FeatureExtraction {
            checkpoint.sentence().cloned()
        } else {
            None
        },
        diffusion: facts.diffusion,
        prompts: None,
        dtype,
        vocab_size: facts.vocab_size,
        hidden_size: facts.hidden_size,
        heads: facts.heads,
        kv_heads: facts.kv_heads,
        head_dim: facts.head_dim,
        context_length: facts.context_length,
        bos_token_id: tokens.bos,
        eos_token_ids: tokens.eos,
        pad_token_id: facts.padding.or(tokens.pad),
    };
    let parts = parts::import(
        checkpoint,
        weights,
        (&graph, &mut model),
        &options.ignore_keys,
    )?;
    warnings.extend(parts.warnings);
    let module = Module {
        graphs: [vec![graph], parts.graphs].concat(),
        weights: parts.weights,
        model,
        sampling: None,
        drafting: None,
        side_files: checkpoint.side_files(),
    };
    Ok(Imported {
        module,
        sources,
        of_parts: parts.sources,
        warnings,
    })
}

/// Lets `checkpoint` be imported for `task`, whatever head its configuration names: as the family's
/// usual architecture for it.
///
/// # Errors
/// [`ImportError::Architecture`] for a family that isn't known, or that has none for the task.
pub fn retarget(checkpoint: &mut Checkpoint, task: Task) -> Result<(), ImportError> {
    let (family, own) = family(checkpoint)?;
    if own == task {
        return Ok(());
    }
    let of_task = family.architectures.iter().find(|(_, of)| *of == task);
    let Some((architecture, _)) = of_task else {
        let mut known: Vec<&str> = family.architectures.iter().map(|(_, t)| t.name()).collect();
        known.dedup();
        return Err(ImportError::Architecture {
            path: checkpoint.config_path(),
            problem: format!(
                "dlc imports no `{}` for {}; of this family it imports {}",
                family.model_type,
                task.name(),
                known.join(", ")
            ),
        });
    };
    checkpoint.retarget(architecture);
    Ok(())
}

/// Names of the weights that hold a NaN or an infinity, each with the index of the first one, in
/// the module's order.
///
/// Reads every weight once, in parallel on rayon's current thread pool.
///
/// # Errors
/// [`ImportError::Ir`] for a weight without data.
pub fn non_finite_weights(module: &Module) -> Result<Vec<(String, usize)>, ImportError> {
    let ids: Vec<WeightId> = (0..module.weights.len())
        .map(WeightId::from_index)
        .collect();
    let scan = |id: &WeightId| {
        let weight = &module.weights[*id];
        Ok(weight
            .first_non_finite()?
            .map(|index| (weight.name.clone(), index)))
    };
    ids.par_iter()
        .filter_map(|id| scan(id).transpose())
        .collect()
}

/// The family of a checkpoint, from `model_type` and, where that is absent, `architectures` or
/// diffusers' `_class_name`; and what the model is for.
fn family(checkpoint: &Checkpoint) -> Result<(&'static Family, Task), ImportError> {
    let config = checkpoint.config();
    let fail = |problem: String| {
        Err(ImportError::Architecture {
            path: checkpoint.config_path(),
            problem,
        })
    };
    let model_type = config.get("model_type").and_then(|v| v.as_str());
    let listed = config
        .get("architectures")
        .and_then(|v| v.as_array())
        .into_iter()
        .flatten()
        .chain(config.get("_class_name"));
    let architectures: Vec<&str> = listed.filter_map(|v| v.as_str()).collect();
    let Some(name) = model_type.or(architectures.first().copied()) else {
        let problem = "names no `model_type`, no `architectures` and no `_class_name`: it is a configuration neither of transformers nor of diffusers";
        return fail(format!("{problem}. {}", known()));
    };
    let task = |family: &Family, name: &str| {
        family
            .architectures
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, task)| *task)
    };
    let of = |family: &&Family| {
        if model_type.is_some() {
            family.model_type == name
        } else {
            task(family, name).is_some()
        }
    };
    let Some(family) = FAMILIES.iter().find(of) else {
        let guess = nearest(name)
            .map(|near| format!(" (the nearest that it knows is `{near}`)"))
            .unwrap_or_default();
        return fail(format!(
            "dlc can't import the architecture `{}`{guess}. {}",
            shown(name),
            known()
        ));
    };
    if let Some(other) = architectures.iter().find(|a| task(family, a).is_none()) {
        return fail(format!(
            "the model is a `{}`; of the family `{}` dlc imports {}",
            shown(other),
            family.model_type,
            family.names().join(", ")
        ));
    }
    if checkpoint.makes_vectors()
        && checkpoint.retargeted().is_none()
        && family
            .architectures
            .iter()
            .any(|(_, task)| *task == Task::FeatureExtraction)
    {
        return Ok((family, Task::FeatureExtraction));
    }
    let usual = family
        .architectures
        .first()
        .map_or(Task::TextGeneration, |(_, task)| *task);
    Ok((
        family,
        architectures
            .first()
            .and_then(|name| task(family, name))
            .unwrap_or(usual),
    ))
}

fn known() -> String {
    let list: Vec<String> = FAMILIES
        .iter()
        .map(|family| format!("{} ({})", family.model_type, family.summary))
        .collect();
    format!("It imports {}", list.join("; "))
}

/// The known name that is most like `name`, if any is much like it.
fn nearest(name: &str) -> Option<&'static str> {
    const ALIKE: f64 = 0.8;
    let name: String = name.chars().take(64).collect();
    let names = FAMILIES.iter().flat_map(|family| {
        family
            .architectures
            .iter()
            .map(|(name, _)| name)
            .chain([&family.model_type])
    });
    let scored = names
        .map(|known| (strsim::jaro_winkler(&name, known), *known))
        .filter(|(score, _)| *score >= ALIKE);
    scored
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
