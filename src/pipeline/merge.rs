//! `dlc merge`: checkpoint and adapters -> checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dlc_exporters::{CopiedFile, Origin, Patch, check_replaceable, write_checkpoint};
use dlc_ir::{Module, SideFile, WeightTable};
use dlc_passes::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use dlc_passes::{PassContext, PassRun, run_pass};
use rayon::ThreadPool;

use super::adapters::{self, Adapted, AdapterSpec};
use super::compile::{check_finite, pool, stamps};
use super::error::PipelineError;
use super::monitor::Monitor;
use super::relayout;
use crate::checkpoint::{Checkpoint, StoredType, TensorRecord};
use crate::import::{ImportOptions, Sources, non_finite_weights};

/// What to merge.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// The checkpoint: a folder or a `.safetensors` file.
    pub model: PathBuf,
    /// The adapters, in order.
    pub adapters: Vec<AdapterSpec>,
    /// A YAML file that says what the adapters' trainer calls things, if it wasn't PEFT.
    pub adapter_names: Option<PathBuf>,
    /// Keys of the configuration that change nothing, though they look as if they did.
    pub ignore_keys: Vec<String>,
    /// Options of the pass `merge-adapter`.
    pub options: MergeAdapterOptions,
    /// The new checkpoint's folder.
    pub output: PathBuf,
    /// Whether NaN and infinite weights are taken.
    pub allow_nan: bool,
    /// How many threads to use.
    pub threads: usize,
}

/// What was merged.
#[derive(Debug)]
pub struct MergeOutcome {
    /// The pass, with its report.
    pub run: PassRun,
    /// What the user should know although the checkpoint is good.
    pub warnings: Vec<String>,
}

/// Refuses what can be refused before any file is read: options, and an output that isn't free.
///
/// # Errors
/// Those of [`merge`].
pub fn check_merge(request: &MergeRequest) -> Result<(), PipelineError> {
    MergeAdapter::new(request.options.clone(), &dlc_passes::Sources::NONE)?;
    Ok(check_replaceable(&request.output, false)?)
}

/// Writes a checkpoint laid out like the one read, with the adapters in its weights; returns what
/// the pass reports.
///
/// Tensors keep their types and places: merged values are computed in single precision and rounded
/// once.
///
/// # Errors
/// The first error of any stage; then nothing is left at the output.
pub fn merge(request: &MergeRequest, monitor: &dyn Monitor) -> Result<MergeOutcome, PipelineError> {
    check_merge(request)?;
    let pool = pool(request.threads)?;
    monitor.phase("reading the checkpoint");
    let Adapted {
        checkpoint,
        adapters: opened,
        adopted,
        imported,
    } = adapters::import_adapted(
        &request.model,
        &request.adapters,
        request.adapter_names.as_deref(),
        None,
        &ImportOptions {
            ignore_keys: request.ignore_keys.clone(),
            ..ImportOptions::default()
        },
    )?;
    if checkpoint.is_gguf() {
        return Err(PipelineError::Misfit {
            path: request.model.clone(),
            problem: "is GGUF, and `dlc merge` writes what it reads. Make a checkpoint of it with `dlc convert` first".into(),
        });
    }
    if let Some(method) = checkpoint.quantized_by() {
        return Err(PipelineError::Misfit {
            path: request.model.clone(),
            problem: format!(
                "is quantised by {method}, and `dlc merge` writes what it reads. Compile it with the adapter: `dlc compile MODEL --adapter DIR`"
            ),
        });
    }
    let (mut module, mut sources, mut warnings) = (
        imported.module,
        imported.sources,
        [adopted.notes, imported.warnings].concat(),
    );
    let of_parts = imported.of_parts;
    check_finite(
        pool.install(|| non_finite_weights(&module))?,
        request.allow_nan,
    )?;
    adapters::add_unread(&checkpoint, &mut module, &mut sources)?;

    let companions = checkpoint.companions()?;
    let inputs = stamps(&checkpoint, &opened, &companions)?;
    let (adapters, of_adapters) = adapters::read(
        &request.adapters,
        opened,
        request.adapter_names.as_deref(),
        &module,
    )?;
    warnings.extend(of_adapters);
    let pass = MergeAdapter::new(
        request.options.clone(),
        &dlc_passes::Sources {
            adapters: &adapters,
            ..dlc_passes::Sources::NONE
        },
    )?;
    let mut cx = PassContext {
        progress: monitor,
        cache: None,
        module_key: String::new(),
        pool: &pool,
    };
    let run = run_pass(&mut module, &pass, &mut cx)?;

    monitor.phase("writing the checkpoint");
    let changed: BTreeSet<&str> = run
        .report
        .changes
        .iter()
        .map(|c| c.weight.as_str())
        .collect();
    let mut stored = StoredTensors::default();
    stored.add("", &checkpoint, &module, &sources, &changed)?;
    for (part, sources) in checkpoint.parts().iter().zip(&of_parts) {
        let place = format!("{}/", part.row.component);
        stored.add(&place, &part.checkpoint, &module, sources, &changed)?;
    }
    if !request.allow_nan {
        overflows(&stored, &pool)?;
    }
    let files = if checkpoint.is_overlaid() {
        relayout::files(&checkpoint, &mut stored.weights, adopted.tokenizer)?
    } else {
        files(&checkpoint, companions, &stored)
    };
    pool.install(|| write_checkpoint(&files, &stored.weights, &inputs, &request.output, monitor))?;
    Ok(MergeOutcome { run, warnings })
}

/// The changed tensors as checkpoints store them.
#[derive(Default)]
struct StoredTensors<'c> {
    weights: WeightTable,
    patches: Vec<(&'c TensorRecord, Patch)>,
}

impl<'c> StoredTensors<'c> {
    /// Adds those of a checkpoint, whose tensors became the weights in `sources`, with `place`
    /// before their names.
    fn add(
        &mut self,
        place: &str,
        checkpoint: &'c Checkpoint,
        module: &Module,
        sources: &Sources,
        changed: &BTreeSet<&str>,
    ) -> Result<(), PipelineError> {
        for (name, record) in checkpoint.tensors() {
            let Some(weight) = sources
                .get(name)
                .map(|id| &module.weights[*id])
                .filter(|w| changed.contains(w.name.as_str()))
            else {
                continue;
            };
            let (Some(seen), StoredType::Float(dtype)) = (weight.expr(), record.dtype) else {
                continue;
            };
            let data = weight
                .storage
                .save(seen.unrounded().clone(), &weight.shape)
                .cast(dtype);
            let name = format!("{place}{name}");
            let weight = self.weights.add(&name, &record.shape, data)?;
            let offset = record.blob.offset() as u64;
            self.patches.push((record, Patch { offset, weight }));
        }
        Ok(())
    }

    /// Those of a file.
    fn of_file(&self, path: &Path) -> Vec<Patch> {
        let patches = self.patches.iter();
        let own = patches.filter(|(record, _)| *record.file == *path);
        own.map(|(_, patch)| *patch).collect()
    }
}

/// Refuses numbers that the checkpoint's types can't hold.
fn overflows(stored: &StoredTensors<'_>, pool: &ThreadPool) -> Result<(), PipelineError> {
    use rayon::prelude::*;
    let weights: Vec<_> = stored.weights.entries().map(|(_, weight)| weight).collect();
    let scan = || {
        weights
            .par_iter()
            .filter_map(|w| {
                Some(
                    w.first_non_finite()
                        .transpose()?
                        .map(|at| (w.name.clone(), at)),
                )
            })
            .collect()
    };
    let suspects: Vec<(String, usize)> =
        pool.install(|| -> Result<_, dlc_ir::IrError> { scan() })?;
    if suspects.is_empty() {
        Ok(())
    } else {
        Err(PipelineError::Overflow(suspects))
    }
}

/// The files of the new checkpoint. A whole pipeline keeps its folders, with what is in them.
fn files(
    checkpoint: &Checkpoint,
    companions: Vec<SideFile>,
    stored: &StoredTensors<'_>,
) -> Vec<CopiedFile> {
    let copied = |name: String, path: PathBuf| CopiedFile {
        name,
        patches: stored.of_file(&path),
        from: Origin::File(path),
    };
    let parts = checkpoint.parts();
    let own = checkpoint.files().iter();
    let read = own.filter(|_| parts.is_empty()).map(|file| {
        let name = file.path.file_name().unwrap_or_default();
        copied(name.to_string_lossy().into_owned(), file.path.clone())
    });
    let companions = companions.into_iter().map(|f| copied(f.name, f.path));
    read.chain(companions).collect()
}
