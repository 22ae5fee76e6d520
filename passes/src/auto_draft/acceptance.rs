//! How often drafts guess what the target says, on texts that were held back: all drafts at once, a
//! link of the model at a time in memory.

use dlc_eval::{Array, Values};
use dlc_ir::{EntityId, Graph, Module};
use serde::{Deserialize, Serialize};

use super::recipe::{Action, Format, Recipe};
use crate::context::{PassContext, Progress};
use crate::error::PassError;
use crate::kept::Kept;
use crate::scoring::chain::{Chain, Link};
use crate::scoring::objective::row_slices;
use crate::scoring::steps::Steps;

/// Texts, and what is counted on them.
pub(super) struct AcceptanceTest<'a> {
    pub module: &'a Module,
    pub target: &'a Graph,
    pub format: Format,
    pub texts: &'a [Vec<u32>],
    /// Tokens of each text that the target didn't choose.
    pub prompt: usize,
    /// The tokens that heads keep, in order; none keeps all.
    pub heads: &'a [Option<Vec<u32>>],
    /// Identifies all of the above.
    pub key: String,
}

/// How often a draft guessed right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreement {
    /// With each head.
    pub right: Vec<usize>,
    pub guesses: usize,
}

impl Agreement {
    /// The chance that a guess is right; half a miss is added, since none on a few texts doesn't
    /// promise none.
    pub fn acceptance(&self, head: usize) -> f64 {
        let right = self.right.get(head).map_or(0.0, |n| *n as f64);
        (right + 0.5) / (self.guesses as f64 + 1.0)
    }
}

const BEHIND: &str = "links after";

fn residuals_part(links: usize) -> String {
    format!("residuals {links}")
}

/// A draft's residuals, one for each text; the target's are the first.
struct Runner {
    recipe: Recipe,
    residuals: Vec<Option<Array>>,
}

impl AcceptanceTest<'_> {
    /// The agreement of each recipe's draft; what earlier runs found is taken from the cache.
    pub fn agreements(
        &self,
        recipes: &[Recipe],
        cx: &PassContext<'_>,
    ) -> Result<Vec<Agreement>, PassError> {
        let key = |recipe: &Recipe| format!("{} {recipe:?}", self.key);
        let stored = |recipe: &Recipe| {
            cx.stored(&key(recipe), |a: &Agreement| {
                a.right.len() == self.heads.len()
            })
        };
        let known: Vec<Option<Agreement>> = recipes.iter().map(stored).collect();
        let missing: Vec<Recipe> = recipes
            .iter()
            .zip(&known)
            .filter(|(_, a)| a.is_none())
            .map(|(recipe, _)| recipe.clone())
            .collect();
        let mut computed = if missing.is_empty() {
            vec![]
        } else {
            {
                let (progress, so_far) = (cx.progress, format!("{} so far {missing:?}", self.key));
                let so_far = Kept::new(cx.cache, &so_far);
                cx.pool.install(|| self.run(&missing, so_far, progress))?
            }
        }
        .into_iter();
        let mut agreements = Vec::new();
        for (recipe, agreement) in recipes.iter().zip(known) {
            let Some(agreement) = agreement.or_else(|| computed.next()) else {
                continue;
            };
            cx.store(&key(recipe), &agreement);
            agreements.push(agreement);
        }
        Ok(agreements)
    }

    /// Goes on where an earlier run was stopped: all residuals are kept after each link.
    fn run(
        &self,
        recipes: &[Recipe],
        kept: Kept<'_>,
        progress: &dyn Progress,
    ) -> Result<Vec<Agreement>, PassError> {
        let blocks = self.target.blocks().count();
        let mut weights = self.module.weights.clone();
        let mut graphs = Vec::new();
        for action in Action::FORMATS {
            graphs.push(Recipe::all(blocks, action).draft(
                "draft",
                self.target,
                &mut weights,
                &self.format,
                None,
            )?);
        }
        let chains = graphs
            .iter()
            .map(|graph| Chain::new(graph, &weights))
            .collect::<Result<Vec<_>, _>>()?;
        let feeds = chains
            .iter()
            .map(|chain| chain.feeds(self.texts))
            .collect::<Result<Vec<_>, _>>()?;
        let runner = |recipe: &Recipe| Runner {
            recipe: recipe.clone(),
            residuals: vec![None; self.texts.len()],
        };
        let mut runners: Vec<Runner> = [&Recipe::all(blocks, Action::Keep)]
            .into_iter()
            .chain(recipes)
            .map(runner)
            .collect();
        let links = chains[0].links.len();
        let passes = |runner: &Runner| {
            chains[0]
                .links
                .iter()
                .enumerate()
                .filter(|(at, link)| runner.action(link, *at, links) != Action::Drop)
                .count()
        };
        let mut steps = Steps::start(
            progress,
            "measuring drafts",
            runners.iter().map(passes).sum(),
        )?;
        let after = self.known(&mut runners, links, kept).unwrap_or_default();
        let advanced = |runner: &Runner| {
            chains[0]
                .links
                .iter()
                .take(after)
                .enumerate()
                .filter(|(at, link)| runner.action(link, *at, links) != Action::Drop)
                .count()
        };
        steps.skip(runners.iter().map(advanced).sum());
        for at in after..links {
            for (chain, (feeds, action)) in chains.iter().zip(feeds.iter().zip(Action::FORMATS)) {
                let link = &chain.links[at];
                let members = runners
                    .iter_mut()
                    .filter(|runner| runner.action(link, at, links) == action);
                forward(chain, link, feeds, members, &mut steps)?;
            }
            // The last link makes logits, of which counts are left at once.
            if at + 1 < links {
                kept.put_arrays(
                    &residuals_part(at + 1),
                    runners
                        .iter()
                        .flat_map(|runner| &runner.residuals)
                        .flatten(),
                );
                kept.put(BEHIND, &(at + 1));
                kept.remove(&residuals_part(at));
            }
        }
        kept.remove(BEHIND);
        kept.remove(&residuals_part(links.saturating_sub(1)));
        Ok(self.count(&runners))
    }

    /// Gives runners the residuals that an earlier run kept, and says after how many links they
    /// are.
    fn known(&self, runners: &mut [Runner], links: usize, kept: Kept<'_>) -> Option<usize> {
        let after: usize = kept.get(BEHIND).filter(|after| *after < links)?;
        let mut known = kept
            .arrays(&residuals_part(after), runners.len() * self.texts.len())?
            .into_iter();
        for residual in runners.iter_mut().flat_map(|runner| &mut runner.residuals) {
            *residual = known.next();
        }
        Some(after)
    }

    /// Compares the likeliest tokens; the residuals have become logits.
    fn count(&self, runners: &[Runner]) -> Vec<Agreement> {
        let Some((target, drafts)) = runners.split_first() else {
            return vec![];
        };
        let whole = |row: &[f32]| likeliest(row, None);
        let answers: Vec<Vec<u32>> = target
            .residuals
            .iter()
            .map(|logits| self.rows(logits.as_ref()).map(whole).collect())
            .collect();
        let right = |draft: &Runner, head: Option<&[u32]>| {
            let pairs = draft
                .residuals
                .iter()
                .zip(&answers)
                .flat_map(|(logits, answers)| self.rows(logits.as_ref()).zip(answers));
            pairs
                .filter(|(row, answer)| likeliest(row, head) == **answer)
                .count()
        };
        let guesses = answers.iter().map(Vec::len).sum();
        let agreement = |draft| Agreement {
            right: self
                .heads
                .iter()
                .map(|head| right(draft, head.as_deref()))
                .collect(),
            guesses,
        };
        drafts.iter().map(agreement).collect()
    }

    /// The scores at the positions after which the target chose.
    fn rows<'l>(&self, logits: Option<&'l Array>) -> impl Iterator<Item = &'l [f32]> + use<'l> {
        logits
            .into_iter()
            .flat_map(row_slices)
            .skip(self.prompt.saturating_sub(1))
    }
}

impl Runner {
    /// What the recipe does to a link.
    fn action(&self, link: &Link, at: usize, links: usize) -> Action {
        match link.block {
            Some(block) => self.recipe.blocks[block.index()],
            None if at + 1 == links => self.recipe.head,
            None => Action::Keep,
        }
    }
}

/// Advances runners over a link, which is loaded if there are any.
fn forward<'r>(
    chain: &Chain<'_>,
    link: &Link,
    feeds: &[Values],
    members: impl Iterator<Item = &'r mut Runner>,
    steps: &mut Steps<'_>,
) -> Result<(), PassError> {
    let mut members = members.peekable();
    if members.peek().is_none() {
        return Ok(());
    }
    let segment = chain.load(link)?;
    for runner in members {
        Chain::advance(&segment, link, feeds, &mut runner.residuals)?;
        steps.step()?;
    }
    Ok(())
}

/// The token of the highest score, among those that the head keeps.
fn likeliest(row: &[f32], kept: Option<&[u32]>) -> u32 {
    let score = |token: u32| {
        row.get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY)
    };
    let better = |best: u32, token: u32| {
        if score(token) > score(best) {
            token
        } else {
            best
        }
    };
    match kept {
        Some(kept) => kept.iter().copied().reduce(better).unwrap_or_default(),
        None => (0..row.len() as u32).reduce(better).unwrap_or_default(),
    }
}
