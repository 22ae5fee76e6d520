//! How a diffusion model is sampled, for passes: its scheduler's configuration, schedules in files,
//! and what images are conditioned on.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dlc_bundle::{MANIFEST_CAP, Manifest};
use dlc_errors::{Fault, Faulty};
use dlc_eval::Array;
use dlc_files::{read_document, read_text, yaml};
use dlc_ir::{DType, Module, SkipSchedule};
use dlc_methods::MethodError;
use dlc_methods::diffusion::{SamplingPlan, SchedulerKind, parse_scheduler_config, sampling_plan};
use dlc_passes::{PassContext, PassError, Prompt, Samplers};
use dlc_runtime::{Conditions, FloatTensor, RuntimeError};
use serde_json::{Map, Value};

use super::{built_in_prompts, prompt_lines, prompts};

/// Largest configuration of a scheduler.
const CONFIG_CAP: u64 = 1 << 20;

/// Largest file of prompts.
const PROMPTS_CAP: u64 = 1 << 20;

/// The scheduler that a checkpoint comes with, if any, and the texts that images are made of.
#[derive(Debug)]
pub struct DiffusionSamplers {
    scheduler: Option<PathBuf>,
    /// The folders of tokenizers that aren't made yet.
    to_make: Vec<String>,
    /// What is to be said of the files that were read.
    warnings: Mutex<BTreeSet<String>>,
}

impl DiffusionSamplers {
    /// `scheduler` is the path of a `scheduler_config.json`.
    pub fn new(scheduler: Option<PathBuf>) -> Self {
        Self {
            scheduler,
            to_make: Vec::new(),
            warnings: Mutex::default(),
        }
    }

    /// With the folders in a bundle of tokenizers that will be made before texts are encoded.
    #[must_use]
    pub fn with_tokenizers_to_make(self, to_make: Vec<String>) -> Self {
        Self { to_make, ..self }
    }

    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.insert(text);
    }

    /// What is to be said of the files that were read so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    fn config(&self) -> Result<(String, Map<String, Value>), PassError> {
        let missing = "the checkpoint has no scheduler/scheduler_config.json, so it isn't known how it is sampled; name the pipeline's folder";
        let path = self
            .scheduler
            .as_ref()
            .ok_or_else(|| sampler_error("scheduler", &missing, false))?;
        let place = path.display().to_string();
        let text = read_document(path, CONFIG_CAP)
            .map_err(|e| sampler_error(&place, &e.problem, false))?;
        let config = parse_scheduler_config(&text).map_err(|e| scheduler_error(&place, &e))?;
        Ok((place, config))
    }
}

impl Samplers for DiffusionSamplers {
    fn plan(
        &self,
        scheduler: Option<&str>,
        steps: usize,
    ) -> Result<(String, SamplingPlan), PassError> {
        let (place, config) = self.config()?;
        let class = config
            .get("_class_name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let asked = scheduler
            .map(SchedulerKind::from_name)
            .transpose()
            .map_err(|e| scheduler_error("scheduler", &e))?;
        let plan = sampling_plan(&config, asked, steps).map_err(|e| scheduler_error(&place, &e))?;
        let name = asked.map(SchedulerKind::name).or_else(|| {
            SchedulerKind::from_name(class)
                .ok()
                .map(SchedulerKind::name)
        });
        Ok((name.unwrap_or(class).to_owned(), plan))
    }

    fn schedule(&self, file: &Path) -> Result<SkipSchedule, PassError> {
        let place = file.display().to_string();
        let text = read_document(file, MANIFEST_CAP)
            .map_err(|e| sampler_error(&place, &e.problem, false))?;
        if let Ok(schedule) = yaml::read(&text) {
            return Ok(schedule);
        }
        let of_bundle = yaml::read::<Manifest>(&text)
            .ok()
            .and_then(|manifest| manifest.sampling);
        let problem = "holds no schedule: neither one by itself (granularity, reuse, units, steps) nor a dlc.yaml that has one";
        of_bundle
            .map(|sampling| sampling.schedule)
            .ok_or_else(|| sampler_error(&place, &problem, false))
    }

    fn prompts(
        &self,
        file: &Path,
        inputs: &[(&str, DType)],
        guided: bool,
    ) -> Result<Vec<Prompt>, PassError> {
        // The errors name the file.
        let fails = |error: RuntimeError| sampler_error("embeddings", &error, false);
        let conditions = Conditions::read(file).map_err(fails)?;
        let prompts =
            (0..conditions.images().max(1)).map(|image| prompt(&conditions, image, inputs, guided));
        let prompts: Vec<Prompt> = prompts.collect::<Result<_, _>>().map_err(fails)?;
        if prompts.len() == 1 {
            let place = file.display();
            self.warn(one_text(&place));
        }
        Ok(prompts)
    }

    fn texts(&self, file: Option<&Path>) -> Result<Vec<String>, PassError> {
        let Some(path) = file else {
            return Ok(built_in_prompts().map(str::to_owned).collect());
        };
        let name = path.display();
        let fail = |problem: &dyn Display| sampler_error(&name.to_string(), problem, false);
        let text = read_text(path, PROMPTS_CAP).map_err(|e| fail(&e.problem))?;
        let lines = prompt_lines(path, &text);
        let lines = lines.map_err(|bad| fail(&format!("line {}: {}", bad.number, bad.problem)))?;
        match lines[..] {
            [] => return Err(fail(&"holds no prompts; write one a line")),
            [_] => self.warn(one_text(&name)),
            _ => {}
        }
        Ok(lines.into_iter().map(|(_, text)| text).collect())
    }

    fn check_texts(&self, texts: &[String], module: &Module) -> Result<(), PassError> {
        prompts::check(texts, module, &self.to_make)
    }

    fn encode(
        &self,
        texts: &[String],
        module: &Module,
        inputs: &[(&str, DType)],
        guided: bool,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Prompt>, PassError> {
        let (conditions, notes) = prompts::encode(texts, module, guided, (cx.pool, cx.progress))?;
        for note in notes {
            self.warn(note);
        }
        let prompt = |image| prompt(&conditions, image, inputs, guided);
        let prompts = (0..texts.len()).map(prompt).collect::<Result<_, _>>();
        prompts.map_err(|e| sampler_error("prompts", &e, false))
    }
}

fn one_text(place: &dyn Display) -> String {
    format!(
        "{place} holds one text: what passes choose by it is for that text alone; give a file with more texts"
    )
}

/// What one of `total` images is conditioned on.
fn prompt(
    conditions: &Conditions,
    image: usize,
    inputs: &[(&str, DType)],
    guided: bool,
) -> Result<Prompt, RuntimeError> {
    let own = conditions.of(image..image + 1, conditions.images())?;
    let array = |&(name, dtype): &(&str, DType)| {
        let FloatTensor { shape, data } = own.rows("target", name, 1, guided)?;
        let array = if dtype.is_float() {
            Array::f32(shape, data)
        } else {
            Array::i64(shape, data.into_iter().map(|x| x as i64).collect())
        };
        Ok((
            name.to_owned(),
            array.map_err(|e| RuntimeError::Input(format!("`{name}`: {e}")))?,
        ))
    };
    inputs.iter().map(array).collect()
}

fn sampler_error(place: &str, problem: &dyn Display, unsupported: bool) -> PassError {
    PassError::Sampler {
        place: place.to_owned(),
        problem: problem.to_string(),
        unsupported,
    }
}

fn scheduler_error(place: &str, error: &MethodError) -> PassError {
    sampler_error(place, error, error.fault() == Fault::Unsupported)
}
