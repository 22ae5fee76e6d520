//! The two models, opened.

use std::path::Path;

use dlc_ir::{DType, Module, Task};
use dlc_runtime::{Backend, Bundle, SessionOptions, TextTokenizer};

use super::{Args, TARGET};
use crate::cli::environment;
use crate::cli::failure::{Context, Result, bail};
use crate::cli::open::{self, KeyArgs};
use crate::pipeline::{Runner, Side, module_of_bundle};

/// A model that is open.
pub(super) struct Model {
    name: String,
    pub module: Module,
    /// It, if it is one.
    pub bundle: Option<Bundle>,
    tokenizer: Option<TextTokenizer>,
    /// Bytes of a checkpoint's weights.
    weight_bytes: Option<u64>,
}

/// Both models; checkpoints are read for the task of the bundle, where the other is one.
pub(super) fn models(args: &Args) -> Result<[Model; 2]> {
    let are_bundles = [&args.a, &args.b].map(|path| open::is_bundle(path));
    if are_bundles == [true, true] {
        args.keys.check_unused("both models are bundles")?;
    }
    if !are_bundles[1] && args.graph != TARGET {
        bail!(
            "--graph is for a bundle, and {} is none; leave it out",
            args.b.display()
        );
    }
    let bundle = |path: &Path, is_one: bool| is_one.then(|| of_bundle(path)).transpose();
    let (a, b) = (
        bundle(&args.a, are_bundles[0])?,
        bundle(&args.b, are_bundles[1])?,
    );
    let task = a.as_ref().or(b.as_ref()).map(|m| m.module.model.task);
    let checkpoint = |path: &Path, model: Option<Model>| {
        model.map_or_else(|| of_checkpoint(path, &args.keys, task), Ok)
    };
    Ok([checkpoint(&args.a, a)?, checkpoint(&args.b, b)?])
}

fn of_bundle(path: &Path) -> Result<Model> {
    let bundle = open::bundle(path)?;
    Ok(Model {
        name: path.display().to_string(),
        module: module_of_bundle(&bundle)?,
        tokenizer: TextTokenizer::of_bundle(&bundle)?,
        bundle: Some(bundle),
        weight_bytes: None,
    })
}

fn of_checkpoint(path: &Path, keys: &KeyArgs, task: Option<Task>) -> Result<Model> {
    if path.extension().is_some_and(|e| e == "onnx") {
        bail!(
            "{} is an ONNX file, which names no tokenizer and no caches; name its bundle's folder, or a checkpoint",
            path.display()
        );
    }
    let read = |task| open::checkpoint_with_files(path, DType::F32, keys, task);
    // A bundle may be for another task than its checkpoint says.
    let (mut checkpoint, module) = match task {
        Some(_) => read(task).or_else(|_| read(None))?,
        None => read(None)?,
    };
    // That of a GGUF file, or of a vocabulary in other files, is made first.
    let scratch = environment::scratch("tokenizer").context("the tokenizer can't be read")?;
    checkpoint
        .write_derived(scratch.path())
        .context("the tokenizer can't be read")?;
    let tokenizer = checkpoint.tokenizer();
    Ok(Model {
        name: path.display().to_string(),
        module,
        bundle: None,
        tokenizer: tokenizer.as_deref().map(TextTokenizer::load).transpose()?,
        weight_bytes: Some(checkpoint.weight_bytes()),
    })
}

impl Model {
    /// Its graph of this name, with what runs it.
    pub fn side<'m>(
        &'m self,
        graph: &str,
        backend: Option<&'m Backend>,
        session: &'m SessionOptions,
    ) -> Result<Side<'m>> {
        let graph = self.module.graph(graph).with_context(|| {
            let names: Vec<&str> = self.module.graphs.iter().map(|g| g.name.as_str()).collect();
            format!(
                "{} has no graph `{graph}`; it has {}",
                self.name,
                names.join(", ")
            )
        })?;
        let name = if graph.name == TARGET {
            self.name.clone()
        } else {
            format!("{} ({})", self.name, graph.name)
        };
        let bundle = self.bundle.as_ref().zip(backend);
        Ok(Side {
            name,
            module: &self.module,
            graph,
            bundle: bundle.map(|(bundle, backend)| Runner {
                bundle,
                backend,
                session,
            }),
            tokenizer: self.tokenizer.clone(),
            weight_bytes: self.weight_bytes,
        })
    }
}
