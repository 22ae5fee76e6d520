//! What says how a U-Net is built.

use dlc_ir::{Diffusion, TimestepEmbedding};

/// A U-Net.
#[derive(Debug, Clone)]
pub(super) struct UnetSpec {
    pub(super) diffusion: Diffusion,
    /// Channels of each stage on the way down.
    pub(super) channels: Vec<usize>,
    /// Resnets of each stage on the way down; on the way up there is one more.
    pub(super) layers: Vec<usize>,
    /// What follows each resnet of a stage on the way down, in the middle, and on the way up.
    pub(super) down: Vec<Mixer>,
    /// Nothing where there is no middle.
    pub(super) middle: Option<Mixer>,
    pub(super) up: Vec<Mixer>,
    /// Zeros around the image where it is halved: 1 on all sides, or 0 for one row below and one
    /// column on the right.
    pub(super) downsample_padding: usize,
    pub(super) groups: usize,
    /// Groups of the norm before attention in the middle, if that has another number.
    pub(super) middle_groups: usize,
    pub(super) eps: f32,
    /// Sides of the first and the last kernel; odd.
    pub(super) kernels: [usize; 2],
    pub(super) sinusoids: TimestepEmbedding,
    /// Width of the embedded noise level.
    pub(super) embedding: usize,
    pub(super) addition: Option<TextTime>,
}

/// What mixes places of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mixer {
    /// Nothing does.
    None,
    /// One layer of attention to the image itself.
    Attention { heads: usize },
    /// Transformer layers that attend to the image and to the text.
    Transformer {
        heads: usize,
        layers: usize,
        text_width: usize,
        linear: bool,
    },
}

/// What SDXL adds to the noise level: a vector for the whole text, and sizes (Podell et al., 2023, 2.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct TextTime {
    /// Width of the text's vector.
    pub(super) text: usize,
    /// How many sizes.
    pub(super) sizes: usize,
    pub(super) sinusoids: TimestepEmbedding,
}
