//! The closed set of ops, at the level at which people talk about models.

use crate::types::{DType, Shape};

/// What a node does to its inputs. Shapes are in [`Graph`](crate::Graph) notation, `...` standing for any leading axes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `table [n, width]`, `ids i64[...]` -> `[..., width]`: rows of an embedding.
    Gather,
    /// `x [..., in]`, `weight [out, in]`, optional `bias [out]` -> `x weight' + bias`, `[..., out]`.
    Linear,
    /// `x [..., width]`, `scale [width]` -> `x / sqrt(mean(x^2) + eps) * scale` (Zhang and Sennrich, 2019).
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// `x [batch, seq, heads * head_dim]`, `positions i64[batch, seq]` -> rotated `x` (Su et al., 2021).
    Rope(Rope),
    /// Causal attention with cached keys and values, see [`Attention`].
    Attention(Attention),
    /// `x * sigmoid(x)`.
    Silu,
    /// Product, entry by entry, of two values of one shape.
    Mul,
    /// Sum, entry by entry, of two values of one shape.
    Add,
    /// The same elements under another shape.
    Reshape {
        /// The new shape; holds as many elements as the old one.
        shape: Shape,
    },
    /// The same numbers, rounded to another float type.
    Cast {
        /// The new element type.
        dtype: DType,
    },
}

impl Op {
    /// The op's name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gather => "gather",
            Self::Linear => "linear",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Rope(_) => "rope",
            Self::Attention(_) => "attention",
            Self::Silu => "silu",
            Self::Mul => "mul",
            Self::Add => "add",
            Self::Reshape { .. } => "reshape",
            Self::Cast { .. } => "cast",
        }
    }
}

/// Causal attention over cached and new keys.
///
/// Inputs: `q [batch, seq, heads * head_dim]`, `k` and `v [batch, seq, kv_heads * head_dim]`, `mask i64[batch, past+seq]` (1: a token, 0: padding),
/// `past_key` and `past_value [batch, kv_heads, past, head_dim]`.
/// Outputs: `[batch, seq, heads * head_dim]`, `present_key` and `present_value [batch, kv_heads, past+seq, head_dim]`.
///
/// Query head `h` reads key/value head `h / (heads / kv_heads)` (Ainslie et al., 2023). A token sees itself and the tokens before it whose mask is 1;
/// with a window, only the last `window` of these (itself included), counted over the tokens whose mask is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor on the dot products, before the softmax.
    pub scale: f32,
    /// How many tokens a token sees, itself included; all if absent.
    pub window: Option<usize>,
}

/// Rotary position embedding on the two halves of each head (Hugging Face's `rotate_half` layout).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Number of heads in the last axis.
    pub heads: usize,
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
}

impl Rope {
    /// The `head_dim / 2` angular frequencies, radians per position, as transformers computes them (in single precision).
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                let frequency = 1.0 / (self.theta as f32).powf(exponent);
                self.scaling.apply(f64::from(frequency)) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original } => {
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
