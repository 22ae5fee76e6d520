//! The parts of a pipeline of diffusers beside its denoiser: a graph each, over the weights of the
//! module.

use dlc_ir::{DType, Diffusion, Graph, ModelInfo, WeightTable};
use serde_json::{Map, Value};

use super::config::ConfigReader;
use super::defaults::Resolved;
use super::error::ImportError;
use super::net::Net;
use super::{Architecture, Facts, PartFamily, Sources, autoencoder_kl, clip_text};
use crate::checkpoint::{Checkpoint, Part, shown};

/// Every class that is known.
static FAMILIES: [PartFamily; 2] = [clip_text::FAMILY, autoencoder_kl::FAMILY];

/// What parts give to the module: graphs, their weights and where these came from, and what the
/// user should know.
pub(super) struct Imported {
    pub(super) graphs: Vec<Graph>,
    pub(super) weights: WeightTable,
    pub(super) sources: Vec<Sources>,
    pub(super) warnings: Vec<String>,
}

/// Whether a configuration has the key, or the object that it is in.
fn has_key(config: &Map<String, Value>, key: &str) -> bool {
    config.contains_key(key)
        || key
            .split('.')
            .next()
            .is_some_and(|top| config.contains_key(top))
}

/// Those of the keys that are to be ignored that the denoiser's configuration is asked for: its
/// own, and those that no part has.
pub(super) fn ignored_of_denoiser(checkpoint: &Checkpoint, ignore_keys: &[String]) -> Vec<String> {
    let of_denoiser = |key: &&String| {
        let mut parts = checkpoint.parts().iter();
        has_key(checkpoint.config(), key)
            || !parts.any(|part| has_key(part.checkpoint.config(), key))
    };
    ignore_keys.iter().filter(of_denoiser).cloned().collect()
}

/// Imports the parts of `checkpoint` over `weights`, those of its denoiser, of which `model` says
/// what it takes.
pub(super) fn import(
    checkpoint: &Checkpoint,
    mut weights: WeightTable,
    model: &mut ModelInfo,
    ignore_keys: &[String],
) -> Result<Imported, ImportError> {
    let (mut graphs, mut sources, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for part in checkpoint.parts() {
        let family = family(part)?;
        let (architecture, notes) = read(family, part, ignore_keys)?;
        warnings.extend(notes);
        join(part, &architecture.facts(), model)?;
        let (graph, of_graph, left_out);
        (graph, weights, of_graph, left_out) =
            build(family, part, &*architecture, weights, model.dtype)?;
        graphs.push(graph);
        sources.push(of_graph);
        let of_part = |note: String| format!("{}: {note}", part.component);
        warnings.extend(left_out.map(of_part));
    }
    Ok(Imported {
        graphs,
        weights,
        sources,
        warnings,
    })
}

/// The family of a part, by what the pipeline and its own configuration call its class.
fn family(part: &Part) -> Result<&'static PartFamily, ImportError> {
    let config = part.checkpoint.config();
    let own = config.get("_class_name").or_else(|| {
        let listed = config.get("architectures")?.as_array()?;
        listed.first()
    });
    let own = own.and_then(Value::as_str).unwrap_or(&part.class);
    let of = |family: &&PartFamily| family.component == part.component;
    let family = FAMILIES.iter().find(of);
    let is_other = |name: &&str| family.is_none_or(|family| family.class != *name);
    let other = [own, part.class.as_str()].into_iter().find(is_other);
    match (family, other) {
        (Some(family), None) => Ok(family),
        (_, other) => {
            let known = family.map_or("nothing", |family| family.class);
            Err(ImportError::Architecture {
                path: part.checkpoint.config_path(),
                problem: format!(
                    "the part `{}` of the pipeline is a `{}`; dlc imports {known} there",
                    part.component,
                    shown(other.unwrap_or_default())
                ),
            })
        }
    }
}

/// What the configuration says, and what the user should know.
fn read(
    family: &PartFamily,
    part: &Part,
    ignore_keys: &[String],
) -> Result<(Box<dyn Architecture>, Vec<String>), ImportError> {
    let written = part.checkpoint.config();
    let resolved = Resolved::new(written, family.keys, &[]);
    let mut config = ConfigReader::whole(&resolved);
    let architecture = (family.read)(&mut config);
    let of_part = |key: &&String| has_key(written, key);
    let ignored: Vec<String> = ignore_keys.iter().filter(of_part).cloned().collect();
    let notes = config.finish(&part.checkpoint.config_path(), &ignored)?;
    Ok((architecture, notes))
}

fn build(
    family: &PartFamily,
    part: &Part,
    architecture: &dyn Architecture,
    weights: WeightTable,
    dtype: DType,
) -> Result<(Graph, WeightTable, Sources, Option<String>), ImportError> {
    let (name, base) = (family.graph, architecture.base());
    let mut net = Net::of_part(name, weights, &part.checkpoint, base, dtype);
    let built = architecture.build(&mut net);
    net.finish(built)
}

/// Takes a part's facts over into the model's, if it fits the denoiser.
fn join(part: &Part, facts: &Facts, model: &mut ModelInfo) -> Result<(), ImportError> {
    let diffusion = model.diffusion.as_ref();
    let misfit = |what: &str, own: usize, denoiser: Option<usize>| {
        let takes = denoiser.map_or("none".to_owned(), |n| n.to_string());
        Err(ImportError::Architecture {
            path: part.checkpoint.config_path(),
            problem: format!(
                "makes {what} of {own}, and the denoiser takes {takes}: the parts are of different pipelines"
            ),
        })
    };
    if let Some(latents) = facts.latents {
        let channels = diffusion.map(|diffusion| diffusion.channels);
        if channels != Some(latents) {
            return misfit("latents with channels", latents, channels);
        }
        return Ok(());
    }
    let width = diffusion.and_then(|diffusion: &Diffusion| diffusion.text_width);
    if width != Some(facts.hidden_size) {
        return misfit("states of a width", facts.hidden_size, width);
    }
    model.vocab_size = facts.vocab_size;
    model.context_length = facts.context_length;
    Ok(())
}
