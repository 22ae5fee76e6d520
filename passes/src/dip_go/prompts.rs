//! What images are conditioned on beside a class: prompts, by the text encoder of the module, or
//! embeddings from a file.

use dlc_eval::{Array, Segment, Values};
use dlc_ir::{DType, Graph, Module, TextEncoder, ValueId};
use dlc_methods::diffusion::inputs;
use rayon::prelude::*;

use super::{DipGo, NAME};
use crate::context::PassContext;
use crate::error::PassError;
use crate::skip::{Inputs, is_guided};
use crate::sources::{Prompt, Samplers};

/// What was read, before a text encoder sees it.
pub(super) enum Texts<'a> {
    Encoded(Vec<Prompt>),
    Written(Vec<String>, &'a dyn Samplers),
}

impl<'a> DipGo<'a> {
    /// The texts to learn on; looks at no weight.
    pub(super) fn texts(&self, module: &Module, guidance: f64) -> Result<Texts<'a>, PassError> {
        let target = module
            .graph("target")
            .ok_or_else(|| fail("there is no target"))?;
        let conditioning = Inputs::find(NAME, target)?.conditioning;
        let names: Vec<&str> = conditioning.iter().map(|(name, _)| name.as_str()).collect();
        let asked = self.options.prompts.is_some() || self.options.embeddings.is_some();
        if names.is_empty() {
            return if asked {
                Err(fail(
                    "the model takes no text: leave prompts and embeddings out",
                ))
            } else {
                Ok(Texts::Encoded(vec![]))
            };
        }
        if self.options.embeddings.is_some() {
            return self.embeddings(target, &conditioning, guidance);
        }
        if names == [inputs::TEXT] && text_encoder(module).is_some() {
            let samplers = self.sources.samplers(NAME)?;
            let texts = samplers.texts(self.options.prompts.as_deref())?;
            return Ok(Texts::Written(texts, samplers));
        }
        Err(fail(&format!(
            "the model is conditioned on {}: give texts to learn on with embeddings=FILE, as `dlc sample --embeddings` takes it",
            names.join(", ")
        )))
    }

    fn embeddings(
        &self,
        target: &Graph,
        conditioning: &[(String, ValueId)],
        guidance: f64,
    ) -> Result<Texts<'a>, PassError> {
        let Some(file) = &self.options.embeddings else {
            return Ok(Texts::Encoded(vec![]));
        };
        let dtype = |value: ValueId| target.value(value).ty.dtype;
        let inputs: Vec<(&str, DType)> = conditioning
            .iter()
            .map(|(name, value)| (name.as_str(), dtype(*value)))
            .collect();
        let samplers = self.sources.samplers(NAME)?;
        let prompts = samplers.prompts(file, &inputs, is_guided(guidance))?;
        let fit = |name: &str, array: &Array| {
            let mut inputs = conditioning.iter().filter(|(known, _)| known == name);
            inputs.all(|(_, value)| fits(array, target, *value))
        };
        let mut arrays = prompts.iter().flatten();
        let Some((name, array)) = arrays.find(|(name, array)| !fit(name, array)) else {
            return Ok(Texts::Encoded(prompts));
        };
        Err(PassError::Sampler {
            place: file.display().to_string(),
            problem: format!(
                "`{name}` has rows of the shape {:?}, which the model doesn't take",
                array.shape().get(1..).unwrap_or_default()
            ),
            unsupported: false,
        })
    }
}

impl Texts<'_> {
    /// What images are conditioned on.
    pub(super) fn encode(
        self,
        module: &Module,
        guidance: f64,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        let (tokens, empty) = match self {
            Self::Encoded(prompts) => return Ok(prompts),
            Self::Written(mut texts, samplers) => {
                // What guidance leads away from.
                texts.push(String::new());
                let mut tokens = samplers.tokens(&texts)?;
                let empty = tokens.pop();
                (tokens, empty)
            }
        };
        let encoder = Encoder::new(module)?;
        cx.progress.update("encoding prompts", 0, tokens.len());
        let empty = empty.filter(|_| is_guided(guidance));
        let none = empty.map(|ids| encoder.states(&ids)).transpose()?;
        let prompt = |ids: &Vec<u32>| {
            let rows = [Some(encoder.states(ids)?), none.clone()];
            let data: Vec<f32> = rows.iter().flatten().flatten().copied().collect();
            let shape = [1 + usize::from(none.is_some()), ids.len(), encoder.width];
            let states = Array::f32(shape, data)?;
            Ok(Prompt::from_iter([(inputs::TEXT.to_owned(), states)]))
        };
        cx.pool.install(|| tokens.par_iter().map(prompt).collect())
    }
}

/// The graph that makes hidden states of tokens.
struct Encoder<'m> {
    segment: Segment<'m>,
    graph: &'m Graph,
    output: ValueId,
    width: usize,
}

impl<'m> Encoder<'m> {
    fn new(module: &'m Module) -> Result<Self, PassError> {
        let unsupported = |problem: &str| PassError::Unsupported {
            pass: NAME,
            problem: problem.into(),
        };
        let encoder = text_encoder(module);
        let encoder = encoder.ok_or_else(|| unsupported("the module has no text encoder"))?;
        let graph = module.graph(&encoder.graph);
        let graph = graph.ok_or_else(|| unsupported("the module has no text encoder"))?;
        let mut outputs = graph.outputs().iter();
        let output = outputs.find(|output| output.name == encoder.states);
        let output = output.ok_or_else(|| unsupported("the text encoder gives no states"))?;
        let diffusion = module.model.diffusion.as_ref();
        Ok(Self {
            segment: Segment::new(
                graph,
                &module.weights,
                graph.nodes().map(|(id, _)| id).collect(),
            )?,
            graph,
            output: output.value,
            width: diffusion
                .and_then(|model| model.text_width)
                .unwrap_or_default(),
        })
    }

    /// The states of a text, `[tokens, width]`. Padding is seen like any token.
    fn states(&self, ids: &[u32]) -> Result<Vec<f32>, PassError> {
        let mut known = Values::new();
        for input in self.graph.inputs() {
            let row = if input.name == "input_ids" {
                ids.iter().map(|id| i64::from(*id)).collect()
            } else {
                vec![1; ids.len()]
            };
            known.insert(input.value, Array::i64([1, ids.len()], row)?);
        }
        let made = self.segment.forward(&known, &[self.output])?;
        let states = made.get(&self.output).and_then(Array::as_f32);
        Ok(states.unwrap_or_default().to_vec())
    }
}

/// The text encoder, if it is the only one and reads padding like any token.
fn text_encoder(module: &Module) -> Option<&TextEncoder> {
    match module.model.prompts.as_ref()?.encoders.as_slice() {
        [only] if !only.masked => Some(only),
        _ => None,
    }
}

/// Whether the rows of an array have the axes of a graph's input.
fn fits(array: &Array, graph: &Graph, input: ValueId) -> bool {
    let (given, wanted) = (array.shape(), &graph.value(input).ty.shape.0);
    let mut rows = given.iter().zip(wanted).skip(1);
    given.len() == wanted.len() && rows.all(|(n, dim)| dim.known().is_none_or(|dim| dim == *n))
}

fn fail(problem: &str) -> PassError {
    PassError::Options {
        pass: NAME,
        problem: problem.into(),
    }
}
