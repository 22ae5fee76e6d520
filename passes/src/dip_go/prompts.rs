//! What images are conditioned on beside a class: prompts, which the pipeline's text encoders read,
//! or embeddings from a file.

use dlc_eval::Array;
use dlc_ir::{DType, Graph, Module, ValueId};

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
        let target = target(module)?;
        let conditioning = Inputs::find(NAME, target)?.conditioning;
        let asked = self.options.prompts.is_some() || self.options.embeddings.is_some();
        if conditioning.is_empty() {
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
        if module.model.prompts.is_some() {
            let samplers = self.sources.samplers(NAME)?;
            let texts = samplers.texts(self.options.prompts.as_deref())?;
            return Ok(Texts::Written(texts, samplers));
        }
        let names: Vec<&str> = conditioning.iter().map(|(name, _)| name.as_str()).collect();
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
        let inputs = typed(target, conditioning);
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
    /// Refuses texts that can't be read; looks at no weight.
    pub(super) fn check(&self, module: &Module) -> Result<(), PassError> {
        match self {
            Self::Encoded(_) => Ok(()),
            Self::Written(texts, samplers) => samplers.check_texts(texts, module),
        }
    }

    /// What images are conditioned on.
    pub(super) fn encode(
        self,
        module: &Module,
        guidance: f64,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        match self {
            Self::Encoded(prompts) => Ok(prompts),
            Self::Written(texts, samplers) => {
                let target = target(module)?;
                let conditioning = Inputs::find(NAME, target)?.conditioning;
                let inputs = typed(target, &conditioning);
                samplers.encode(&texts, module, &inputs, is_guided(guidance), cx)
            }
        }
    }
}

fn target(module: &Module) -> Result<&Graph, PassError> {
    let target = module.graph("target");
    target.ok_or_else(|| fail("there is no target"))
}

/// The inputs with the types of their elements.
fn typed<'c>(target: &Graph, conditioning: &'c [(String, ValueId)]) -> Vec<(&'c str, DType)> {
    let dtype = |value: ValueId| target.value(value).ty.dtype;
    let inputs = conditioning.iter();
    inputs
        .map(|(name, value)| (name.as_str(), dtype(*value)))
        .collect()
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
