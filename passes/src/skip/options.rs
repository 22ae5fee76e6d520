//! What `skip` can be asked for, and what `dip-go` shares with it.

use std::path::PathBuf;

use dlc_ir::{Diffusion, Granularity, Reuse};
use serde::{Deserialize, Serialize};

use crate::error::PassError;

/// Guidance that changes nothing.
const NO_GUIDANCE: f64 = 1.0;

/// How a model is sampled, and what of it is skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerOptions {
    /// Steps of the sampler.
    pub steps: usize,
    /// The scheduler; that of the checkpoint if absent.
    pub scheduler: Option<String>,
    /// Strength of classifier-free guidance; 1 is none. If absent, 1.5 for models that can be
    /// guided.
    pub guidance: Option<f64>,
    /// What is skipped as one.
    pub granularity: Granularity,
    /// What stands in for what is skipped.
    pub reuse: Reuse,
    /// Most graphs to write; steps are made alike, by computing more, until they are enough.
    pub max_graphs: Option<usize>,
    /// Whether the whole sampler becomes one graph, instead of one for each pattern of steps.
    pub unroll: bool,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            steps: 50,
            scheduler: None,
            guidance: None,
            granularity: Granularity::Branch,
            reuse: Reuse::Hold,
            max_graphs: None,
            unroll: false,
        }
    }
}

impl SamplerOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: [(&'static str, &'static str); 7] = [
        ("steps", "steps of the sampler (default 50)"),
        (
            "scheduler",
            "ddim, pndm, euler or dpm-solver++ (default: the checkpoint's)",
        ),
        (
            "guidance",
            "strength of classifier-free guidance; 1 is none (default 1.5; 1 for models that can't be guided)",
        ),
        (
            "granularity",
            "branch (default): attention and feed-forward apart; or layer: whole layers, whole stages of a U-Net",
        ),
        (
            "reuse",
            "hold (default), linear or quadratic: how a value is forecast from those last computed",
        ),
        (
            "max_graphs",
            "most step graphs to write; steps are made alike, by computing more, until they are enough (default: no limit)",
        ),
        (
            "unroll",
            "true: one graph of the whole sampler, for one number of steps and one guidance; slow to load: prefer step graphs on tract and in short runs",
        ),
    ];

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

    /// Refuses numbers out of range.
    pub(crate) fn check(&self, pass: &'static str) -> Result<(), PassError> {
        let fail = |problem: &str| {
            Err(PassError::Options {
                pass,
                problem: problem.into(),
            })
        };
        if self.steps == 0 || self.steps > 10_000 {
            return fail("steps must be from 1 to 10000");
        }
        if self
            .guidance
            .is_some_and(|guidance| !guidance.is_finite() || guidance < 0.0)
        {
            return fail("guidance must be a number, 0 or more");
        }
        if self.unroll && self.max_graphs.is_some() {
            return fail(
                "unroll=true makes one graph of the whole sampler, so leave max_graphs out",
            );
        }
        if self.max_graphs == Some(0) {
            return fail("max_graphs must be 1 or more");
        }
        Ok(())
    }
}

/// Whether classifier-free guidance of this strength changes anything.
pub(crate) fn is_guided(guidance: f64) -> bool {
    guidance.to_bits() != NO_GUIDANCE.to_bits()
}

/// The options of a pass, and those of the sampler after them.
pub(crate) const fn with_sampler<const OWN: usize, const ALL: usize>(
    own: [(&'static str, &'static str); OWN],
) -> [(&'static str, &'static str); ALL] {
    assert!(ALL == OWN + SamplerOptions::DOCS.len());
    let mut all = [("", ""); ALL];
    let mut at = 0;
    while at < ALL {
        all[at] = if at < OWN {
            own[at]
        } else {
            SamplerOptions::DOCS[at - OWN]
        };
        at += 1;
    }
    all
}

/// Steps from one full one to the next, unless something else is asked for.
pub(super) const INTERVAL: f64 = 2.0;

/// Options of `skip`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkipOptions {
    /// A schedule, as `dlc.yaml` has it under `sampling.schedule`, or a bundle's `dlc.yaml` itself.
    pub schedule: Option<PathBuf>,
    /// Everything every so many steps; may be a fraction. Every second one where nothing else is
    /// asked for.
    pub interval: Option<f64>,
    /// What is computed is drawn at random, up to `macs`.
    pub random: bool,
    /// Share of the multiply-adds to keep.
    pub macs: Option<f64>,
    /// Seed of `random`.
    pub seed: u64,
    /// The rest.
    #[serde(flatten)]
    pub sampler: SamplerOptions,
}

impl SkipOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &with_sampler::<5, 12>([
        (
            "schedule",
            "file with a schedule: what another bundle's dlc.yaml has under sampling.schedule, or that file itself",
        ),
        (
            "interval",
            "compute everything every N steps, nothing between (feature caching); may be a fraction (default 2)",
        ),
        (
            "macs",
            "share of the multiply-adds to keep; evenly spread full steps, or with random=true anything",
        ),
        (
            "random",
            "true: draw what is computed at random, up to macs",
        ),
        ("seed", "seed of random (default 0)"),
    ]);

    /// Refuses options that contradict each other or are out of range.
    pub(crate) fn check(&self, pass: &'static str) -> Result<(), PassError> {
        let fail = |problem: &str| {
            Err(PassError::Options {
                pass,
                problem: problem.into(),
            })
        };
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
        if self
            .interval
            .is_some_and(|n| !(1.0..=10_000.0).contains(&n))
        {
            return fail("interval must be 1 or more");
        }
        check_share(pass, self.macs)
    }
}

/// Refuses a share of multiply-adds that is none.
pub(crate) fn check_share(pass: &'static str, share: Option<f64>) -> Result<(), PassError> {
    match share {
        Some(share) if !(share > 0.0 && share <= 1.0) => Err(PassError::Options {
            pass,
            problem: format!("macs={share} is not a share between 0 and 1"),
        }),
        _ => Ok(()),
    }
}
