//! What `quantize-draft` can be asked for.

use dlc_ir::{GroupFormat, Quantizer, Refinement};
use serde::{Deserialize, Serialize};

use crate::options::{Range, options};
use crate::quantize::GROUP_SIZES;

/// How scales and zero points are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refine {
    /// From the extremes of each group.
    None,
    /// By half-quadratic quantisation where that is nearer.
    Hqq,
}

options! {
    /// Options of `quantize-draft`.
    #[serde(deny_unknown_fields)]
    pub struct QuantizeDraftOptions {
        /// Bits of a code.
        bits: usize = 4, in Range::OneOf(&[4, 8]);
        /// Entries of a row that share a scale.
        group_size: usize = 32, in GROUP_SIZES;
        /// Whether zero is in the middle of every group; if false, each has a zero point of its
        /// own.
        symmetric: bool = true;
        /// How scales and zero points are found: hqq takes half-quadratic quantisation where it
        /// lessens the squared error of a group, none the extremes of every group.
        refine: Refine = Refine::Hqq;
        /// Whether the head is quantised too.
        head: bool = true;
        /// Quantise only these blocks or layers, joined by `+`: `layers.0+layers.3.mlp`; all if
        /// absent.
        blocks: Option<String> = None;
    }
}

impl QuantizeDraftOptions {
    /// How matrices are quantised.
    pub(super) fn quantizer(&self) -> Quantizer {
        let refinement = if self.refine == Refine::Hqq {
            Refinement::Hqq
        } else {
            Refinement::None
        };
        Quantizer {
            format: GroupFormat {
                bits: self.bits,
                group_size: self.group_size,
            },
            symmetric: self.symmetric,
            refinement,
        }
    }
}
