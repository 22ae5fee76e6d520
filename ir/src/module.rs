//! A module: named graphs over one weight table, and what consumers must know about the model.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::index::WeightId;
use crate::prompts::Prompts;
use crate::schedule::Sampling;
use crate::sentence::Sentence;
use crate::types::DType;
use crate::weight::WeightTable;

/// What passes work on.
#[derive(Debug, Clone)]
pub struct Module {
    /// The graphs; the target is first.
    pub graphs: Vec<Graph>,
    /// The weights of every graph.
    pub weights: WeightTable,
    /// Facts about the model that no graph states.
    pub model: ModelInfo,
    /// How the graphs `step.N` make up a sampler, once a pass has made some.
    pub sampling: Option<Sampling>,
    /// How the draft is used best, if the pass that chose it measured that.
    pub drafting: Option<Drafting>,
    /// Files of the checkpoint that a bundle takes over unchanged.
    pub side_files: Vec<SideFile>,
}

/// How a draft is used best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafting {
    /// How many tokens it should guess before the target checks them, if that is known.
    pub draft_tokens: Option<usize>,
    /// How often its guesses should be right, from 0 to 1.
    pub acceptance: f64,
}

/// What a model is for, under the names of Hugging Face's pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Continues a text, a token at a time: a decoder.
    TextGeneration,
    /// Says which token is masked, at every position.
    FillMask,
    /// One class for a text.
    TextClassification,
    /// One class for each token.
    TokenClassification,
    /// Where in a text the answer to a question begins, and where it ends.
    QuestionAnswering,
    /// A vector for each token: an encoder without a head.
    FeatureExtraction,
    /// Says what is noise in a noisy image: one step of a diffusion model, with a text, a class or
    /// nothing to go by.
    ImageGeneration,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 7] = [
        Self::TextGeneration,
        Self::FillMask,
        Self::TextClassification,
        Self::TokenClassification,
        Self::QuestionAnswering,
        Self::FeatureExtraction,
        Self::ImageGeneration,
    ];

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextGeneration => "text-generation",
            Self::FillMask => "fill-mask",
            Self::TextClassification => "text-classification",
            Self::TokenClassification => "token-classification",
            Self::QuestionAnswering => "question-answering",
            Self::FeatureExtraction => "feature-extraction",
            Self::ImageGeneration => "image-generation",
        }
    }

    /// The output that answers; of several the first.
    pub fn output(self) -> &'static str {
        self.outputs().first().copied().unwrap_or_default()
    }

    /// The outputs that answer.
    pub fn outputs(self) -> &'static [&'static str] {
        match self {
            Self::FeatureExtraction => &["last_hidden_state"],
            Self::QuestionAnswering => &["start_logits", "end_logits"],
            // Optimum's name: U-Nets have an input `sample`.
            Self::ImageGeneration => &["out_sample"],
            Self::TextGeneration
            | Self::FillMask
            | Self::TextClassification
            | Self::TokenClassification => &["logits"],
        }
    }
}

/// Facts about a model that consumers of its graphs ask for. A bundle's manifest records them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// `model_type` of the configuration, for diffusers `_class_name`: `llama`, `bert`,
    /// `DiTTransformer2DModel` ...
    pub family: String,
    /// What it is for.
    pub task: Task,
    /// Element type of weights and activations.
    pub dtype: DType,
    /// Names of the classes, for tasks that classify: the last axis of `logits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What the scores of these classes mean.
    #[serde(default, skip_serializing_if = "Scores::is_default")]
    pub scores: Scores,
    /// How the vector of a whole text is made, if the checkpoint says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence: Option<Sentence>,
    /// What sampling images takes; none for models of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<Diffusion>,
    /// How prompts are read, where the module has text encoders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
    /// Number of entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The longest sequence, in tokens, that the model takes.
    pub context_length: usize,
    /// Token put before a text, if the checkpoint names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token for padding, if the checkpoint names one.
    pub pad_token_id: Option<u32>,
}

impl ModelInfo {
    /// Whether it says how well a text answers a query, both read together: it classifies, and has
    /// one class alone.
    pub fn is_cross_encoder(&self) -> bool {
        self.task == Task::TextClassification
            && self.scores == Scores::Numbers
            && self.labels.len() == 1
    }
}

/// What a classifier's scores mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scores {
    /// Exactly one class is true: a softmax makes probabilities of them.
    #[default]
    OneClass,
    /// Each class may be true by itself: a sigmoid does.
    AnyClasses,
    /// They are no probabilities, but what was asked for: regressions, and cross-encoders with one
    /// score.
    Numbers,
}

impl Scores {
    /// Whether they are the default, which files leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a sampler must know of a diffusion model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    /// Channels of the noisy image that goes in.
    pub channels: usize,
    /// Its height, in entries of the latent image: the one that it was trained with.
    pub height: usize,
    /// Its width.
    pub width: usize,
    /// What other heights and widths must be multiples of; none if there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_step: Option<usize>,
    /// Channels of the output, see [`Diffusion::learns_variance`].
    pub out_channels: usize,
    /// The classes, if the model takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// Width of the text's hidden states, if the model takes a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_width: Option<usize>,
}

/// The classes of a diffusion model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    /// How many there are; their ids count from 0.
    pub count: usize,
    /// The id of "no class" for classifier-free guidance, if the model was trained with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconditional: Option<usize>,
}

impl Diffusion {
    /// Classifier-free guidance of models of classes, unless something else is asked for.
    pub const GUIDANCE: f64 = 1.5;
    /// That of models of texts: what `StableDiffusionPipeline` of diffusers takes.
    pub const TEXT_GUIDANCE: f64 = 7.5;
    /// Guidance that changes nothing.
    pub const NO_GUIDANCE: f64 = 1.0;

    /// The graph of the first text encoder, where a module has one, see
    /// [`TextEncoder`](crate::TextEncoder).
    pub const TEXT_ENCODER: &str = "text_encoder";
    /// The graph of the second text encoder.
    pub const SECOND_TEXT_ENCODER: &str = "text_encoder_2";
    /// The graph that makes images of what a sampler leaves, where a module has one:
    /// [`Diffusion::LATENTS`] `[batch, channels, height, width]` -> [`Diffusion::IMAGES`]
    /// `[batch, 3, n * height, n * width]`, mostly within -1 and 1.
    pub const IMAGE_DECODER: &str = "vae_decoder";
    /// The graph that makes of images what a sampler leaves of them, where a module has one:
    /// [`Diffusion::IMAGES`] `[batch, 3, height, width]`, within -1 and 1 -> [`Diffusion::LATENTS`]
    /// `[batch, channels, height / n, width / n]`, the mean of their distribution.
    pub const IMAGE_ENCODER: &str = "vae_encoder";
    /// The input of [`Diffusion::IMAGE_DECODER`], scaled as a sampler leaves it.
    pub const LATENTS: &str = "latents";
    /// The output of [`Diffusion::IMAGE_DECODER`].
    pub const IMAGES: &str = "images";

    /// The symbols of height and width where graphs take any.
    pub const HEIGHT: &str = "height";
    /// See [`Diffusion::HEIGHT`].
    pub const WIDTH: &str = "width";

    /// The numbers of one image, as the sampler has it.
    pub fn numbers(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Pixels of a picture for each entry of the latents, on both axes, where the height of
    /// [`Diffusion::IMAGES`] is written so: 8 of `8*height`.
    pub fn pixels(height: &str) -> Option<usize> {
        match height.strip_suffix(Self::HEIGHT)? {
            "" => Some(1),
            factor => factor.strip_suffix('*')?.parse().ok(),
        }
    }

    /// Whether its graphs take images of this height and width.
    pub fn takes(&self, size: [usize; 2]) -> bool {
        let own = [self.height, self.width];
        self.size_step.map_or(size == own, |step| {
            size.iter()
                .all(|side| *side > 0 && side.is_multiple_of(step))
        })
    }

    /// Whether the second half of the output's channels is a learned variance, which samplers of
    /// diffusers drop.
    pub fn learns_variance(&self) -> bool {
        self.channels.checked_mul(2) == Some(self.out_channels)
    }

    /// Whether classifier-free guidance has something to guide to: a class that the model was
    /// trained without as well, or a text.
    pub fn can_be_guided(&self) -> bool {
        self.classes.map_or(self.text_width.is_some(), |classes| {
            classes.unconditional.is_some()
        })
    }

    /// The strength of classifier-free guidance where none is asked for: [`Self::GUIDANCE`] or
    /// [`Self::TEXT_GUIDANCE`] for models that can be guided, else [`Self::NO_GUIDANCE`].
    pub fn default_guidance(&self) -> f64 {
        if !self.can_be_guided() {
            Self::NO_GUIDANCE
        } else if self.classes.is_some() {
            Self::GUIDANCE
        } else {
            Self::TEXT_GUIDANCE
        }
    }
}

/// A file that a bundle takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name in the bundle.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Module {
    /// Takes `files` as side files, in the place of those of the same names.
    pub fn take_side_files(&mut self, files: Vec<SideFile>) {
        self.side_files
            .retain(|old| !files.iter().any(|new| new.name == old.name));
        self.side_files.extend(files);
    }

    /// The graph with this name.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.graphs.iter().find(|g| g.name == name)
    }

    /// The weights that some graph uses.
    pub fn used_weights(&self) -> BTreeSet<WeightId> {
        self.graphs.iter().flat_map(Graph::weights).collect()
    }

    /// Drops the weights that no graph uses; returns how many these were.
    pub fn remove_unused_weights(&mut self) -> usize {
        let used = self.used_weights();
        let before = self.weights.len();
        let moved = self.weights.retain(|id| used.contains(&id));
        for graph in &mut self.graphs {
            graph.move_weights(&moved);
        }
        before - self.weights.len()
    }
}
