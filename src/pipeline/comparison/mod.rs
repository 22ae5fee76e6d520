//! `dlc compare`: how much two models differ, both fed the same. Decoders and encoders read texts;
//! denoisers get seeded noise.
//!
//! Graphs of bundles run on the backend, those of checkpoints on the evaluator. Of the logits of a
//! text only a few positions are in memory at a time.

mod decoder;
mod denoiser;
mod encoder;
mod tokens;

use dlc_ir::cost::cost;
use dlc_ir::{Graph, Module, Task};
use dlc_methods::difference::Difference;
use dlc_methods::divergence::Divergence;
use dlc_passes::{PassError, Progress};
use dlc_runtime::{Backend, Bundle, SessionOptions, TextTokenizer};

use super::error::PipelineError;

/// Text that no pass calibrates with: Genesis 1 and Ecclesiastes 3 (King James Bible), and the
/// beginnings of the Declaration of Independence, *Moby-Dick*, *Alice's Adventures in Wonderland*,
/// *Pride and Prejudice* and *On the Origin of Species* (public domain).
pub const HELD_BACK: &str = include_str!("text.txt");

/// A model to compare.
#[derive(Debug)]
pub struct Side<'m> {
    /// What messages call it.
    pub name: String,
    /// What it is.
    pub module: &'m Module,
    /// Its graph that is compared.
    pub graph: &'m Graph,
    /// What runs the graph; without it the evaluator does.
    pub bundle: Option<Runner<'m>>,
    /// How it reads text, if it does.
    pub tokenizer: Option<TextTokenizer>,
    /// Bytes of its weights on disk, where these aren't the graph's own.
    pub weight_bytes: Option<u64>,
}

/// A bundle, and what runs it.
#[derive(Debug, Clone, Copy)]
pub struct Runner<'m> {
    /// The bundle.
    pub bundle: &'m Bundle,
    /// The backend.
    pub backend: &'m Backend,
    /// How sessions are loaded.
    pub session: &'m SessionOptions,
}

/// What is read, and how much of it.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The texts.
    pub texts: Vec<String>,
    /// Most tokens of a piece of text that is read by itself.
    pub length: usize,
    /// Most tokens of all texts.
    pub most_tokens: usize,
}

/// How much two models differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What was counted: tokens of text, or samples of noise.
    pub inputs: usize,
    /// By how much.
    pub outcome: Outcome,
}

/// How much the answers of two models differ.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Distributions over tokens, classes or places.
    Distributions(Divergence),
    /// A vector for each text.
    Vectors(Difference),
    /// Predictions of denoisers.
    Predictions(Difference),
}

impl Side<'_> {
    /// Bytes of the weights on disk.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
            .unwrap_or_else(|| cost(self.graph, &self.module.weights).weight_bytes)
    }

    /// Bits on disk for each of the graph's parameters.
    pub fn bits_per_weight(&self) -> f64 {
        let parameters = cost(self.graph, &self.module.weights).parameters;
        8.0 * self.weight_bytes() as f64 / parameters as f64
    }
}

/// Compares `other` with `reference`.
///
/// # Errors
/// [`PipelineError::Misfit`] for models of different tasks, vocabularies or tokenizers, and for
/// texts without tokens; [`PassError::Interrupted`] when `progress` says so; and what running the
/// models says.
pub fn compare_models(
    reference: &Side<'_>,
    other: &Side<'_>,
    reading: &Reading,
    progress: &dyn Progress,
) -> Result<Comparison, PipelineError> {
    check(reference, other)?;
    match reference.module.model.task {
        Task::TextGeneration => decoder::compare(reference, other, reading, progress),
        Task::ImageGeneration => denoiser::compare(reference, other, progress),
        _ => encoder::compare(reference, other, reading, progress),
    }
}

/// Refuses models whose answers mean different things.
fn check(reference: &Side<'_>, other: &Side<'_>) -> Result<(), PipelineError> {
    let (a, b) = (&reference.module.model, &other.module.model);
    if a.task != b.task {
        let (a, b) = (a.task.name(), b.task.name());
        return Err(misfit(
            reference,
            other,
            &format!("is for {a}, {} for {b}", other.name),
            "compare models for one task",
        ));
    }
    if a.vocab_size != b.vocab_size {
        let (a, b) = (a.vocab_size, b.vocab_size);
        return Err(misfit(
            reference,
            other,
            &format!("has a vocabulary of {a} tokens, {} one of {b}", other.name),
            "compare models with one tokenizer",
        ));
    }
    Ok(())
}

/// Two models that can't be compared: what `reference` is beside the other one, and the way out.
fn misfit(
    reference: &Side<'_>,
    other: &Side<'_>,
    difference: &str,
    way_out: &str,
) -> PipelineError {
    PipelineError::Config {
        place: format!("{} and {}", reference.name, other.name),
        problem: format!("{} {difference}; {way_out}", reference.name),
    }
}

/// Says that `done` of `total` are done, and ends the work if it was asked to stop.
fn step(
    progress: &dyn Progress,
    what: &str,
    done: usize,
    total: usize,
) -> Result<(), PipelineError> {
    progress.update(what, done, total);
    if progress.interrupted() {
        return Err(PassError::Interrupted.into());
    }
    Ok(())
}
