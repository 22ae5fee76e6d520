//! The list of passes: what `--pass` and YAML may name.

use std::path::PathBuf;

use serde_yaml::Mapping;

use crate::auto_draft::{AutoDraft, AutoDraftOptions};
use crate::clean_up::{RemoveDeadNodes, RemoveUnused, RenumberCaches};
use crate::context::Pass;
use crate::dip_go::{DipGo, DipGoOptions};
use crate::error::PassError;
use crate::fit_prune::{FitPrune, FitPruneOptions};
use crate::fit_solver::{FitSolver, FitSolverOptions};
use crate::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use crate::options::{OptionInfo, PassOptions, hint, options, parse_options};
use crate::quantize::{Quantize, QuantizeOptions};
use crate::quantize_draft::{QuantizeDraft, QuantizeDraftOptions};
use crate::skip::{Skip, SkipOptions};
use crate::sources::Sources;
use crate::trim_head::{TrimHead, TrimHeadOptions};

/// Makes a pass from its options and the sources that it takes.
pub type Build = for<'a> fn(&Mapping, Sources<'a>) -> Result<Box<dyn Pass + 'a>, PassError>;

/// A pass that can be asked for by name.
#[derive(Debug)]
pub struct PassInfo {
    /// Name in commands and files.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Its options.
    pub options: fn() -> Vec<OptionInfo>,
    /// Passes that run after it, so that what it left behind goes.
    pub then: &'static [&'static str],
    /// Whether it runs first if nobody asked for it.
    pub implied: fn(&Sources<'_>) -> bool,
    /// Makes the pass from its options and the sources that it takes.
    pub build: Build,
}

fn never(_: &Sources<'_>) -> bool {
    false
}

const CLEAN_UP: &[&str] = &["remove-dead-nodes", "remove-unused", "renumber-caches"];

/// Every pass.
pub const PASSES: &[PassInfo] = &[
    PassInfo {
        name: "fit-prune",
        summary: "adds a draft (of an encoder, a pruned model): the target without its least important layers by Fisher information (SDFP, arXiv 2602.05499)",
        options: FitPruneOptions::infos,
        then: CLEAN_UP,
        implied: never,
        build: |given, sources| {
            let options = parse_options("fit-prune", given)?;
            Ok(Box::new(FitPrune::new(options, sources)?))
        },
    },
    PassInfo {
        name: "auto-draft",
        summary: "adds the draft that should decode fastest here, each block whole, quantised or dropped by FIT and measured costs; none if none pays",
        options: AutoDraftOptions::infos,
        then: CLEAN_UP,
        implied: never,
        build: |given, sources| {
            let options = parse_options("auto-draft", given)?;
            Ok(Box::new(AutoDraft::new(options, sources)?))
        },
    },
    PassInfo {
        name: "quantize",
        summary: "quantises the matrices of every graph to 4 or 8 bits in groups, by rounding, HQQ, weighted search or GPTQ (arXiv 2210.17323), and says what was lost",
        options: QuantizeOptions::infos,
        then: &["remove-unused"],
        implied: never,
        build: |given, sources| {
            let options = parse_options("quantize", given)?;
            Ok(Box::new(Quantize::new(options, sources)?))
        },
    },
    PassInfo {
        name: "quantize-draft",
        summary: "quantises the matrices of the draft, or of a copy of the target, to 4 or 8 bits in groups, by the methods of quantize (HQQ, Badri and Shaji 2023, by default)",
        options: QuantizeDraftOptions::infos,
        then: &["remove-unused"],
        implied: never,
        build: |given, sources| {
            let options = QuantizeDraftOptions::parse(given)?;
            Ok(Box::new(QuantizeDraft::new(options, sources)?))
        },
    },
    PassInfo {
        name: "trim-head",
        summary: "lets the draft propose only the tokens most frequent in the calibration text; the target still chooses among all",
        options: TrimHeadOptions::infos,
        then: &["remove-unused"],
        implied: never,
        build: |given, sources| {
            let options = parse_options("trim-head", given)?;
            Ok(Box::new(TrimHead::new(options, sources)?))
        },
    },
    PassInfo {
        name: "merge-adapter",
        summary: "merges the adapters given with --adapter (LoRA, rsLoRA, DoRA, Dual LoRA) into the weights that they were trained for",
        options: MergeAdapterOptions::infos,
        then: &[],
        implied: |sources| !sources.adapters.is_empty(),
        build: |given, sources| {
            let options = parse_options("merge-adapter", given)?;
            Ok(Box::new(MergeAdapter::new(options, &sources)?))
        },
    },
    PassInfo {
        name: "remove-dead-nodes",
        summary: "drops nodes that no output depends on",
        options: NoOptions::infos,
        then: &[],
        implied: never,
        build: |given, _| {
            parse_options::<NoOptions>("remove-dead-nodes", given)
                .map(|_| Box::new(RemoveDeadNodes) as _)
        },
    },
    PassInfo {
        name: "remove-unused",
        summary: "drops inputs that no node reads, and weights that no graph uses",
        options: NoOptions::infos,
        then: &[],
        implied: never,
        build: |given, _| {
            parse_options::<NoOptions>("remove-unused", given).map(|_| Box::new(RemoveUnused) as _)
        },
    },
    PassInfo {
        name: "renumber-caches",
        summary: "numbers the caches of every graph from 0, keeping the map to the checkpoint's layers",
        options: NoOptions::infos,
        then: &[],
        implied: never,
        build: |given, _| {
            parse_options::<NoOptions>("renumber-caches", given)
                .map(|_| Box::new(RenumberCaches) as _)
        },
    },
    PassInfo {
        name: "fit-solver",
        summary: "fits a multistep solver to the scheduler's samples of a diffusion model: the same images in a fraction of the evaluations (arXiv 2403.01329)",
        options: FitSolverOptions::infos,
        then: &[],
        implied: never,
        build: |given, sources| {
            let options = parse_options("fit-solver", given)?;
            Ok(Box::new(FitSolver::new(options, sources)?))
        },
    },
    PassInfo {
        name: "dip-go",
        summary: "learns by gradients through the sampler which blocks of a diffusion model to compute at which step (DiP-GO, arXiv 2410.16942)",
        options: DipGoOptions::infos,
        then: &[],
        implied: never,
        build: |given, sources| {
            let options = parse_options("dip-go", given)?;
            Ok(Box::new(DipGo::new(options, sources)?))
        },
    },
    PassInfo {
        name: "skip",
        summary: "adds step graphs of a diffusion model in which blocks are skipped by a schedule, their values taken from earlier steps",
        options: SkipOptions::infos,
        then: &[],
        implied: never,
        build: |given, sources| {
            let options = parse_options("skip", given)?;
            Ok(Box::new(Skip::new(options, sources)?))
        },
    },
];

options! {
    struct NoOptions {}
}

/// The pass called `name`.
///
/// # Errors
/// [`PassError::UnknownPass`], with the nearest name there is.
pub fn find(name: &str) -> Result<&'static PassInfo, PassError> {
    PASSES.iter().find(|p| p.name == name).ok_or_else(|| {
        let name = name.to_owned();
        let hint = hint(&name, PASSES.iter().map(|p| p.name));
        PassError::UnknownPass { name, hint }
    })
}

/// A pass that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct PassSpec {
    /// Its name.
    pub name: String,
    /// Its options.
    pub options: Mapping,
    /// The pipeline file that asks for it, if one does.
    pub file: Option<PathBuf>,
}

impl PassSpec {
    /// Asked for by a flag.
    pub fn new(name: &str, options: Mapping) -> Self {
        Self {
            name: name.to_owned(),
            options,
            file: None,
        }
    }
}

/// The pass called `name` with these options, and the clean-up passes that belong after it.
///
/// # Errors
/// [`PassError::UnknownPass`] and [`PassError::Options`].
pub fn build<'a>(
    name: &str,
    options: &Mapping,
    sources: Sources<'a>,
) -> Result<Vec<Box<dyn Pass + 'a>>, PassError> {
    let info = find(name)?;
    let mut passes = vec![(info.build)(options, sources)?];
    for next in info.then {
        passes.push((find(next)?.build)(&Mapping::new(), sources)?);
    }
    Ok(passes)
}

/// The passes that were asked for, each with those that belong after it, and before all of them
/// those that the sources imply.
///
/// # Errors
/// As for [`build`].
pub fn build_all<'a>(
    specs: &[PassSpec],
    sources: Sources<'a>,
) -> Result<Vec<Box<dyn Pass + 'a>>, PassError> {
    let asked = |info: &PassInfo| specs.iter().any(|spec| spec.name == info.name);
    let mut passes = Vec::new();
    for info in PASSES {
        if (info.implied)(&sources) && !asked(info) {
            passes.extend(build(info.name, &Mapping::new(), sources)?);
        }
    }
    for spec in specs {
        passes.extend(build(&spec.name, &spec.options, sources)?);
    }
    Ok(passes)
}
