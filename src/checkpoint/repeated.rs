//! Keys that stand more than once in one object of a JSON file. The last one counts, as in Python,
//! and whoever reads the file may think that another one does.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use dlc_files::read_input;
use dlc_ir::SideFile;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::error::shown;

/// Largest file that is looked at: the tokenizers of large vocabularies have some 30 MB.
const CAP: u64 = 256 << 20;
/// Most keys that a warning names.
const MOST_NAMED: usize = 12;

/// A line for each JSON file with such keys. Files that can't be read are other warnings.
pub(super) fn warnings(files: impl Iterator<Item = SideFile>) -> Vec<String> {
    files
        .filter(|file| file.path.extension().is_some_and(|e| e == "json"))
        .filter_map(|file| warning(&file.name, &file.path))
        .collect()
}

/// A line that names the keys of one file; none if there are none.
pub(super) fn warning(name: &str, path: &Path) -> Option<String> {
    let keys = repeated_keys(&read_input(path, CAP).ok()?);
    let mut named: Vec<String> = keys
        .iter()
        .take(MOST_NAMED)
        .map(|key| format!("`{}`", shown(key)))
        .collect();
    if keys.len() > named.len() {
        named.push(format!("{} more", keys.len() - named.len()));
    }
    (!named.is_empty()).then(|| {
        format!(
            "{name}: keys that stand there more than once, of which the last counts: {}",
            named.join(", ")
        )
    })
}

/// The keys, with the objects that they are in: `rope_scaling.factor`. Of what is no JSON, those
/// before the mistake.
fn repeated_keys(json: &[u8]) -> Vec<String> {
    let (mut place, mut found) = (String::new(), Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(json);
    let keys = Keys {
        place: &mut place,
        found: &mut found,
    };
    // A mistake is an error of whoever reads the file.
    let _ = keys.deserialize(&mut reader);
    found
}

/// Looks through a value, and keeps nothing of it.
struct Keys<'k> {
    /// What the objects around the value are called, with dots.
    place: &'k mut String,
    found: &'k mut Vec<String>,
}

impl Keys<'_> {
    fn inner(&mut self) -> Keys<'_> {
        Keys {
            place: self.place,
            found: self.found,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut seen, outer) = (HashSet::new(), self.place.len());
        while let Some(key) = map.next_key::<String>()? {
            self.place.push_str(&key);
            if seen.contains(&key) {
                self.found.push(self.place.clone());
            }
            self.place.push('.');
            map.next_value_seed(self.inner())?;
            self.place.truncate(outer);
            seen.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.inner())?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_with_the_objects_that_they_are_in() {
        let json = r#"{"a": 1, "b": {"c": [{"d": 1}, {"d": 2, "d": 3}], "c": null}, "e.f": 1.5, "a": true, "e": {"f": "x"}, "a": -2}"#;
        assert_eq!(repeated_keys(json.as_bytes()), ["b.c.d", "b.c", "a", "a"]);
        assert_eq!(repeated_keys(br#"{"a": 1, "a": 2, "b": Infinity}"#), ["a"]);
        assert_eq!(repeated_keys(b"[[]]"), [""; 0]);
    }

    #[test]
    fn files_are_named_and_long_lists_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            SideFile {
                name: name.to_owned(),
                path: folder.path().join(name),
            }
        };
        let many: Vec<String> = (0..15)
            .map(|i| format!("\"k{i}\": 1, \"k{i}\": 2"))
            .collect();
        let files = [
            file("plain.json", r#"{"a": {"a": 1}}"#),
            file("many.json", &format!("{{{}}}", many.join(", "))),
            file("text.txt", r#"{"a": 1, "a": 1}"#),
        ];
        let warnings = warnings(files.into_iter());
        let [warning] = warnings.as_slice() else {
            panic!("{warnings:?}")
        };
        assert!(
            warning.starts_with("many.json: ") && warning.ends_with("`k11`, 3 more"),
            "{warning}"
        );
    }
}
