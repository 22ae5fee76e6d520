//! Flags that say how tokens are guessed, for every command that decodes.

use dlc_methods::speculation::{CostTable, DecodeOptions, DraftLength, TokenModel};
use dlc_passes::ScoreCache;
use dlc_runtime::{Bundle, assumed_costs, calibrate, calibration_prompt, cost_key};

use super::backend::describe;
use super::environment;
use super::failure::{Failure, Result};
use super::models::{DraftCache, Models, Wishes};
use crate::pipeline::DiskCache;

/// Tokens of earlier texts that lookups search in, where they do: at most 10 MB.
pub(super) const HISTORY: usize = 1 << 16;

/// Tokens that have to have stood before for a lookup.
const LOOKUP: usize = 1;

/// How tokens are guessed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DraftingArgs {
    /// Tokens to propose per round, whatever they cost [default: as many as pay]
    #[arg(long, alias = "gamma", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    draft_tokens: Option<u8>,
    /// Propose what followed the last tokens, N of them or more, most often where they stood before
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    lookup: Option<u8>,
    /// Look nothing up
    #[arg(long, conflicts_with = "lookup")]
    no_lookup: bool,
    /// The draft stops proposing below this probability; 0 never does
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    draft_confidence: f32,
    /// What the draft reads of the text so far: the target's cache, where their layers are the
    /// same, or one of its own
    #[arg(long, value_enum, default_value_t = DraftCache::Shared)]
    draft_cache: DraftCache,
}

impl DraftingArgs {
    /// Whether only a draft can guess.
    pub fn looks_nothing_up(&self) -> bool {
        self.no_lookup
    }

    /// How one text after the other is to be decoded, with the bundle's draft or without.
    pub fn wishes(&self, drafts: bool) -> Wishes {
        Wishes {
            cache: drafts.then_some(self.draft_cache),
            guesses: self.draft_tokens.is_some() || self.lookup.is_some(),
            sequences: 1,
        }
    }

    /// Puts what the flags and the models say into `options`, and what passes cost.
    pub fn apply(
        &self,
        options: DecodeOptions,
        models: &Models,
        costs: CostTable,
    ) -> DecodeOptions {
        let looks_up = !self.no_lookup && models.guesses_nothing.is_none();
        DecodeOptions {
            draft_acceptance: models
                .bundle
                .manifest()
                .draft_acceptance
                .unwrap_or(options.draft_acceptance),
            draft_length: self.draft_tokens.map_or(DraftLength::Adaptive, |n| {
                DraftLength::Fixed(usize::from(n))
            }),
            lookup: looks_up.then_some(self.lookup.map_or(LOOKUP, usize::from)),
            draft_confidence: self.draft_confidence,
            costs,
            ..options
        }
    }
}

/// Where measured costs are kept.
fn cost_cache() -> Option<DiskCache> {
    environment::cache_folder().map(|folder| DiskCache::new(folder.join("costs")))
}

/// The costs that `dlc bench --calibrate` measured for this bundle with this backend and number of
/// threads; None if it didn't, or if what is stored can't be read.
pub(super) fn measured_costs(
    bundle: &Bundle,
    backend: &str,
    threads: Option<usize>,
) -> Option<CostTable> {
    let stored = cost_cache()?.get(&cost_key(bundle.manifest(), backend, threads))?;
    serde_json::from_str::<CostTable>(&stored)
        .ok()
        .filter(CostTable::is_sound)
}

/// What passes of these models cost here: measured before, else assumed.
pub(super) fn costs(models: &Models, threads: Option<usize>) -> CostTable {
    measured_costs(&models.bundle, &describe(&models.backend), threads)
        .unwrap_or_else(|| assumed_costs(models.bundle.manifest()))
}

/// As [`costs`], but measured now, in a few passes, where they weren't before.
pub(super) fn costs_by_now(models: &mut Models, threads: Option<usize>) -> Result<CostTable> {
    const REPEATS: usize = 3;
    match measured_costs(&models.bundle, &describe(&models.backend), threads) {
        Some(costs) => Ok(costs),
        None => measure_costs(models, REPEATS),
    }
}

/// Measures what passes cost here after 128 tokens, or as many as half the context takes.
pub(super) fn measure_costs(models: &mut Models, repeats: usize) -> Result<CostTable> {
    let prompt = calibration_prompt(&models.bundle.manifest().model);
    let draft = models
        .draft
        .as_mut()
        .map(|draft| draft as &mut dyn TokenModel);
    Ok(calibrate(&mut models.target, draft, &prompt, repeats)?)
}

/// Keeps costs for later runs.
pub(super) fn store_costs(
    bundle: &Bundle,
    backend: &str,
    threads: Option<usize>,
    costs: &CostTable,
) -> Result<()> {
    if let Some(cache) = cost_cache() {
        cache.put(
            &cost_key(bundle.manifest(), backend, threads),
            &serde_json::to_string(costs).map_err(Failure::bug)?,
        );
    }
    Ok(())
}
