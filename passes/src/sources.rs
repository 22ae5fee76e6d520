//! What passes are made from, beside their options: text, adapters, the machine and samplers. The
//! pipeline has them; passes take what they need when they are built.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use dlc_eval::Array;
use dlc_ir::{DType, Expr, Module, SkipSchedule};
use dlc_methods::diffusion::SamplingPlan;
use dlc_methods::speculation::{DraftCosts, StepCosts};

use crate::context::PassContext;
use crate::error::PassError;
use crate::sums::{FisherSums, ScoreRequest};

/// Where passes get what no option holds.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Where calibration samples come from.
    pub calibration: &'a dyn Calibration,
    /// The adapters to merge, in order.
    pub adapters: &'a [Adapter],
    /// Whether merged weights that are NaN or infinite are taken.
    pub allow_nan: bool,
    /// The machine that the bundle is made for, if a bundle is.
    pub machine: Option<&'a dyn Machine>,
    /// How the model is sampled, if it is a diffusion model.
    pub samplers: Option<&'a dyn Samplers>,
    /// Fisher information that is taken instead of being computed.
    pub scores: Option<&'a dyn ScoreParts>,
    /// Whether the target's products [keep](crate::keep_codes()) the codes of the checkpoint in the
    /// end.
    pub keeps_codes: bool,
    /// Whether the bundle's operators multiply activations in f16 with codes.
    pub multiplies_f16_codes: bool,
}

impl Sources<'static> {
    /// Nothing but options: enough to check those.
    pub const NONE: Self = Self {
        calibration: &NoText,
        adapters: &[],
        allow_nan: false,
        machine: None,
        samplers: None,
        scores: None,
        keeps_codes: false,
        multiplies_f16_codes: false,
    };
}

impl<'a> Sources<'a> {
    /// How the model is sampled.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for a model that isn't sampled in steps.
    pub(crate) fn samplers(&self, pass: &'static str) -> Result<&'a dyn Samplers, PassError> {
        let problem = "the model is no diffusion model, so it has no steps to skip blocks at";
        self.samplers.ok_or_else(|| PassError::Unsupported {
            pass,
            problem: problem.into(),
        })
    }
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("adapters", &self.adapters)
            .field("allow_nan", &self.allow_nan)
            .finish_non_exhaustive()
    }
}

/// An adapter as it was read.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Name of its folder.
    pub name: String,
    /// The file that `config` is from, for messages.
    pub config_file: String,
    /// The file that `tensors` are from, for messages.
    pub tensors_file: String,
    /// How strongly it is merged; 1 as it was trained.
    pub weight: f64,
    /// `adapter_config.json`.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Where the configuration says nothing of scaling: alpha by module; that of others is their
    /// rank.
    pub alphas: Option<BTreeMap<String, f64>>,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, AdapterTensor>,
    /// What it changes, if not the first graph.
    pub part: Option<AdaptedPart>,
}

/// A graph beside the first that an adapter changes: a part of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedPart {
    /// Its name.
    pub graph: String,
    /// What the names of its weights have before the names of modules that the adapter has.
    pub prefix: String,
}

/// A tensor of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterTensor {
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, as many as the shape says.
    pub data: Expr,
}

/// Gives tokenised samples of text.
pub trait Calibration {
    /// Up to `samples` sequences of 2 to `length` tokens from `file` (the built-in text if there is
    /// none).
    ///
    /// # Errors
    /// [`PassError::Calibration`] if the file can't be read or holds no sequence of 2 tokens, or
    /// the model has no tokenizer.
    fn samples(
        &self,
        file: Option<&Path>,
        samples: usize,
        length: usize,
    ) -> Result<Vec<Vec<u32>>, PassError>;

    /// The tokens that any text may need: special ones and single bytes, in order; none if the
    /// model has no tokenizer.
    ///
    /// # Errors
    /// [`PassError::Calibration`] if the tokenizer can't be read.
    fn basic_tokens(&self) -> Result<Vec<u32>, PassError>;
}

/// Fisher information that other runs computed, of a shard of the samples each.
pub trait ScoreParts {
    /// The sums over all samples of `request`, in its layout; all of them are finite.
    ///
    /// # Errors
    /// [`PassError::Scores`] for sums that are of something else.
    fn sums(&self, request: &ScoreRequest) -> Result<FisherSums, PassError>;
}

/// The machine that a bundle is made for.
pub trait Machine {
    /// What would be timed: operators, runtime and threads. Costs are kept under it.
    ///
    /// # Errors
    /// [`PassError::Costs`] if nothing here can run the bundle.
    fn name(&self) -> Result<String, PassError>;

    /// Times a pass over one token of each graph after the first, which is the target.
    ///
    /// # Errors
    /// [`PassError::Costs`] if they can't be run here.
    fn step_costs(&self, probes: &Module) -> Result<StepCosts, PassError>;

    /// The costs in a file, of this machine or of another.
    ///
    /// # Errors
    /// [`PassError::Costs`] for a file that can't be read or holds none.
    fn read_costs(&self, file: &Path) -> Result<DraftCosts, PassError>;
}

/// Knows how a diffusion model is sampled.
pub trait Samplers {
    /// The name of the scheduler (the checkpoint's if `scheduler` names none) and what it does in
    /// so many steps.
    ///
    /// # Errors
    /// [`PassError::Sampler`] for a scheduler that isn't known, or that the checkpoint's
    /// configuration doesn't allow.
    fn plan(
        &self,
        scheduler: Option<&str>,
        steps: usize,
    ) -> Result<(String, SamplingPlan), PassError>;

    /// The schedule in a file: by itself, or in a bundle's manifest.
    ///
    /// # Errors
    /// [`PassError::Sampler`] for a file that can't be read or holds none.
    fn schedule(&self, file: &Path) -> Result<SkipSchedule, PassError>;

    /// The prompts in a safetensors file, for these inputs of the denoiser.
    ///
    /// # Errors
    /// [`PassError::Sampler`] for a file that can't be read, or lacks what an input takes.
    fn prompts(
        &self,
        file: &Path,
        inputs: &[(&str, DType)],
        guided: bool,
    ) -> Result<Vec<Prompt>, PassError>;

    /// The prompts in a file, one a line; built-in ones if there is none.
    ///
    /// # Errors
    /// [`PassError::Sampler`] for a file that can't be read or holds no prompt.
    fn texts(&self, file: Option<&Path>) -> Result<Vec<String>, PassError>;

    /// Refuses what [`encode`](Self::encode) would refuse by the tokenizers of `module` alone, as
    /// far as they are at hand. Looks at no weight.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    fn check_texts(&self, texts: &[String], module: &Module) -> Result<(), PassError>;

    /// What images of each text are conditioned on by the text encoders of `module`, for these
    /// inputs of the denoiser.
    ///
    /// # Errors
    /// [`PassError::Sampler`] for a pipeline without a tokenizer and for texts that it can't read,
    /// [`PassError::Interrupted`] if the user asked to stop, and what evaluating says.
    fn encode(
        &self,
        texts: &[String],
        module: &Module,
        inputs: &[(&str, DType)],
        guided: bool,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError>;
}

/// What an image is conditioned on beside its class, by the denoiser's input: one row, and with
/// guidance a second one for an image without it.
pub type Prompt = BTreeMap<String, Array>;

/// No text at all.
struct NoText;

impl Calibration for NoText {
    fn samples(
        &self,
        _file: Option<&Path>,
        _samples: usize,
        _length: usize,
    ) -> Result<Vec<Vec<u32>>, PassError> {
        Err(PassError::Calibration {
            problem: "there is no text".into(),
        })
    }

    fn basic_tokens(&self) -> Result<Vec<u32>, PassError> {
        Ok(vec![])
    }
}
