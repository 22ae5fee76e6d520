//! Names of repositories: `ORG/NAME` or `ORG/NAME@REVISION`, and what is a path instead.

use std::fmt;

use crate::checkpoint::{MAIN, WEIGHT_EXTENSIONS};

/// How files end that hold no weights, and no repository.
const OTHER_ENDINGS: [&str; 6] = ["json", "yaml", "yml", "txt", "jinja", "md"];
/// Longest name of an owner or a model, and longest revision.
const LONGEST: usize = 96;
const LONGEST_REVISION: usize = 200;

/// The name of a repository on the Hub, and the revision that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    repository: String,
    revision: String,
}

impl HubName {
    /// `ORG/NAME` or `ORG/NAME@REVISION`; none for what can only be a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, model) = repository.split_once('/')?;
        let ending = model.rsplit_once('.').map_or("", |(_, ending)| ending);
        let ending = ending.to_ascii_lowercase();
        let mut endings = WEIGHT_EXTENSIONS.iter().chain(&OTHER_ENDINGS);
        let is_file = endings.any(|known| *known == ending);
        (is_part(owner) && is_part(model) && !is_file && is_revision(revision)).then(|| Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// `ORG/NAME`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch, a tag or a commit; `main` if none was named.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// `NAME`.
    pub fn model(&self) -> &str {
        self.repository
            .split_once('/')
            .map_or(&self.repository, |(_, model)| model)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.revision)
    }
}

/// Whether the Hub gives such names to owners and models.
fn is_part(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ends_in_words = |text: &[u8]| {
        let (first, last) = (text.first().copied(), text.last().copied());
        first.is_some_and(word) && last.is_some_and(word)
    };
    text.len() <= LONGEST
        && ends_in_words(text.as_bytes())
        && text.bytes().all(|b| word(b) || matches!(b, b'-' | b'.'))
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether git gives such names to references; those that aren't plain are left out.
fn is_revision(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+');
    text.len() <= LONGEST_REVISION
        && text.bytes().all(plain)
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with(['.', '-']) && !part.contains(".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_revisions_are_told_from_paths() {
        for (text, repository, revision) in [
            ("org/name", "org/name", "main"),
            ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "main"),
            ("a/b@v1.0", "a/b", "v1.0"),
            ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ] {
            let name = HubName::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((name.repository(), name.revision()), (repository, revision));
        }
        for path in [
            "name",
            "./name",
            "../name",
            "/org/name",
            "~/name",
            "org/name/",
            "a/b/c",
            "folder/model.safetensors",
            "folder/model.GGUF",
            "a\\b/c",
            "a b/c",
            "a--b/c",
            "a/b..c",
            "a/.b",
            "a/b@",
            "a/b@../c",
            "a/b@/x",
            "a/b@x y",
            "a/b@-x",
            "@a/b",
            "a/b=0.5",
            "",
        ] {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
        assert_eq!(HubName::parse(&format!("a/{}", "b".repeat(97))), None);
    }
}
