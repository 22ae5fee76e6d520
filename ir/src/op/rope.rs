//! Rotary positions.

/// Rotary position embedding on the two halves of each head (Hugging Face's `rotate_half` layout).
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
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
        let dim = self.rotary_dim.unwrap_or(head_dim);
        (0..dim.div_ceil(2))
            .map(|i| {
                let exponent = (2 * i) as f32 / dim as f32;
                let frequency = 1.0 / (self.theta as f32).powf(exponent);
                self.scaling.apply(f64::from(frequency)) as f32
            })
            .collect()
    }
}

impl Rope {
    /// The [`frequencies`](Self::frequencies) of sequences of `length` tokens.
    pub fn frequencies_at(&self, head_dim: usize, length: usize) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let RopeScaling::Dynamic { factor, original } = self.scaling else {
            return frequencies;
        };
        let stretch = (factor * length as f64 / original as f64 - (factor - 1.0)).max(1.0) as f32;
        let exponents = self.exponents(head_dim);
        frequencies
            .into_iter()
            .zip(exponents)
            .map(|(frequency, exponent)| frequency * stretch.powf(exponent))
            .collect()
    }

    /// To which powers of the stretch of dynamic NTK frequencies go along: the base grows by its
    /// `dim / (dim - 2)`-th power.
    pub fn exponents(&self, head_dim: usize) -> Vec<f32> {
        let dim = self.rotary_dim.unwrap_or(head_dim);
        (0..dim.div_ceil(2))
            .map(|i| -((2 * i) as f32) / dim.saturating_sub(2).max(1) as f32)
            .collect()
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None | Self::Dynamic { .. } => frequency,
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
