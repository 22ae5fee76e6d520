//! The schedulers that there are, and their names.

use dlc_errors::printable::shown;

use super::error::SchedulerError;
use crate::Result;

/// A scheduler that dlc samples with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerKind {
    /// DDIM with eta 0.
    Ddim,
    /// PNDM: PLMS after a warm-up.
    Pndm,
    /// Euler's method without churn.
    Euler,
    /// Heun's method.
    Heun,
    /// The linear multistep method.
    Lms,
    /// DPM-Solver++, multistep.
    DpmSolverPlusPlus,
    /// DEIS.
    Deis,
    /// UniPC.
    UniPc,
    /// DDPM, which draws noise at every step.
    Ddpm,
    /// Euler's method with ancestral sampling, likewise.
    EulerAncestral,
    /// Latent consistency models', likewise.
    Lcm,
    /// Euler's method for models trained by flow matching.
    FlowMatchEuler,
}

impl SchedulerKind {
    /// Every scheduler.
    pub const ALL: [Self; 12] = [
        Self::Ddim,
        Self::Pndm,
        Self::Euler,
        Self::Heun,
        Self::Lms,
        Self::DpmSolverPlusPlus,
        Self::Deis,
        Self::UniPc,
        Self::Ddpm,
        Self::EulerAncestral,
        Self::Lcm,
        Self::FlowMatchEuler,
    ];

    /// The name in commands and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Lms => "lms",
            Self::DpmSolverPlusPlus => "dpm-solver++",
            Self::Deis => "deis",
            Self::UniPc => "unipc",
            Self::Ddpm => "ddpm",
            Self::EulerAncestral => "euler-ancestral",
            Self::Lcm => "lcm",
            Self::FlowMatchEuler => "flow-match-euler",
        }
    }

    /// diffusers' name, as in `_class_name`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ddim => "DDIMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::Lms => "LMSDiscreteScheduler",
            Self::DpmSolverPlusPlus => "DPMSolverMultistepScheduler",
            Self::Deis => "DEISMultistepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Ddpm => "DDPMScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Lcm => "LCMScheduler",
            Self::FlowMatchEuler => "FlowMatchEulerDiscreteScheduler",
        }
    }

    /// Whether it is for models trained by flow matching, which the others aren't.
    pub(super) fn flows(self) -> bool {
        self == Self::FlowMatchEuler
    }

    /// The steps of a run that nobody gives a number: few for models that were made for few.
    pub fn default_steps(self) -> usize {
        if self == Self::Lcm { 4 } else { 50 }
    }

    /// The scheduler that a user names, by dlc's name or by diffusers'.
    ///
    /// # Errors
    /// [`SchedulerError::Class`], which lists what there is.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = |kind: &Self| kind.name() == name || kind.class() == name;
        Self::ALL.into_iter().find(known).ok_or_else(|| {
            let near = nearest(
                name,
                Self::ALL
                    .iter()
                    .flat_map(|kind| [kind.name(), kind.class()]),
            );
            let near = near
                .map(|near| format!(" (did you mean {near}?)"))
                .unwrap_or_default();
            SchedulerError::Class(format!(
                "there is no scheduler `{}`{near}. dlc samples with {}",
                shown(name),
                names(|_| true)
            ))
            .into()
        })
    }
}

/// The names in commands of the schedulers that are asked for.
pub(super) fn names(asked: impl Fn(&SchedulerKind) -> bool) -> String {
    let kinds = SchedulerKind::ALL.into_iter().filter(asked);
    kinds
        .map(SchedulerKind::name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The name that is most like `word`, if any is much like it.
pub(super) fn nearest(
    word: &str,
    names: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    const ALIKE: f64 = 0.9;
    let word: String = word.chars().take(64).collect();
    let scored = names
        .map(|name| (strsim::jaro_winkler(&word, name), name))
        .filter(|(score, _)| *score >= ALIKE);
    scored
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
