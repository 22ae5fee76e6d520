//! The boundary around the `tokenizers` crate: its panics become errors, and what takes too long is
//! given up.

use std::sync::Arc;
use std::time::Duration;

use dlc_files::guard::{contain_panics, contain_within};
use tokenizers::{Encoding, Tokenizer};

/// The longest text that a tokenizer's steps may make of one.
const MOST_BYTES: usize = 256 << 20;
/// How long tokenizing may take: a part for the text's start, and one for each of its bytes at a
/// tenth of what slow tokenizers do.
const LONGEST: Duration = Duration::from_secs(2);
const PER_BYTE: Duration = Duration::from_micros(20);
/// How long the trial's few words may take.
const LONGEST_TRIAL: Duration = Duration::from_millis(1500);
/// The stack of the thread that tokenizes.
const STACK: usize = 16 << 20;

/// Words that a new tokenizer is tried with: short ones, blanks, repeated and rare characters.
const WORDS: &[&str] = &[
    "",
    "a",
    " ",
    "Hello, world!",
    "aaaaaaaaaaaaaaaa bbbb  \n\t1234567890",
    "É中文😀\u{0}\u{301}ﬁ",
    "[CLS] <s> </s> <unk> ▁ <0x0A>",
];

/// The tokens of `text`, or why there are none.
pub(super) fn encode(
    tokenizer: &Arc<Tokenizer>,
    text: &str,
    special: bool,
    growth: usize,
) -> Result<Encoding, String> {
    let length = text.len();
    if length.saturating_mul(growth) > MOST_BYTES {
        return Err(format!(
            "the text is too long: the tokenizer may make it {growth} times as long"
        ));
    }
    let (tokenizer, text) = (tokenizer.clone(), text.to_owned());
    let limit = LONGEST + PER_BYTE * u32::try_from(length).unwrap_or(u32::MAX);
    contain_within("the tokenizer", limit, STACK, move || {
        tokenizer
            .encode(text, special)
            .map_err(|error| error.to_string())
    })
}

/// The text of `tokens`, special ones left out.
pub(super) fn decode(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String, String> {
    contain_panics("the tokenizer", || {
        tokenizer
            .decode(tokens, true)
            .map_err(|error| error.to_string())
    })
    .flatten()
}

/// Lets a new tokenizer read and write a few words.
pub(super) fn try_out(tokenizer: &Arc<Tokenizer>) -> Result<(), String> {
    let tokenizer = tokenizer.clone();
    contain_within("the tokenizer", LONGEST_TRIAL, STACK, move || {
        for word in WORDS {
            let encoding = tokenizer
                .encode(*word, true)
                .map_err(|error| error.to_string())?;
            tokenizer
                .decode(encoding.get_ids(), true)
                .map_err(|error| error.to_string())?;
        }
        tokenizer
            .decode(&[0, 1, 2, 3], false)
            .map(drop)
            .map_err(|error| error.to_string())
    })
}
