//! The parts of a pipeline of diffusers beside its denoiser: a graph each, over the weights of the
//! module.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dlc_ir::{DType, Graph, ModelInfo, Prompts, TextEncoder, WeightTable};
use dlc_methods::diffusion::inputs;
use serde_json::{Map, Value};

use super::config::ConfigReader;
use super::defaults::Resolved;
use super::error::ImportError;
use super::net::Net;
use super::{
    Architecture, Facts, PartFamily, Sources, autoencoder_kl, autoencoder_tiny, clip_text, t5,
};
use crate::checkpoint::{Checkpoint, Part, PartGraph, Role, TextRole, shown};

/// Every class that is known.
static FAMILIES: [PartFamily; 5] = [
    clip_text::FAMILY,
    clip_text::PROJECTED,
    t5::FAMILY,
    autoencoder_kl::FAMILY,
    autoencoder_tiny::FAMILY,
];

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

/// Imports the parts of `checkpoint` over `weights`, those of its `denoiser`, of which `model` says
/// what it takes.
pub(super) fn import(
    checkpoint: &Checkpoint,
    mut weights: WeightTable,
    (denoiser, model): (&Graph, &mut ModelInfo),
    ignore_keys: &[String],
) -> Result<Imported, ImportError> {
    let (mut graphs, mut sources, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let mut joined = Joined::default();
    let mut architectures = Vec::new();
    for part in checkpoint.parts() {
        let family = family(part)?;
        let mut of_part = Vec::new();
        for graph in part.row.graphs {
            let (architecture, notes) = read(family, part, graph.role, ignore_keys)?;
            warnings.extend(notes);
            joined.add(part, *graph, &architecture.facts(), model)?;
            of_part.push((*graph, architecture));
        }
        architectures.push((part, of_part));
    }
    joined.finish(checkpoint, denoiser, model)?;
    for (part, of_part) in architectures {
        let mut of_graphs = Sources::new();
        for (graph, architecture) in of_part {
            let name = graph.name;
            let mut dtype = model.dtype;
            if architecture.facts().upcast && dtype == DType::F16 {
                dtype = DType::F32;
                warnings.push(format!(
                    "{}: computes in f32, as its `force_upcast` asks for: f16 may pass the largest number there is",
                    part.row.component
                ));
            }
            let (built, of_graph, left_out);
            (built, weights, of_graph, left_out) =
                build(name, part, &*architecture, weights, dtype)?;
            graphs.push(built);
            of_graphs.extend(of_graph);
            warnings.extend(left_out.map(|note| format!("{}: {note}", part.row.component)));
        }
        sources.push(of_graphs);
    }
    // The graphs of a part read one configuration.
    let mut seen = BTreeSet::new();
    warnings.retain(|warning| seen.insert(warning.clone()));
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
    let is_known = |name: &str| part.row.classes.contains(&name);
    let of = |family: &&PartFamily| family.class == part.class && is_known(family.class);
    let fail = |problem: String| {
        Err(ImportError::Architecture {
            path: part.checkpoint.config_path(),
            problem,
        })
    };
    let name = part.row.component;
    match FAMILIES.iter().find(of) {
        Some(family) if own == family.class => Ok(family),
        Some(family) => fail(format!(
            "the part `{name}` is a `{}` here, and a `{}` in model_index.json: the files are of different pipelines",
            shown(own),
            family.class
        )),
        None => fail(format!(
            "the part `{name}` of the pipeline is a `{}`; dlc imports {} there",
            shown(&part.class),
            part.row.classes.join(" or ")
        )),
    }
}

/// What the configuration says, and what the user should know.
fn read(
    family: &PartFamily,
    part: &Part,
    role: Role,
    ignore_keys: &[String],
) -> Result<(Box<dyn Architecture>, Vec<String>), ImportError> {
    let written = part.checkpoint.config();
    let resolved = Resolved::new(written, family.keys, &[]);
    let mut config = ConfigReader::whole(&resolved);
    let architecture = (family.read)(&mut config, role);
    let of_part = |key: &&String| has_key(written, key);
    let ignored: Vec<String> = ignore_keys.iter().filter(of_part).cloned().collect();
    let notes = config.finish(&part.checkpoint.config_path(), &ignored)?;
    Ok((architecture, notes))
}

fn build(
    name: &str,
    part: &Part,
    architecture: &dyn Architecture,
    weights: WeightTable,
    dtype: DType,
) -> Result<(Graph, WeightTable, Sources, Option<String>), ImportError> {
    let base = architecture.base();
    let mut net = Net::of_part(name, weights, &part.checkpoint, base, dtype);
    let built = architecture.build(&mut net);
    net.finish(built)
}

/// What the parts make together.
#[derive(Debug, Default)]
struct Joined {
    encoders: Vec<TextEncoder>,
    /// Width of the states of all text encoders, one after the other.
    width: usize,
    /// Width of the state of a whole text.
    pooled: Option<usize>,
}

impl Joined {
    /// Takes over a graph of a part, if it is of what the denoiser makes.
    fn add(
        &mut self,
        part: &Part,
        graph: PartGraph,
        facts: &Facts,
        model: &ModelInfo,
    ) -> Result<(), ImportError> {
        if let Some(latents) = facts.decodes {
            let channels = model.diffusion.as_ref().map(|diffusion| diffusion.channels);
            if channels != Some(latents) {
                let path = part.checkpoint.config_path();
                return misfit(path, "latents with channels", latents, channels);
            }
        }
        if let Role::Text(text) = graph.role {
            self.width += facts.hidden_size;
            self.pooled = self.pooled.or(facts.pooled);
            self.encoders.push(encoder(graph.name, text, facts));
        }
        Ok(())
    }

    /// Takes it over into the model, if the denoiser takes what the text encoders make.
    fn finish(
        self,
        checkpoint: &Checkpoint,
        denoiser: &Graph,
        model: &mut ModelInfo,
    ) -> Result<(), ImportError> {
        let Some(first) = self.encoders.first() else {
            return Ok(());
        };
        let mut parts = checkpoint.parts().iter();
        let of_first = |part: &&Part| part.row.graphs.iter().any(|g| g.name == first.graph);
        let part = parts.find(of_first);
        let path = part.map_or_else(
            || checkpoint.config_path(),
            |part| part.checkpoint.config_path(),
        );
        let diffusion = model.diffusion.as_ref();
        let width = diffusion.and_then(|diffusion| diffusion.text_width);
        if width != Some(self.width) {
            return misfit(path, "states of a width", self.width, width);
        }
        let pooled = input_width(denoiser, inputs::POOLED_TEXT);
        if let (Some(wanted), made) = (pooled, self.pooled)
            && made != Some(wanted)
        {
            let made = made.unwrap_or_default();
            return misfit(path, "states of whole texts of a width", made, pooled);
        }
        model.vocab_size = first.vocab_size;
        let lengths = self.encoders.iter().map(|encoder| encoder.length);
        model.context_length = lengths.min().unwrap_or_default();
        model.prompts = Some(Prompts {
            zeros_without_negative: checkpoint.zeros_without_negative(),
            encoders: self.encoders,
        });
        Ok(())
    }
}

/// How a text encoder is used.
fn encoder(graph: &str, text: TextRole, facts: &Facts) -> TextEncoder {
    TextEncoder {
        graph: graph.to_owned(),
        tokenizer: text.folder().to_owned(),
        states: text.states.to_owned(),
        vocab_size: facts.vocab_size,
        length: text.length.unwrap_or(facts.context_length),
        shortened: text.length.is_none(),
        masked: text.masked,
        lower_case: text.lower_case,
    }
}

/// The last axis of one of the denoiser's inputs.
fn input_width(denoiser: &Graph, name: &str) -> Option<usize> {
    let input = denoiser.find_input(name)?;
    denoiser.value(input.value).ty.shape.0.last()?.known()
}

fn misfit(
    path: PathBuf,
    what: &str,
    own: usize,
    denoiser: Option<usize>,
) -> Result<(), ImportError> {
    let takes = denoiser.map_or("none".to_owned(), |n| n.to_string());
    Err(ImportError::Architecture {
        path,
        problem: format!(
            "makes {what} of {own}, and the denoiser takes {takes}: the parts are of different pipelines"
        ),
    })
}
