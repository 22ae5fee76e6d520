//! Pipeline files in YAML, and `--pass` flags: two spellings of the same options.
//!
//! ```yaml
//! model: checkpoints/tiny-llama
//! passes:
//!   - fit-prune: {drop: 4, granularity: layer}
//! profile: ort
//! dtype: f32
//! output: tiny-llama-dlc
//! ```

use std::path::{Path, PathBuf};

use dlc_bundle::Profile;
use dlc_exporters::{DeploymentTarget, TARGETS, find_target};
use dlc_files::{read_document, yaml};
use dlc_ir::{DType, Task};
use dlc_passes::hint;
use dlc_passes::registry::PassSpec;
use serde::Deserialize;
use serde_yaml::{Mapping, Value};

use super::error::PipelineError;

/// The provider that graphs are checked for.
const CUDA: &str = "cuda";

/// Largest pipeline file.
const CAP: u64 = 1 << 20;

/// What a pipeline file may say; flags decide over it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PipelineConfig {
    /// The checkpoint.
    pub model: Option<PathBuf>,
    /// The adapters to merge, each `DIR` or `DIR=WEIGHT`.
    pub adapters: Vec<String>,
    /// A name map for adapters of another trainer than PEFT.
    pub adapter_names: Option<PathBuf>,
    /// Keys of the configuration that change nothing, though they look as if they did.
    pub ignore_keys: Vec<String>,
    /// The passes, in order.
    pub passes: Vec<PassEntry>,
    /// Files of scores, one of each shard, that a pass takes.
    pub scores: Vec<PathBuf>,
    /// The operators to restrict the graphs to.
    pub profile: Option<Profile>,
    /// The runtime to compile for; implies the profile.
    pub deploy: Option<String>,
    /// What the model is compiled for.
    pub task: Option<Task>,
    /// Element type of weights and activations.
    pub dtype: Option<DType>,
    /// Whether matrices that the checkpoint holds as codes become numbers.
    pub dequantize: Option<bool>,
    /// Where the bundle is to compute: `cpu` or `cuda`.
    pub provider: Option<String>,
    /// The bundle's folder.
    pub output: Option<PathBuf>,
    /// Whether an existing bundle is replaced.
    pub force: Option<bool>,
    /// Whether NaN and infinite weights are taken.
    pub allow_nan: Option<bool>,
    /// How many threads to use.
    pub threads: Option<usize>,
    /// The file itself.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// What `task` may be: see [`Task`]; images have no other.
const TASKS: &str = "text-generation, fill-mask, text-classification, token-classification, question-answering or feature-extraction";

/// What a key must be, for the message if it isn't.
const KEYS: [(&str, &str); 16] = [
    ("model", "the path of a checkpoint"),
    (
        "adapters",
        "a list of folders, each with `=WEIGHT` after it if it isn't 1",
    ),
    ("adapter-names", "the path of a name map"),
    ("ignore-keys", "a list of keys of config.json"),
    (
        "passes",
        "a list of pass names, each with `: {key: value}` if it has options",
    ),
    ("scores", "a list of files that `dlc score` wrote"),
    ("profile", "portable, onnx or ort"),
    ("deploy", "the name of a deployment target"),
    ("task", TASKS),
    ("dtype", "f32, f16 or bf16"),
    ("dequantize", "true or false"),
    ("provider", "cpu or cuda"),
    ("output", "the path of a folder"),
    ("force", "true or false"),
    ("allow-nan", "true or false"),
    ("threads", "a whole number from 1 to 1024"),
];

/// A pass in a pipeline file: its name, or its name with options.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PassEntry {
    /// Just the name.
    Name(String),
    /// `name: {key: value}`; one entry.
    WithOptions(Mapping),
}

impl PipelineConfig {
    /// Reads a pipeline file.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for YAML that doesn't parse, for values that don't fit and for
    /// unknown keys, with the nearest known one.
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        let fail = |problem: String| PipelineError::Config {
            place: path.display().to_string(),
            problem,
        };
        let text = read_document(path, CAP)?;
        let value: Value = yaml::read(&text).map_err(fail)?;
        let known = KEYS.map(|(key, _)| key);
        let entries = match &value {
            Value::Mapping(entries) => entries,
            Value::Null => return Ok(Self::default()),
            _ => {
                return Err(fail(format!(
                    "is not `key: value` lines; there are {}",
                    known.join(", ")
                )));
            }
        };
        for (key, entry) in entries {
            let shown = key
                .as_str()
                .map_or_else(|| format!("{key:?}"), str::to_owned);
            let Some((_, wanted)) = KEYS.iter().find(|(k, _)| *k == shown) else {
                return Err(fail(format!(
                    "there is no key `{shown}`{}; there are {}",
                    hint(&shown, known.iter().copied()),
                    known.join(", ")
                )));
            };
            let alone = Value::Mapping(Mapping::from_iter([(key.clone(), entry.clone())]));
            if !serde_yaml::from_value::<Self>(alone).is_ok_and(|config| config.fits()) {
                return Err(fail(format!("`{shown}` must be {wanted}")));
            }
        }
        let config: Self = serde_yaml::from_value(value).map_err(|e| fail(e.to_string()))?;
        config.pass_specs().map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            file: Some(path.to_owned()),
            ..config
        })
    }

    /// What the types of the fields don't say.
    fn fits(&self) -> bool {
        self.threads.is_none_or(|n| (1..=1024).contains(&n))
            && self.dtype.is_none_or(DType::is_float)
            && self.task != Some(Task::ImageGeneration)
            && matches!(self.provider.as_deref(), None | Some("cpu" | CUDA))
    }

    /// Whether the file is for a CUDA device.
    pub fn is_for_cuda(&self) -> bool {
        self.provider.as_deref() == Some(CUDA)
    }

    /// The deployment target that the file names.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for one that there isn't, and beside another profile than its own.
    pub fn target(&self) -> Result<Option<&'static DeploymentTarget>, PipelineError> {
        let Some(name) = &self.deploy else {
            return Ok(None);
        };
        let names = || TARGETS.iter().map(|target| target.name);
        let fail = |problem: String| PipelineError::Config {
            place: "the pipeline file".to_owned(),
            problem,
        };
        let target = find_target(name).ok_or_else(|| {
            let (known, hint) = (names().collect::<Vec<_>>().join(", "), hint(name, names()));
            fail(format!("`deploy` is `{name}`{hint}; there are {known}"))
        })?;
        match self.profile {
            Some(profile) if profile != target.profile => Err(fail(format!(
                "`deploy: {name}` takes profile {}, not {}: leave `profile` out",
                target.profile.name(),
                profile.name()
            ))),
            _ => Ok(Some(target)),
        }
    }

    /// The passes that the file asks for.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for an entry that is neither a name nor one name with options.
    pub fn pass_specs(&self) -> Result<Vec<PassSpec>, PipelineError> {
        let specs = self.passes.iter().map(spec);
        specs
            .map(|spec| {
                Ok(PassSpec {
                    file: self.file.clone(),
                    ..spec?
                })
            })
            .collect()
    }
}

fn spec(entry: &PassEntry) -> Result<PassSpec, PipelineError> {
    let fail = |problem: &str| PipelineError::Config {
        place: "passes".into(),
        problem: problem.into(),
    };
    let map = match entry {
        PassEntry::Name(name) => return Ok(PassSpec::new(name, Mapping::new())),
        PassEntry::WithOptions(map) => map,
    };
    let mut entries = map.iter();
    let (Some((Value::String(name), options)), None) = (entries.next(), entries.next()) else {
        return Err(fail(
            "each entry is a pass name, or one `name: {key: value}`",
        ));
    };
    match options {
        Value::Null => Ok(PassSpec::new(name, Mapping::new())),
        Value::Mapping(options) => Ok(PassSpec::new(name, options.clone())),
        _ => Err(fail(&format!(
            "the options of {name} are not `{{key: value}}`"
        ))),
    }
}

/// `name` or `name:key=value,key=value`, values being YAML scalars.
///
/// # Errors
/// [`PipelineError::Config`] for options that are not `key=value`.
pub fn parse_pass_flag(flag: &str) -> Result<PassSpec, PipelineError> {
    let (name, rest) = flag.split_once(':').unwrap_or((flag, ""));
    let mut options = Mapping::new();
    for pair in rest.split(',').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| PipelineError::Config {
            place: format!("--pass {flag}"),
            problem: format!("`{pair}` is not key=value; write --pass {name}:key=value,key=value"),
        })?;
        let value = yaml::read(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        if options
            .insert(Value::String(key.to_owned()), value)
            .is_some()
        {
            return Err(PipelineError::Config {
                place: format!("--pass {flag}"),
                problem: format!("`{key}` is given twice"),
            });
        }
    }
    Ok(PassSpec::new(name, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_yaml_spell_the_same_options() {
        let flag = parse_pass_flag("fit-prune:drop=4,granularity=branch,keep=0.5").expect("parses");
        let config: PipelineConfig = serde_yaml::from_str(
            "passes:\n- fit-prune: {drop: 4, granularity: branch, keep: 0.5}\n",
        )
        .expect("parses");
        assert_eq!(config.pass_specs().expect("fits"), [flag]);
        let config: PipelineConfig =
            serde_yaml::from_str("passes: [fit-prune, remove-unused: ]").expect("parses");
        assert_eq!(
            config.pass_specs().expect("fits")[0],
            parse_pass_flag("fit-prune").expect("parses")
        );
    }

    #[test]
    fn options_that_are_no_pairs_are_refused() {
        for flag in ["fit-prune:drop", "fit-prune:drop=1,drop=2"] {
            assert!(parse_pass_flag(flag).is_err(), "{flag}");
        }
    }
}
