//! `auto-draft`: the draft that should decode fastest, by sensitivity and cost of every block.
//!
//! For each block one of keep, 8 bits, 4 bits or drop, and fewer words for the head. FIT says what
//! each action should do to acceptance (`sensitivity.rs`), measured steps what it saves
//! (`costs.rs`); three drafts of one action each gauge FIT against acceptance, and the best on the
//! frontier of both (`plan.rs`) are measured on text that was held back (`trial.rs`), which the
//! target wrote itself (`texts`). The best by measurement becomes the draft, unless plain
//! decoding is faster than all. Every stage is kept, so that a stopped run goes on where it was.

mod acceptance;
mod costs;
mod options;
mod plan;
mod recipe;
mod search;
mod sensitivity;

use std::collections::BTreeSet;

use acceptance::AcceptanceTest;
use dlc_ir::diff::diff;
use dlc_ir::{DType, Drafting, Graph, Module, Task, WeightTable};
use plan::Planner;
use recipe::{Format, vocabulary};
use search::{Candidate, Search};
use sensitivity::{Sensitivity, sensitivity};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::fisher_work::FisherWork;
use crate::kept::Kept;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::quantize::{in_floats, keeps_codes};
use crate::report::PassReport;
use crate::scoring::Objective;
use crate::sources::{Calibration, Sources};
use crate::sums::{Shard, ShardScores};
use crate::texts::{TextRequest, Texts, texts};
use crate::trim_head::{basic_tokens, frequencies, most_frequent};

pub use costs::{costs_key, draft_costs};
pub(crate) use costs::{known_costs, whole_block};
pub use options::AutoDraftOptions;

const NAME: &str = "auto-draft";
/// The heads that are tried keep the vocabulary, and these parts of it.
const HEAD_PARTS: [usize; 4] = [2, 4, 8, 16];

/// The pass.
#[derive(Debug)]
pub struct AutoDraft<'a> {
    sources: Sources<'a>,
    options: AutoDraftOptions,
}

impl<'a> AutoDraft<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range.
    pub fn new(options: AutoDraftOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        Ok(Self { sources, options })
    }

    fn texts(
        &self,
        module: &Module,
        target: &Graph,
        cx: &PassContext<'_>,
    ) -> Result<Texts, PassError> {
        let AutoDraftOptions {
            samples,
            length,
            seed,
            temperature,
            ..
        } = self.options;
        let wanted = TextRequest {
            file: self.options.calibration.as_deref(),
            samples,
            length,
            seed,
            temperature,
        };
        texts(&wanted, self.sources.calibration, module, target, cx)
    }

    fn sensitivity(
        &self,
        (target, weights): (&Graph, &WeightTable),
        format: &Format,
        texts: &Texts,
        cx: &PassContext<'_>,
    ) -> Result<Sensitivity, PassError> {
        let key = format!(
            "{NAME} fit 3 {} {} {:?}",
            cx.module_key, self.options.group_size, texts.scored
        );
        let whole = |table: &Sensitivity| {
            table.len() == target.blocks().count() + 1
                && table.iter().flatten().all(|fit| fit.is_finite())
        };
        let so_far = format!(
            "{NAME} fit so far 3 {} {} {:?}",
            cx.module_key, self.options.group_size, texts.scored
        );
        let so_far = Kept::new(cx.cache, &so_far);
        let work = fisher_work((target, weights))?;
        let given = self.sources.scores;
        let compute = || {
            let fisher = work.scores(&texts.scored, given, cx)?;
            let progress = cx.progress;
            cx.pool
                .install(|| sensitivity(target, weights, format, &fisher, so_far, progress))
        };
        let table = if given.is_some() {
            compute()
        } else {
            cx.cached(&key, whole, compute)
        };
        if !matches!(table, Err(PassError::Interrupted)) {
            work.forget(&texts.scored, cx);
            sensitivity::forget(so_far);
        }
        table
    }
}

/// What the scores are made of.
fn fisher_work(target: (&Graph, &WeightTable)) -> Result<FisherWork, PassError> {
    FisherWork::new(target, Objective::NextToken, true, NAME)
}

/// The tokens that each head keeps: all of them, then fewer and fewer.
fn heads(
    module: &Module,
    target: &Graph,
    texts: &Texts,
    calibration: &dyn Calibration,
) -> Result<Vec<Option<Vec<u32>>>, PassError> {
    let vocabulary = vocabulary(target)?;
    let basic: BTreeSet<u32> = basic_tokens(module, vocabulary, calibration)?;
    let counts = frequencies(&texts.scored, vocabulary);
    let sizes = HEAD_PARTS
        .iter()
        .map(|part| vocabulary / part)
        .filter(|size| *size > basic.len() && *size < vocabulary);
    Ok([None]
        .into_iter()
        .chain(sizes.map(|size| Some(most_frequent(&basic, &counts, size))))
        .collect())
}

fn unsupported(problem: impl Into<String>) -> PassError {
    PassError::Unsupported {
        pass: NAME,
        problem: problem.into(),
    }
}

impl Pass for AutoDraft<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        let (
            AutoDraftOptions {
                samples,
                length,
                memory,
                ..
            },
            whole,
        ) = (&self.options, needs::whole_weights(module));
        let scoring = module.graph("target").map_or(0, |target| {
            needs::scoring(module, target, *samples, *length)
        });
        // The target writes text with all of its weights in memory; then sessions of target and
        // draft, which pack theirs, are timed.
        Needs {
            disk: (whole as f64 * (memory - 1.0).max(0.0)) as u64,
            memory: scoring.max((whole as f64 * (1.0 + 2.0 * memory)) as u64),
        }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let target = self.check(module)?;
        if self.options.costs.is_none() {
            costs::check(target)?;
        }
        vocabulary(target)?;
        let mut whole = target.clone();
        whole.name = "draft".into();
        module.graphs.push(whole);
        Ok(())
    }

    fn takes_scores(&self) -> bool {
        true
    }

    fn score_shard(
        &self,
        module: &Module,
        shard: Shard,
        cx: &PassContext<'_>,
    ) -> Result<ShardScores, PassError> {
        let target = check(module)?;
        let texts = self.texts(module, target, cx)?;
        fisher_work((target, &module.weights))?.shard(shard, &texts.scored, cx)
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        self.choose(module, cx)
    }
}

impl AutoDraft<'_> {
    /// The target, if a draft of it can be made and its steps timed as they will be.
    fn check<'m>(&self, module: &'m Module) -> Result<&'m Graph, PassError> {
        let target = check(module)?;
        if module.model.dtype == DType::F16 && !self.sources.multiplies_f16_codes {
            return Err(unsupported(
                "the model is in f16, and only operators of profile ort multiply f16 with codes; compile with --profile ort, or with --dtype f32",
            ));
        }
        if self.sources.keeps_codes && keeps_codes(target, &module.weights) {
            return Err(unsupported(
                "the target keeps the codes of its checkpoint, and quantised drafts gain little on it; leave this pass out, or compile with --dequantize",
            ));
        }
        Ok(target)
    }

    fn choose(&self, module: &mut Module, cx: &PassContext<'_>) -> Result<PassReport, PassError> {
        let target = self.check(module)?.clone();
        let machine = self.sources.machine.ok_or_else(|| {
            unsupported("no bundle is made, so there is no machine that decodes it")
        })?;
        let format = Format {
            group_size: self.options.group_size,
            refined: true,
        };
        let file = self.options.costs.as_deref();
        let (costs, origin) = known_costs(file, module, &target, machine, cx)?;
        let texts = self.texts(module, &target, cx)?;
        let (floats, float_weights) = &in_floats(&target, &module.weights)?;
        let sensitivity = self.sensitivity((floats, float_weights), &format, &texts, cx)?;
        let heads = heads(module, &target, &texts, self.sources.calibration)?;
        let key = format!(
            "{NAME} trial 2 {} {} {} {:?} {heads:?}",
            cx.module_key, self.options.group_size, texts.prompt, texts.held_back
        );
        let trial = AcceptanceTest {
            module,
            target: &target,
            format,
            texts: &texts.held_back,
            prompt: texts.prompt,
            heads: &heads,
            key,
        };
        let planner = Planner::new(
            &target,
            &module.weights,
            (floats, float_weights),
            &sensitivity,
            &costs,
            self.options.group_size,
        );
        let search = Search {
            options: &self.options,
            planner: &planner,
            trial: &trial,
            vocabulary: vocabulary(&target)?,
        };
        let mut measured = search.measured(cx)?;
        if self.options.costs.is_none() {
            measured = costs::timing(cx, || search.timed(measured, machine, cx))?;
        }

        let mut report = PassReport::default();
        report.fact(
            "texts",
            format!(
                "{}, {} that scored and {} held back",
                texts.origin,
                texts.scored.len(),
                texts.held_back.len()
            ),
        );
        report.fact("costs", origin);
        report.candidates = measured
            .iter()
            .map(|judged| search.candidate(judged))
            .collect();
        self.emit(
            module,
            &target,
            measured.first(),
            &heads,
            &format,
            &mut report,
        )?;
        Ok(report)
    }

    /// Adds the best draft, or says why there is none.
    fn emit(
        &self,
        module: &mut Module,
        target: &Graph,
        best: Option<&Candidate>,
        heads: &[Option<Vec<u32>>],
        format: &Format,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let Some(best) = best else {
            report.fact(
                "draft",
                format!(
                    "none: every draft needs more than memory={} allows",
                    self.options.memory
                ),
            );
            return Ok(());
        };
        if best.outlook.draft_tokens == 0 {
            report.fact("draft", "none: no draft beats plain decoding; a step of each costs too much for how often its guesses are right");
            return Ok(());
        }
        module.drafting = Some(Drafting {
            draft_tokens: Some(best.outlook.draft_tokens),
            acceptance: best.acceptance,
        });
        let mut draft = best.recipe.draft(
            "draft",
            target,
            &mut module.weights,
            format,
            heads[best.head].as_deref(),
        )?;
        draft.remove_dead();
        draft.remove_unused_inputs();
        report.fact("draft", best.recipe.describe());
        report.fact(
            "predicted speedup",
            format!(
                "{:.2}x without prompt lookup, {} tokens at a time",
                best.outlook.speedup, best.outlook.draft_tokens
            ),
        );
        report.diff = Some(diff((target, &module.weights), (&draft, &module.weights)));
        module.graphs.push(draft);
        Ok(())
    }
}

/// The target, if a draft of it can be made.
fn check(module: &Module) -> Result<&Graph, PassError> {
    if module.model.task != Task::TextGeneration {
        return Err(unsupported(format!(
            "a model for {} has no draft: nothing checks its answers",
            module.model.task.name()
        )));
    }
    if module.graph("draft").is_some() {
        return Err(unsupported(
            "the module has a draft already; ask for this pass alone",
        ));
    }
    if !matches!(module.model.dtype, DType::F32 | DType::F16) {
        return Err(unsupported(format!(
            "the model is in {}, and only matrices in f32 and f16 are quantised; compile with --dtype f32",
            module.model.dtype
        )));
    }
    module
        .graph("target")
        .ok_or_else(|| unsupported("the module has no graph `target`"))
}
