//! Rotary positions.

use std::f64::consts::TAU;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Rotary position embedding on the two halves of each head (Hugging Face's `rotate_half` layout).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Number of heads in the last axis.
    pub heads: usize,
    /// The rotary dimension: how many entries at the start of each head are rotated (one more if
    /// odd); all if absent.
    pub rotary_dim: Option<usize>,
    /// Base of the geometric row of wavelengths.
    pub theta: f64,
    /// Change to the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are short.
        high: f64,
        /// The context length trained on, in tokens.
        original: usize,
    },
    /// Dynamic NTK: nothing up to the length trained on; beyond it the base grows with the length
    /// of the sequence, which is one more than the largest position.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The context length trained on, in tokens.
        original: usize,
    },
    /// `YaRN` (arXiv 2309.00071): frequencies of few turns within the length trained on divided by
    /// `factor`, those of many kept, those between blended along a ramp.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// From this many turns on a frequency is kept.
        fast: f64,
        /// Up to this many turns a frequency is divided.
        slow: f64,
        /// The context length trained on, in tokens.
        original: usize,
        /// Whether the ramp begins and ends at whole frequencies.
        truncate: bool,
        /// Factor on cosines and sines.
        attention: f64,
    },
    /// `LongRoPE` (arXiv 2402.13753): each frequency divided by its own factor, of one list for
    /// sequences up to the length trained on, of another for those beyond it. The length is one
    /// more than the largest position.
    LongRope {
        /// The divisors up to the length trained on, one for each frequency.
        short: Arc<[f64]>,
        /// Those beyond it.
        long: Arc<[f64]>,
        /// The context length trained on, in tokens.
        original: usize,
        /// Factor on cosines and sines.
        attention: f64,
    },
}

/// How rotations depend on where a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthRotation {
    /// The length trained on: calls that end within it rotate alike.
    pub trained: usize,
    /// Whether calls that end beyond it rotate each in its own way (dynamic NTK), or all alike
    /// (`LongRoPE`).
    pub grows: bool,
}

impl Rope {
    /// How many entries of a head of width `head_dim` are rotated.
    pub fn rotated(&self, head_dim: usize) -> usize {
        self.rotary_dim
            .map_or(head_dim, |dim| dim.saturating_add(dim % 2))
    }

    /// The angular frequencies, one for two [rotated](Self::rotated) entries, radians per position,
    /// as transformers computes them (in single precision); those of sequences up to the length
    /// trained on, if they change with the length.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::LongRope { short, .. } => self.divided(head_dim, short),
            RopeScaling::Yarn { .. } => self.blended(head_dim),
            scaling => {
                let scaled = |x: f32| scaling.apply(f64::from(1.0 / x)) as f32;
                self.wavelengths(head_dim).map(scaled).collect()
            }
        }
    }

    /// The [`frequencies`](Self::frequencies) of sequences of `length` tokens.
    pub fn frequencies_at(&self, head_dim: usize, length: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::LongRope { long, original, .. } if length > *original => {
                self.divided(head_dim, long)
            }
            RopeScaling::Dynamic { factor, original } => {
                let stretch = factor * length as f64 / *original as f64 - (factor - 1.0);
                let stretch = stretch.max(1.0) as f32;
                self.frequencies(head_dim)
                    .into_iter()
                    .zip(self.exponents(head_dim))
                    .map(|(frequency, exponent)| frequency * stretch.powf(exponent))
                    .collect()
            }
            _ => self.frequencies(head_dim),
        }
    }

    /// How the frequencies change with the length of the sequence, if they do.
    pub fn length_rotation(&self) -> Option<LengthRotation> {
        match self.scaling {
            RopeScaling::Dynamic { original, .. } => Some(LengthRotation {
                trained: original,
                grows: true,
            }),
            RopeScaling::LongRope { original, .. } => Some(LengthRotation {
                trained: original,
                grows: false,
            }),
            _ => None,
        }
    }

    /// Whether the frequencies change with the length of the sequence.
    pub fn changes_with_length(&self) -> bool {
        self.length_rotation().is_some()
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => {
                attention as f32
            }
            _ => 1.0,
        }
    }

    /// To which powers of the stretch of dynamic NTK frequencies go along: the base grows by its
    /// `dim / (dim - 2)`-th power.
    pub fn exponents(&self, head_dim: usize) -> Vec<f32> {
        let dim = self.dim(head_dim);
        (0..dim.div_ceil(2))
            .map(|i| -((2 * i) as f32) / dim.saturating_sub(2).max(1) as f32)
            .collect()
    }

    fn dim(&self, head_dim: usize) -> usize {
        self.rotary_dim.unwrap_or(head_dim)
    }

    /// The inverses of the frequencies that nothing scales.
    fn wavelengths(&self, head_dim: usize) -> impl Iterator<Item = f32> {
        let (dim, theta) = (self.dim(head_dim), self.theta as f32);
        (0..dim.div_ceil(2)).map(move |i| theta.powf((2 * i) as f32 / dim as f32))
    }

    /// The frequencies, each divided by its own factor.
    fn divided(&self, head_dim: usize, factors: &[f64]) -> Vec<f32> {
        self.wavelengths(head_dim)
            .zip(factors)
            .map(|(wavelength, factor)| 1.0 / (*factor as f32 * wavelength))
            .collect()
    }

    /// The frequencies of `YaRN`.
    fn blended(&self, head_dim: usize) -> Vec<f32> {
        let RopeScaling::Yarn { factor, .. } = self.scaling else {
            return Vec::new();
        };
        let (low, width) = self.ramp(head_dim);
        let blend = |(i, wavelength): (usize, f32)| {
            let kept = 1.0 - ((i as f32 - low) / width).clamp(0.0, 1.0);
            1.0 / (factor as f32 * wavelength) * (1.0 - kept) + 1.0 / wavelength * kept
        };
        self.wavelengths(head_dim).enumerate().map(blend).collect()
    }

    /// Where `YaRN`'s ramp begins and how wide it is, counted in frequencies.
    fn ramp(&self, head_dim: usize) -> (f32, f32) {
        let RopeScaling::Yarn {
            fast,
            slow,
            original,
            truncate,
            ..
        } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let dim = self.dim(head_dim) as f64;
        let at =
            |turns: f64| dim * (original as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(fast), at(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // transformers keeps the ramp from standing upright.
        if (high - low).abs() < f64::MIN_POSITIVE {
            high += 0.001;
        }
        (low as f32, (high - low) as f32)
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None | Self::Dynamic { .. } | Self::Yarn { .. } | Self::LongRope { .. } => {
                frequency
            }
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let (wavelength, original) = (std::f64::consts::TAU / frequency, original as f64);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
