//! Whether a pass over several tokens says of each what a pass over it alone says, so that guesses
//! can be verified without a trace in the text.

use std::collections::BTreeMap;

use dlc_bundle::{CacheLayout, Manifest, Profile, WeightRecord};

use crate::Provider;

/// How passes over several tokens of one text round, and what that means for guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Passes agree but for the last bits, however many tokens they are over: only a tie of two
    /// tokens can fall otherwise.
    Alike,
    /// Products round what they take to 8 bits, which carries the last bits to the second digit of
    /// logits. Passes over two tokens or more agree bit by bit, one over a single token doesn't
    /// (ONNX Runtime's attention treats it by another kernel). So none may be over a single one:
    /// [`Fillers`].
    InPairs {
        /// Whether this processor checks several tokens for less than as many single ones.
        pays: bool,
        /// Whether passes have to be over an even number of tokens: products take rows two by two,
        /// and the one that is left by a kernel that doesn't agree.
        evenly: bool,
    },
    /// Products round what they take to 8 bits, and no two kinds of passes agree.
    Differs,
}

/// Which passes read another token after theirs, which is forgotten, so that all agree bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fillers {
    /// Those over an odd number of tokens; else those over a single one.
    pub evenly: bool,
    /// Those that read prompts alone: several sequences are then written a token at a time, each
    /// token in a pass of one row.
    pub prompts_alone: bool,
}

impl Verification {
    /// What passes need where so many sequences are held.
    pub fn fillers(self, sequences: usize) -> Option<Fillers> {
        match self {
            Self::InPairs { evenly, .. } => Some(Fillers {
                evenly,
                prompts_alone: sequences > 1,
            }),
            Self::Alike | Self::Differs => None,
        }
    }

    /// Of the graph `name` where it computes on `provider`.
    pub fn of(manifest: &Manifest, name: &str, provider: Provider) -> Self {
        let of_graph = |weight: &&WeightRecord| weight.graphs.iter().any(|graph| graph == name);
        let codes = manifest.weights.iter().filter(|weight| weight.is_codes());
        let codes: BTreeMap<&str, &WeightRecord> = codes
            .filter(of_graph)
            .map(|weight| (weight.name.as_str(), weight))
            .collect();
        if codes.is_empty() || manifest.profile == Profile::Portable || provider != Provider::Cpu {
            return Self::Alike;
        }
        match manifest.caches {
            CacheLayout::InPlace => Self::InPairs {
                pays: multiplies_rows_of_bytes(),
                evenly: !odd_rows_agree(&codes),
            },
            CacheLayout::Appended => Self::Differs,
        }
    }
}

/// Whether `MatMulNBits` says of a single row what it says of it among several: seen for groups of up
/// to 32 in 4 bits and 64 in 8 bits, and not for larger ones (ONNX Runtime 1.31, AVX-512 VNNI).
/// `codes` has codes and zero points by their names.
fn odd_rows_agree(codes: &BTreeMap<&str, &WeightRecord>) -> bool {
    const MOST_BYTES_OF_NIBBLES: usize = 16;
    const MOST_BYTES: usize = 64;
    // Eight bits have a zero point in each byte, four have two.
    let are_bytes = |weight: &WeightRecord, groups: usize| {
        let zeros = weight.name.strip_suffix("codes").and_then(|stem| {
            let name = format!("{stem}zero_points");
            codes.get(name.as_str()).copied()
        });
        groups > 1 && zeros.is_some_and(|zeros| zeros.shape.last() == Some(&groups))
    };
    let agrees = |weight: &WeightRecord| match weight.shape[..] {
        [_, _] => true,
        [_, groups, bytes] if are_bytes(weight, groups) => bytes <= MOST_BYTES,
        [_, _, bytes] => bytes <= MOST_BYTES_OF_NIBBLES,
        _ => false,
    };
    codes.values().copied().all(agrees)
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
