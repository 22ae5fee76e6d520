//! What a path on the command line is: a checkpoint, a bundle, or an ONNX file.

use std::path::Path;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use dlc_bundle::{MANIFEST_FILE, WEIGHTS_FILE};
use dlc_ir::{DType, Module, Task};
use dlc_runtime::{Bundle, RuntimeError};

use super::failure::{Result, bail};
use super::output::warn;
use super::{environment, hub, phases};
use crate::checkpoint::Checkpoint;
use crate::import::{ImportOptions, import_with_sources, retarget};
use crate::pipeline::{self, OnnxModule, PipelineError, module_of_bundle};

/// Something that holds graphs.
#[derive(Debug)]
pub(super) enum Opened {
    Checkpoint(Box<Module>),
    Bundle(Box<(Bundle, Module)>),
    Onnx(Box<OnnxModule>),
}

/// What the user says of a checkpoint's configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct KeyArgs {
    /// A key of config.json that is refused as it may change the model, and that changes nothing;
    /// may be given several times
    #[arg(long = "ignore-key", value_name = "NAME")]
    pub ignore_keys: Vec<String>,
}

impl KeyArgs {
    /// Refuses keys where no configuration is read.
    pub fn check_unused(&self, instead: &str) -> Result<()> {
        if self.ignore_keys.is_empty() {
            Ok(())
        } else {
            bail!("--ignore-key is for a checkpoint's config.json, and {instead}; leave it out")
        }
    }
}

/// Opens whatever `path` is: `*.onnx`, a folder with a manifest, else a checkpoint.
pub(super) fn open(path: &Path) -> Result<Opened> {
    open_with(path, &KeyArgs::default(), None)
}

/// As [`open`], of a checkpoint leaving out `keys` and for `task`; what is to be known of it is
/// noted.
pub(super) fn open_with(path: &Path, keys: &KeyArgs, task: Option<Task>) -> Result<Opened> {
    let check_unused = |what: &str, instead: &str| {
        keys.check_unused(instead)?;
        if task.is_some() {
            bail!(
                "--task is for a checkpoint, and {} is {what}; leave it out",
                path.display()
            )
        }
        Ok(())
    };
    if path.extension().is_some_and(|e| e == "onnx") {
        check_unused("an ONNX file", "an ONNX file has none")?;
        return Ok(Opened::Onnx(Box::new(pipeline::read_onnx(path)?)));
    }
    if is_bundle(path) {
        check_unused("a bundle", "a bundle is compiled already")?;
        let bundle = bundle(path)?;
        let module = module_of_bundle(&bundle)?;
        return Ok(Opened::Bundle(Box::new((bundle, module))));
    }
    Ok(Opened::Checkpoint(Box::new(checkpoint(
        path,
        DType::F32,
        keys,
        task,
    )?)))
}

/// Whether `path` is a bundle, be it without one of its files.
pub(super) fn is_bundle(path: &Path) -> bool {
    path.join(MANIFEST_FILE).exists() || path.join(WEIGHTS_FILE).exists()
}

/// Opens a bundle, or says what `path` is instead. Weights are hashed if they changed since they
/// were.
pub(super) fn bundle(path: &Path) -> Result<Bundle> {
    bundle_by(path, |path| {
        Bundle::open_cached(path, environment::hash_folder().as_deref())
    })
}

/// As [`bundle`], but hashes every file.
pub(super) fn bundle_hashed_anew(path: &Path) -> Result<Bundle> {
    bundle_by(path, Bundle::open)
}

fn bundle_by(
    path: &Path,
    open: impl FnOnce(&Path) -> Result<Bundle, RuntimeError>,
) -> Result<Bundle> {
    if path.join(MANIFEST_FILE).exists() {
        phases::begin("opening the bundle, hashing its files");
        return Ok(open(path)?);
    }
    let problem = if path.join(WEIGHTS_FILE).exists() {
        format!("is a bundle without its {MANIFEST_FILE}; copy it whole, or compile it again")
    } else if path.is_dir() {
        format!(
            "is not a bundle: it has no {MANIFEST_FILE}; make one of a checkpoint with `dlc compile`"
        )
    } else if path.exists() {
        "is a file; name the folder of a bundle, which `dlc compile` makes".into()
    } else {
        "doesn't exist; name the folder of a bundle, which `dlc compile` makes".into()
    };
    Err(RuntimeError::File {
        path: path.to_owned(),
        problem,
    }
    .into())
}

/// Opens a bundle of a model of text, or says which command is for it.
pub(super) fn text_bundle(path: &Path) -> Result<Bundle> {
    let bundle = bundle(path)?;
    if bundle.manifest().model.task == Task::ImageGeneration {
        bail!(
            "the bundle is a {}, which makes images: use `dlc sample`",
            bundle.manifest().model.family
        );
    }
    Ok(bundle)
}

/// The names of the tasks of text, and the task that one means.
pub(super) fn task_parser() -> impl TypedValueParser<Value = Task> {
    let of_text = || {
        let all = Task::ALL.into_iter();
        all.filter(|task| *task != Task::ImageGeneration)
    };
    PossibleValuesParser::new(of_text().map(Task::name)).try_map(move |name| {
        let named = of_text().find(|task| task.name() == name);
        named.ok_or("no task has this name")
    })
}

/// The module of a checkpoint for `task`, or without one for its own, computing in `dtype`; what is
/// to be known of it is noted.
pub(super) fn checkpoint(
    path: &Path,
    dtype: DType,
    keys: &KeyArgs,
    task: Option<Task>,
) -> Result<Module> {
    Ok(checkpoint_with_files(path, dtype, keys, task)?.1)
}

/// As [`checkpoint`], with the files that the module was read from.
pub(super) fn checkpoint_with_files(
    path: &Path,
    dtype: DType,
    keys: &KeyArgs,
    task: Option<Task>,
) -> Result<(Checkpoint, Module)> {
    let found = hub::checkpoint(path)?;
    phases::begin("reading the checkpoint");
    let mut checkpoint = Checkpoint::open(&found.path).map_err(PipelineError::from)?;
    if let Some(task) = task {
        retarget(&mut checkpoint, task).map_err(PipelineError::from)?;
    }
    let options = ImportOptions {
        dtype: Some(dtype),
        ignore_keys: keys.ignore_keys.clone(),
    };
    let imported = import_with_sources(&checkpoint, &options).map_err(PipelineError::from)?;
    for warning in &imported.warnings {
        warn(warning)?;
    }
    Ok((checkpoint, imported.module))
}
