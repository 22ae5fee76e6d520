//! What images are conditioned on by prompts: the runtime's reader of prompts, over the text encoders
//! of a module on the evaluator.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use dlc_eval::{Array, EvalError, Segment, Values};
use dlc_ir::{Diffusion, Graph, Module, TextEncoder, ValueId};
use dlc_passes::{PassError, Progress};
use dlc_runtime::{
    Conditions, EncodedPrompt, FloatTensor, Negative, PromptReader, PromptTokenizer, RuntimeError,
    TextState, TextStates, TextTokens,
};
use rayon::ThreadPool;
use rayon::prelude::*;

/// What stands for the bundle in messages of the runtime.
const PLACE: &str = "prompts";

/// Refuses texts that can't be read, as far as tokenizers tell; those in the folders `to_make`
/// aren't made yet. Looks at no weight.
pub(super) fn check(
    texts: &[String],
    module: &Module,
    to_make: &[String],
) -> Result<(), PassError> {
    if to_make.is_empty() {
        return reader(module)?.check(texts).map_err(|e| failed(&e));
    }
    let prompts = module.model.prompts.iter();
    for encoder in prompts.flat_map(|prompts| &prompts.encoders) {
        if to_make.contains(&encoder.tokenizer) {
            continue;
        }
        let tokenizer = PromptTokenizer::open(PLACE, encoder, |name| side_file(module, name));
        let tokenizer = tokenizer.map_err(|e| failed(&e))?;
        for text in texts {
            tokenizer.encode("prompt", text).map_err(|e| failed(&e))?;
        }
    }
    Ok(())
}

/// What images of each text in turn are conditioned on, with `guided` also what they are led away
/// from, and what is to be said of the texts.
pub(super) fn encode(
    texts: &[String],
    module: &Module,
    guided: bool,
    (pool, progress): (&ThreadPool, &dyn Progress),
) -> Result<(Conditions, Vec<String>), PassError> {
    let reader = reader(module)?;
    let prompts = module.model.prompts.as_ref();
    let negative = if guided {
        Negative::Usual
    } else {
        Negative::None
    };
    let mut encoders = ModuleEncoders {
        module,
        pool,
        progress,
        encoders: prompts.map_or(0, |prompts| prompts.encoders.len()),
        encoded: Mutex::new(0),
    };
    let encoded = reader.encode(&mut encoders, texts, negative, None);
    let encoded = encoded.map_err(|error| match error {
        EncodingError::Reading(error) => failed(&error),
        EncodingError::Running(error) => error,
    })?;
    let split = |EncodedPrompt { conditions, notes }| (conditions, notes);
    let (conditions, notes): (Vec<Conditions>, Vec<Vec<String>>) =
        encoded.into_iter().map(split).unzip();
    let conditions = Conditions::of_each(&conditions, 1).map_err(|e| failed(&e))?;
    Ok((conditions, notes.concat()))
}

fn reader(module: &Module) -> Result<PromptReader, PassError> {
    let pixels = pixels(module).unwrap_or(1);
    let find = |name: &str| side_file(module, name);
    PromptReader::open(PLACE, (&module.model, pixels), find).map_err(|e| failed(&e))
}

fn side_file(module: &Module, name: &str) -> Option<PathBuf> {
    let mut files = module.side_files.iter();
    files
        .find(|file| file.name == name)
        .map(|file| file.path.clone())
}

/// Pixels of a picture for each entry of the latents, if there is a decoder.
fn pixels(module: &Module) -> Option<usize> {
    let decoder = module.graph(Diffusion::IMAGE_DECODER)?;
    let images = decoder.outputs().first()?.value;
    let height = decoder.value(images).ty.shape.0.get(2)?;
    Diffusion::pixels(&height.to_string())
}

/// What the runtime says, with the way out that a pass has beside its own.
fn failed(error: &RuntimeError) -> PassError {
    PassError::Sampler {
        place: PLACE.to_owned(),
        problem: match error {
            RuntimeError::Unsupported { reason, fix, .. } => {
                format!("{reason}. {fix}, or give embeddings=FILE")
            }
            error => error.to_string(),
        },
        unsupported: false,
    }
}

/// The text encoders of a module, each loaded while it reads.
struct ModuleEncoders<'m> {
    module: &'m Module,
    pool: &'m ThreadPool,
    progress: &'m dyn Progress,
    /// How many there are.
    encoders: usize,
    /// Texts that were read, once by each of them.
    encoded: Mutex<usize>,
}

/// What goes wrong while texts are encoded.
enum EncodingError {
    Reading(RuntimeError),
    Running(PassError),
}

impl From<RuntimeError> for EncodingError {
    fn from(error: RuntimeError) -> Self {
        Self::Reading(error)
    }
}

impl From<EvalError> for EncodingError {
    fn from(error: EvalError) -> Self {
        Self::Running(error.into())
    }
}

impl ModuleEncoders<'_> {
    /// Counts so many of an encoder's `texts` as read.
    fn advance(&self, by: usize, texts: usize) {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        *encoded += by;
        let total = texts * self.encoders;
        self.progress.update("encoding prompts", *encoded, total);
    }
}

impl TextStates for ModuleEncoders<'_> {
    type Error = EncodingError;

    fn states(
        &mut self,
        encoder: &TextEncoder,
        texts: &[TextTokens],
    ) -> Result<Vec<TextState>, EncodingError> {
        let graph = self.module.graph(&encoder.graph);
        let missing = || RuntimeError::Bug(format!("there is no graph `{}`", encoder.graph));
        let graph = graph.ok_or_else(missing)?;
        self.advance(0, texts.len());
        let nodes = graph.nodes().map(|(id, _)| id).collect();
        let segment = Segment::new(graph, &self.module.weights, nodes)?;
        let text = |tokens: &TextTokens| {
            if self.progress.interrupted() {
                return Err(EncodingError::Running(PassError::Interrupted));
            }
            let state = state(graph, &segment, encoder, tokens)?;
            self.advance(1, texts.len());
            Ok(state)
        };
        self.pool.install(|| texts.par_iter().map(text).collect())
    }
}

/// What an encoder makes of one text.
fn state(
    graph: &Graph,
    segment: &Segment<'_>,
    encoder: &TextEncoder,
    tokens: &TextTokens,
) -> Result<TextState, EncodingError> {
    let mut known = Values::new();
    for (name, numbers) in tokens.inputs() {
        if let Some(input) = graph.find_input(name) {
            let row = Array::i64([1, numbers.len()], numbers.to_vec())?;
            known.insert(input.value, row);
        }
    }
    let output = |name: &str| -> Option<ValueId> {
        let mut outputs = graph.outputs().iter();
        outputs.find(|o| o.name == name).map(|o| o.value)
    };
    let missing = || {
        let problem = format!("graph `{}` gives no `{}`", encoder.graph, encoder.states);
        RuntimeError::Bug(problem)
    };
    let states = output(&encoder.states).ok_or_else(missing)?;
    let pooled = output(TextEncoder::POOLED);
    let wanted: Vec<ValueId> = [Some(states), pooled].into_iter().flatten().collect();
    let mut made = segment.forward(&known, &wanted)?;
    let mut take = |value: ValueId| {
        let array = made.remove(&value)?;
        let data = array.as_f32()?.to_vec();
        let shape = array.shape().to_vec();
        Some(FloatTensor { shape, data })
    };
    Ok(TextState {
        states: take(states).ok_or_else(missing)?,
        pooled: pooled.and_then(take),
    })
}
