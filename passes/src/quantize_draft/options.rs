//! What `quantize-draft` can be asked for.

use dlc_ir::{GroupFormat, Quantizer, Refinement};
use serde::{Deserialize, Serialize};

use super::options_error;
use crate::error::PassError;

/// How scales and zero points are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refine {
    /// From the extremes of each group.
    None,
    /// By half-quadratic quantisation where that is nearer.
    Hqq,
}

/// Options of `quantize-draft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizeDraftOptions {
    /// Bits of a code.
    pub bits: usize,
    /// Entries that share a scale.
    pub group_size: usize,
    /// Whether zero is always in the middle, so that no zero points are stored.
    pub symmetric: bool,
    /// How scales and zero points are found.
    pub refine: Refine,
    /// Whether the head is quantised too.
    pub head: bool,
    /// Names of blocks or layers joined by `+`; all if absent.
    pub blocks: Option<String>,
}

impl Default for QuantizeDraftOptions {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 32,
            symmetric: true,
            refine: Refine::Hqq,
            head: true,
            blocks: None,
        }
    }
}

impl QuantizeDraftOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &[
        ("bits", "4 (default) or 8"),
        (
            "group_size",
            "entries of a row that share a scale: 32 (default), 64 or 128",
        ),
        (
            "symmetric",
            "true (default), or false: each group has a zero point of its own",
        ),
        (
            "refine",
            "hqq (default): half-quadratic quantisation where it lessens the squared error of a group; none: round to nearest",
        ),
        ("head", "whether the head is quantised too (default true)"),
        (
            "blocks",
            "quantise only these blocks or layers, joined by +: layers.0+layers.3.mlp (default: all)",
        ),
    ];

    /// How matrices are quantised.
    pub(super) fn quantizer(&self) -> Result<Quantizer, PassError> {
        let Self {
            bits,
            group_size,
            symmetric,
            refine,
            ..
        } = *self;
        if !matches!(bits, 4 | 8) {
            return Err(options_error(format!(
                "bits={bits} can't be run; ask for bits=4 or bits=8"
            )));
        }
        if !matches!(group_size, 32 | 64 | 128) {
            return Err(options_error(format!(
                "group_size={group_size} can't be run; ask for group_size=32, 64 or 128"
            )));
        }
        let refinement = if refine == Refine::Hqq {
            Refinement::Hqq
        } else {
            Refinement::None
        };
        Ok(Quantizer {
            format: GroupFormat { bits, group_size },
            symmetric,
            refinement,
        })
    }
}
