//! `fit-prune`: the target without its least important layers becomes the draft.
//!
//! SDFP: *Speculative Decoding with FIT-Pruned Models* (arXiv 2602.05499); FIT: *A Metric for Model Sensitivity*, Zandonati et al. (ICLR 2023).
//! [`score`] runs the model backwards block by block, [`ablate`] holds the scores that need no gradient, [`select`] chooses what to drop.
//! The target is never changed.

mod ablate;
mod chain;
mod score;
mod select;
mod units;

use std::path::PathBuf;

use dlc_ir::diff::diff;
use dlc_ir::{Block, BlockKind, Graph, Module};
use serde::{Deserialize, Serialize};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::{PassReport, ScoreColumn, ScoreTable};

pub use score::{FisherScores, TensorFisher, fisher_scores};
pub use select::select;
pub use units::{Granularity, Unit, units};

const NAME: &str = "fit-prune";

/// Options of `fit-prune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitPruneOptions {
    /// Whole layers, or attention and MLP blocks apart.
    pub granularity: Granularity,
    /// How many layers or blocks to drop; decides over `keep`.
    pub drop: Option<usize>,
    /// Share of the layers or blocks to keep.
    pub keep: f64,
    /// How many layers at the start are never dropped.
    pub protect_first: usize,
    /// How many layers at the end are never dropped.
    pub protect_last: usize,
    /// Text or JSON lines to score on; the built-in text if absent.
    pub calibration: Option<PathBuf>,
    /// How many samples to score on.
    pub samples: usize,
    /// Longest sample, in tokens.
    pub length: usize,
    /// Scores joined by `+`; the first decides, the others are reported.
    pub score: String,
}

impl Default for FitPruneOptions {
    fn default() -> Self {
        Self {
            granularity: Granularity::Layer,
            drop: None,
            keep: 0.6,
            protect_first: 0,
            protect_last: 0,
            calibration: None,
            samples: 8,
            length: 128,
            score: "fit".into(),
        }
    }
}

impl FitPruneOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &[
        ("granularity", "layer (default) or block: attention and MLP apart"),
        ("drop", "how many layers or blocks to drop; decides over keep"),
        ("keep", "share of the layers or blocks to keep (default 0.6)"),
        ("protect_first", "layers at the start that are never dropped (default 0)"),
        ("protect_last", "layers at the end that are never dropped (default 0)"),
        ("calibration", "file to score on: text, or .jsonl with `text` or `tokens` (default: a built-in text)"),
        ("samples", "how many samples to score on (default 8)"),
        ("length", "longest sample in tokens (default 128)"),
        ("score", "fit (default), fit-elementwise, fit-residual, trace, cosine, kl; several joined by +, the first decides"),
    ];
}

/// A way to score layers or blocks (METHODS.md, section 1). Larger scores mean more important ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Score {
    Fit,
    FitElementwise,
    FitResidual,
    Trace,
    Cosine,
    Kl,
}

impl Score {
    const ALL: [(&'static str, Self); 6] = [
        ("fit", Self::Fit),
        ("fit-elementwise", Self::FitElementwise),
        ("fit-residual", Self::FitResidual),
        ("trace", Self::Trace),
        ("cosine", Self::Cosine),
        ("kl", Self::Kl),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or("", |(n, _)| n)
    }

    fn needs_gradient(self) -> bool {
        !matches!(self, Self::Cosine | Self::Kl)
    }

    fn parse_list(list: &str) -> Result<Vec<Self>, PassError> {
        let find = |name: &str| Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, s)| *s);
        list.split('+')
            .map(|name| {
                let known: Vec<&str> = Self::ALL.iter().map(|(n, _)| *n).collect();
                find(name).ok_or_else(|| options_error(format!("there is no score `{name}`; there are {}", known.join(", "))))
            })
            .collect()
    }
}

/// The pass.
#[derive(Debug)]
pub struct FitPrune {
    options: FitPruneOptions,
    scores: Vec<Score>,
}

impl FitPrune {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range.
    pub fn new(options: FitPruneOptions) -> Result<Self, PassError> {
        let scores = Score::parse_list(&options.score)?;
        if !(options.keep > 0.0 && options.keep <= 1.0) {
            return Err(options_error(format!("keep={} is not a share between 0 and 1", options.keep)));
        }
        if options.samples == 0 || options.length < 2 {
            return Err(options_error("samples must be 1 or more, and length 2 or more".into()));
        }
        Ok(Self { options, scores })
    }

    /// The score table, from the cache if it has one for the same module, data and options.
    fn score(&self, module: &Module, target: &Graph, units: &[Unit], cx: &mut PassContext<'_>) -> Result<(ScoreTable, bool), PassError> {
        let samples = cx.calibration.samples(self.options.calibration.as_deref(), self.options.samples, self.options.length)?;
        let key = format!("{NAME} 1 {} {:?} {} {samples:?}", cx.module_key, self.options.granularity, self.options.score);
        let stored = cx.cache.and_then(|c| c.get(&key)).and_then(|text| serde_json::from_str::<ScoreTable>(&text).ok());
        if let Some(table) = stored.filter(|t| t.units.iter().eq(units.iter().map(|u| &u.name))) {
            return Ok((table, true));
        }
        let table = cx.pool.install(|| self.compute(module, target, units, &samples, cx.progress))?;
        if let (Some(cache), Ok(text)) = (cx.cache, serde_json::to_string(&table)) {
            cache.put(&key, &text);
        }
        Ok((table, false))
    }

    fn compute(
        &self,
        module: &Module,
        target: &Graph,
        units: &[Unit],
        samples: &[Vec<u32>],
        progress: &dyn crate::context::Progress,
    ) -> Result<ScoreTable, PassError> {
        let chain = chain::Chain::new(target, &module.weights)?;
        let fisher = match self.scores.iter().any(|s| s.needs_gradient()) {
            true => Some(fisher_scores(target, &module.weights, samples, progress)?),
            false => None,
        };
        let ablation = match self.scores.iter().any(|s| !s.needs_gradient()) {
            true => Some(ablate::ablate(&chain, units, samples, self.scores.contains(&Score::Kl), progress)?),
            false => None,
        };
        let mut columns = Vec::new();
        for &score in &self.scores {
            let values = units.iter().enumerate().map(|(i, unit)| match (score, &fisher, &ablation) {
                (Score::Cosine, _, Some(a)) => a.cosine[i],
                (Score::Kl, _, Some(a)) => a.kl[i],
                (_, Some(f), _) => unit.blocks.iter().filter_map(|b| f.blocks.get(b)).flatten().map(|t| tensor_score(score, t)).sum(),
                _ => f64::NAN,
            });
            columns.push(ScoreColumn { name: score.name().into(), values: values.collect() });
        }
        let loss = fisher.map(|f| f.loss).or(ablation.map(|a| a.loss)).unwrap_or(f64::NAN);
        let table = ScoreTable { units: units.iter().map(|u| u.name.clone()).collect(), columns, dropped: vec![false; units.len()], loss };
        self.check_finite(&table)?;
        Ok(table)
    }

    fn check_finite(&self, table: &ScoreTable) -> Result<(), PassError> {
        for (score, column) in self.scores.iter().zip(&table.columns) {
            if let Some(i) = column.values.iter().position(|v| !v.is_finite()) {
                let (unit, value) = (table.units[i].clone(), column.values[i]);
                return Err(PassError::NotFinite { pass: NAME, score: score.name(), unit, value });
            }
        }
        Ok(())
    }
}

fn tensor_score(score: Score, tensor: &TensorFisher) -> f64 {
    match score {
        Score::Fit => tensor.trace * tensor.mean_square,
        Score::FitElementwise => tensor.elementwise,
        Score::FitResidual => f64::from(u8::from(tensor.writes_residual)) * tensor.trace * tensor.mean_square,
        Score::Trace => tensor.trace,
        Score::Cosine | Score::Kl => 0.0,
    }
}

fn options_error(problem: String) -> PassError {
    PassError::Options { pass: NAME, problem }
}

impl Pass for FitPrune {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let unsupported = |problem: &str| PassError::Unsupported { pass: NAME, problem: problem.into() };
        let target = module.graph("target").ok_or_else(|| unsupported("the module has no graph `target`"))?;
        if module.graph("draft").is_some() {
            return Err(unsupported("the module has a draft already; ask for this pass once"));
        }
        let units = units(target, self.options.granularity);
        let drop = self.options.drop.unwrap_or_else(|| units.len() - (units.len() as f64 * self.options.keep).ceil() as usize);
        let candidates = select::candidates(target, &units, self.options.protect_first, self.options.protect_last);
        if drop > candidates.len() || drop >= units.len() {
            return Err(options_error(format!(
                "dropping {drop} of {} {}s leaves no draft ({} may be dropped); ask for drop={} or less",
                units.len(),
                self.options.granularity.name(),
                candidates.len(),
                candidates.len().min(units.len() - 1),
            )));
        }
        let (mut table, reused) = self.score(module, target, &units, cx)?;
        let dropped = select(&table.columns[0].values, &candidates, drop);
        table.dropped = (0..units.len()).map(|i| dropped.contains(&i)).collect();
        let draft = draft(target, &units, &dropped)?;
        let mut report = PassReport::default();
        report.fact("score", &table.columns[0].name);
        report.fact("dropped", dropped.iter().map(|&i| units[i].name.as_str()).collect::<Vec<_>>().join(" "));
        report.fact("calibration loss", format!("{:.4} nats", table.loss));
        report.fact("scores", if reused { "reused from the cache" } else { "computed" });
        let mut pruned = draft.clone();
        pruned.remove_dead();
        pruned.remove_unused_inputs();
        report.diff = Some(diff((target, &module.weights), (&pruned, &module.weights)));
        report.scores = Some(table);
        module.graphs.push(draft);
        Ok(report)
    }
}

/// The target with the units at `dropped` bypassed; what they leave behind is for the clean-up passes.
fn draft(target: &Graph, units: &[Unit], dropped: &[usize]) -> Result<Graph, PassError> {
    let mut draft = target.clone();
    draft.name = "draft".into();
    for &unit in dropped {
        for &block in &units[unit].blocks {
            draft.bypass(block)?;
        }
    }
    let bypassed = |b: &Block| dropped.iter().any(|&u| units[u].blocks.iter().any(|&id| target.block(id).name == b.name));
    if !draft.blocks().any(|(_, b)| b.kind == BlockKind::Attention && !bypassed(b)) {
        return Err(options_error("the draft would have no attention left; drop fewer blocks, or use granularity=layer".into()));
    }
    Ok(draft)
}
