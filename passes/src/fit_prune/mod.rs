//! `fit-prune`: the target without its least important layers becomes the draft.
//!
//! SDFP: *Speculative Decoding with FIT-Pruned Models* (arXiv 2602.05499); FIT: *A Metric for Model Sensitivity*, Zandonati et al. (ICLR 2023).
//! `score.rs` runs the model backwards block by block, `ablate.rs` holds the scores that need no gradient, `select.rs` chooses what to drop.
//! The target is never changed.

mod ablate;
mod chain;
mod options;
mod score;
mod select;
mod steps;
mod units;

use dlc_ir::diff::diff;
use dlc_ir::{Block, Graph, Module};

use crate::context::{Pass, PassContext, Progress};
use crate::error::PassError;
use crate::report::{PassReport, ScoreColumn, ScoreTable};
use options::Score;

pub use options::FitPruneOptions;
pub use score::{FisherScores, TensorFisher, fisher_scores};
pub use select::select;
pub use units::{Granularity, Unit, units};

const NAME: &str = "fit-prune";

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

    /// Longest sample, in tokens: never beyond what the model was made for.
    fn length(&self, module: &Module) -> usize {
        self.options.length.min(module.model.context_length)
    }

    /// The score table, from the cache if it has one for the same module, data and options.
    fn score(&self, module: &Module, target: &Graph, units: &[Unit], cx: &mut PassContext<'_>) -> Result<(ScoreTable, bool), PassError> {
        let length = self.length(module);
        if length < 2 {
            let problem = "a context of less than 2 tokens is too short to predict a token in".into();
            return Err(PassError::Unsupported { pass: NAME, problem });
        }
        let samples = cx.calibration.samples(self.options.calibration.as_deref(), self.options.samples, length)?;
        let key = format!("{NAME} 1 {} {:?} {} {samples:?}", cx.module_key, self.options.granularity, self.options.score);
        let stored = cx.cache.and_then(|c| c.get(&key)).and_then(|text| serde_json::from_str::<ScoreTable>(&text).ok());
        if let Some(table) = stored.filter(|t| t.fits(units.iter().map(|u| u.name.as_str()), self.scores.iter().map(|s| s.name()))) {
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
        progress: &dyn Progress,
    ) -> Result<ScoreTable, PassError> {
        let chain = chain::Chain::new(target, &module.weights)?;
        let (mut fisher, mut ablation) = (None, None);
        if self.scores.iter().any(|s| s.needs_gradient()) {
            fisher = Some(fisher_scores(target, &module.weights, samples, progress)?);
        }
        if self.scores.iter().any(|s| !s.needs_gradient()) {
            ablation = Some(ablate::ablate(&chain, units, samples, self.scores.contains(&Score::Kl), progress)?);
        }
        if let (Some(f), true) = (&fisher, self.scores.contains(&Score::FitResidual)) {
            let silent = |unit: &&Unit| !unit.blocks.iter().filter_map(|b| f.blocks.get(b)).flatten().any(|t| t.writes_residual);
            if let Some(unit) = units.iter().find(silent) {
                let problem = format!("no matrix of {} writes into the residual, so fit-residual can't score it", unit.name);
                return Err(PassError::Unsupported { pass: NAME, problem });
            }
        }
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
        if !table.loss.is_finite() {
            let problem =
                format!("the model's loss on the samples is {}; some weight is NaN or infinite, or so large that the model overflows", table.loss);
            return Err(PassError::Calibration { problem });
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
        if units.is_empty() {
            return Err(unsupported("the target has no blocks to drop"));
        }
        let drop = self.options.drop.unwrap_or_else(|| select::drop_for(units.len(), self.options.keep));
        let candidates = select::candidates(target, &units, self.options.protect_first, self.options.protect_last);
        if drop == 0 {
            let unit = self.options.granularity.name();
            return Err(options_error(format!("dropping no {unit} leaves a draft as slow as the target; ask for drop=1 or more, or a smaller keep")));
        }
        if drop > candidates.len() || drop >= units.len() {
            let most = candidates.len().min(units.len() - 1);
            let way_out = if most > 0 { format!("ask for drop={most} or less") } else { "protect fewer layers".into() };
            return Err(options_error(format!(
                "dropping {drop} of {} {}s leaves no draft ({} may be dropped); {way_out}",
                units.len(),
                self.options.granularity.name(),
                candidates.len(),
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
        let length = self.length(module);
        if length < self.options.length {
            report.fact("sample length", format!("{length} tokens, the model's context"));
        }
        report.note = Some(if reused { "scores: reused from the cache" } else { "scores: computed" });
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
    if !draft.blocks().any(|(_, b)| b.kind.has_attention() && !bypassed(b)) {
        return Err(options_error("the draft would have no attention left; drop fewer blocks, or use granularity=layer".into()));
    }
    Ok(draft)
}
