//! Import: a checkpoint becomes a module with the graph `target`. One file per family of architectures over one shared decoder.
//!
//! What a family's importer doesn't understand is refused by name, never ignored. No tensor's data is read, except to compare a head
//! with the embedding it is tied to.

mod config;
mod decoder;
mod error;
mod keys;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;
mod spec;
mod tokens;
mod weights;

#[cfg(test)]
mod tests;

use std::fmt;

use dlc_ir::{DType, EntityId, ModelInfo, Module, WeightId};
use rayon::prelude::*;

pub use error::{ConfigProblem, ImportError};

use crate::checkpoint::{Checkpoint, shown};
use config::ConfigReader;
use spec::DecoderSpec;

/// A family of architectures that can be imported.
#[derive(Clone, Copy)]
pub struct Family {
    /// `model_type` of its configurations.
    pub model_type: &'static str,
    /// `architectures` of its configurations.
    pub architectures: &'static [&'static str],
    /// Models that belong to it.
    pub summary: &'static str,
    read: fn(&mut ConfigReader<'_>) -> DecoderSpec,
}

/// Every family that can be imported.
pub const FAMILIES: &[Family] = &[llama::FAMILY, mistral::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("model_type", &self.model_type).field("architectures", &self.architectures).finish_non_exhaustive()
    }
}

/// How to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportOptions {
    /// Element type of weights and activations; f32 if absent. Other types than f32 still give f32 logits.
    pub dtype: Option<DType>,
}

/// The checkpoint as a module with one graph, `target`, that verifies.
pub fn import(checkpoint: &Checkpoint, options: &ImportOptions) -> Result<Module, ImportError> {
    let dtype = options.dtype.unwrap_or(DType::F32);
    if !dtype.is_float() {
        return Err(ImportError::DType(dtype));
    }
    let family = family(checkpoint)?;
    let mut config = ConfigReader::new(checkpoint.config(), "");
    let spec = (family.read)(&mut config);
    let mut generation = checkpoint.generation_config().map(|values| ConfigReader::new(values, "generation_config.json: "));
    let tokens = tokens::read(&mut config, generation.as_mut());
    if let Some(generation) = generation {
        config.absorb_reported(generation);
    }
    config.finish(&checkpoint.config_path())?;

    let weights = weights::collect(checkpoint, &spec, dtype)?;
    let graph = decoder::build(&spec, &weights, dtype)?;
    let model = ModelInfo {
        family: family.model_type.to_owned(),
        dtype,
        vocab_size: spec.vocab_size,
        hidden_size: spec.hidden_size,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        context_length: spec.context_length,
        bos_token_id: tokens.bos,
        eos_token_ids: tokens.eos,
        pad_token_id: tokens.pad,
    };
    Ok(Module { graphs: vec![graph], weights, model, side_files: checkpoint.side_files() })
}

/// Names of the weights that hold a NaN or an infinity, each with the index of the first one, in the module's order.
///
/// Reads every weight once, in parallel on rayon's current thread pool.
pub fn non_finite_weights(module: &Module) -> Result<Vec<(String, usize)>, ImportError> {
    let ids: Vec<WeightId> = (0..module.weights.len()).map(WeightId::from_index).collect();
    let scan = |id: &WeightId| {
        let weight = &module.weights[*id];
        Ok(weight.first_non_finite()?.map(|index| (weight.name.clone(), index)))
    };
    ids.par_iter().filter_map(|id| scan(id).transpose()).collect()
}

/// The family of a checkpoint, from `model_type` and, where that is absent, `architectures`.
fn family(checkpoint: &Checkpoint) -> Result<&'static Family, ImportError> {
    let config = checkpoint.config();
    let fail = |problem: String| Err(ImportError::Architecture { path: checkpoint.config_path(), problem });
    let model_type = config.get("model_type").and_then(|v| v.as_str());
    let architectures: Vec<&str> = config.get("architectures").and_then(|v| v.as_array()).into_iter().flatten().filter_map(|v| v.as_str()).collect();
    let Some(name) = model_type.or(architectures.first().copied()) else {
        return fail(format!("names no `model_type` and no `architectures`: it is no transformers configuration. {}", known()));
    };
    let of = |family: &&Family| if model_type.is_some() { family.model_type == name } else { family.architectures.contains(&name) };
    let Some(family) = FAMILIES.iter().find(of) else {
        let guess = nearest(name).map(|near| format!(" (the nearest that it knows is `{near}`)")).unwrap_or_default();
        return fail(format!("dlc can't import the architecture `{}`{guess}. {}", shown(name), known()));
    };
    if let Some(other) = architectures.iter().find(|a| !family.architectures.contains(a)) {
        let wanted = family.architectures.join(", ");
        return fail(format!("the model is a `{}`; of the family `{}` dlc imports {wanted}", shown(other), family.model_type));
    }
    Ok(family)
}

fn known() -> String {
    let list: Vec<String> = FAMILIES.iter().map(|family| format!("{} ({})", family.model_type, family.summary)).collect();
    format!("It imports {}", list.join("; "))
}

/// The known name that is most like `name`, if any is much like it.
fn nearest(name: &str) -> Option<&'static str> {
    const ALIKE: f64 = 0.8;
    let name: String = name.chars().take(64).collect();
    let names = FAMILIES.iter().flat_map(|family| family.architectures.iter().chain([&family.model_type]));
    let scored = names.map(|known| (strsim::jaro_winkler(&name, known), *known)).filter(|(score, _)| *score >= ALIKE);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}
