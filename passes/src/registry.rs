//! The list of passes: what `--pass` and YAML may name.

use serde_yaml::Mapping;

use crate::auto_draft::{AutoDraft, AutoDraftOptions};
use crate::clean_up::{RemoveDeadNodes, RemoveUnused, RenumberCaches};
use crate::context::Pass;
use crate::dip_go::{DipGo, DipGoOptions};
use crate::error::PassError;
use crate::fit_prune::{FitPrune, FitPruneOptions};
use crate::merge_adapter::{MergeAdapter, MergeAdapterOptions};
use crate::options::{hint, parse_options};
use crate::quantize_draft::{QuantizeDraft, QuantizeDraftOptions};
use crate::skip::{Skip, SkipOptions};
use crate::trim_head::{TrimHead, TrimHeadOptions};

/// A pass that can be asked for by name.
#[derive(Debug)]
pub struct PassInfo {
    /// Name in commands and files.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Its options with their meaning.
    pub options: &'static [(&'static str, &'static str)],
    /// Passes that run after it, so that what it left behind goes.
    pub then: &'static [&'static str],
    /// Makes the pass from its options.
    pub build: fn(&Mapping) -> Result<Box<dyn Pass>, PassError>,
}

const CLEAN_UP: &[&str] = &["remove-dead-nodes", "remove-unused", "renumber-caches"];

/// Every pass.
pub const PASSES: &[PassInfo] = &[
    PassInfo {
        name: "fit-prune",
        summary: "adds a draft (of an encoder, a pruned model): the target without its least important layers by Fisher information (SDFP, arXiv 2602.05499)",
        options: FitPruneOptions::DOCS,
        then: CLEAN_UP,
        build: |given| Ok(Box::new(FitPrune::new(parse_options("fit-prune", given)?)?)),
    },
    PassInfo {
        name: "auto-draft",
        summary: "adds the draft that should decode fastest here, each block whole, quantised or dropped by FIT and measured costs; none if none pays",
        options: AutoDraftOptions::DOCS,
        then: CLEAN_UP,
        build: |given| {
            Ok(Box::new(AutoDraft::new(parse_options(
                "auto-draft",
                given,
            )?)?))
        },
    },
    PassInfo {
        name: "quantize-draft",
        summary: "quantises the matrices of the draft, or of a copy of the target, to 4 or 8 bits in blocks (refined by HQQ, Badri and Shaji 2023)",
        options: QuantizeDraftOptions::DOCS,
        then: &["remove-unused"],
        build: |given| {
            Ok(Box::new(QuantizeDraft::new(parse_options(
                "quantize-draft",
                given,
            )?)?))
        },
    },
    PassInfo {
        name: "trim-head",
        summary: "lets the draft propose only the tokens most frequent in the calibration text; the target still chooses among all",
        options: TrimHeadOptions::DOCS,
        then: &["remove-unused"],
        build: |given| Ok(Box::new(TrimHead::new(parse_options("trim-head", given)?)?)),
    },
    PassInfo {
        name: "merge-adapter",
        summary: "merges the adapters given with --adapter (LoRA, rsLoRA, DoRA, Dual LoRA) into the weights that they were trained for",
        options: MergeAdapterOptions::DOCS,
        then: &[],
        build: |given| {
            Ok(Box::new(MergeAdapter::new(parse_options(
                "merge-adapter",
                given,
            )?)?))
        },
    },
    PassInfo {
        name: "remove-dead-nodes",
        summary: "drops nodes that no output depends on",
        options: &[],
        then: &[],
        build: |given| {
            parse_options::<NoOptions>("remove-dead-nodes", given)
                .map(|_| Box::new(RemoveDeadNodes) as _)
        },
    },
    PassInfo {
        name: "remove-unused",
        summary: "drops inputs that no node reads, and weights that no graph uses",
        options: &[],
        then: &[],
        build: |given| {
            parse_options::<NoOptions>("remove-unused", given).map(|_| Box::new(RemoveUnused) as _)
        },
    },
    PassInfo {
        name: "renumber-caches",
        summary: "numbers the caches of every graph from 0, keeping the map to the checkpoint's layers",
        options: &[],
        then: &[],
        build: |given| {
            parse_options::<NoOptions>("renumber-caches", given)
                .map(|_| Box::new(RenumberCaches) as _)
        },
    },
    PassInfo {
        name: "dip-go",
        summary: "learns by gradients through the sampler which blocks of a diffusion model to compute at which step (DiP-GO, arXiv 2410.16942)",
        options: DipGoOptions::DOCS,
        then: &[],
        build: |given| Ok(Box::new(DipGo::new(parse_options("dip-go", given)?)?)),
    },
    PassInfo {
        name: "skip",
        summary: "adds step graphs of a diffusion model in which blocks are skipped by a schedule, their values taken from earlier steps",
        options: SkipOptions::DOCS,
        then: &[],
        build: |given| Ok(Box::new(Skip::new(parse_options("skip", given)?)?)),
    },
];

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct NoOptions {}

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

/// The pass called `name` with these options, and the clean-up passes that belong behind it.
///
/// # Errors
/// [`PassError::UnknownPass`] and [`PassError::Options`].
pub fn build(name: &str, options: &Mapping) -> Result<Vec<Box<dyn Pass>>, PassError> {
    let info = find(name)?;
    let mut passes = vec![(info.build)(options)?];
    for next in info.then {
        passes.push((find(next)?.build)(&Mapping::new())?);
    }
    Ok(passes)
}
