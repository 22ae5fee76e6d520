//! What `quantize` can be asked for.

use std::fmt;
use std::path::PathBuf;

use dlc_ir::{GroupFormat, Quantizer, Refinement};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::options::Range::{AtLeast, OneOf, SuchAs, Words};
use crate::options::{Range, options};

/// Group sizes that runtimes take.
pub(crate) const GROUP_SIZES: Range = OneOf(&[32, 64, 128]);

/// Entries of a row that share a scale if nobody says otherwise.
const GROUP_SIZE: usize = 32;

/// How scales, zero points and codes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From the extremes of each group, to the nearest code.
    Rtn,
    /// By half-quadratic quantisation where that is nearer.
    Hqq,
    /// By search, each column weighted by the mean square of its inputs.
    Imatrix,
    /// By the second moments of the inputs: columns make good what earlier ones lost.
    Gptq,
}

impl Method {
    /// Its name, as options have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Hqq => "hqq",
            Self::Imatrix => "imatrix",
            Self::Gptq => "gptq",
        }
    }

    /// Whether text is run through the model to find codes.
    pub(crate) fn is_calibrated(self) -> bool {
        matches!(self, Self::Imatrix | Self::Gptq)
    }
}

/// Bits of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Bits {
    /// The same for every matrix: 4 or 8.
    All(usize),
    /// 4 or 8 for each matrix, within a budget.
    Mixed,
}

impl TryFrom<Value> for Bits {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match (value.as_u64(), value.as_str()) {
            (Some(4), _) => Ok(Self::All(4)),
            (Some(8), _) => Ok(Self::All(8)),
            (_, Some("mixed")) => Ok(Self::Mixed),
            _ => Err("ask for 4, 8 or mixed".into()),
        }
    }
}

impl From<Bits> for Value {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::All(bits) => (bits as u64).into(),
            Bits::Mixed => "mixed".into(),
        }
    }
}

/// Bits of a part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum PartBits {
    /// Like the other matrices.
    Same,
    /// 4 or 8.
    Own(usize),
    /// It stays as it is.
    None,
}

impl PartBits {
    pub(crate) fn words() -> Range {
        Words(vec!["same", "4", "8", "none"])
    }
}

impl TryFrom<Value> for PartBits {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match (value.as_u64(), value.as_str()) {
            (Some(bits @ (4 | 8)), _) => Ok(Self::Own(bits as usize)),
            (_, Some("same")) => Ok(Self::Same),
            (_, Some("none")) => Ok(Self::None),
            _ => Err("ask for same, 4, 8 or none".into()),
        }
    }
}

impl From<PartBits> for Value {
    fn from(bits: PartBits) -> Self {
        match bits {
            PartBits::Same => "same".into(),
            PartBits::Own(bits) => (bits as u64).into(),
            PartBits::None => "none".into(),
        }
    }
}

/// How much a model may take, or lose.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Budget {
    /// Bits of a weight in the mean, over the matrices that are quantised, scales included.
    Bits(f64),
    /// Megabytes (10^6 bytes) of all weights that the model uses.
    Megabytes(f64),
    /// Mean KL divergence, in nats, on the held-back text.
    Nats(f64),
}

impl TryFrom<Value> for Budget {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        type Unit = (&'static str, fn(f64) -> Budget);
        const UNITS: [Unit; 3] = [
            ("bits", Budget::Bits),
            ("MB", Budget::Megabytes),
            ("nats", Budget::Nats),
        ];
        let found = match (value.as_f64(), value.as_str()) {
            (Some(bits), _) => Some((bits, UNITS[0].1)),
            (_, Some(text)) => UNITS.iter().find_map(|(unit, budget)| {
                let number = text.strip_suffix(unit)?.trim().parse().ok()?;
                Some((number, *budget))
            }),
            _ => None,
        };
        match found {
            Some((number, budget)) if number > 0.0 && number.is_finite() => Ok(budget(number)),
            _ => Err("ask for bits of a weight, as in 5, or for 400MB, or for 0.01nats".into()),
        }
    }
}

impl From<Budget> for Value {
    fn from(budget: Budget) -> Self {
        match budget {
            Budget::Bits(bits) => bits.into(),
            other => other.to_string().into(),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "{bits}"),
            Self::Megabytes(megabytes) => write!(f, "{megabytes}MB"),
            Self::Nats(nats) => write!(f, "{nats}nats"),
        }
    }
}

options! {
    /// Options of `quantize`.
    #[serde(deny_unknown_fields)]
    pub struct QuantizeOptions {
        /// Bits of a code; mixed chooses them for each matrix, within the budget.
        bits: Bits = Bits::All(8), in Words(vec!["4", "8", "mixed"]);
        /// Of bits=mixed: bits of a weight with its share of the scale, megabytes of the model, or
        /// KL divergence on the held-back text.
        budget: Budget = Budget::Bits(6.0), in SuchAs(&["6", "400MB", "0.01nats"]);
        /// How codes are found: rtn takes the nearest, hqq moves scales and zero points where that
        /// lessens the squared error of a group; imatrix and gptq run text through the model,
        /// imatrix to weigh errors by the inputs that they meet, gptq to let later columns make
        /// good what earlier ones lose; if absent, rtn for 8 bits, else gptq, or hqq for models that
        /// text can't be run through block by block.
        method: Option<Method> = None;
        /// Entries of a row that share a scale; if absent, 32, or what bits=mixed chooses for each
        /// matrix.
        group_size: Option<usize> = None, in GROUP_SIZES;
        /// Whether zero is in the middle of every group; if false, each has a zero point of its
        /// own.
        symmetric: bool = false;
        /// Bits of the head.
        head: PartBits = PartBits::Same, in PartBits::words();
        /// Bits of the table that tokens are looked up in; same is the head's codes, where the head
        /// is that table.
        embedding: PartBits = PartBits::Same, in PartBits::words();
        /// Quantise only these blocks or layers, joined by `+`: `layers.0+layers.3.mlp`; all if
        /// absent.
        blocks: Option<String> = None;
        /// Whether the result is compared with the model as it was, on text that was held back.
        compare: bool = true;
        /// File to calibrate on and to compare on: text, or .jsonl with `text` or `tokens`; if
        /// absent, text that a decoder writes itself, and a built-in text for other models.
        calibration: Option<PathBuf> = None;
        /// How many texts; half of them calibrate, the others are held back; if absent, 64 where
        /// text finds the codes, 16 where it is only compared on.
        samples: Option<usize> = None, in AtLeast(2);
        /// Longest text in tokens; the model's context if that is shorter.
        length: usize = 128, in AtLeast(2);
        /// Seed of the text that the model writes.
        seed: u64 = 0;
        /// Temperature of the text that the model writes; 0 takes the likeliest token.
        temperature: f64 = 0.7, in AtLeast(0);
    }
}

impl QuantizeOptions {
    /// How codes are found in a model that text can be run through, or can't.
    pub(super) fn method(&self, takes_text: bool) -> Method {
        self.method.unwrap_or(match self.bits {
            Bits::All(8) => Method::Rtn,
            _ if takes_text => Method::Gptq,
            _ => Method::Hqq,
        })
    }

    /// The rule of matrices that no text is needed for.
    pub(super) fn quantizer(&self, format: GroupFormat) -> Quantizer {
        Quantizer {
            format,
            symmetric: self.symmetric,
            refinement: match self.method(true) {
                Method::Rtn => Refinement::None,
                Method::Hqq | Method::Imatrix | Method::Gptq => Refinement::Hqq,
            },
        }
    }

    /// The layout of codes of so many bits.
    pub(super) fn format(&self, bits: usize) -> GroupFormat {
        GroupFormat {
            bits,
            group_size: self.group_size.unwrap_or(GROUP_SIZE),
        }
    }
}
