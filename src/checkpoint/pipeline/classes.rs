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
    /// The graphs that are made of it.
    pub graphs: &'static [PartGraph],
    /// Whether the denoiser is compiled alone where the component is of another class.
    pub optional: bool,
}

/// A graph of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartGraph {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub role: Role,
}

/// What a graph of a component does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads texts.
    Text(TextRole),
    /// Makes pictures of latents.
    Decoder(VaeRole),
    /// Makes latents of pictures.
    Encoder(VaeRole),
}

/// What a pipeline heeds of the configuration of an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaeRole {
    /// `latents_mean` and `latents_std`.
    pub statistics: bool,
    /// `force_upcast`: in half precision the autoencoder still computes in single precision.
    pub upcast: bool,
}

impl VaeRole {
    const PLAIN: Self = Self {
        statistics: false,
        upcast: false,
    };
    const XL: Self = Self {
        statistics: true,
        upcast: true,
    };
}

impl Role {
    /// What is heeded of an autoencoder; of others nothing.
    pub fn vae(self) -> VaeRole {
        match self {
            Self::Decoder(vae) | Self::Encoder(vae) => vae,
            Self::Text(_) => VaeRole::PLAIN,
        }
    }
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

const AUTOENCODERS: &[&str] = &["AutoencoderKL", "AutoencoderTiny"];

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

const fn text_encoder(classes: &'static [&'static str], graphs: &'static [PartGraph]) -> PartRow {
    PartRow {
        component: "text_encoder",
        classes,
        graphs,
        optional: false,
    }
}

const fn reads(name: &'static str, role: Role) -> [PartGraph; 1] {
    [PartGraph { name, role }]
}

const fn both_ways(vae: VaeRole) -> [PartGraph; 2] {
    [
        PartGraph {
            name: Diffusion::IMAGE_DECODER,
            role: Role::Decoder(vae),
        },
        PartGraph {
            name: Diffusion::IMAGE_ENCODER,
            role: Role::Encoder(vae),
        },
    ]
}

const fn autoencoder(component: &'static str, graphs: &'static [PartGraph]) -> PartRow {
    PartRow {
        component,
        classes: AUTOENCODERS,
        graphs,
        optional: false,
    }
}

const VAE: PartRow = autoencoder("vae", &both_ways(VaeRole::PLAIN));
const T5: &[&str] = &["T5EncoderModel"];

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
            text_encoder(
                &["CLIPTextModel"],
                &reads(Diffusion::TEXT_ENCODER, clip(TOKENIZER, TextEncoder::LAST)),
            ),
            VAE,
        ],
    ),
    Class {
        zeros_without_negative: Some(true),
        ..class(
            "StableDiffusionXLPipeline",
            &[
                text_encoder(
                    &["CLIPTextModel"],
                    &reads(
                        Diffusion::TEXT_ENCODER,
                        clip(TOKENIZER, TextEncoder::PENULTIMATE),
                    ),
                ),
                PartRow {
                    component: "text_encoder_2",
                    ..text_encoder(
                        &["CLIPTextModelWithProjection"],
                        &reads(
                            Diffusion::SECOND_TEXT_ENCODER,
                            clip("tokenizer_2", TextEncoder::PENULTIMATE),
                        ),
                    )
                },
                autoencoder("vae", &both_ways(VaeRole::XL)),
            ],
        )
    },
    Class {
        note: Some(CAPTIONS),
        ..class(
            "PixArtAlphaPipeline",
            &[
                text_encoder(T5, &reads(Diffusion::TEXT_ENCODER, t5(120))),
                VAE,
            ],
        )
    },
    Class {
        note: Some(CAPTIONS),
        ..class(
            "PixArtSigmaPipeline",
            &[
                text_encoder(T5, &reads(Diffusion::TEXT_ENCODER, t5(300))),
                VAE,
            ],
        )
    },
    class("DiTPipeline", &[VAE]),
    class("DDPMPipeline", &[]),
    class("DDIMPipeline", &[]),
    class("PNDMPipeline", &[]),
    class(
        "LDMPipeline",
        &[PartRow {
            optional: true,
            ..autoencoder("vqvae", &both_ways(VaeRole::PLAIN))
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
        let graphs = self.parts.iter().flat_map(|row| row.graphs);
        graphs.filter_map(|graph| match graph.role {
            Role::Text(text) => Some(text.tokenizer),
            Role::Decoder(_) | Role::Encoder(_) => None,
        })
    }
}
