//! What `skip` can be asked for, and what `dip-go` shares with it.

use std::path::PathBuf;

use dlc_ir::{Diffusion, Granularity, Reuse};
use dlc_methods::diffusion::SchedulerKind;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::PassError;
use crate::options::Range::{AtLeast, FromTo, Share, Words};
use crate::options::{PassOptions, options};

/// Most steps of a sampler.
const MOST_STEPS: u32 = 10_000;

/// The names that `scheduler` takes.
pub(crate) fn schedulers() -> Vec<&'static str> {
    SchedulerKind::ALL.map(SchedulerKind::name).into()
}

options! {
    /// How a model is sampled, and what of it is skipped.
    pub struct SamplerOptions {
        /// Steps of the sampler.
        steps: usize = 50, in FromTo(1, MOST_STEPS);
        /// The scheduler; the checkpoint's if absent.
        scheduler: Option<String> = None, in Words(schedulers());
        /// Strength of classifier-free guidance; 1 is none; if absent 7.5 for models of texts, 1.5
        /// for models of classes, none for others.
        guidance: Option<f64> = None, in AtLeast(0);
        /// What is skipped as one: a layer or a stage of a U-Net, or a branch, attention or
        /// feed-forward.
        granularity: SkipGranularity = SkipGranularity(Granularity::Branch);
        /// How a value that isn't computed is forecast from those last computed; hold takes the
        /// last one.
        reuse: Reuse = Reuse::Hold;
        /// Most step graphs to write; steps are made alike, by computing more, until they are
        /// enough; no limit if absent.
        max_graphs: Option<usize> = None, in AtLeast(1);
        /// Whether to make one graph of the whole sampler, for one number of steps and one
        /// guidance; slow to load: prefer step graphs on tract and in short runs.
        unroll: bool = false;
    }
}

/// What is skipped as one, as options name it: layers of a U-Net are its stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SkipGranularity(pub Granularity);

/// The names of [`SkipGranularity`].
#[derive(Deserialize)]
#[serde(remote = "Granularity", rename_all = "lowercase")]
enum Names {
    #[serde(alias = "stage")]
    Layer,
    Branch,
}

impl<'de> Deserialize<'de> for SkipGranularity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Names::deserialize(deserializer).map(Self)
    }
}

impl SamplerOptions {
    /// The strength of guidance for `model`.
    ///
    /// # Errors
    /// [`PassError::Options`] where guidance was asked for and there is nothing to guide to.
    pub(crate) fn guidance_for(
        &self,
        pass: &'static str,
        model: &Diffusion,
    ) -> Result<f64, PassError> {
        match self.guidance {
            None => Ok(model.default_guidance()),
            Some(guidance) if is_guided(guidance) && !model.can_be_guided() => {
                let known = if model.classes.is_some() {
                    "wasn't trained without a class, which guidance needs"
                } else {
                    "is conditioned on neither class nor text"
                };
                let problem = format!(
                    "guidance={guidance}: the model {known}, so there is nothing to guide it to; leave guidance out"
                );
                Err(PassError::Options { pass, problem })
            }
            Some(guidance) => Ok(guidance),
        }
    }

    /// Refuses options that contradict each other.
    pub(crate) fn check(&self, pass: &'static str) -> Result<(), PassError> {
        if self.unroll && self.max_graphs.is_some() {
            return Err(PassError::Options {
                pass,
                problem:
                    "unroll=true makes one graph of the whole sampler, so leave max_graphs out"
                        .into(),
            });
        }
        Ok(())
    }
}

/// Whether classifier-free guidance of this strength changes anything.
pub(crate) fn is_guided(guidance: f64) -> bool {
    guidance.to_bits() != Diffusion::NO_GUIDANCE.to_bits()
}

/// Steps from one full one to the next, unless something else is asked for.
pub(super) const INTERVAL: f64 = 2.0;

options! {
    /// Options of `skip`.
    pub struct SkipOptions {
        /// File with a schedule: what another bundle's dlc.yaml has under `sampling.schedule`, or
        /// that file itself.
        schedule: Option<PathBuf> = None;
        /// Compute everything every N steps, nothing between (feature caching); may be a fraction.
        interval: Option<f64> = None, else INTERVAL, in FromTo(1, MOST_STEPS);
        /// Share of the multiply-adds to keep; evenly spread full steps, or with `random=true`
        /// anything.
        macs: Option<f64> = None, in Share;
        /// Whether to draw what is computed at random, up to `macs`.
        random: bool = false;
        /// Seed of `random`.
        seed: u64 = 0;
        ..sampler: SamplerOptions
    }
}

impl SkipOptions {
    /// Refuses options that contradict each other or are out of range.
    pub(crate) fn check(&self, pass: &'static str) -> Result<(), PassError> {
        let fail = |problem: &str| {
            Err(PassError::Options {
                pass,
                problem: problem.into(),
            })
        };
        self.check_ranges(pass)?;
        self.sampler.check(pass)?;
        let ways = [
            self.schedule.is_some(),
            self.interval.is_some(),
            self.macs.is_some(),
        ]
        .into_iter()
        .filter(|way| *way)
        .count();
        if ways > 1 {
            return fail(
                "ask for one of schedule=FILE, interval=N and macs=SHARE (with random=true, if you like)",
            );
        }
        if self.random && self.macs.is_none() {
            return fail("random=true needs macs=SHARE");
        }
        Ok(())
    }
}
