//! The classes of pipelines of diffusers: which components are compiled, what of, and how prompts
//! are read. The one place where a pipeline is declared.

use dlc_ir::{Diffusion, TextEncoder};

/// A class of pipelines.
#[derive(Debug)]
pub(super) struct Class {
    pub name: &'static str,
    /// The components beside the denoiser that are compiled with it.
    pub parts: &'static [PartRow],
    /// What `force_zeros_for_empty_prompt` of `model_index.json` is where it is absent; none for
    /// classes that don't know it.
    pub zeros_without_negative: Option<bool>,
    /// What the pipeline of diffusers does and dlc doesn't.
    pub note: Option<&'static str>,
}

/// A component beside the denoiser.
#[derive(Debug)]
pub struct PartRow {
    /// Its name in `model_index.json`, which is that of its folder.
    pub component: &'static str,
    /// Its classes that are compiled.
    pub classes: &'static [&'static str],
    /// The graph that is made of it.
    pub graph: &'static str,
    /// What it does.
    pub role: Role,
    /// Whether the denoiser is compiled alone where the component is of another class.
    pub optional: bool,
}

/// What a component does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads texts.
    Text(TextRole),
    /// Makes pictures of latents.
    Decoder {
        /// Whether the pipeline heeds `latents_mean` and `latents_std`.
        statistics: bool,
    },
}

/// How a pipeline reads texts with an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRole {
    /// The component with the tokenizer's files, and its folder.
    pub tokenizer: &'static str,
    /// The states that it takes: [`TextEncoder::LAST`] or [`TextEncoder::PENULTIMATE`].
    pub states: &'static str,
    /// Tokens of every text; none for as many as tokenizer and encoder take.
    pub length: Option<usize>,
    /// Whether padding is hidden.
    pub masked: bool,
    /// Whether texts are read in lower case, less the spaces around them.
    pub lower_case: bool,
}

/// The component with the tokenizer of the first text encoder, whose files a bundle takes over under
/// their own names.
pub(super) const TOKENIZER: &str = "tokenizer";

impl TextRole {
    /// The folder of the tokenizer's files in a bundle; empty for the bundle itself.
    pub fn folder(&self) -> &'static str {
        if self.tokenizer == TOKENIZER {
            ""
        } else {
            self.tokenizer
        }
    }
}

/// Of `_text_preprocessing` of `PixArt`'s pipelines.
const CAPTIONS: &str = "prompts are read in lower case and not cleaned of links, markup and the like, as diffusers reads them with clean_caption=False, which isn't its default";

const DECODERS: &[&str] = &["AutoencoderKL", "AutoencoderTiny"];

const fn clip(tokenizer: &'static str, states: &'static str) -> Role {
    Role::Text(TextRole {
        tokenizer,
        states,
        length: None,
        masked: false,
        lower_case: false,
    })
}

/// Whole texts of so many tokens, in lower case.
const fn t5(length: usize) -> Role {
    Role::Text(TextRole {
        tokenizer: TOKENIZER,
        states: TextEncoder::LAST,
        length: Some(length),
        masked: true,
        lower_case: true,
    })
}

const fn text_encoder(class: &'static [&'static str], role: Role) -> PartRow {
    PartRow {
        component: "text_encoder",
        classes: class,
        graph: Diffusion::TEXT_ENCODER,
        role,
        optional: false,
    }
}

const fn decoder(component: &'static str, statistics: bool) -> PartRow {
    PartRow {
        component,
        classes: DECODERS,
        graph: Diffusion::IMAGE_DECODER,
        role: Role::Decoder { statistics },
        optional: false,
    }
}

const fn class(name: &'static str, parts: &'static [PartRow]) -> Class {
    Class {
        name,
        parts,
        zeros_without_negative: None,
        note: None,
    }
}

pub(super) static CLASSES: [Class; 9] = [
    class(
        "StableDiffusionPipeline",
        &[
            text_encoder(&["CLIPTextModel"], clip(TOKENIZER, TextEncoder::LAST)),
            decoder("vae", false),
        ],
    ),
    Class {
        zeros_without_negative: Some(true),
        ..class(
            "StableDiffusionXLPipeline",
            &[
                text_encoder(
                    &["CLIPTextModel"],
                    clip(TOKENIZER, TextEncoder::PENULTIMATE),
                ),
                PartRow {
                    component: "text_encoder_2",
                    graph: Diffusion::SECOND_TEXT_ENCODER,
                    ..text_encoder(
                        &["CLIPTextModelWithProjection"],
                        clip("tokenizer_2", TextEncoder::PENULTIMATE),
                    )
                },
                decoder("vae", true),
            ],
        )
    },
    Class {
        note: Some(CAPTIONS),
        ..class(
            "PixArtAlphaPipeline",
            &[
                text_encoder(&["T5EncoderModel"], t5(120)),
                decoder("vae", false),
            ],
        )
    },
    Class {
        note: Some(CAPTIONS),
        ..class(
            "PixArtSigmaPipeline",
            &[
                text_encoder(&["T5EncoderModel"], t5(300)),
                decoder("vae", false),
            ],
        )
    },
    class("DiTPipeline", &[decoder("vae", false)]),
    class("DDPMPipeline", &[]),
    class("DDIMPipeline", &[]),
    class("PNDMPipeline", &[]),
    class(
        "LDMPipeline",
        &[PartRow {
            optional: true,
            ..decoder("vqvae", false)
        }],
    ),
];

impl Class {
    /// The class called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        CLASSES.iter().find(|class| class.name == name)
    }

    /// The names of all.
    pub fn names() -> Vec<&'static str> {
        CLASSES.iter().map(|class| class.name).collect()
    }

    /// The components with the tokenizers of its text encoders, each once.
    pub fn tokenizers(&self) -> impl Iterator<Item = &'static str> + Clone + use<'_> {
        self.parts.iter().filter_map(|row| match row.role {
            Role::Text(text) => Some(text.tokenizer),
            Role::Decoder { .. } => None,
        })
    }
}
