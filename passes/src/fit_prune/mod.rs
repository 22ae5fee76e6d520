//! `fit-prune`: the target without its least important layers becomes the draft; of an encoder, a
//! smaller model of its own.
//!
//! SDFP: *Speculative Decoding with FIT-Pruned Models* (arXiv 2602.05499); FIT: *A Metric for Model
//! Sensitivity*, Zandonati et al. (ICLR 2023). The scoring engine runs the model backwards block by
//! block, `ablate.rs` holds the scores that need no gradient, `select.rs` chooses what to drop. The
//! target is never changed.

mod ablate;
mod options;
mod select;
mod table;
mod units;

use dlc_ir::diff::diff;
use dlc_ir::{Block, Graph, Module, Scores, Task};
use options::Score;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::kept::Kept;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::report::{PassReport, ScoreTable};
use crate::scoring::{self, Objective, chain, most_links};
use crate::sources::Sources;

pub use options::FitPruneOptions;
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

    /// The score table, from the cache if it has one for the same module, data and options.
    fn score(
        &self,
        module: &Module,
        target: &Graph,
        units: &[Unit],
        samples: &[Vec<u32>],
        cx: &mut PassContext<'_>,
    ) -> Result<(ScoreTable, bool), PassError> {
        let key = format!(
            "{NAME} 1 {} {:?} {} {samples:?}",
            cx.module_key, self.options.granularity, self.options.score
        );
        let fits = |table: &ScoreTable| {
            table.fits(
                units.iter().map(|u| u.name.as_str()),
                self.scores.iter().map(|s| s.name()),
            )
        };
        if let Some(table) = cx.stored(&key, fits) {
            return Ok((table, true));
        }
        let gradients = format!("{NAME} gradients 1 {} {samples:?}", cx.module_key);
        let removal = format!(
            "{NAME} removal 1 {} {:?} {} {samples:?}",
            cx.module_key,
            self.options.granularity,
            self.scores.contains(&Score::Kl)
        );
        let kept = [&gradients, &removal].map(|key| Kept::new(cx.cache, key));
        let (scores, progress) = (self.scores.as_slice(), cx.progress);
        let table = cx
            .pool
            .install(|| table::compute(scores, module, target, units, samples, kept, progress));
        if let Ok(table) = &table {
            cx.store(&key, table);
        }
        if !matches!(table, Err(PassError::Interrupted)) {
            let links = most_links(target);
            scoring::fisher::forget(kept[0], links);
            ablate::forget(kept[1], links);
        }
        Ok((table?, false))
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
        Needs { disk: 0, memory }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let Plan { target, result, .. } = self.plan(module)?;
        // Which blocks go is known when they are scored.
        let mut whole = target.clone();
        whole.name = result.graph().into();
        module.graphs.push(whole);
        Ok(())
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let Plan {
            target,
            result,
            units,
            drop,
            candidates,
        } = self.plan(module)?;
        let samples = self.samples(module)?;
        let (mut table, reused) = self.score(module, target, &units, &samples, cx)?;
        let dropped = select(&table.columns[0].values, &candidates, drop);
        table.dropped = (0..units.len()).map(|i| dropped.contains(&i)).collect();
        let pruned = without(target, &units, &dropped, result)?;
        let mut report = PassReport::default();
        report.fact("score", &table.columns[0].name);
        report.fact(
            "dropped",
            dropped
                .iter()
                .map(|&i| units[i].name.as_str())
                .collect::<Vec<_>>()
                .join(" "),
        );
        report.fact("calibration loss", format!("{:.4} nats", table.loss));
        let length = self.length(module);
        if length < self.options.length {
            report.fact(
                "sample length",
                format!("{length} tokens, the model's context"),
            );
        }
        report.note = Some(if reused {
            "scores: reused from the cache"
        } else {
            "scores: computed"
        });
        let mut small = pruned.clone();
        small.remove_dead();
        small.remove_unused_inputs();
        if result == Outcome::Pruned {
            let agreed = cx.pool.install(|| {
                scoring::agreement::agreement(
                    target,
                    &small,
                    &module.weights,
                    &samples,
                    cx.progress,
                )
            })?;
            let share = 100.0 * agreed.same as f64 / agreed.answers.max(1) as f64;
            report.fact(
                "agreement",
                format!(
                    "{share:.1}%, {} of {} answers on the calibration samples",
                    agreed.same, agreed.answers
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
    /// How many units go.
    drop: usize,
    /// Which may.
    candidates: Vec<usize>,
}

impl FitPrune<'_> {
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
        let (drop, candidates) = self.quota(target, &units, result)?;
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

    /// How many units go, and which may.
    fn quota(
        &self,
        target: &Graph,
        units: &[Unit],
        result: Outcome,
    ) -> Result<(usize, Vec<usize>), PassError> {
        let (unit, noun) = (self.options.granularity.name(), result.noun());
        let drop = self
            .options
            .drop
            .unwrap_or_else(|| select::drop_for(units.len(), self.options.keep));
        let candidates = select::candidates(
            target,
            units,
            self.options.protect_first,
            self.options.protect_last,
        );
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
        Ok((drop, candidates))
    }
}

/// The target with the units at `dropped` bypassed; what they leave after is for the clean-up
/// passes.
fn without(
    target: &Graph,
    units: &[Unit],
    dropped: &[usize],
    result: Outcome,
) -> Result<Graph, PassError> {
    let mut pruned = target.clone();
    pruned.name = result.graph().into();
    for &unit in dropped {
        for &block in &units[unit].blocks {
            pruned.bypass(block)?;
        }
    }
    let bypassed = |b: &Block| {
        dropped.iter().any(|&u| {
            units[u]
                .blocks
                .iter()
                .any(|&id| target.block(id).name == b.name)
        })
    };
    if !pruned
        .blocks()
        .any(|(_, b)| b.kind.has_attention() && !bypassed(b))
    {
        let noun = result.noun();
        return Err(options_error(format!(
            "the {noun} would have no attention left; drop fewer blocks, or use granularity=layer"
        )));
    }
    Ok(pruned)
}
