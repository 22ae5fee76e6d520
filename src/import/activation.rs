//! Activations, by the names of transformers.

use dlc_ir::Op;
use serde_json::Value;

use super::config::{ConfigReader, show};

/// A function of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    Gelu,
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    Relu,
    Tanh,
    None,
}

/// The factor of [`Activation::QuickGelu`].
const QUICK: f32 = 1.702;

const NAMES: [(&str, Activation); 11] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("tanh", Activation::Tanh),
    ("linear", Activation::None),
];

impl Activation {
    /// The activation that `key` names.
    pub(super) fn read(config: &mut ConfigReader<'_>, key: &'static str) -> Self {
        let Some(name) = config.text(key) else {
            return Self::None;
        };
        let found = Self::named(name);
        if found.is_none() {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            config.unsupported(
                key,
                format!(
                    "is {}; dlc knows {}",
                    show(&Value::from(name)),
                    known.join(", ")
                ),
            );
        }
        found.unwrap_or(Self::None)
    }

    /// The activation called `name`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, activation)| *activation)
    }

    /// The ops that make it up, one after the other.
    pub(super) fn ops(self) -> Vec<Op> {
        match self {
            Self::Silu => vec![Op::Silu],
            Self::Gelu => vec![Op::Gelu { tanh: false }],
            Self::GeluTanh => vec![Op::Gelu { tanh: true }],
            Self::QuickGelu => vec![
                Op::Scale { factor: QUICK },
                Op::Silu,
                Op::Scale {
                    factor: 1.0 / QUICK,
                },
            ],
            Self::Relu => vec![Op::Relu],
            Self::Tanh => vec![Op::Tanh],
            Self::None => vec![],
        }
    }
}
