//! Patterns of modules' names, as Python's `re` reads them, look-around and all.
//!
//! They are an adapter's, so anyone's: how many there are and how long they are is bounded, and so
//! is what matching takes. A pattern that took longer says so afterwards: that it fits or not isn't
//! known.

use std::sync::atomic::{AtomicBool, Ordering};

use fancy_regex::{Regex, RegexBuilder};

/// Longest pattern, in bytes: an alternation of every module of a large model.
const LONGEST: usize = 1 << 16;
/// Steps back that matching may take.
const BACKTRACKS: usize = 10_000;
/// Largest automaton of a pattern, in bytes.
const SIZE: usize = 1 << 20;
/// Most repetitions that counts in a pattern stand for.
const MOST_REPEATS: usize = 10_000;
/// Most patterns of one key that are more than names, and most that look around or repeat what was
/// found.
const MOST: usize = 256;
const MOST_COSTLY: usize = 16;

/// A pattern that was read.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    matcher: Matcher,
    overran: AtomicBool,
}

#[derive(Debug)]
enum Matcher {
    /// The end of a name after a dot, or the whole name. A dot stands for any character.
    Name(Vec<char>),
    Regex(Regex),
}

impl Pattern {
    /// A pattern of whole names, whose text stands in `frame` instead of `{}`. None if it can't be
    /// read.
    pub fn framed(frame: [&str; 2], pattern: &str) -> Option<Self> {
        if pattern.len() > LONGEST || repeats(pattern) > MOST_REPEATS {
            return None;
        }
        let [before, after] = frame;
        let mut builder = RegexBuilder::new(&format!("{before}{pattern}{after}"));
        let regex = builder
            .backtrack_limit(BACKTRACKS)
            .delegate_size_limit(SIZE)
            .build()
            .ok()?;
        Some(Self {
            text: pattern.to_owned(),
            matcher: Matcher::Regex(regex),
            overran: AtomicBool::new(false),
        })
    }

    /// A pattern of whole names, or of their ends after a dot.
    pub fn of_end(pattern: &str) -> Option<Self> {
        if is_name(pattern) && pattern.len() <= LONGEST {
            let matcher = Matcher::Name(pattern.chars().collect());
            return Some(Self {
                text: pattern.to_owned(),
                matcher,
                overran: AtomicBool::new(false),
            });
        }
        Self::framed([r"^(?:.*\.)?(?:", ")$"], pattern)
    }

    /// Whether it fits `text`; no if that takes too long, see [`Self::overran`].
    pub fn matches(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Name(name) => is_end(name, text),
            Matcher::Regex(regex) => self.timed(|| regex.is_match(text)).unwrap_or(false),
        }
    }

    /// What the group `name` of the pattern holds where it fits `text`; none if that takes too
    /// long.
    pub fn group<'t>(&self, text: &'t str, name: &str) -> Option<&'t str> {
        let Matcher::Regex(regex) = &self.matcher else {
            return None;
        };
        self.timed(|| regex.captures(text))?
            .and_then(|groups| groups.name(name))
            .map(|group| group.as_str())
    }

    /// Its text, if matching took too long once.
    pub fn overran(&self) -> Option<&str> {
        self.overran
            .load(Ordering::Relaxed)
            .then_some(self.text.as_str())
    }

    fn timed<T>(&self, find: impl FnOnce() -> Result<T, fancy_regex::Error>) -> Option<T> {
        if self.overran().is_some() {
            return None;
        }
        let found = find();
        self.overran.fetch_or(found.is_err(), Ordering::Relaxed);
        found.ok()
    }
}

/// What is wrong with the number of `patterns` of one key.
pub(super) fn too_many<'p>(patterns: impl Iterator<Item = &'p str>) -> Option<String> {
    let (mut all, mut costly) = (0, 0);
    for pattern in patterns.filter(|pattern| !is_name(pattern)) {
        all += 1;
        costly += usize::from(is_costly(pattern));
    }
    (all > MOST || costly > MOST_COSTLY).then(|| {
        format!(
            "has {all} patterns, {costly} of which look around; dlc reads {MOST} and {MOST_COSTLY}"
        )
    })
}

/// How often a part of `pattern` is repeated at most: every `{n}` times every other.
fn repeats(pattern: &str) -> usize {
    let count = |rest: &str| {
        rest.split('}')
            .next()?
            .rsplit(',')
            .find_map(|n| n.parse::<usize>().ok())
    };
    pattern
        .split('{')
        .skip(1)
        .filter_map(count)
        .fold(1, |all: usize, n| all.saturating_mul(n.max(1)))
}

fn is_name(pattern: &str) -> bool {
    pattern
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Whether matching may have to go back: groups of a special kind, and references to groups.
fn is_costly(pattern: &str) -> bool {
    let special = |at: usize| !pattern[at + 2..].starts_with([':', 'P', 'i', 's', 'm', 'x']);
    let refers = |at: usize| {
        pattern[at + 1..].starts_with(|c: char| c.is_ascii_digit() || matches!(c, 'k' | 'g'))
    };
    pattern.match_indices("(?").any(|(at, _)| special(at))
        || pattern.match_indices('\\').any(|(at, _)| refers(at))
}

fn is_end(name: &[char], text: &str) -> bool {
    let mut rest = text.chars().rev();
    let fits = name.iter().rev().all(|wanted| {
        rest.next()
            .is_some_and(|c| *wanted == c || (*wanted == '.' && c != '\n'))
    });
    fits && rest.next().is_none_or(|c| c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_as_the_same_regular_expressions_do() {
        let texts = [
            "q_proj",
            "model.layers.1.q_proj",
            "model.layers.11.q_proj",
            "xq_proj",
            "layers.1.q_proj",
            "a.layersX1.q_proj",
            "",
            "a.",
            "é.q_proj",
        ];
        for pattern in [
            "q_proj",
            "layers.1.q_proj",
            "1.q_proj",
            "",
            "model.layers.1.q_proj",
            ".",
        ] {
            let (name, regex) = (
                Pattern::of_end(pattern).unwrap(),
                Pattern::framed([r"^(?:.*\.)?(?:", ")$"], pattern).unwrap(),
            );
            assert!(matches!(name.matcher, Matcher::Name(_)));
            for text in texts {
                assert_eq!(
                    name.matches(text),
                    regex.matches(text),
                    "{pattern:?} {text:?}"
                );
            }
        }
    }

    #[test]
    fn a_pattern_that_takes_too_long_says_so() {
        let pattern = Pattern::of_end(r"(?=(a+)+$)(a|a)*\1b").unwrap();
        assert!(!pattern.matches("aab") && pattern.overran().is_none());
        assert!(!pattern.matches(&"a".repeat(60)));
        assert_eq!(pattern.overran(), Some(r"(?=(a+)+$)(a|a)*\1b"));
    }

    #[test]
    fn patterns_that_would_need_much_memory_are_not_read() {
        for pattern in [
            "a{1000}{1000}{1000}".to_owned(),
            "(".repeat(60_000),
            "a|".repeat(1 << 16),
            format!("{}a", "(?:".repeat(5000)),
        ] {
            assert!(
                Pattern::of_end(&pattern).is_none(),
                "{}",
                pattern.chars().take(20).collect::<String>()
            );
        }
    }

    #[test]
    fn only_patterns_that_are_more_than_names_are_counted() {
        let names: Vec<String> = (0..5000).map(|i| format!("layers.{i}.q_proj")).collect();
        assert_eq!(too_many(names.iter().map(String::as_str)), None);
        let patterns: Vec<String> = (0..300).map(|i| format!("layers.{i}.[qk]_proj")).collect();
        assert!(
            too_many(patterns.iter().map(String::as_str))
                .unwrap()
                .contains("300 patterns")
        );
        assert!(
            too_many(["(?!a)b"; 17].into_iter())
                .unwrap()
                .contains("17 of which look around")
        );
    }
}
