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
    Relu,
    Tanh,
    None,
}

const NAMES: [(&str, Activation); 10] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
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
        let found = NAMES.iter().find(|(known, _)| *known == name);
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
        found.map_or(Self::None, |(_, activation)| *activation)
    }

    pub(super) fn op(self) -> Option<Op> {
        Some(match self {
            Self::Silu => Op::Silu,
            Self::Gelu => Op::Gelu { tanh: false },
            Self::GeluTanh => Op::Gelu { tanh: true },
            Self::Relu => Op::Relu,
            Self::Tanh => Op::Tanh,
            Self::None => return None,
        })
    }
}
