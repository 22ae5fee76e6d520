//! `dlc compile`: checkpoint -> module -> passes -> bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dlc_bundle::{Manifest, PassRecord, Profile, Source};
use dlc_exporters::{BundleRequest, CpuNode, check_replaceable, write_bundle_of};
use dlc_files::FileStamp;
use dlc_ir::{DType, ModelInfo, Module, SideFile};
use dlc_passes::registry;
use dlc_passes::{
    Adapter, Needs, Pass, PassContext, PassError, PassRun, Samplers, ScoreCache, ScoreParts,
    Sources, largest_weight, run_passes,
};
use rayon::ThreadPool;

use super::adapters::{self, Adapted};
use super::calibration::TextCalibration;
use super::codes::{as_written, finish};
use super::cuda;
use super::error::PipelineError;
use super::generation::generation;
use super::machine::BundleMachine;
use super::monitor::Monitor;
use super::range;
use super::request::CompileRequest;
use super::samplers::DiffusionSamplers;
use super::score_parts::ScoreFiles;
use super::source::source_record;
use super::warnings::{Use, findings};
use crate::checkpoint::{AdapterFiles, Checkpoint};
use crate::import::{ImportOptions, non_finite_weights};

/// Bytes of memory that the program itself takes, with its libraries.
const PROGRAM: u64 = 25_000_000;

/// What was compiled.
#[derive(Debug)]
pub struct CompileOutcome {
    /// The bundle's manifest.
    pub manifest: Manifest,
    /// The passes that ran, with their reports.
    pub runs: Vec<PassRun>,
    /// The module as it was written.
    pub module: Module,
    /// What the user should know although the bundle is good: a sentence or two each, without a
    /// full stop at the end.
    pub warnings: Vec<String>,
    /// What the bundle can be used for, on a machine that runs it.
    pub uses: BTreeSet<Use>,
    /// The nodes that run on the CPU beside CUDA, if the request is for CUDA.
    pub cpu_nodes: Vec<CpuNode>,
}

/// Refuses what can be refused before any file is read: passes and their options, and an output
/// that isn't to be replaced.
///
/// # Errors
/// Those of [`compile`].
pub fn check_compilation(request: &CompileRequest) -> Result<(), PipelineError> {
    unfed(request).map(drop)
}

/// The passes without sources, for what they need, if the request can be followed so far.
pub(super) fn unfed(request: &CompileRequest) -> Result<Vec<Box<dyn Pass + '_>>, PipelineError> {
    let unfed = passes(request, Sources::NONE)?;
    if !request.scores.is_empty() {
        check_taker(&unfed, "--scores")?;
    }
    check_replaceable(&request.output, request.force)?;
    Ok(unfed)
}

/// Refuses passes of which none takes scores; `place` asks for one that does.
pub(super) fn check_taker(passes: &[Box<dyn Pass + '_>], place: &str) -> Result<(), PipelineError> {
    if passes.iter().any(|pass| pass.takes_scores()) {
        return Ok(());
    }
    let problem = "no pass scores by Fisher information; ask for --pass fit-prune, with one of its scores by gradients, or for --pass auto-draft";
    Err(PipelineError::Config {
        place: place.to_owned(),
        problem: problem.into(),
    })
}

/// Compiles.
///
/// # Errors
/// The first error of any stage; then nothing is left at the output.
pub fn compile(
    request: &CompileRequest,
    cache: Option<&dyn ScoreCache>,
    monitor: &dyn Monitor,
) -> Result<CompileOutcome, PipelineError> {
    let unfed = unfed(request)?;
    let scores = ScoreFiles::read(&request.scores)?;
    let pool = pool(request.threads)?;
    let mut opened = open(request, &unfed, &pool, monitor)?;
    let runs = transform(request, &mut opened, scores.as_ref(), cache, &pool, monitor)?;
    let codes = finish(&mut opened.module, request.codes_become_numbers())?;
    opened.warnings.extend(codes.notes());
    let Opened {
        checkpoint,
        module,
        source,
        inputs,
        mut warnings,
        uses,
        ..
    } = opened;
    let generation = generation(&checkpoint, &module.model, module.graph("draft").is_some())?;
    warnings.extend(generation.warnings);
    warnings.extend(unread_by_target(request, &module));
    let (cpu_nodes, left) = if request.cuda {
        cuda::left_to_cpu(&module, request.profile, request.deploy)?
    } else {
        (vec![], None)
    };
    warnings.extend(left);
    monitor.phase("writing the bundle");
    let bundle = BundleRequest {
        deploy: request.deploy,
        profile: request.profile,
        source,
        passes: runs.iter().map(pass_record).collect(),
        force: request.force,
        rewritten: rewritten(&checkpoint),
        search: generation.search,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let manifest =
        pool.install(|| write_bundle_of(&inputs, &module, &bundle, &request.output, monitor))?;
    Ok(CompileOutcome {
        manifest,
        runs,
        module,
        warnings,
        uses,
        cpu_nodes,
    })
}

/// What the deployment target leaves aside of a pruned sampler.
fn unread_by_target(request: &CompileRequest, module: &Module) -> Option<String> {
    let target = request.deploy?;
    let layout = (target.layout)(&module.model);
    (layout.components && module.sampling.is_some()).then(|| {
        format!(
            "{} runs the whole denoiser, {}; what passes made of it is for `dlc sample`",
            target.name,
            layout.graph_file("target")
        )
    })
}

/// A checkpoint and its adapters, imported and checked.
pub(super) struct Opened {
    checkpoint: Checkpoint,
    pub module: Module,
    pub source: Source,
    inputs: Vec<FileStamp>,
    pub adapters: Vec<Adapter>,
    pub warnings: Vec<String>,
    uses: BTreeSet<Use>,
}

/// The checkpoint with its adapters, imported as the request asks, of a model that the deployment
/// target runs.
pub(super) fn adapted(request: &CompileRequest) -> Result<Adapted, PipelineError> {
    let options = ImportOptions {
        dtype: request.dtype,
        ignore_keys: request.ignore_keys.clone(),
    };
    let names = request.adapter_names.as_deref();
    let adapted = adapters::import_adapted(
        &request.model,
        &request.adapters,
        names,
        request.task,
        &options,
    )?;
    if let Some(target) = request.deploy {
        target.check(&adapted.imported.module.model)?;
    }
    Ok(adapted)
}

/// Opens all that is read; `unfed` are the passes that will run, for what they need.
pub(super) fn open(
    request: &CompileRequest,
    unfed: &[Box<dyn Pass + '_>],
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<Opened, PipelineError> {
    monitor.phase("reading the checkpoint");
    let names = request.adapter_names.as_deref();
    let Adapted {
        mut checkpoint,
        adapters: opened,
        adopted,
        imported,
    } = adapted(request)?;
    let (mut module, mut sources) = (imported.module, imported.sources);
    checkpoint.write_derived(beside(request))?;
    module.take_side_files(checkpoint.side_files());
    if let Some(target) = request.deploy
        && (target.layout)(&module.model).components
    {
        module.take_side_files(checkpoint.component_files());
    }
    let written = as_written(&module, request.codes_become_numbers())?;
    monitor.needs(needs_of([&module, &written], unfed, request.threads));
    monitor.phase("hashing and checking weights");
    let inputs = stamps(&checkpoint, &opened, &module.side_files)?;
    let (source, suspects) = pool.install(|| {
        rayon::join(
            || source_record(&checkpoint),
            || non_finite_weights(&module),
        )
    });
    let (mut source, suspects) = (source?, suspects?);
    if let Some(name) = &request.model_name {
        source.name.clone_from(name);
    }
    check_finite(suspects, request.allow_nan)?;
    check_generation(&checkpoint, &module.model)?;
    module.take_side_files(adopted.tokenizer);
    let findings = findings(&checkpoint, &module);
    let mut warnings = [adopted.notes, imported.warnings, findings.warnings].concat();
    if !request.adapters.is_empty() {
        adapters::add_unread(&checkpoint, &mut module, &mut sources)?;
    }
    adapters::record(&request.adapters, &opened, &mut source)?;
    let (adapters, of_adapters) = adapters::read(&request.adapters, opened, names, &module)?;
    warnings.extend(of_adapters);
    Ok(Opened {
        checkpoint,
        module,
        source,
        inputs,
        adapters,
        warnings,
        uses: findings.uses,
    })
}

/// Refuses what is out of range in `generation_config.json` before the passes run; ids that a
/// merged adapter adds are known after them.
fn check_generation(checkpoint: &Checkpoint, model: &ModelInfo) -> Result<(), PipelineError> {
    let any_token = ModelInfo {
        vocab_size: usize::MAX,
        ..model.clone()
    };
    generation(checkpoint, &any_token, false).map(drop)
}

/// The folder that the bundle's folder lies in, where there is room for what nobody keeps.
fn beside(request: &CompileRequest) -> &Path {
    let parent = request.output.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Calibration text, tokenised for `module`.
pub(super) fn calibration(module: &Module) -> TextCalibration {
    let files = &module.side_files;
    let tokenizer = files.iter().find(|f| f.name == "tokenizer.json");
    let tokenizer = tokenizer.map(|f| f.path.clone());
    TextCalibration::new(tokenizer, module.model.vocab_size)
}

/// Runs the passes, and warns of what they met.
fn transform(
    request: &CompileRequest,
    opened: &mut Opened,
    scores: Option<&ScoreFiles>,
    cache: Option<&dyn ScoreCache>,
    pool: &ThreadPool,
    monitor: &dyn Monitor,
) -> Result<Vec<PassRun>, PipelineError> {
    let Opened {
        checkpoint,
        module,
        source,
        adapters,
        warnings,
        ..
    } = opened;
    let calibration = calibration(module);
    let samplers = samplers(checkpoint, module);
    let machine = BundleMachine {
        profile: request.profile,
        backend: &request.backend,
        threads: request.threads,
        scratch: beside(request).to_owned(),
        monitor,
    };
    let passes = passes(
        request,
        Sources {
            calibration: &calibration,
            adapters,
            allow_nan: request.allow_nan,
            machine: Some(&machine),
            samplers: steps_of(module, &samplers),
            scores: scores.map(|scores| scores as &dyn ScoreParts),
            keeps_codes: request.codes_become_numbers().is_none(),
            multiplies_f16_codes: request.profile == Profile::Ort,
        },
    )?;
    let mut cx = PassContext {
        progress: monitor,
        cache,
        module_key: identity(source, module),
        pool,
    };
    let mut runs = run_passes(module, &passes, &mut cx).map_err(|e| located(request, e))?;
    warnings.extend([calibration.warnings(), samplers.warnings()].concat());
    if !request.adapters.is_empty() {
        module.remove_unused_weights();
        for run in &mut runs {
            run.report
                .changes
                .retain(|change| module.weights.find(&change.weight).is_some());
        }
    }
    if module.model.dtype == DType::F16 {
        monitor.phase("checking the range of f16");
        warnings.extend(pool.install(|| range::warning(module, request.profile, &calibration)));
    }
    Ok(runs)
}

/// The configuration, where it is not that of the file.
fn rewritten(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let text = || serde_json::to_vec_pretty(checkpoint.config()).unwrap_or_default();
    checkpoint
        .is_overlaid()
        .then(|| ("config.json".to_owned(), text()))
        .into_iter()
        .collect()
}

/// What compiling `module` needs; `written` is how it is written if its passes change nothing.
pub(super) fn needs_of(
    [module, written]: [&Module; 2],
    passes: &[Box<dyn Pass + '_>],
    threads: usize,
) -> Needs {
    let weights = written.used_weights();
    // Each thread that writes holds a few tensors.
    let writing = PROGRAM + 3 * threads as u64 * largest_weight(written);
    let mut needs = Needs {
        disk: weights
            .iter()
            .map(|id| written.weights[*id].bytes() as u64)
            .sum(),
        memory: writing,
    };
    for pass in passes {
        let Needs { disk, memory } = pass.needs(module);
        needs += Needs {
            disk,
            memory: PROGRAM + memory,
        };
    }
    needs
}

/// The passes that were asked for and implied, made of these sources.
pub(super) fn passes<'a>(
    request: &CompileRequest,
    sources: Sources<'a>,
) -> Result<Vec<Box<dyn Pass + 'a>>, PipelineError> {
    registry::build_all(&request.passes, sources).map_err(|e| located(request, e))
}

pub(super) fn samplers(checkpoint: &Checkpoint, module: &Module) -> DiffusionSamplers {
    let samplers = DiffusionSamplers::new(checkpoint.scheduler().map(Path::to_owned));
    if module.model.prompts.is_none() {
        return samplers;
    }
    samplers.with_tokenizers_to_make(checkpoint.tokenizers_to_make())
}

/// The samplers, if the model is sampled in steps.
pub(super) fn steps_of<'s>(
    module: &Module,
    samplers: &'s DiffusionSamplers,
) -> Option<&'s dyn Samplers> {
    module.model.diffusion.as_ref().map(|_| samplers as _)
}

/// An error of a pass, with the pipeline file that asks for the pass where it is about that.
pub(super) fn located(request: &CompileRequest, error: PassError) -> PipelineError {
    let pass = match &error {
        PassError::UnknownPass { name, .. } => name.as_str(),
        PassError::Options { pass, .. } => pass,
        _ => return error.into(),
    };
    let file = request
        .passes
        .iter()
        .find(|spec| spec.name == pass)
        .and_then(|spec| spec.file.as_ref());
    match file {
        Some(file) => PipelineError::Config {
            place: file.display().to_string(),
            problem: error.to_string(),
        },
        None => error.into(),
    }
}

/// The files of a checkpoint and of its adapters as they were when they were opened, and those
/// beside the weights as they are now.
pub(super) fn stamps(
    checkpoint: &Checkpoint,
    adapters: &[AdapterFiles],
    beside: &[SideFile],
) -> Result<Vec<FileStamp>, PipelineError> {
    let of = |file: &SideFile| {
        FileStamp::of(&file.path).map_err(|source| PipelineError::Read {
            path: file.path.clone(),
            source,
        })
    };
    let parts = checkpoint.parts().iter();
    let opened = checkpoint
        .files()
        .iter()
        .chain(parts.flat_map(|part| part.checkpoint.files()))
        .chain(adapters.iter().flat_map(|adapter| &adapter.files));
    opened
        .map(|file| Ok(file.stamp.clone()))
        .chain(beside.iter().map(of))
        .collect()
}

/// A pool of so many threads.
pub(super) fn pool(threads: usize) -> Result<ThreadPool, PipelineError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| PipelineError::Threads {
        threads,
        problem: e.to_string(),
    })
}

/// Refuses weights that are NaN or infinite, unless they are to be taken.
pub(super) fn check_finite(
    suspects: Vec<(String, usize)>,
    allowed: bool,
) -> Result<(), PipelineError> {
    if suspects.is_empty() || allowed {
        Ok(())
    } else {
        Err(PipelineError::NonFinite(suspects))
    }
}

/// What identifies a module before its first pass: the bytes that it came from, the type that it
/// computes in, and what for.
pub(super) fn identity(source: &Source, module: &Module) -> String {
    let files: Vec<String> = source
        .files
        .iter()
        .map(|(name, f)| format!("{name} {}", f.sha256))
        .collect();
    format!(
        "dlc {} {} {} {}",
        env!("CARGO_PKG_VERSION"),
        files.join(" "),
        module.model.dtype,
        module.model.task.name()
    )
}

fn pass_record(run: &PassRun) -> PassRecord {
    let yaml = |value: &serde_json::Value| serde_yaml::to_value(value).unwrap_or_default();
    PassRecord {
        name: run.name.to_owned(),
        options: yaml(&run.options),
        report: yaml(&run.report.to_value()),
    }
}
