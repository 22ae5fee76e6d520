//! `dlc compile`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use dlc_bundle::Profile;
use dlc_exporters::{DeploymentTarget, TARGETS, find_target};
use dlc_ir::{DType, Task};
use dlc_passes::ScoreCache;
use dlc_runtime::unrunnable;
use serde_json::json;

use super::backend::Device;
use super::cache::CacheArgs;
use super::destination::Destination;
use super::failure::{Context, Failure, Result, bail};
use super::next_step::next_step;
use super::open::{self, KeyArgs};
use super::output::{Output, note, warn};
use super::phases::{self, PhaseCost};
use super::progress::Bar;
use super::room::{Room, size};
use super::{environment, hub};
use crate::pipeline::{
    CompileOutcome, CompileRequest, PipelineConfig, PipelineError, check_compilation, check_scores,
    compile, needs, parse_adapter_flag, parse_pass_flag,
};
use crate::report::{bundle_summary, pass_summary};

/// Compile a checkpoint into a bundle of ONNX files
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc compile --pass fit-prune model.safetensors
  dlc compile checkpoint/ --pass fit-prune:drop=4,granularity=branch --profile ort -o out/
  dlc compile HuggingFaceTB/SmolLM2-135M@main -o smollm2/
  dlc compile --config pipeline.yaml")]
pub(super) struct Args {
    /// A Hugging Face folder, a .safetensors file with config.json beside it, a .gguf file, or a
    /// repository of the Hub, `ORG/NAME` or `ORG/NAME@REVISION`
    model: Option<PathBuf>,
    /// An adapter to merge, a folder of PEFT (LoRA, DoRA, Dual LoRA), a LoRA file of diffusers or
    /// sd-scripts, or a repository of the Hub, `PATH` or `PATH=WEIGHT`; may be given several times
    #[arg(long = "adapter", value_name = "PATH[=WEIGHT]")]
    adapters: Vec<String>,
    /// What the adapters' trainer calls keys and tensors, if it wasn't PEFT: a YAML file, see
    /// docs/adapters.md
    #[arg(long, value_name = "FILE")]
    adapter_names: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// A pass with its options, `NAME` or `NAME:key=value,...`; may be given several times (see
    /// `dlc passes`)
    #[arg(long = "pass", value_name = "NAME[:key=value,...]")]
    passes: Vec<String>,
    /// Scores for `fit-prune` or `auto-draft` to take, a file that `dlc score` wrote of each shard;
    /// may be given several times
    #[arg(long, value_name = "FILE", num_args = 1..)]
    scores: Vec<PathBuf>,
    /// A pipeline in YAML; flags decide over it. Its paths start at the current folder
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// ONNX operators to use [default: portable]
    #[arg(long, value_enum, conflicts_with = "deploy")]
    profile: Option<ProfileArg>,
    /// The runtime to compile for; implies the profile
    #[arg(long, value_name = "TARGET", value_parser = target_parser())]
    deploy: Option<&'static DeploymentTarget>,
    /// What to compile the model for, whatever head it was saved with [default: what config.json
    /// says]
    #[arg(long, value_name = "TASK", value_parser = open::task_parser())]
    task: Option<Task>,
    /// Element type of weights and activations [default: f32]
    #[arg(long, value_enum)]
    dtype: Option<DTypeArg>,
    /// Write matrices that the checkpoint holds as codes (GPTQ, AWQ, GGUF) as numbers, although the
    /// profile has products with codes
    #[arg(long)]
    dequantize: bool,
    /// Where the bundle is to compute [default: cpu]; cuda warns of nodes that ONNX Runtime has no
    /// CUDA kernel for
    #[arg(long, value_enum)]
    provider: Option<Device>,
    /// Folder of the bundle [default: the checkpoint's name with -dlc, in the current folder]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace an existing bundle
    #[arg(long)]
    force: bool,
    /// Take weights that are NaN or infinite
    #[arg(long)]
    allow_nan: bool,
    #[command(flatten)]
    cache: CacheArgs,
    /// Threads for scoring and writing [default: all cores]
    #[arg(long, value_name = "N", value_parser = environment::threads)]
    threads: Option<usize>,
    /// Only say what compiling would need on disk and in memory, about
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// See DESIGN.md, section 5.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ProfileArg {
    /// ai.onnx primitives, opset 17: TensorRT, tract, OpenVINO and others
    Portable,
    /// ai.onnx up to opset 23 with Attention, RMSNormalization, RotaryEmbedding
    Onnx,
    /// ONNX Runtime's own operators; also for onnxruntime-genai
    Ort,
}

impl From<ProfileArg> for Profile {
    fn from(arg: ProfileArg) -> Self {
        match arg {
            ProfileArg::Portable => Self::Portable,
            ProfileArg::Onnx => Self::Onnx,
            ProfileArg::Ort => Self::Ort,
        }
    }
}

/// The names of the deployment targets, and the target that one means.
fn target_parser() -> impl TypedValueParser<Value = &'static DeploymentTarget> {
    let values = TARGETS
        .iter()
        .map(|target| PossibleValue::new(target.name).help(target.summary));
    PossibleValuesParser::new(values)
        .try_map(|name| find_target(&name).ok_or("no deployment target has this name"))
}

/// Element types that weights are written in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DTypeArg {
    F32,
    F16,
    Bf16,
}

impl From<DTypeArg> for DType {
    fn from(arg: DTypeArg) -> Self {
        match arg {
            DTypeArg::F32 => Self::F32,
            DTypeArg::F16 => Self::F16,
            DTypeArg::Bf16 => Self::Bf16,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let mut request = request(args)?;
    Destination::check_folder(&request.output)?;
    args.cache.check()?;
    check_compilation(&request)?;
    check_scores(&request.scores)?;
    let found = hub::checkpoint(&request.model)?;
    (request.model, request.model_name) = (found.path, found.name);
    hub::adapters(&mut request.adapters)?;
    if args.dry_run {
        phases::begin("reading the checkpoint");
        let room = Room::new(needs(&request)?, &request.output);
        output.result(&room.text())?;
        output.json(&room)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cache = args.cache.open()?;
    let bar = Bar::for_output(&request.output);
    let start = Instant::now();
    let load = environment::load_average();
    let mut outcome = compile(&request, cache.as_ref().map(|c| c as &dyn ScoreCache), &bar)?;
    let obstacle = unrunnable_here(&request, &outcome);
    let runs_here = obstacle.is_none();
    let busy = busy_warning(&outcome, load);
    outcome.warnings.extend(obstacle.into_iter().chain(busy));
    bar.finish();
    let phases = phases::costs();
    for run in outcome.runs.iter().filter(|r| r.report.is_worth_showing()) {
        note(&format!("{}\n", pass_summary(run)))?;
    }
    note(&bundle_summary(&outcome.manifest))?;
    for warning in &outcome.warnings {
        warn(warning)?;
    }
    let next = next_step(&request.output, &outcome, runs_here);
    note(&format!(
        "\ncompiled in {:.1} s{}; {next}",
        start.elapsed().as_secs_f64(),
        phases_text(&phases)
    ))?;
    output.result(&request.output.display().to_string())?;
    output.json(&summary(&request, &outcome, &phases))?;
    Ok(ExitCode::SUCCESS)
}

/// Where the time went, and the most memory:
/// ` (fit-prune 2.1 s, writing the bundle 0.4 s), 210 MB of memory at most`.
fn phases_text(phases: &[PhaseCost]) -> String {
    let long: Vec<String> = phases
        .iter()
        .filter(|p| p.seconds >= 0.05)
        .map(|p| format!("{} {:.1} s", p.name, p.seconds))
        .collect();
    let long = if long.is_empty() {
        String::new()
    } else {
        format!(" ({})", long.join(", "))
    };
    let peak = phases.iter().filter_map(|p| p.peak_memory).max();
    long + &peak.map_or_else(String::new, |bytes| {
        format!(", {} of memory at most", size(bytes))
    })
}

/// What stands against running the bundle here.
fn unrunnable_here(request: &CompileRequest, outcome: &CompileOutcome) -> Option<String> {
    let library = request
        .backend
        .find()
        .iter()
        .any(|candidate| candidate.found);
    unrunnable(&outcome.manifest, library, environment::has_gpu())
}

/// What stands against timings that chose a draft while the machine was under `load`.
fn busy_warning(outcome: &CompileOutcome, load: Option<f64>) -> Option<String> {
    let timed = outcome.runs.iter().any(|run| {
        run.report
            .candidates
            .iter()
            .any(|draft| draft.spread.is_some())
    });
    load.filter(|_| timed)
        .and_then(|load| environment::busy(load, environment::cores()))
}

fn request(args: &Args) -> Result<CompileRequest> {
    let config = args
        .config
        .as_deref()
        .map(PipelineConfig::read)
        .transpose()?
        .unwrap_or_default();
    let file = || {
        let file = args.config.as_deref().unwrap_or(Path::new("-"));
        file.display().to_string()
    };
    let config_threads = config
        .threads
        .map(environment::check_threads)
        .transpose()
        .map_err(Failure::usage)
        .with_context(file)?;
    // A profile that is asked for decides over the file's target, as flags do over the file.
    let deploy = match (args.deploy, args.profile) {
        (None, None) => config.target()?,
        (given, _) => given,
    };
    let mut passes = config.pass_specs()?;
    if !args.passes.is_empty() {
        passes = args
            .passes
            .iter()
            .map(|p| parse_pass_flag(p))
            .collect::<Result<_, _>>()?;
    }
    let cuda = match args.provider {
        Some(device) => device == Device::Cuda,
        None => config.is_for_cuda(),
    };
    let model = args.model.clone().or(config.model).context(
        "no checkpoint is given; name its folder, its .safetensors file or its .gguf file",
    )?;
    let output = args.output.clone().or(config.output);
    let profile = args
        .profile
        .map(Profile::from)
        .or(deploy.map(|target| target.profile))
        .or(config.profile);
    let parsed = |list: &[String]| list.iter().map(|a| parse_adapter_flag(a)).collect();
    let adapters: Vec<_> = if args.adapters.is_empty() {
        let listed: Result<_, PipelineError> = parsed(&config.adapters);
        listed.with_context(file)?
    } else {
        parsed(&args.adapters)?
    };
    let adapter_names = args.adapter_names.clone().or(config.adapter_names);
    if let (Some(names), []) = (&adapter_names, adapters.as_slice()) {
        bail!(
            "the name map {} has no effect without an adapter; name one with --adapter PATH",
            names.display()
        );
    }
    Ok(CompileRequest {
        adapters,
        adapter_names,
        ignore_keys: if args.keys.ignore_keys.is_empty() {
            config.ignore_keys
        } else {
            args.keys.ignore_keys.clone()
        },
        output: output.unwrap_or_else(|| PathBuf::from(format!("{}-dlc", hub::model_name(&model)))),
        model,
        model_name: None,
        passes,
        scores: if args.scores.is_empty() {
            config.scores
        } else {
            args.scores.clone()
        },
        profile: profile.unwrap_or(Profile::Portable),
        deploy,
        task: args.task.or(config.task),
        dtype: args.dtype.map(DType::from).or(config.dtype),
        dequantize: args.dequantize || config.dequantize.unwrap_or(false),
        force: args.force || config.force.unwrap_or(false),
        allow_nan: args.allow_nan || config.allow_nan.unwrap_or(false),
        cuda,
        backend: environment::backend_search(),
        threads: args
            .threads
            .or(config_threads)
            .unwrap_or_else(environment::cores),
    })
}

fn summary(
    request: &CompileRequest,
    outcome: &CompileOutcome,
    phases: &[PhaseCost],
) -> serde_json::Value {
    let CompileOutcome {
        manifest,
        runs,
        warnings,
        cpu_nodes,
        ..
    } = outcome;
    let mut summary = json!({
        "output": request.output,
        "profile": manifest.profile,
        "dtype": manifest.model.dtype,
        "graphs": manifest.graphs.iter().map(|g| json!({"name": g.name, "file": g.file, "parameters": g.parameters})).collect::<Vec<_>>(),
        "phases": phases,
        "passes": runs.iter().map(|r| json!({"name": r.name, "options": r.options, "report": r.report.to_value()})).collect::<Vec<_>>(),
        "warnings": warnings,
    });
    if request.cuda {
        summary["cpu_nodes"] = cpu_nodes.iter().map(|n| json!({"graph": n.graph, "node": n.node, "operator": n.operator, "types": n.types})).collect();
    }
    summary
}
