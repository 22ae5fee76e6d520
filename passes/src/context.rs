//! What a pass is, and what it gets from outside.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use dlc_eval::Array;
use dlc_ir::speculation::StepCosts;
use dlc_ir::{DType, Module, SamplingPlan, SkipSchedule};

use crate::auto_draft::DraftCosts;
use crate::error::PassError;
use crate::merge_adapter::Adapter;
use crate::needs::Needs;
use crate::report::PassReport;

/// A function from module to module. Pure: the same module, options and calibration data give the
/// same result.
pub trait Pass: fmt::Debug {
    /// Name in commands, files and reports: kebab-case.
    fn name(&self) -> &'static str;

    /// The options in force, defaults filled in.
    fn options(&self) -> serde_json::Value;

    /// What running it on `module` needs, about.
    fn needs(&self, module: &Module) -> Needs {
        let _ = module;
        Needs::default()
    }

    /// Refuses what [`run`](Self::run) would refuse by the options and the shape of `module` alone,
    /// and adds graphs that stand in for those that it would add. Looks at no number.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    fn rehearse(&self, module: &mut Module, cx: &Rehearsal<'_>) -> Result<(), PassError> {
        let _ = (module, cx);
        Ok(())
    }

    /// Changes the module, and reports what was done.
    ///
    /// # Errors
    /// [`PassError`]; the module may then be half-changed and must not be used.
    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError>;
}

/// What passes get from outside.
pub struct PassContext<'a> {
    /// Told how far a pass is.
    pub progress: &'a dyn Progress,
    /// Where calibration samples come from.
    pub calibration: &'a dyn Calibration,
    /// The adapters to merge, in order.
    pub adapters: &'a [Adapter],
    /// The machine that the bundle is made for, if a bundle is.
    pub machine: Option<&'a dyn Machine>,
    /// How the model is sampled, if it is a diffusion model.
    pub samplers: Option<&'a dyn Samplers>,
    /// Scores of earlier runs, if they may be used.
    pub cache: Option<&'a dyn ScoreCache>,
    /// Identifies the module as it is before the pass: hashes of the checkpoint and of what passes
    /// did to it so far.
    pub module_key: String,
    /// The threads to compute with.
    pub pool: &'a rayon::ThreadPool,
}

/// What a rehearsal gets from outside.
#[derive(Clone, Copy)]
pub struct Rehearsal<'a> {
    /// The adapters to merge, in order.
    pub adapters: &'a [Adapter],
    /// How the model is sampled, if it is a diffusion model.
    pub samplers: Option<&'a dyn Samplers>,
}

impl<'a> PassContext<'a> {
    /// What a rehearsal gets of it.
    pub(crate) fn rehearsal(&self) -> Rehearsal<'a> {
        Rehearsal {
            adapters: self.adapters,
            samplers: self.samplers,
        }
    }
}

impl<'a> Rehearsal<'a> {
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

impl fmt::Debug for Rehearsal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal")
            .field("adapters", &self.adapters.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PassContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassContext")
            .field("module_key", &self.module_key)
            .finish_non_exhaustive()
    }
}

/// Told how far a long computation is.
pub trait Progress: Sync {
    /// The phase called `name` begins, a pass for instance, and the one before ends.
    fn phase(&self, name: &str) {
        let _ = name;
    }

    /// What the work will need, about; told before it begins.
    fn needs(&self, needs: Needs) {
        let _ = needs;
    }

    /// `done` of `total` steps of `what` are done.
    fn update(&self, what: &str, done: usize, total: usize);

    /// Whether the user asked to stop; passes return [`PassError::Interrupted`] soon after.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Shows nothing and never stops.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _what: &str, _done: usize, _total: usize) {}
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

/// The machine that a bundle is made for.
pub trait Machine {
    /// What would be timed: operators, runtime and threads. Costs are kept under it.
    ///
    /// # Errors
    /// [`PassError::Costs`] if nothing here can run the bundle.
    fn name(&self) -> Result<String, PassError>;

    /// Times a pass over one token of each graph behind the first, which is the target.
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
}

/// What an image is told beside its class, by the denoiser's input: one row, and with guidance a
/// second one for an image without it.
pub type Prompt = BTreeMap<String, Array>;

/// Keeps scores from one run to the next, and what stopped runs have found so far.
pub trait ScoreCache: Sync {
    /// What was stored under `key`.
    fn get(&self, key: &str) -> Option<String>;
    /// Stores `text` under `key`; failing to is no error.
    fn put(&self, key: &str, text: &str);
    /// What was stored under `key`, if it needn't be text.
    fn get_bytes(&self, key: &str) -> Option<Vec<u8>>;
    /// Stores `bytes` under `key`; failing to is no error.
    fn put_bytes(&self, key: &str, bytes: &[u8]);
    /// Forgets what is stored under `key`.
    fn remove(&self, key: &str);
}
