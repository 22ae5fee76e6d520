//! `auto-draft`: the draft that should decode fastest, by sensitivity and cost of every block.
//!
//! For each block one of keep, 8 bits, 4 bits or drop, and fewer words for the head. FIT says what each action should do to acceptance
//! (`sensitivity.rs`), measured steps what it saves (`costs.rs`); three drafts of one action each gauge FIT against acceptance, and the best on the
//! frontier of both (`plan.rs`) are measured on text that was held back (`trial.rs`), which the target wrote itself (`text.rs`). The best by
//! measurement becomes the draft, unless plain decoding is faster than all. Every stage is kept, so that a stopped run goes on where it was.

mod costs;
mod options;
mod plan;
mod recipe;
mod sensitivity;
mod text;
mod trial;

use std::collections::BTreeSet;

use dlc_ir::diff::diff;
use dlc_ir::{DType, Graph, Module, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::{DraftCandidate, PassReport};
use crate::trim_head::{basic_tokens, most_frequent};
use plan::{Outlook, Planner};
use recipe::{Action, Format, Recipe, trimmed, vocabulary};
use sensitivity::{Sensitivity, sensitivity};
use text::{Pen, write};
use trial::{Agreement, Trial};

pub use costs::{ByFormat, DraftCosts, draft_costs};
pub use options::AutoDraftOptions;

const NAME: &str = "auto-draft";
/// Tokens of the built-in text that each text of the target begins with.
const PROMPT: usize = 8;
/// The heads that are tried keep the vocabulary, and these parts of it.
const HEAD_PARTS: [usize; 4] = [2, 4, 8, 16];
/// Two drafts are alike, so that one is measured, when they treat fewer blocks than this part of all differently.
const ALIKE: usize = 10;

/// The pass.
#[derive(Debug)]
pub struct AutoDraft {
    options: AutoDraftOptions,
}

/// Texts to choose by.
struct Texts {
    scored: Vec<Vec<u32>>,
    held_back: Vec<Vec<u32>>,
    /// Tokens of each that the target didn't choose.
    prompt: usize,
    origin: &'static str,
}

/// A draft with one of the heads, and what is expected and known of it.
struct Judged<'r> {
    recipe: &'r Recipe,
    head: usize,
    predicted: f64,
    acceptance: f64,
    outlook: Outlook,
}

impl AutoDraft {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range.
    pub fn new(options: AutoDraftOptions) -> Result<Self, PassError> {
        options.check()?;
        Ok(Self { options })
    }

    fn texts(&self, module: &Module, target: &Graph, cx: &PassContext<'_>) -> Result<Texts, PassError> {
        let Self { options } = self;
        let length = options.length.min(module.model.context_length);
        let (all, prompt, origin) = if options.calibration.is_some() {
            (cx.calibration.samples(options.calibration.as_deref(), options.samples, length)?, 1, "the calibration file")
        } else {
            let prompt = PROMPT.min(length / 2).max(1);
            let mut starts = cx.calibration.samples(None, options.samples, prompt)?;
            starts.retain(|start| start.len() == prompt);
            if starts.is_empty() {
                return Err(PassError::Calibration {
                    problem: format!("the built-in text holds no {prompt} tokens in a row; give calibration=FILE"),
                });
            }
            let starts: Vec<Vec<u32>> = starts.iter().cycle().take(options.samples).cloned().collect();
            let pen = Pen { seed: options.seed, temperature: options.temperature, length };
            let key = format!("{NAME} text 1 {} {} {} {length} {starts:?}", cx.module_key, pen.seed, pen.temperature);
            let progress = cx.progress;
            (kept(cx, &key, || cx.pool.install(|| write(module, target, &starts, &pen, progress)))?, prompt, "the target's own")
        };
        let half = |odd: usize| all.iter().skip(odd).step_by(2).cloned().collect::<Vec<_>>();
        let texts = Texts { scored: half(0), held_back: half(1), prompt, origin };
        if texts.held_back.is_empty() {
            return Err(PassError::Calibration { problem: "one text is too few: half of them are held back; give a file with more text".into() });
        }
        Ok(texts)
    }

    fn costs(&self, module: &Module, target: &Graph, cx: &PassContext<'_>) -> Result<(DraftCosts, String), PassError> {
        let machine = cx.machine.ok_or_else(|| unsupported("no bundle is made, so there is no machine that decodes it"))?;
        if let Some(file) = &self.options.costs {
            return Ok((machine.read_costs(file)?, format!("of {}", file.display())));
        }
        let name = machine.name()?;
        cx.progress.update("timing steps", 0, 1);
        let costs = kept(cx, &costs_key(module, target, &name), || draft_costs(module, machine))?;
        cx.progress.update("timing steps", 1, 1);
        if cx.progress.interrupted() { Err(PassError::Interrupted) } else { Ok((costs, format!("measured on {name}"))) }
    }

    /// The tokens that each head keeps: all of them, then fewer and fewer.
    fn heads(&self, module: &Module, target: &Graph, texts: &Texts, cx: &PassContext<'_>) -> Result<Vec<Option<Vec<u32>>>, PassError> {
        let vocabulary = vocabulary(target)?;
        let basic: BTreeSet<u32> = basic_tokens(module, vocabulary, cx)?;
        let mut counts = vec![0u64; vocabulary];
        for id in texts.scored.iter().flatten() {
            if let Some(n) = counts.get_mut(*id as usize) {
                *n += 1;
            }
        }
        let sizes = HEAD_PARTS.iter().map(|part| vocabulary / part).filter(|size| *size > basic.len() && *size < vocabulary);
        Ok([None].into_iter().chain(sizes.map(|size| Some(most_frequent(&basic, &counts, size)))).collect())
    }
}

/// The name under which the costs of a model's drafts are kept: they go by its shapes, not by its weights.
pub fn costs_key(module: &Module, target: &Graph, machine: &str) -> String {
    let cost = dlc_ir::cost::cost(target, &module.weights);
    let (layers, model) = (target.blocks().count(), &module.model);
    format!(
        "{NAME} costs 1 {machine} {} blocks={layers} hidden={} vocabulary={} parameters={} cache={}",
        model.family, model.hidden_size, model.vocab_size, cost.parameters, cost.cache_bytes_per_token
    )
}

/// What was stored under `key`, or what `compute` finds, which is stored.
fn kept<T: Serialize + DeserializeOwned>(cx: &PassContext<'_>, key: &str, compute: impl FnOnce() -> Result<T, PassError>) -> Result<T, PassError> {
    if let Some(found) = cx.cache.and_then(|cache| cache.get(key)).and_then(|text| serde_json::from_str(&text).ok()) {
        return Ok(found);
    }
    let found = compute()?;
    if let (Some(cache), Ok(text)) = (cx.cache, serde_json::to_string(&found)) {
        cache.put(key, &text);
    }
    Ok(found)
}

/// How far each action's FIT lies from the acceptance that was measured, by the drafts that are made by it alone.
fn gauges(planner: &Planner<'_>, anchors: &[Recipe; 3], measured: &[Agreement]) -> [f64; 4] {
    let mut gauges = [0.0; 4];
    for (recipe, (agreement, action)) in anchors.iter().zip(measured.iter().zip([Action::Int8, Action::Int4, Action::Drop])) {
        let fit = planner.perturbation(recipe)[action as usize];
        gauges[action as usize] = if fit > 0.0 { -agreement.acceptance(0).ln() / fit.sqrt() } else { 0.0 };
    }
    gauges
}

/// Drafts with their heads, the most promising first, one of each kind.
fn promising(judged: &[Judged<'_>], most: usize) -> Vec<Recipe> {
    let mut chosen: Vec<&Recipe> = Vec::new();
    for candidate in judged {
        let differences = |other: &Recipe| {
            let blocks = candidate.recipe.blocks.iter().zip(&other.blocks).filter(|(a, b)| a != b).count();
            blocks + usize::from(candidate.recipe.head != other.head) * ALIKE
        };
        let enough = (candidate.recipe.blocks.len() / ALIKE).max(1);
        if chosen.len() < most && chosen.iter().all(|other| differences(other) >= enough) {
            chosen.push(candidate.recipe);
        }
    }
    chosen.into_iter().cloned().collect()
}

fn options_error(problem: String) -> PassError {
    PassError::Options { pass: NAME, problem }
}

fn unsupported(problem: impl Into<String>) -> PassError {
    PassError::Unsupported { pass: NAME, problem: problem.into() }
}

impl Pass for AutoDraft {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        self.choose(module, cx).map_err(|e| e.within(NAME))
    }
}

impl AutoDraft {
    fn choose(&self, module: &mut Module, cx: &PassContext<'_>) -> Result<PassReport, PassError> {
        let target = check(module)?.clone();
        let format = Format { block: self.options.block, refined: true };
        let texts = self.texts(module, &target, cx)?;
        let (costs, costs_origin) = self.costs(module, &target, cx)?;
        let progress = cx.progress;
        let key = format!("{NAME} fit 1 {} {} {:?}", cx.module_key, self.options.block, texts.scored);
        let sensitivity: Sensitivity = kept(cx, &key, || cx.pool.install(|| sensitivity(module, &target, &format, &texts.scored, progress)))?;
        if sensitivity.len() != target.blocks().count() + 1 {
            return Err(PassError::Calibration { problem: "the stored scores are of another model; score anew with --no-cache".into() });
        }
        let heads = self.heads(module, &target, &texts, cx)?;
        let planner = Planner::new(&target, &module.weights, &sensitivity, &costs, self.options.block);
        let key = format!("{NAME} trial 1 {} {} {} {:?} {heads:?}", cx.module_key, self.options.block, texts.prompt, texts.held_back);
        let trial = Trial { module, target: &target, format, texts: &texts.held_back, prompt: texts.prompt, heads: &heads, key };

        let blocks = target.blocks().count();
        let anchors = [Recipe::all(blocks, Action::Int8), Recipe::all(blocks, Action::Int4), planner.some_dropped()];
        let gauged = trial.agreements(&anchors, cx)?;
        let gauges = gauges(&planner, &anchors, &gauged);
        let frontier = planner.frontier(&gauges);
        let search = Search { options: &self.options, planner: &planner, heads: &heads, gauges, vocabulary: vocabulary(&target)? };
        // With fewer words a head guesses less: the anchors say by how much.
        let coverage: Vec<f64> = (0..heads.len()).map(|head| gauged[0].acceptance(head) / gauged[0].acceptance(0)).collect();
        let expected = search.judge(&frontier, |recipe, head| planner.acceptance(recipe, &gauges) * coverage[head]);
        let mut recipes = promising(&expected, self.options.candidates);
        recipes.retain(|recipe| !anchors.contains(recipe));
        let agreements = [trial.agreements(&recipes, cx)?, gauged].concat();
        recipes.extend(anchors);
        let of = |recipe: &Recipe| recipes.iter().position(|r| r == recipe).map(|i| &agreements[i]);
        let measured = search.judge(&recipes, |recipe, head| of(recipe).map_or(0.0, |a| a.acceptance(head)));

        let mut report = PassReport::default();
        report.fact("texts", format!("{}, {} that scored and {} held back", texts.origin, texts.scored.len(), texts.held_back.len()));
        report.fact("costs", costs_origin);
        report.candidates = search.best_of_each(&measured);
        self.emit(module, &target, measured.first(), &heads, &format, &mut report)?;
        Ok(report)
    }

    /// Adds the best draft, or says why there is none.
    fn emit(
        &self,
        module: &mut Module,
        target: &Graph,
        best: Option<&Judged<'_>>,
        heads: &[Option<Vec<u32>>],
        format: &Format,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let Some(best) = best else {
            report.fact("draft", format!("none: every draft needs more than memory={} allows", self.options.memory));
            return Ok(());
        };
        if best.outlook.draft_tokens == 0 {
            let (c, a) = (best.outlook.cost, 100.0 * best.acceptance);
            report.fact("draft", format!("none: no draft beats plain decoding; the best costs {c:.2} of a target step and guesses {a:.0}%"));
            return Ok(());
        }
        let mut draft = best.recipe.draft("draft", target, &mut module.weights, format)?;
        if let Some(tokens) = &heads[best.head] {
            draft = trimmed(draft, &mut module.weights, tokens)?;
        }
        report.fact("draft", best.recipe.describe());
        report
            .fact("predicted speedup", format!("{:.2}x without prompt lookup, {} tokens at a time", best.outlook.speedup, best.outlook.draft_tokens));
        report.draft_tokens = Some(best.outlook.draft_tokens);
        let mut small = draft.clone();
        small.remove_dead();
        small.remove_unused_inputs();
        report.diff = Some(diff((target, &module.weights), (&small, &module.weights)));
        module.graphs.push(draft);
        Ok(())
    }
}

/// Judges drafts.
struct Search<'a> {
    options: &'a AutoDraftOptions,
    planner: &'a Planner<'a>,
    heads: &'a [Option<Vec<u32>>],
    gauges: [f64; 4],
    vocabulary: usize,
}

impl Search<'_> {
    fn head_tokens(&self, head: usize) -> usize {
        self.heads[head].as_ref().map_or(self.vocabulary, Vec::len)
    }

    /// Each recipe with each head that fits into memory, the fastest first, given the acceptance of each.
    fn judge<'r>(&self, recipes: &'r [Recipe], acceptance: impl Fn(&Recipe, usize) -> f64) -> Vec<Judged<'r>> {
        let mut judged: Vec<Judged<'r>> = Vec::new();
        for recipe in recipes {
            for head in 0..self.heads.len() {
                let (share, acceptance) = (self.head_tokens(head) as f64 / self.vocabulary.max(1) as f64, acceptance(recipe, head));
                let outlook = self.planner.outlook(recipe, share, acceptance);
                judged.push(Judged { recipe, head, predicted: self.planner.acceptance(recipe, &self.gauges), acceptance, outlook });
            }
        }
        judged.retain(|j| j.outlook.memory <= self.options.memory);
        judged.sort_by(|a, b| b.outlook.speedup.total_cmp(&a.outlook.speedup).then(a.outlook.cost.total_cmp(&b.outlook.cost)));
        judged
    }

    /// Each recipe with its best head, as the report has it.
    fn best_of_each(&self, judged: &[Judged<'_>]) -> Vec<DraftCandidate> {
        let mut seen = BTreeSet::new();
        let best = judged.iter().filter(|j| seen.insert(j.recipe));
        let candidate = |j: &Judged<'_>| DraftCandidate {
            draft: j.recipe.describe(),
            head_tokens: self.head_tokens(j.head),
            memory: j.outlook.memory,
            cost: j.outlook.cost,
            predicted_acceptance: j.predicted,
            acceptance: j.acceptance,
            draft_tokens: j.outlook.draft_tokens,
            speedup: j.outlook.speedup,
        };
        best.map(candidate).collect()
    }
}

/// The target, if a draft of it can be made.
fn check(module: &Module) -> Result<&Graph, PassError> {
    if module.model.task != Task::TextGeneration {
        return Err(unsupported(format!("a model for {} has no draft: nothing checks its answers", module.model.task.name())));
    }
    if module.graph("draft").is_some() {
        return Err(unsupported("the module has a draft already; ask for this pass alone"));
    }
    if module.model.dtype != DType::F32 {
        return Err(unsupported(format!("the model is in {}, and only matrices in f32 are quantised; compile with --dtype f32", module.model.dtype)));
    }
    module.graph("target").ok_or_else(|| unsupported("the module has no graph `target`"))
}
