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
    /// `x [..., width]`, `scale [width]`, `bias [width]` -> `(x - mean) / sqrt(variance + eps) * scale + bias` over the last axis (Ba et al., 2016).
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `ids i64[batch, seq]` -> `i64[batch, seq]`, the row of each token in a table of learned positions: 0, 1, 2 ...
    Positions {
        /// `RoBERTa`'s count (Liu et al., 2019): this token has the position of its own id, the others are numbered from there on.
        padding: Option<u32>,
    },
    /// `x [batch, seq, heads * head_dim]`, `positions i64[batch, seq]` -> rotated `x` (Su et al., 2021).
    Rope(Rope),
    /// Causal attention with cached keys and values, or attention in both directions, see [`Attention`].
    Attention(Attention),
    /// What relative positions add to attention's scores, see [`DisentangledBias`].
    DisentangledBias(DisentangledBias),
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the normal distribution's Phi (Hendrycks and Gimpel, 2016).
    Gelu {
        /// Phi by the hyperbolic tangent of a cubic (`gelu_new`, `gelu_pytorch_tanh`) instead of the error function.
        tanh: bool,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// Negative entries become 0.
    Relu,
    /// Every entry times a number.
    Scale {
        /// The number.
        factor: f32,
    },
    /// Product, entry by entry, of `a [..., width]` with `b` of the same shape or `[width]`.
    Mul,
    /// Sum, entry by entry, of `a [..., width]` with `b` of the same shape or `[width]`.
    Add,
    /// Entries `start .. start + len` of one axis.
    Slice {
        /// The axis, from 0.
        axis: usize,
        /// The first entry.
        start: usize,
        /// How many entries; 1 or more.
        len: usize,
    },
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
            Self::LayerNorm { .. } => "layer_norm",
            Self::Positions { .. } => "positions",
            Self::Rope(_) => "rope",
            Self::Attention(_) => "attention",
            Self::DisentangledBias(_) => "disentangled_bias",
            Self::Silu => "silu",
            Self::Gelu { .. } => "gelu",
            Self::Tanh => "tanh",
            Self::Relu => "relu",
            Self::Scale { .. } => "scale",
            Self::Mul => "mul",
            Self::Add => "add",
            Self::Slice { .. } => "slice",
            Self::Reshape { .. } => "reshape",
            Self::Cast { .. } => "cast",
        }
    }
}

/// Attention: causal over cached and new keys, or in both directions.
///
/// Causal: `q [batch, seq, heads * head_dim]`, `k` and `v [batch, seq, kv_heads * head_dim]`, `mask i64[batch, past+seq]` (1: a token, 0: padding),
/// `past_key` and `past_value [batch, kv_heads, past, head_dim]` ->
/// `[batch, seq, heads * head_dim]`, `present_key` and `present_value [batch, kv_heads, past+seq, head_dim]`.
///
/// In both directions: `q`, `k`, `v` as above, `mask i64[batch, seq]`, optionally `bias [batch, heads, seq, seq]` that is added to the scores ->
/// `[batch, seq, heads * head_dim]`. A token sees all tokens whose mask is 1. There is no window and no cap.
///
/// Query head `h` reads key/value head `h / (heads / kv_heads)` (Ainslie et al., 2023). Causally, a token sees itself and the tokens before it whose mask is 1;
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
    /// Scores `s` become `cap * tanh(s / cap)` before the mask is applied (Gemma 2).
    pub softcap: Option<f32>,
    /// Whether later tokens are hidden.
    pub causal: bool,
}

/// The part of `DeBERTa`'s scores that depends on relative positions (He et al., 2021, equation 4), to be added to those of [`Attention`].
///
/// Inputs: `q` and `k [batch, seq, heads * head_dim]`, then `pos_k [2 span, heads * head_dim]` with `c2p` and `pos_q` of the same shape with `p2c`.
/// Output: `[batch, heads, seq, seq]`, at query `i` and key `j` the sum of `scale q_i . pos_k_r` and `scale k_j . pos_q_r`, `r` being the
/// [`row`](Self::row) of the distance `i - j`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DisentangledBias {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// Half the number of rows of the tables; rows further out are those at the ends.
    pub span: usize,
    /// Distances from `span / 2` on share rows logarithmically, up to this one (`DeBERTa` v2 and v3); then `span` is even.
    pub log_until: Option<usize>,
    /// Whether content looks at positions.
    pub c2p: bool,
    /// Whether positions look at content.
    pub p2c: bool,
}

impl DisentangledBias {
    /// The row of the tables for `distance` (query position less key position).
    pub fn row(&self, distance: i64) -> usize {
        let bucket = match self.log_until {
            Some(until) => log_bucket(distance, self.span / 2, until),
            None => distance,
        };
        let (span, last) = (self.span as i64, 2 * self.span as i64 - 1);
        bucket.saturating_add(span).clamp(0, last) as usize
    }

    /// The distance beyond which [`row`](Self::row) doesn't change, on either side.
    pub fn reach(&self) -> usize {
        self.log_until.unwrap_or(self.span).max(self.span)
    }
}

/// transformers' `make_log_bucket_position`, in single precision as there.
fn log_bucket(distance: i64, mid: usize, until: usize) -> i64 {
    let size = distance.unsigned_abs();
    if size <= mid as u64 {
        return distance;
    }
    let mid_f = mid as f32;
    let share = (size as f32 / mid_f).ln() / ((until as f32 - 1.0) / mid_f).ln();
    let bucket = (share * (mid_f - 1.0)).ceil() as i64 + mid as i64;
    bucket * distance.signum()
}

/// Rotary position embedding on the two halves of each head (Hugging Face's `rotate_half` layout).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Number of heads in the last axis.
    pub heads: usize,
    /// The rotary dimension: how many entries at the start of each head are rotated (one more if odd); all if absent.
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
}

impl Rope {
    /// How many entries of a head of width `head_dim` are rotated.
    pub fn rotated(&self, head_dim: usize) -> usize {
        self.rotary_dim.map_or(head_dim, |dim| dim.saturating_add(dim % 2))
    }

    /// The angular frequencies, one for two [rotated](Self::rotated) entries, radians per position, as transformers computes them (in single
    /// precision).
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
