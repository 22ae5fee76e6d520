//! What a decoder of the llama kind looks like: everything that differs between families, read from
//! the configuration.

use dlc_ir::{Scores, Storage, Task};
use serde_json::Value;

use super::activation::Activation;
use super::config::ConfigReader;
use super::heads;
use super::mixture::Mixture;
use super::rope::{self, Rotary, Share};

pub(super) const MOST_LAYERS: usize = 1024;
pub(super) const MOST_HEADS: usize = 1 << 14;
pub(super) const WIDEST: usize = 1 << 20;
pub(super) const WIDEST_MLP: usize = 1 << 23;
const WIDEST_HEAD: usize = 1 << 14;
pub(super) const LARGEST_VOCABULARY: usize = 1 << 24;
pub(super) const LONGEST_CONTEXT: usize = 1 << 30;

/// A decoder: embedding, layers of attention and gated MLP or experts with RMS norms around each,
/// norm, head.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DecoderSpec {
    pub(super) activation: Activation,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) mlp_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) context_length: usize,
    /// How queries and keys of each layer are rotated, if they are.
    pub(super) rotary: Vec<Option<Rotary>>,
    pub(super) multipliers: Multipliers,
    /// Cap of attention's scores, and of the logits.
    pub(super) softcaps: [Option<f32>; 2],
    /// Whether queries, keys and values are one projection, and gate and up another.
    pub(super) fused: bool,
    pub(super) norms: Norms,
    pub(super) qk_norm: QkNorm,
    pub(super) bias: Biases,
    /// The window of each layer.
    pub(super) windows: Vec<Option<usize>>,
    /// The experts of each layer that has them in its MLP's place.
    pub(super) mixtures: Vec<Option<Mixture>>,
    /// Whether the head is the embedding.
    pub(super) tied: bool,
    pub(super) end: End,
}

/// What a decoder is read for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// The logits of each next token, with caches of those before it.
    NextToken,
    /// The hidden states of whole texts.
    Hidden,
    /// The scores of each text's classes, made of its last token's state.
    Classes {
        labels: Vec<String>,
        scores: Scores,
        /// The token that isn't any text's last.
        padding: u32,
    },
}

impl End {
    fn read(config: &mut ConfigReader<'_>, task: Task) -> Self {
        match task {
            Task::FeatureExtraction => Self::Hidden,
            Task::TextClassification => Self::classes(config),
            _ => Self::NextToken,
        }
    }

    /// The head that transformers puts on a decoder for classes.
    fn classes(config: &mut ConfigReader<'_>) -> Self {
        let padding = config.get("pad_token_id").and_then(Value::as_u64);
        let padding = padding.and_then(|id| u32::try_from(id).ok());
        if padding.is_none() {
            config.unsupported("pad_token_id", "is no token: transformers then reads one text at a time. Write the token that pads texts".into());
        }
        let labels = heads::labels(config);
        Self::Classes {
            scores: heads::scores(config, &labels),
            labels,
            padding: padding.unwrap_or_default(),
        }
    }
}

/// Constant factors; `None` is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multipliers {
    /// On the embedding.
    pub(super) embedding: Option<f32>,
    /// On attention's dot products.
    pub(super) attention: f32,
    /// On the outputs of attention and MLP, before they are added to the residual.
    pub(super) residual: Option<f32>,
    /// On the logits, before their cap.
    pub(super) logits: Option<f32>,
}

/// The RMS norms over the hidden width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Norms {
    pub(super) placement: Placement,
    pub(super) eps: f32,
    /// How their weights are stored.
    pub(super) storage: Storage,
}

/// Where norms stand in a block: before attention or MLP, or after it, before its output is added
/// to the residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    Before,
    After,
    Both,
}

impl Placement {
    /// Names of the norms before and after attention.
    pub(super) fn around_attention(self) -> [Option<&'static str>; 2] {
        match self {
            Self::Before => [Some("input_layernorm"), None],
            Self::After => [None, Some("post_attention_layernorm")],
            Self::Both => [Some("input_layernorm"), Some("post_attention_layernorm")],
        }
    }

    /// Names of the norms before and after the MLP.
    pub(super) fn around_mlp(self) -> [Option<&'static str>; 2] {
        match self {
            Self::Before => [Some("post_attention_layernorm"), None],
            Self::After => [None, Some("post_feedforward_layernorm")],
            Self::Both => [
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ],
        }
    }
}

/// How queries and keys are normed before their rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Each head by itself, all with the same weight.
    PerHead,
    /// All heads as one vector.
    WholeWidth,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Biases {
    /// Queries, keys and values.
    pub(super) qkv: bool,
    /// The attention's output.
    pub(super) output: bool,
    /// Gate, up and down.
    pub(super) mlp: bool,
}

impl DecoderSpec {
    /// What all families spell alike: no biases, no windows, no experts, no norms of queries and
    /// keys, norms before attention and MLP, no multipliers but that of scaled dot products. `share` of each
    /// head is rotated.
    pub(super) fn read(config: &mut ConfigReader<'_>, task: Task, share: Share) -> Self {
        Self::read_rotated(config, task, |config, head_dim| {
            rope::read(config, head_dim, share)
        })
    }

    /// As [`read`](Self::read), with the rotation of heads of a width that `rotary` reads.
    pub(super) fn read_rotated(
        config: &mut ConfigReader<'_>,
        task: Task,
        rotary: impl FnOnce(&mut ConfigReader<'_>, usize) -> Rotary,
    ) -> Self {
        let hidden_size = config.required_size("hidden_size", WIDEST);
        let layers = config.required_size("num_hidden_layers", MOST_LAYERS);
        let heads = config.required_size("num_attention_heads", MOST_HEADS);
        let kv_heads = config
            .size("num_key_value_heads", MOST_HEADS)
            .unwrap_or(heads);
        if config.is_clean() && !heads.is_multiple_of(kv_heads) {
            config.bad(
                "num_key_value_heads",
                format!("is {kv_heads}, which doesn't divide the {heads} attention heads"),
            );
        }
        let head_dim = config.size("head_dim", WIDEST_HEAD).unwrap_or_else(|| {
            if config.is_clean() && !hidden_size.is_multiple_of(heads) {
                config.bad("hidden_size", format!("is {hidden_size}, which {heads} heads don't divide, and there is no `head_dim`"));
            }
            (hidden_size / heads).max(1)
        });
        if config.is_clean() && !head_dim.is_multiple_of(2) {
            config.bad("head_dim", format!("is {head_dim} (given, or `hidden_size / num_attention_heads`); rotation needs an even width"));
        }
        Self {
            activation: Activation::read(config, "hidden_act"),
            rotary: vec![Some(rotary(config, head_dim)); layers],
            multipliers: Multipliers {
                embedding: None,
                attention: (1.0 / (head_dim as f64).sqrt()) as f32,
                residual: None,
                logits: None,
            },
            softcaps: [None; 2],
            fused: false,
            vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
            hidden_size,
            mlp_size: config.required_size("intermediate_size", WIDEST_MLP),
            layers,
            heads,
            kv_heads,
            head_dim,
            context_length: config.required_size("max_position_embeddings", LONGEST_CONTEXT),
            norms: Norms {
                placement: Placement::Before,
                eps: eps(config, "rms_norm_eps"),
                storage: Storage::Plain,
            },
            bias: Biases::default(),
            qk_norm: QkNorm::None,
            windows: vec![None; layers],
            mixtures: vec![None; layers],
            tied: config.flag("tie_word_embeddings"),
            end: End::read(config, task),
        }
    }
}

/// The number that a norm adds under its root.
pub(super) fn eps(config: &mut ConfigReader<'_>, key: &'static str) -> f32 {
    config
        .number(key, "from 0 to 1", |x| (0.0..=1.0).contains(&x))
        .unwrap_or_default() as f32
}

/// The width of a head where `heads` of them make up `hidden_size`.
pub(super) fn head_dim(
    config: &mut ConfigReader<'_>,
    key: &str,
    hidden_size: usize,
    heads: usize,
) -> usize {
    if config.is_clean() && !hidden_size.is_multiple_of(heads) {
        config.bad(
            key,
            format!("is {hidden_size}, which {heads} heads don't divide"),
        );
    }
    (hidden_size / heads).max(1)
}
