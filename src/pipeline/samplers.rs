//! How a diffusion model is sampled, for passes: its scheduler's configuration, and schedules in
//! files.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dlc_bundle::{MANIFEST_CAP, Manifest};
use dlc_errors::{Fault, Faulty};
use dlc_eval::Array;
use dlc_files::{read_document, read_text, yaml};
use dlc_ir::{DType, ModelInfo, Module, SideFile, SkipSchedule};
use dlc_methods::MethodError;
use dlc_methods::diffusion::{SamplingPlan, SchedulerKind, parse_scheduler_config, sampling_plan};
use dlc_passes::{PassError, Prompt, Samplers};
use dlc_runtime::{
    Conditions, FloatTensor, PromptTokenizer, PromptTokens, RuntimeError, TextTokenizer,
};
use serde_json::{Map, Value};

use super::{built_in_prompts, prompt_lines};

/// Largest configuration of a scheduler.
const CONFIG_CAP: u64 = 1 << 20;

/// Largest file of prompts.
const PROMPTS_CAP: u64 = 1 << 20;

/// The scheduler that a checkpoint comes with, if any, and what its texts are read with.
#[derive(Debug)]
pub(super) struct DiffusionSamplers {
    scheduler: Option<PathBuf>,
    /// Among them the files of the tokenizer.
    side_files: Vec<SideFile>,
    model: Option<ModelInfo>,
    /// What is to be said of the files that were read.
    warnings: Mutex<BTreeSet<String>>,
}

impl DiffusionSamplers {
    /// `scheduler` is the path of a `scheduler_config.json`.
    pub fn new(scheduler: Option<PathBuf>) -> Self {
        Self {
            scheduler,
            side_files: Vec::new(),
            model: None,
            warnings: Mutex::default(),
        }
    }

    /// With the tokenizer of this module.
    #[must_use]
    pub fn reading_with(self, module: &Module) -> Self {
        Self {
            side_files: module.side_files.clone(),
            model: Some(module.model.clone()),
            ..self
        }
    }

    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.insert(text);
    }

    /// That of the only text encoder.
    fn tokenizer(&self) -> Result<PromptTokenizer, PassError> {
        let prompts = self.model.as_ref().and_then(|model| model.prompts.as_ref());
        let encoder = prompts.and_then(|prompts| prompts.encoders.first());
        let folder = encoder.map_or("", |encoder| encoder.tokenizer.as_str());
        let path = |name: &str| {
            let mut files = self.side_files.iter();
            files
                .find(|file| file.name == name)
                .map(|file| file.path.clone())
        };
        let tokenizer = TextTokenizer::among(folder, path)
            .map_err(|e| sampler_error("tokenizer", &e, false))?;
        let tokenizer = tokenizer
            .zip(encoder)
            .and_then(|(tokenizer, encoder)| PromptTokenizer::new(tokenizer, encoder));
        tokenizer.ok_or_else(|| {
            let problem = "prompts can't be read: the pipeline has no tokenizer with a `pad_token`; put its files into the folder `tokenizer`, or give embeddings=FILE";
            sampler_error("tokenizer", &problem, false)
        })
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

    fn tokens(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, PassError> {
        let tokenizer = self.tokenizer()?;
        let encode = |text: &String| {
            let encoded = tokenizer.encode("prompt", text);
            let PromptTokens { ids, note, .. } =
                encoded.map_err(|e| sampler_error("prompts", &e, false))?;
            if let Some(note) = note {
                self.warn(note);
            }
            Ok(ids)
        };
        texts.iter().map(encode).collect()
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
