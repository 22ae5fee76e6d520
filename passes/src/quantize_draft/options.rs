//! What `quantize-draft` can be asked for.

use std::path::PathBuf;

use serde_yaml::Mapping;

use super::NAME;
use crate::error::PassError;
use crate::options::Range::{AtLeast, SuchAs, Words};
use crate::options::{options, parse_options};
use crate::quantize::{Bits, Budget, GROUP_SIZES, Method, PartBits, QuantizeOptions};

options! {
    /// Options of `quantize-draft`: those of `quantize`, for the draft.
    #[serde(deny_unknown_fields)]
    pub struct QuantizeDraftOptions {
        /// Bits of a code; mixed chooses them for each matrix, within the budget.
        bits: Bits = Bits::All(4), in Words(vec!["4", "8", "mixed"]);
        /// Of bits=mixed: bits of a weight with its share of the scale, megabytes of the draft, or
        /// KL divergence from the draft as it was, on the held-back text.
        budget: Budget = Budget::Bits(6.0), in SuchAs(&["6", "400MB", "0.01nats"]);
        /// How codes are found, as for `quantize`; imatrix and gptq run text through the draft; if
        /// absent, hqq, but gptq where `calibration` or bits=mixed asks for text.
        method: Option<Method> = None;
        /// Entries of a row that share a scale; if absent, 32, or what bits=mixed chooses for each
        /// matrix.
        group_size: Option<usize> = None, in GROUP_SIZES;
        /// Whether zero is in the middle of every group; if false, each has a zero point of its
        /// own.
        symmetric: bool = true;
        /// Bits of the head.
        head: PartBits = PartBits::Same, in PartBits::words();
        /// Quantise only these blocks or layers, joined by `+`: `layers.0+layers.3.mlp`; all if
        /// absent.
        blocks: Option<String> = None;
        /// File to calibrate on, and to compare draft and target on: text, or .jsonl with `text` or
        /// `tokens`; if absent, text that the target writes itself, where text is needed.
        calibration: Option<PathBuf> = None;
        /// How many texts; half of them calibrate, the others are held back; if absent, 64 where
        /// text finds the codes, 16 where it is only compared on.
        samples: Option<usize> = None, in AtLeast(2);
        /// Longest text in tokens; the model's context if that is shorter.
        length: usize = 128, in AtLeast(2);
        /// Seed of the text that the target writes.
        seed: u64 = 0;
        /// Temperature of the text that the target writes; 0 takes the likeliest token.
        temperature: f64 = 0.7, in AtLeast(0);
    }
}

impl QuantizeDraftOptions {
    /// The options that are given.
    ///
    /// # Errors
    /// [`PassError::Options`] for an unknown key or a value that doesn't fit.
    pub(crate) fn parse(given: &Mapping) -> Result<Self, PassError> {
        if given.contains_key("refine") {
            let problem = "there is no option `refine`: method=rtn is what refine=none was, method=hqq what refine=hqq was";
            return Err(PassError::Options {
                pass: NAME,
                problem: problem.into(),
            });
        }
        parse_options(NAME, given)
    }

    /// Whether every matrix gets 8 bits.
    pub(super) fn is_of_bytes(&self) -> bool {
        self.bits == Bits::All(8) && matches!(self.head, PartBits::Same | PartBits::Own(8))
    }

    /// What `quantize` would be asked for. The embedding stays the target's, and draft and target
    /// are compared where there is text anyway.
    pub(super) fn of_quantize(&self) -> QuantizeOptions {
        let asks_for_text = self.calibration.is_some() || self.bits == Bits::Mixed;
        let default = if asks_for_text {
            Method::Gptq
        } else {
            Method::Hqq
        };
        let method = self.method.unwrap_or(default);
        QuantizeOptions {
            bits: self.bits,
            budget: self.budget,
            method: Some(method),
            group_size: self.group_size,
            symmetric: self.symmetric,
            head: self.head,
            embedding: PartBits::None,
            blocks: self.blocks.clone(),
            compare: asks_for_text || method.is_calibrated(),
            calibration: self.calibration.clone(),
            samples: self.samples,
            length: self.length,
            seed: self.seed,
            temperature: self.temperature,
        }
    }
}
