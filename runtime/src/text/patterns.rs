//! Regular expressions that take very long: each is tried on the texts that are hard for
//! expressions of its letters.

use std::time::{Duration, Instant};

use fancy_regex::Regex;

/// How long searching a hard text may take; usual expressions take some microseconds.
const LONGEST: Duration = Duration::from_millis(100);
/// Letters that are tried, and how often each is repeated.
const MOST_LETTERS: usize = 48;
/// A search that is slow because the machine is busy is quick another time.
const TRIALS: usize = 3;
const REPEATED: usize = 400;

/// Refuses expressions that aren't ones or that take too long.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    let regex = Regex::new(pattern)
        .map_err(|error| format!("it has a regular expression that can't be read: {error}"))?;
    let mut letters: Vec<char> = pattern
        .chars()
        .filter(|c| c.is_alphanumeric())
        .chain([' ', 'a', 'A', '1', '.', '\n', 'é', '中'])
        .collect();
    letters.sort_unstable();
    letters.dedup();
    for letter in letters.into_iter().take(MOST_LETTERS) {
        for ending in ["", "!", "\u{1}"] {
            let text = String::from(letter).repeat(REPEATED) + ending;
            if (0..TRIALS).all(|_| takes_long(&regex, &text)) {
                return Err("it has a regular expression that takes too long".to_owned());
            }
        }
    }
    Ok(())
}

fn takes_long(regex: &Regex, text: &str) -> bool {
    let start = Instant::now();
    regex.find_iter(text).any(|found| found.is_err()) || start.elapsed() > LONGEST
}
