//! `fit-prune`: the target without its least important layers becomes the draft; of an encoder, a
//! smaller model of its own.
//!
//! SDFP: *Speculative Decoding with FIT-Pruned Models* (arXiv 2602.05499); FIT: *A Metric for Model
//! Sensitivity*, Zandonati et al. (ICLR 2023). The scoring engine runs the model backwards block by
//! block, `ablate.rs` holds the scores that need no gradient, `select.rs` chooses what to drop,
//! `budget.rs` does by what it costs, `compensate.rs` makes up for it. The target is never changed.

mod ablate;
mod budget;
mod compensate;
mod options;
mod select;
mod table;
mod units;

use std::collections::BTreeSet;

use dlc_ir::diff::diff;
use dlc_ir::{Block, BlockId, Graph, Module, Scores, Task};
use options::Score;

use self::compensate::{Compensation, Samples};
use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::fisher_work::FisherWork;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::report::{PassReport, ScoreTable};
use crate::scoring::agreement::Agreement;
use crate::scoring::{self, Objective, chain};
use crate::sources::Sources;
use crate::sums::{Shard, ShardScores};

pub use options::{Compensate, FitPruneOptions};
pub use select::select;
pub use units::{Unit, units};

const NAME: &str = "fit-prune";

/// The pass.
#[derive(Debug)]
pub struct FitPrune<'a> {
    sources: Sources<'a>,
    options: FitPruneOptions,
    scores: Vec<Score>,
}

impl<'a> FitPrune<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range and scores that there aren't.
    pub fn new(options: FitPruneOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        let scores = Score::parse_list(&options.score)?;
        Ok(Self {
            sources,
            options,
            scores,
        })
    }

    /// Longest sample, in tokens: never beyond what the model was made for.
    fn length(&self, module: &Module) -> usize {
        self.options.length.min(module.model.context_length)
    }

    fn samples(&self, module: &Module) -> Result<Vec<Vec<u32>>, PassError> {
        self.sources.calibration.samples(
            self.options.calibration.as_deref(),
            self.options.samples,
            self.length(module),
        )
    }
}

/// What the module is scored on.
fn objective(module: &Module) -> Result<Objective, PassError> {
    if module.model.task == Task::QuestionAnswering {
        return Err(unsupported(
            "the model answers with two places of a text, and layers are scored on the one likeliest answer",
        ));
    }
    match module.model.scores {
        Scores::OneClass => {
            Objective::of(module.model.task).ok_or_else(|| unsupported(chain::NO_HEAD))
        }
        Scores::AnyClasses => Err(unsupported(
            "the model may find several classes true at once, and layers are scored on the one likeliest answer",
        )),
        Scores::Numbers => Err(unsupported(
            "the model gives numbers, not classes, and layers are scored on the likeliest answer",
        )),
    }
}

/// What the scores by gradients are made of.
fn fisher_work(module: &Module, target: &Graph) -> Result<FisherWork, PassError> {
    FisherWork::new((target, &module.weights), objective(module)?, false, NAME)
}

fn unsupported(problem: &str) -> PassError {
    PassError::Unsupported {
        pass: NAME,
        problem: problem.into(),
    }
}

fn options_error(problem: String) -> PassError {
    PassError::Options {
        pass: NAME,
        problem,
    }
}

impl Pass for FitPrune<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        let memory = module.graph("target").map_or(0, |target| {
            needs::scoring(module, target, self.options.samples, self.length(module))
        });
        // A matrix for each gap, of which there are no more than dropped units.
        let disk = match (self.options.compensate, self.plan(module)) {
            (Compensate::Lstsq, Ok(plan)) => {
                let most = plan.drop.unwrap_or(plan.candidates.len());
                most as u64 * needs::largest_weight(module)
            }
            _ => 0,
        };
        Needs { disk, memory }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let Plan { target, result, .. } = self.plan(module)?;
        // Which blocks go is known when they are scored.
        let mut whole = target.clone();
        whole.name = result.graph().into();
        module.graphs.push(whole);
        Ok(())
    }

    fn takes_scores(&self) -> bool {
        self.scores.iter().any(|s| s.needs_gradient())
    }

    fn score_shard(
        &self,
        module: &Module,
        shard: Shard,
        cx: &PassContext<'_>,
    ) -> Result<ShardScores, PassError> {
        let target = self.plan(module)?.target;
        let samples = self.samples(module)?;
        fisher_work(module, target)?.shard(shard, &samples, cx)
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let Plan {
            target,
            result,
            units,
            drop,
            candidates,
        } = self.plan(module)?;
        let target = &target.clone();
        let samples = self.samples(module)?;
        let (mut table, origin) = self.score(module, target, &units, &samples, cx)?;
        let scores = &table.columns[0].values;
        let (dropped, cost) = match (drop, self.options.step) {
            (None, Some(step)) => {
                let all = (units.as_slice(), candidates.as_slice());
                let choice = self.within_step(step, (module, target), all, scores, cx)?;
                let cost = format!(
                    "{:.2} of the target's, costs {}",
                    choice.step, choice.origin
                );
                (choice.dropped, Some(cost))
            }
            (drop, _) => (select(scores, &candidates, drop.unwrap_or_default()), None),
        };
        table.dropped = (0..units.len()).map(|i| dropped.contains(&i)).collect();
        let goes: BTreeSet<BlockId> = dropped
            .iter()
            .flat_map(|&unit| units[unit].blocks.iter().copied())
            .collect();
        let compensation = self.compensation(module, target, &goes, &samples, cx)?;
        let mut pruned = target.clone();
        if let Some(compensation) = &compensation {
            compensation.apply(&mut pruned, &mut module.weights)?;
        }
        let stays = compensation.as_ref().map(Compensation::stays);
        bypass(&mut pruned, &goes, &stays.unwrap_or_default(), result)?;
        let small = cleaned(pruned.clone());
        let mut report = self.report(module, &table);
        report.note = Some(origin);
        if let Some(cost) = cost {
            report.fact("step", cost);
        }
        if let Some(compensation) = &compensation {
            report.fact("compensated", compensation.notes.join("; "));
            let mut plain = target.clone();
            bypass(&mut plain, &goes, &BTreeSet::new(), result)?;
            let judged = Samples::split(&samples)?.held_back;
            let [with, without] =
                [&small, &cleaned(plain)].map(|graph| agreement(module, target, graph, judged, cx));
            let (with, without) = (with?, without?);
            report.fact(
                "agreement",
                format!(
                    "{:.1}% of {} likeliest tokens on the samples that fits were judged by, {:.1}% without compensation",
                    share(with),
                    with.answers,
                    share(without)
                ),
            );
        }
        if result == Outcome::Pruned {
            let agreed = agreement(module, target, &small, &samples, cx)?;
            report.fact(
                "agreement",
                format!(
                    "{:.1}%, {} of {} answers on the calibration samples",
                    share(agreed),
                    agreed.same,
                    agreed.answers
                ),
            );
        }
        report.diff = Some(diff((target, &module.weights), (&small, &module.weights)));
        report.scores = Some(table);
        module.graphs.push(pruned);
        Ok(report)
    }
}

/// What the pass makes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Of a decoder, what guesses its words.
    Draft,
    /// Of an encoder, a smaller one that answers by itself.
    Pruned,
}

impl Outcome {
    fn of(module: &Module) -> Self {
        if module.model.task == Task::TextGeneration {
            Self::Draft
        } else {
            Self::Pruned
        }
    }

    fn graph(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Pruned => "pruned",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Pruned => "pruned model",
        }
    }
}

/// What is to be done, as far as it is known before anything is scored.
struct Plan<'m> {
    target: &'m Graph,
    result: Outcome,
    units: Vec<Unit>,
    /// How many units go, where costs don't say it.
    drop: Option<usize>,
    /// Which may.
    candidates: Vec<usize>,
}

impl FitPrune<'_> {
    /// What the scores say, and what was dropped by them.
    fn report(&self, module: &Module, table: &ScoreTable) -> PassReport {
        let mut report = PassReport::default();
        report.fact("score", &table.columns[0].name);
        let dropped = table.units.iter().zip(&table.dropped);
        let dropped = dropped.filter(|(_, dropped)| **dropped);
        let names: Vec<&str> = dropped.map(|(name, _)| name.as_str()).collect();
        report.fact("dropped", names.join(" "));
        report.fact("calibration loss", format!("{:.4} nats", table.loss));
        let length = self.length(module);
        if length < self.options.length {
            report.fact(
                "sample length",
                format!("{length} tokens, the model's context"),
            );
        }
        report
    }

    /// What makes up for the blocks in `goes`, if that is asked for.
    fn compensation(
        &self,
        module: &Module,
        target: &Graph,
        goes: &BTreeSet<BlockId>,
        samples: &[Vec<u32>],
        cx: &PassContext<'_>,
    ) -> Result<Option<Compensation>, PassError> {
        let kind = self.options.compensate;
        if kind == Compensate::None {
            return Ok(None);
        }
        let (samples, progress) = (Samples::split(samples)?, cx.progress);
        cx.pool
            .install(|| compensate::find(kind, target, &module.weights, goes, samples, progress))
            .map(Some)
    }

    fn plan<'m>(&self, module: &'m Module) -> Result<Plan<'m>, PassError> {
        let target = module
            .graph("target")
            .ok_or_else(|| unsupported("the module has no graph `target`"))?;
        let result = Outcome::of(module);
        if module.graph(result.graph()).is_some() {
            return Err(unsupported(&format!(
                "the module has a {} already; ask for this pass once",
                result.noun()
            )));
        }
        let units = units(target, self.options.granularity);
        if units.is_empty() {
            return Err(unsupported("the target has no blocks to drop"));
        }
        objective(module)?;
        self.check_compensation(target, result)?;
        let candidates = select::candidates(
            target,
            &units,
            self.options.protect_first,
            self.options.protect_last,
        );
        if self.options.costs.is_some() && self.options.step.is_none() {
            return Err(options_error(
                "costs say what step=SHARE is counted in; give that too, or leave costs out"
                    .to_owned(),
            ));
        }
        let drop = match self.options.step {
            Some(step) => check_step(step, result).map(|()| None)?,
            None => Some(self.quota(&units, &candidates, result)?),
        };
        if self.length(module) < 2 {
            return Err(unsupported(
                "a context of less than 2 tokens is too short to predict a token in",
            ));
        }
        Ok(Plan {
            target,
            result,
            units,
            drop,
            candidates,
        })
    }

    /// Refuses compensation where there can be none.
    fn check_compensation(&self, target: &Graph, result: Outcome) -> Result<(), PassError> {
        let kind = self.options.compensate;
        if kind != Compensate::None && result == Outcome::Pruned {
            return Err(unsupported(
                "compensate is for decoders, whose drafts the target checks; leave it out",
            ));
        }
        compensate::check(kind, target)
    }

    /// How many units go.
    fn quota(
        &self,
        units: &[Unit],
        candidates: &[usize],
        result: Outcome,
    ) -> Result<usize, PassError> {
        let (unit, noun) = (self.options.granularity.name(), result.noun());
        let drop = self
            .options
            .drop
            .unwrap_or_else(|| select::drop_for(units.len(), self.options.keep));
        if drop == 0 {
            return Err(options_error(format!(
                "dropping no {unit} leaves a {noun} as slow as the target; ask for drop=1 or more, or a smaller keep"
            )));
        }
        if drop > candidates.len() || drop >= units.len() {
            let most = candidates.len().min(units.len() - 1);
            let way_out = if most > 0 {
                format!("ask for drop={most} or less")
            } else {
                "protect fewer layers".into()
            };
            let (all, free) = (units.len(), candidates.len());
            let kind = self.options.granularity.plural();
            return Err(options_error(format!(
                "dropping {drop} of {all} {kind} leaves no {noun} ({free} may be dropped); {way_out}"
            )));
        }
        Ok(drop)
    }
}

/// Refuses a budget where there can be none.
fn check_step(step: f64, result: Outcome) -> Result<(), PassError> {
    if result == Outcome::Pruned {
        return Err(unsupported(
            "step is for decoders, whose steps are timed; give drop=N",
        ));
    }
    if step >= 1.0 {
        return Err(options_error(
            "step=1 leaves a draft as slow as the target; ask for less".to_owned(),
        ));
    }
    Ok(())
}

/// Bypasses the blocks in `goes`, but for those that stay in the place of what was dropped; what
/// they leave after is for the clean-up passes.
fn bypass(
    graph: &mut Graph,
    goes: &BTreeSet<BlockId>,
    stays: &BTreeSet<BlockId>,
    result: Outcome,
) -> Result<(), PassError> {
    graph.name = result.graph().into();
    for &block in goes.difference(stays) {
        graph.bypass(block)?;
    }
    let attends =
        |(id, block): (BlockId, &Block)| block.kind.has_attention() && !goes.contains(&id);
    if graph.blocks().any(attends) {
        return Ok(());
    }
    let noun = result.noun();
    Err(options_error(format!(
        "the {noun} would have no attention left; drop fewer blocks, or use granularity=layer"
    )))
}

/// Without what nothing reads.
fn cleaned(mut graph: Graph) -> Graph {
    graph.remove_dead();
    graph.remove_unused_inputs();
    graph
}

fn share(agreed: Agreement) -> f64 {
    100.0 * agreed.same as f64 / agreed.answers.max(1) as f64
}

/// How often `graph` answers as the target does.
fn agreement(
    module: &Module,
    target: &Graph,
    graph: &Graph,
    samples: &[Vec<u32>],
    cx: &PassContext<'_>,
) -> Result<Agreement, PassError> {
    let (weights, progress) = (&module.weights, cx.progress);
    cx.pool
        .install(|| scoring::agreement::agreement(target, graph, weights, samples, progress))
        .map_err(|error| error.within(NAME))
}
