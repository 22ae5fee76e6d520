//! The closed set of ops, at the level at which people talk about models.

mod experts;
mod kind;
mod quantized;
mod relative;
mod rope;
mod timestep;

pub use experts::Experts;
pub use kind::OpKind;
pub use quantized::GroupFormat;
pub use relative::{BucketedBias, DisentangledBias};
pub use rope::{LengthRotation, Rope, RopeScaling};
pub use timestep::TimestepEmbedding;

use crate::dim::Dim;
use crate::types::{DType, Shape};

/// What a node does to its inputs. Shapes are in [`Graph`](crate::Graph) notation, `...` standing
/// for any leading axes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `table [n, width]`, `ids i64[...]` -> `[..., width]`: rows of an embedding.
    Gather,
    /// `x [..., in]`, `weight [out, in]`, optional `bias [out]` -> `x weight' + bias`,
    /// `[..., out]`.
    Linear,
    /// `x [..., in]`, `codes u8[out, blocks, bytes]`, `scales [out, blocks]`, optional
    /// `zero_points u8[out, bytes]`, optional `bias [out]` -> `x weight' + bias`, `[..., out]`, the
    /// weight being quantised in blocks: see [`GroupFormat`]. Zero points and bias are
    /// distinguished by type.
    QuantizedLinear(GroupFormat),
    /// `codes u8[n, blocks, bytes]`, `scales [n, blocks]`, optional `zero_points u8[n, bytes]`, `ids
    /// i64[...]` -> `[..., width]`: rows of an embedding that is quantised in blocks, none of which
    /// is filled up: see [`GroupFormat`].
    QuantizedGather(GroupFormat),
    /// A mixture of experts, see [`Experts`].
    Experts(Experts),
    /// `x [..., n]`, `columns i64[m]` -> `[..., m]`: entry `columns[j]` of the last axis, minus
    /// infinity where `columns[j]` is `n`.
    GatherColumns,
    /// `x [..., width]`, `scale [width]` -> `x / sqrt(mean(x^2) + eps) * scale` (Zhang and
    /// Sennrich, 2019).
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// `x [..., width]`, optional `scale [width]`, then optional `bias [width]` ->
    /// `(x - mean) / sqrt(variance + eps) * scale + bias` over the last axis (Ba et al., 2016).
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `x [batch, channels, ...]`, `scale [channels]`, `bias [channels]` ->
    /// `(x - mean) / sqrt(variance + eps) * scale + bias`, with mean and variance of each of
    /// `groups` runs of channels (Wu and He, 2018).
    GroupNorm {
        /// How many groups; divides the channels.
        groups: usize,
        /// Added to the variance.
        eps: f32,
    },
    /// `x [batch, in, height, width]`, `weight [out, in, kernel_height, kernel_width]`, optional
    /// `bias [out]` -> `[batch, out, ...]`: the cross-correlation that frameworks call a
    /// convolution.
    Conv2d {
        /// How far apart the outputs lie, on both axes; 1 or more.
        stride: usize,
        /// Zeros put before and after, on both axes.
        padding: [usize; 2],
    },
    /// `x [batch, channels, height, width]` ->
    /// `[batch, channels, factor * height, factor * width]`, every entry repeated. With a second
    /// input `like [batch, ..., height, width]`, cut to its height and width, of which those of `x`
    /// are a `factor`th, rounded up: the nearest neighbours of diffusers' `upsample_size`.
    Upsample {
        /// How often; 1 or more.
        factor: usize,
    },
    /// The sinusoids of noise levels, see [`TimestepEmbedding`].
    TimestepEmbedding(TimestepEmbedding),
    /// `x [..., width]`, `scale` and `shift` that broadcast to it as [`Op::Mul`]'s second operand
    /// does -> `x * (1 + scale) + shift` (Peebles and Xie, 2023: adaptive layer norm).
    Modulate,
    /// `ids i64[batch, seq]` -> `i64[batch, seq]`, the row of each token in a table of learned
    /// positions: 0, 1, 2 ...
    Positions {
        /// `RoBERTa`'s count (Liu et al., 2019): this token has the position of its own id, the
        /// others are numbered from there on.
        padding: Option<u32>,
    },
    /// `x [batch, seq, width]`, `ids i64[batch, seq]` -> `[batch, width]`, the row of the last token
    /// of each text; of a text of padding alone the first.
    LastToken {
        /// The id that isn't any text's last.
        padding: u32,
    },
    /// `x [batch, seq, width]`, `ids i64[batch, seq]` -> `[batch, width]`, the row of the first token
    /// of each text that is `id`, the first row where there is none: what CLIP pools (Radford et
    /// al., 2021).
    FirstToken {
        /// The id; none for the largest id of the text.
        id: Option<u32>,
    },
    /// `x [batch, seq, heads * head_dim]`, `positions i64[batch, seq]` -> rotated `x` (Su et al., 2021).
    Rope(Rope),
    /// Causal attention with cached keys and values, or attention in both directions, see
    /// [`Attention`].
    Attention(Attention),
    /// What relative positions add to attention's scores, see [`DisentangledBias`].
    DisentangledBias(DisentangledBias),
    /// A number for each head and distance, see [`BucketedBias`].
    BucketedBias(BucketedBias),
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the normal distribution's Phi (Hendrycks and Gimpel, 2016).
    Gelu {
        /// Phi by the hyperbolic tangent of a cubic (`gelu_new`, `gelu_pytorch_tanh`) instead of
        /// the error function.
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
    /// Entries below `-limit` become `-limit`, those above `limit` become `limit`.
    Clip {
        /// The largest magnitude; 0 or more.
        limit: f32,
    },
    /// Product, entry by entry, of `a` with `b`, which has the shape of `a` or broadcasts to it:
    /// axes are aligned at the end, and each axis of `b` is as long as that of `a`, or 1.
    Mul,
    /// Sum, entry by entry, of `a` with `b`, which broadcasts as in [`Op::Mul`].
    Add,
    /// Two or more values one after the other, alike but for the length of one axis.
    Concat {
        /// The axis, from 0.
        axis: usize,
    },
    /// The same elements with the axes in another order.
    Transpose {
        /// For each axis of the result the axis of the operand that it is.
        axes: Vec<usize>,
    },
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
    /// The op on values whose `symbol` is another axis.
    #[must_use]
    pub fn substitute(&self, symbol: &str, dim: &Dim) -> Self {
        match self {
            Self::Reshape { shape } => Self::Reshape {
                shape: shape.substitute(symbol, dim),
            },
            other => other.clone(),
        }
    }

    /// Whether it multiplies with quantised matrices.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        match self {
            Self::QuantizedLinear(_) | Self::QuantizedGather(_) => true,
            Self::Experts(experts) => experts.format.is_some(),
            _ => false,
        }
    }

    /// The op's name in the text form.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }
}

/// Attention: causal over cached and new keys, causal over new ones alone, or in both directions.
///
/// Causal: `q [batch, seq, heads * head_dim]`, `k` and `v [batch, seq, kv_heads * head_dim]`,
/// `mask i64[batch, past+seq]` (1: a token, 0: padding), `past_key` and
/// `past_value [batch, kv_heads, past, head_dim]` -> `[batch, seq, heads * head_dim]`,
/// `present_key` and `present_value [batch, kv_heads, past+seq, head_dim]`. Without caches: `q`, `k`,
/// `v`, `mask i64[batch, seq]` -> `[batch, seq, heads * head_dim]`.
///
/// In both directions: `q` as above, `k` and `v [batch, keys, kv_heads * head_dim]`, which may come
/// from another sequence, optionally `mask i64[batch, keys]`, optionally
/// `bias [batch or 1, heads, seq, keys]` that is added to the scores ->
/// `[batch, seq, heads * head_dim]`. A token sees all keys, with a mask all whose mask is 1; with a
/// window, only those less than `window` places before and after it. There is no cap.
///
/// Query head `h` reads key/value head `h / (heads / kv_heads)` (Ainslie et al., 2023). Causally, a
/// token sees itself and the tokens before it whose mask is 1; with a window, only the last
/// `window` of these (itself included), counted over the tokens whose mask is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor on the dot products, before the softmax.
    pub scale: f32,
    /// How many tokens a token sees on a side, itself included; all if absent.
    pub window: Option<usize>,
    /// Scores `s` become `cap * tanh(s / cap)` before the mask is applied (Gemma 2).
    pub softcap: Option<f32>,
    /// Whether later tokens are hidden.
    pub causal: bool,
}
