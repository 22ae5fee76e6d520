//! Whether a pass over several tokens says of each what a pass over it alone says, so that guesses
//! can be verified without a trace in the text.

use dlc_bundle::{CacheLayout, Manifest, Profile};

use crate::Provider;

/// How passes over several tokens of one text round, and what that means for guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Passes agree but for the last bits, however many tokens they are over: only a tie of two
    /// tokens can fall otherwise.
    Alike,
    /// Products round what they take to 8 bits, which carries the last bits to the second digit of
    /// logits. Passes over two tokens or more agree bit by bit, one over a single token doesn't
    /// (ONNX Runtime multiplies a single row by another kernel). So every pass has to be over two:
    /// [`DecoderOptions::pairs`](crate::DecoderOptions::pairs).
    InPairs {
        /// Whether this processor checks several tokens for less than as many single ones.
        pays: bool,
    },
    /// Products round what they take to 8 bits, and no two kinds of passes agree.
    Differs,
}

impl Verification {
    /// Of the graph `name` where it computes on `provider`.
    pub fn of(manifest: &Manifest, name: &str, provider: Provider) -> Self {
        let mut codes = manifest.weights.iter().filter(|weight| weight.is_codes());
        let has_codes = codes.any(|weight| weight.graphs.iter().any(|graph| graph == name));
        if !has_codes || manifest.profile == Profile::Portable || provider != Provider::Cpu {
            return Self::Alike;
        }
        match manifest.caches {
            CacheLayout::InPlace => Self::InPairs {
                pays: multiplies_rows_of_bytes(),
            },
            CacheLayout::Appended => Self::Differs,
        }
    }
}

/// Whether ONNX Runtime multiplies several rows by codes together. On x86-64 its kernels for VNNI
/// do; without it, `MatMulNBits` takes row by row.
fn multiplies_rows_of_bytes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni")
        || std::arch::is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
