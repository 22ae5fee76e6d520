//! API keys. Only their hashes are kept, and these are compared.

use sha2::{Digest, Sha256};

/// The keys that are known; without any, everybody may ask.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    hashes: Vec<[u8; 32]>,
}

impl Keys {
    /// Of a file's lines; empty ones and those that begin with `#` are no keys.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            hashes: keys.map(|key| hash(key.as_bytes())).collect(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether a request with this `Authorization` may ask.
    pub(super) fn admit(&self, given: Option<&[u8]>) -> bool {
        if self.is_empty() {
            return true;
        }
        let key = given.and_then(|value| {
            let (scheme, key) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        key.is_some_and(|key| self.hashes.contains(&hash(key.trim_ascii())))
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_lines_and_admit_by_bearer() {
        let keys = Keys::parse("# staff\nsk-1\n\n  sk-2 \n");
        for (given, admitted) in [
            (Some("Bearer sk-1"), true),
            (Some("bearer sk-2"), true),
            (Some("Bearer sk-"), false),
            (Some("Bearer "), false),
            (Some("sk-1"), false),
            (Some("Bearer # staff"), false),
            (None, false),
        ] {
            assert_eq!(keys.admit(given.map(str::as_bytes)), admitted, "{given:?}");
        }
        assert!(Keys::default().admit(None));
    }
}
