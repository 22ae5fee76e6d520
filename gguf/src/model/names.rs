//! What transformers calls a tensor of llama.cpp.

use super::architecture::{Architecture, Bias, Part};

/// A tensor of a model.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Embedding,
    FinalNorm,
    Head,
    /// Frequencies of the rotation are divided by its elements.
    RopeDivisors,
    /// Of a layer; `bias` rather than the weight.
    Layer {
        layer: usize,
        part: &'static Part,
        bias: bool,
    },
}

const TOP: [(&str, Role); 4] = [
    ("token_embd.weight", Role::Embedding),
    ("output_norm.weight", Role::FinalNorm),
    ("output.weight", Role::Head),
    ("rope_freqs.weight", Role::RopeDivisors),
];

impl Role {
    /// The role of a tensor, if an architecture has such a one.
    pub fn of(name: &str, architecture: &'static Architecture) -> Option<Self> {
        if let Some((_, role)) = TOP.iter().find(|(top, _)| *top == name) {
            return Some(*role);
        }
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (gguf, end) = rest.rsplit_once('.')?;
        let part = architecture.layer.iter().find(|part| part.gguf == gguf)?;
        let bias = match end {
            "weight" => false,
            "bias" if part.bias != Bias::Never => true,
            _ => return None,
        };
        // Digits as they are written in every file, so that one tensor has one name.
        let number: usize = layer.parse().ok()?;
        (number.to_string() == layer).then_some(Self::Layer {
            layer: number,
            part,
            bias,
        })
    }

    /// Its name in transformers; nothing for what is no tensor there.
    pub fn hugging_face(self) -> Option<String> {
        Some(match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::Head => "lm_head.weight".into(),
            Self::RopeDivisors => return None,
            Self::Layer { layer, part, bias } => format!(
                "model.layers.{layer}.{}.{}",
                part.hugging_face,
                if bias { "bias" } else { "weight" }
            ),
        })
    }

    /// Whether it is a weight of a norm.
    pub fn is_norm(self) -> bool {
        match self {
            Self::FinalNorm => true,
            Self::Layer { part, bias, .. } => part.gguf.ends_with("_norm") && !bias,
            _ => false,
        }
    }
}
