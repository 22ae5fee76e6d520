//! What a network predicts, and how samplers read the denoised latents and the noise out of it.

use super::reader::ConfigReader;
use crate::diffusion::Estimate;

/// What the network's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise in the latents.
    Epsilon,
    /// The denoised latents.
    Sample,
    /// `sqrt(alpha_bar) * epsilon - sqrt(1 - alpha_bar) * x_0` (Salimans and Ho, *Progressive
    /// Distillation*, section 4).
    Velocity,
}

impl Prediction {
    /// The names in `prediction_type`.
    pub(super) const NAMES: [(&'static str, Self); 3] = [
        ("epsilon", Self::Epsilon),
        ("v_prediction", Self::Velocity),
        ("sample", Self::Sample),
    ];

    /// Reads `prediction_type`, which must be one of `names`, and its forerunner `predict_epsilon`.
    pub(super) fn read(config: &mut ConfigReader<'_>, names: &[(&'static str, Self)]) -> Self {
        if !config.flag("predict_epsilon", true) {
            config.unsupported("predict_epsilon", "is false, as older versions of diffusers wrote it; write `prediction_type`: sample".into());
        }
        config.choice("prediction_type", names, Self::Epsilon)
    }

    /// Coefficients of latents and output in the denoised latents, where the latents are
    /// `signal * x_0 + noise * epsilon`.
    pub(super) fn denoised(self, signal: f64, noise: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (1.0 / signal, -noise / signal),
            Self::Sample => (0.0, 1.0),
            Self::Velocity => (signal, -noise),
        }
    }

    /// How the denoised latents are read where `alpha_bar` is the square of the signal and the squares
    /// of signal and noise add up to 1.
    pub(super) fn estimate(self, alpha_bar: f64, clip: Option<f64>) -> Estimate {
        let (latents, output) = self.denoised(alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        Estimate {
            latents,
            output,
            clip,
        }
    }

    /// Coefficients of latents and output in the noise, where the latents are
    /// `signal * x_0 + noise * epsilon`.
    pub(super) fn epsilon(self, signal: f64, noise: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (0.0, 1.0),
            Self::Sample => (1.0 / noise, -signal / noise),
            Self::Velocity => (noise, signal),
        }
    }
}

/// The limit of the denoised latents, if they are clipped: `clip_sample`, `default` unless the key
/// is there, and `clip_sample_range`.
pub(super) fn clip(config: &mut ConfigReader<'_>, default: bool) -> Option<f64> {
    let range = config
        .number("clip_sample_range", "above 0", |x| x > 0.0)
        .unwrap_or(1.0);
    config.flag("clip_sample", default).then_some(range)
}

/// Refuses `thresholding`.
pub(super) fn refuse_thresholding(config: &mut ConfigReader<'_>) {
    config.refuse("thresholding", "clips each sample at a quantile of its own");
}
