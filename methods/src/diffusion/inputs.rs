//! The names of a denoiser's inputs: those of diffusers' classes.

/// The noisy images of a transformer.
pub const HIDDEN_STATES: &str = "hidden_states";
/// The noisy images of a U-Net.
pub const SAMPLE: &str = "sample";
/// The noise level.
pub const TIMESTEP: &str = "timestep";
/// The class of each image.
pub const CLASS_LABELS: &str = "class_labels";
/// The states of a text.
pub const TEXT: &str = "encoder_hidden_states";
/// Which tokens of the text count.
pub const TEXT_MASK: &str = "encoder_attention_mask";
/// The pooled text of Stable Diffusion XL.
pub const POOLED_TEXT: &str = "text_embeds";
/// The sizes and the crop of Stable Diffusion XL.
pub const TIME_IDS: &str = "time_ids";
/// Height and width in `PixArt`.
pub const RESOLUTION: &str = "resolution";
/// Height over width in `PixArt`.
pub const ASPECT_RATIO: &str = "aspect_ratio";

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenoiserInput {
    /// The noisy images.
    Image,
    /// The noise level.
    Timestep,
    /// The class of each image.
    Class,
    /// What else the image is conditioned on.
    Conditioning,
}

impl DenoiserInput {
    /// What the input called `name` is for.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            HIDDEN_STATES | SAMPLE => Self::Image,
            TIMESTEP => Self::Timestep,
            CLASS_LABELS => Self::Class,
            _ => Self::Conditioning,
        }
    }
}
