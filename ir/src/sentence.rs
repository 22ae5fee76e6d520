//! How the vector of a whole text is made, in the terms of Sentence Transformers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What stands around an encoder without a head: what is put before a text, where it is cut, and
/// how its tokens' vectors become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sentence {
    /// How the vectors of the tokens become one; of several ways the results stand one after
    /// another.
    pub pooling: Vec<Pooling>,
    /// Whether the pooled vector is scaled to length 1.
    pub normalize: bool,
    /// So many of the vector's first numbers are kept, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate_dim: Option<usize>,
    /// How vectors are compared.
    #[serde(default, skip_serializing_if = "Similarity::is_default")]
    pub similarity: Similarity,
    /// What may be put before a text, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// The prompt that is put before a text unless another one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Whether pooling leaves the prompt's tokens out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclude_prompt: bool,
    /// Longer texts are cut to so many tokens, if the checkpoint says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Whether the cut is at the start of a text instead of its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_start: bool,
    /// Whether texts are read in lower case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lower_case: bool,
}

impl Default for Sentence {
    /// The mean of the tokens, of length 1: what is made of encoders of which nothing else is
    /// known.
    fn default() -> Self {
        Self {
            pooling: vec![Pooling::Mean],
            normalize: true,
            truncate_dim: None,
            similarity: Similarity::default(),
            prompts: BTreeMap::new(),
            default_prompt: None,
            exclude_prompt: false,
            max_tokens: None,
            cut_start: false,
            lower_case: false,
        }
    }
}

impl Sentence {
    /// What dlc can't do, if the vector takes that.
    pub fn unsupported(&self) -> Option<&str> {
        self.pooling.iter().find_map(|pooling| {
            if let Pooling::Other(what) = pooling {
                Some(what.as_str())
            } else {
                None
            }
        })
    }

    /// Whether vectors have length 1 in the end.
    pub fn has_unit_length(&self) -> bool {
        self.normalize && self.truncate_dim.is_none()
    }
}

/// How the vectors of a text's tokens become one; in files Sentence Transformers' names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    Cls,
    /// The largest number at each place.
    Max,
    /// Their sum, divided by the square root of their number.
    MeanSqrtLenTokens,
    /// Their mean, a token counting as often as its position says, from 1 on.
    #[serde(rename = "weightedmean")]
    WeightedMean,
    /// The last one.
    #[serde(rename = "lasttoken")]
    LastToken,
    /// Something that dlc can't do, in words that go on from "by".
    Other(String),
}

impl Pooling {
    /// The ways that dlc knows, in the order in which several stand one after another.
    pub const ALL: [Self; 6] = [
        Self::Cls,
        Self::Max,
        Self::Mean,
        Self::MeanSqrtLenTokens,
        Self::WeightedMean,
        Self::LastToken,
    ];

    /// The name in files.
    pub fn name(&self) -> &str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::MeanSqrtLenTokens => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
            Self::Other(what) => what,
        }
    }
}

/// How vectors of texts are compared; the larger, the more alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Similarity {
    /// The cosine of their angle.
    #[default]
    Cosine,
    /// Their dot product.
    Dot,
    /// The negative of their distance.
    Euclidean,
    /// The negative of the sum of their differences.
    Manhattan,
}

impl Similarity {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Cosine, Self::Dot, Self::Euclidean, Self::Manhattan];

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::Euclidean => "euclidean",
            Self::Manhattan => "manhattan",
        }
    }

    /// Whether it is the default, which files leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
