//! From the frontier to the best draft: expected, measured for acceptance, timed.

use std::collections::BTreeSet;

use dlc_ir::Module;
use dlc_methods::speculation::StepCosts;

use super::acceptance::{AcceptanceTest, Agreement};
use super::costs::time;
use super::plan::{Outlook, Planner};
use super::recipe::{Action, Format, Recipe};

use super::AutoDraftOptions;
use crate::context::PassContext;
use crate::error::PassError;
use crate::report::DraftCandidate;
use crate::sources::Machine;

/// Two drafts are alike, so that one is measured, when they treat fewer blocks than this part of
/// all differently.
const ALIKE: usize = 10;

/// What drafts are judged by.
pub(super) struct Search<'a> {
    pub options: &'a AutoDraftOptions,
    pub planner: &'a Planner<'a>,
    pub trial: &'a AcceptanceTest<'a>,
    pub vocabulary: usize,
}

/// A draft with one of the heads, and what is expected and known of it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub recipe: Recipe,
    pub head: usize,
    /// The acceptance that FIT promised, and the one that was measured.
    pub predicted: f64,
    pub acceptance: f64,
    pub outlook: Outlook,
    /// How far its timings lay apart, once it was timed.
    pub spread: Option<f64>,
}

impl Search<'_> {
    /// Drafts with their best heads, by measured acceptance, the fastest first.
    pub fn measured(&self, cx: &PassContext<'_>) -> Result<Vec<Candidate>, PassError> {
        let anchors = [
            self.planner.all(Action::Int8),
            self.planner.all(Action::Int4),
            self.planner.some_dropped(),
        ];
        let gauged = self.trial.agreements(&anchors, cx)?;
        let gauges = self.gauges(&anchors, &gauged);
        // With fewer words a head guesses less: the gentlest draft says by how much.
        let coverage = |head: usize| gauged[0].acceptance(head) / gauged[0].acceptance(0);
        let promise = |recipe: &Recipe| self.planner.acceptance(recipe, &gauges);
        let expected = self.judge(&self.planner.frontier(&gauges), promise, |recipe, head| {
            promise(recipe) * coverage(head)
        });
        let mut recipes = promising(&expected, self.options.candidates);
        recipes.retain(|recipe| !anchors.contains(recipe));
        let agreements = [self.trial.agreements(&recipes, cx)?, gauged].concat();
        recipes.extend(anchors);
        let of = |recipe: &Recipe| {
            recipes
                .iter()
                .position(|r| r == recipe)
                .and_then(|i| agreements.get(i))
        };
        let mut measured = self.judge(&recipes, promise, |recipe, head| {
            of(recipe).map_or(0.0, |a| a.acceptance(head))
        });
        let mut seen = BTreeSet::new();
        measured.retain(|judged| {
            self.planner.can_run(&judged.recipe) && seen.insert(judged.recipe.clone())
        });
        Ok(measured)
    }

    /// How far each action's FIT lies from the acceptance that was measured, by the drafts that are
    /// made by it alone.
    fn gauges(&self, anchors: &[Recipe; 3], measured: &[Agreement]) -> [f64; 4] {
        let mut gauges = [0.0; 4];
        for (recipe, (agreement, action)) in
            anchors.iter().zip(
                measured
                    .iter()
                    .zip([Action::Int8, Action::Int4, Action::Drop]),
            )
        {
            let fit = self.planner.perturbation(recipe)[action as usize];
            gauges[action as usize] = if fit > 0.0 {
                -agreement.acceptance(0).ln() / fit.sqrt()
            } else {
                0.0
            };
        }
        gauges
    }

    fn head_tokens(&self, head: usize) -> usize {
        self.trial.heads[head]
            .as_ref()
            .map_or(self.vocabulary, Vec::len)
    }

    /// Each recipe with each head that fits into memory, the fastest first, given what FIT promises
    /// of it and its acceptance with the head.
    fn judge(
        &self,
        recipes: &[Recipe],
        promise: impl Fn(&Recipe) -> f64,
        acceptance: impl Fn(&Recipe, usize) -> f64,
    ) -> Vec<Candidate> {
        let mut judged = Vec::new();
        for recipe in recipes {
            for head in 0..self.trial.heads.len() {
                let share = self.head_tokens(head) as f64 / self.vocabulary.max(1) as f64;
                let acceptance = acceptance(recipe, head);
                let outlook = self.planner.outlook(recipe, share, acceptance);
                judged.push(Candidate {
                    recipe: recipe.clone(),
                    head,
                    predicted: promise(recipe),
                    acceptance,
                    outlook,
                    spread: None,
                });
            }
        }
        judged.retain(|j| j.outlook.memory <= self.options.memory);
        sort(&mut judged);
        judged
    }

    /// Times the drafts themselves, since parts of a step add up only nearly.
    pub fn timed(
        &self,
        mut judged: Vec<Candidate>,
        machine: &dyn Machine,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Candidate>, PassError> {
        let drafts: Vec<(&Recipe, usize)> = judged.iter().map(|j| (&j.recipe, j.head)).collect();
        let key = format!(
            "{} timed on {}: {drafts:?}",
            self.trial.key,
            machine.name()?
        );
        let whole = |costs: &StepCosts| costs.steps.len() == judged.len() && costs.is_sound();
        let StepCosts {
            steps,
            verify,
            spreads,
        } = cx.cached(&key, whole, || time(self.drafts(&judged)?, machine))?;
        let spreads = spreads.into_iter().chain(std::iter::repeat(None));
        for ((judged, cost), spread) in judged.iter_mut().zip(steps).zip(spreads) {
            judged.spread = spread;
            judged.outlook = judged.outlook.at_cost(cost, judged.acceptance, &verify);
        }
        sort(&mut judged);
        Ok(judged)
    }

    /// The target, and after it the drafts, without refinement, which costs no time.
    fn drafts(&self, judged: &[Candidate]) -> Result<Module, PassError> {
        let AcceptanceTest {
            module,
            target,
            heads,
            ..
        } = self.trial;
        let format = Format {
            group_size: self.options.group_size,
            refined: false,
        };
        let mut drafts = Module {
            graphs: vec![(*target).clone()],
            ..(*module).clone()
        };
        for (number, Candidate { recipe, head, .. }) in judged.iter().enumerate() {
            let draft = recipe.draft(
                &format!("candidate.{number}"),
                target,
                &mut drafts.weights,
                &format,
                heads[*head].as_deref(),
            )?;
            drafts.graphs.push(draft);
        }
        Ok(drafts)
    }

    /// A draft as the report has it.
    pub fn candidate(&self, judged: &Candidate) -> DraftCandidate {
        DraftCandidate {
            draft: judged.recipe.describe(),
            head_tokens: self.head_tokens(judged.head),
            memory: judged.outlook.memory,
            cost: judged.outlook.cost,
            spread: judged.spread,
            predicted_acceptance: judged.predicted,
            acceptance: judged.acceptance,
            draft_tokens: judged.outlook.draft_tokens,
            speedup: judged.outlook.speedup,
        }
    }
}

/// The fastest first, of equal ones the one that is right most often.
fn sort(judged: &mut [Candidate]) {
    judged.sort_by(|a, b| {
        b.outlook
            .speedup
            .total_cmp(&a.outlook.speedup)
            .then(b.acceptance.total_cmp(&a.acceptance))
    });
}

/// The most promising drafts, one of each kind.
fn promising(judged: &[Candidate], most: usize) -> Vec<Recipe> {
    let mut chosen: Vec<Recipe> = Vec::new();
    for candidate in judged {
        let differences = |other: &Recipe| {
            let blocks = candidate
                .recipe
                .blocks
                .iter()
                .zip(&other.blocks)
                .filter(|(a, b)| a != b)
                .count();
            blocks + usize::from(candidate.recipe.head != other.head) * ALIKE
        };
        let enough = (candidate.recipe.blocks.len() / ALIKE).max(1);
        if chosen.len() < most && chosen.iter().all(|other| differences(other) >= enough) {
            chosen.push(candidate.recipe.clone());
        }
    }
    chosen
}
