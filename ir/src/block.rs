//! Blocks: the named regions of a graph that are dropped, reused or scored.

use crate::index::ValueId;

/// What a block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// Mixes positions.
    Attention,
    /// Mixes in another sequence: a text into an image.
    CrossAttention,
    /// Works on each position by itself.
    Mlp,
    /// Both, of one input: attention and MLP side by side (GPT-J, GPT-NeoX).
    Parallel,
    /// Both kinds of attention and an MLP one after the other, as often as need be: what a U-Net
    /// has between its convolutions.
    Transformer,
    /// Convolutions around which the input is led, through a convolution itself where the number of
    /// channels changes.
    Resnet,
    /// Makes an image smaller or larger. There is no way around it.
    Sampling,
}

impl BlockKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Attention,
        Self::CrossAttention,
        Self::Mlp,
        Self::Parallel,
        Self::Transformer,
        Self::Resnet,
        Self::Sampling,
    ];

    /// Whether positions are mixed by attention.
    pub fn has_attention(self) -> bool {
        matches!(
            self,
            Self::Attention | Self::CrossAttention | Self::Parallel | Self::Transformer
        )
    }

    /// Whether the output of such a block always has the type of its input.
    pub fn keeps_type(self) -> bool {
        !matches!(self, Self::Resnet | Self::Sampling)
    }

    /// The name in block names and in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attn",
            Self::CrossAttention => "cross_attn",
            Self::Mlp => "mlp",
            Self::Parallel => "parallel",
            Self::Transformer => "transformer",
            Self::Resnet => "resnet",
            Self::Sampling => "sample",
        }
    }
}

/// A region with one residual input and one output: the unit that is dropped, reused or scored.
///
/// Most are `output = input + f(input)`, in post-norm models with the norm of the sum. Of a U-Net,
/// [`BlockKind::Resnet`] is that only where it keeps the number of channels, and
/// [`BlockKind::Sampling`] never is. A block may read other values too: the embedding of the noise
/// level, a text, and on a U-Net's way up an output of the way down, which its nodes put after the
/// residual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Name: `layers.7.attn`, `up.1.resnet.0`.
    pub name: String,
    /// What it computes.
    pub kind: BlockKind,
    /// The layer of the checkpoint. Of a U-Net, its stage: `down.0`, `down.1` ..., `mid`, `up.0`
    /// ... are numbered from 0.
    pub layer: u32,
    /// The residual that comes in.
    pub input: ValueId,
    /// The residual that goes out.
    pub output: ValueId,
}
