//! What images are conditioned on beside a class: prompts, which the pipeline's text encoders read,
//! or embeddings from a file.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use dlc_eval::Array;
use dlc_ir::{DType, Graph, Module, ValueId};

use crate::context::PassContext;
use crate::error::PassError;
use crate::skip::{Inputs, is_guided};
use crate::sources::{Prompt, Samplers, Sources};

/// Which texts a pass samples with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextOptions<'o> {
    pub pass: &'static str,
    /// Prompts, one a line; built-in ones if there is neither file.
    pub prompts: Option<&'o Path>,
    /// Texts as `dlc sample --embeddings` takes them.
    pub embeddings: Option<&'o Path>,
}

/// What was read, before a text encoder sees it.
pub(crate) struct Texts<'a> {
    pass: &'static str,
    read: Read<'a>,
}

enum Read<'a> {
    Encoded(Vec<Prompt>),
    Written(Vec<String>, &'a dyn Samplers),
}

impl TextOptions<'_> {
    /// Refuses two answers to one question.
    pub fn check(&self) -> Result<(), PassError> {
        if self.prompts.is_some() && self.embeddings.is_some() {
            let problem = "prompts and embeddings both say what to learn on; give one of them";
            return Err(self.fail(problem));
        }
        Ok(())
    }

    fn fail(&self, problem: &str) -> PassError {
        PassError::Options {
            pass: self.pass,
            problem: problem.into(),
        }
    }

    /// The texts; looks at no weight.
    pub fn read<'a>(
        &self,
        sources: &Sources<'a>,
        module: &Module,
        guidance: f64,
    ) -> Result<Texts<'a>, PassError> {
        let read = self.find(sources, module, guidance)?;
        let pass = self.pass;
        Ok(Texts { pass, read })
    }

    fn find<'a>(
        &self,
        sources: &Sources<'a>,
        module: &Module,
        guidance: f64,
    ) -> Result<Read<'a>, PassError> {
        let target = target(self.pass, module)?;
        let conditioning = Inputs::find(self.pass, target)?.conditioning;
        let asked = self.prompts.is_some() || self.embeddings.is_some();
        if conditioning.is_empty() {
            return if asked {
                let problem = "the model takes no text: leave prompts and embeddings out";
                Err(self.fail(problem))
            } else {
                Ok(Read::Encoded(vec![]))
            };
        }
        if let Some(file) = self.embeddings {
            let samplers = sources.samplers(self.pass)?;
            return encoded(file, samplers, target, &conditioning, guidance);
        }
        if module.model.prompts.is_some() {
            let samplers = sources.samplers(self.pass)?;
            let texts = samplers.texts(self.prompts)?;
            return Ok(Read::Written(texts, samplers));
        }
        let names: Vec<&str> = conditioning.iter().map(|(name, _)| name.as_str()).collect();
        Err(self.fail(&format!(
            "the model is conditioned on {}: give texts to learn on with embeddings=FILE, as `dlc sample --embeddings` takes it",
            names.join(", ")
        )))
    }
}

/// The texts of a file of embeddings.
fn encoded<'a>(
    file: &Path,
    samplers: &'a dyn Samplers,
    target: &Graph,
    conditioning: &[(String, ValueId)],
    guidance: f64,
) -> Result<Read<'a>, PassError> {
    let inputs = typed(target, conditioning);
    let prompts = samplers.prompts(file, &inputs, is_guided(guidance))?;
    let fit = |name: &str, array: &Array| {
        let mut inputs = conditioning.iter().filter(|(known, _)| known == name);
        inputs.all(|(_, value)| fits(array, target, *value))
    };
    let mut arrays = prompts.iter().flatten();
    let Some((name, array)) = arrays.find(|(name, array)| !fit(name, array)) else {
        return Ok(Read::Encoded(prompts));
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

impl Texts<'_> {
    /// Refuses texts that can't be read; looks at no weight.
    pub(crate) fn check(&self, module: &Module) -> Result<(), PassError> {
        match &self.read {
            Read::Encoded(_) => Ok(()),
            Read::Written(texts, samplers) => samplers.check_texts(texts, module),
        }
    }

    /// What images are conditioned on.
    pub(crate) fn encode(
        self,
        module: &Module,
        guidance: f64,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        match self.read {
            Read::Encoded(prompts) => Ok(prompts),
            Read::Written(texts, samplers) => {
                let target = target(self.pass, module)?;
                let conditioning = Inputs::find(self.pass, target)?.conditioning;
                let inputs = typed(target, &conditioning);
                samplers.encode(&texts, module, &inputs, is_guided(guidance), cx)
            }
        }
    }
}

/// Tells prompts apart.
pub(crate) fn fingerprint(prompts: &[Prompt]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, array) in prompts.iter().flatten() {
        (name, array.shape(), array.as_i64()).hash(&mut hasher);
        array
            .as_f32()
            .unwrap_or_default()
            .iter()
            .for_each(|x| x.to_bits().hash(&mut hasher));
    }
    hasher.finish()
}

fn target<'m>(pass: &'static str, module: &'m Module) -> Result<&'m Graph, PassError> {
    let target = module.graph("target");
    let problem = "there is no target".to_owned();
    target.ok_or(PassError::Options { pass, problem })
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
