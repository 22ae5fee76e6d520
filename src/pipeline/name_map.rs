//! Name maps: what another trainer calls the keys and tensors of its adapters, in YAML.
//!
//! ```yaml
//! set: {peft_type: DUAL_LORA}                     # what its configuration doesn't say
//! config: {rank: [r_magnitude, r_direction]}      # its keys: PEFT's, or several of them
//! tensors:                                        # its names, as patterns of the whole name: PEFT's
//!   '(.+)\.mag_in': 'base_model.model.${1}.lora_magnitude_A.weight'
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use dlc_files::{read_document, yaml};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::PipelineError;

/// Clashes that are printed; more are counted.
const SHOWN: usize = 4;

/// Most patterns, and how large each may be once it is compiled, in bytes.
const MOST_PATTERNS: usize = 1000;
const PATTERN_SIZE: usize = 256 << 10;

/// Largest name map.
const CAP: u64 = 1 << 20;

/// A name map.
#[derive(Debug)]
pub(super) struct NameMap {
    place: String,
    set: Map<String, Value>,
    config: Map<String, Value>,
    /// Patterns as they were written, compiled, and what they stand for.
    tensors: Vec<(String, Regex, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    set: Map<String, Value>,
    config: Map<String, Value>,
    tensors: serde_yaml::Mapping,
}

impl NameMap {
    /// Reads a map.
    ///
    /// # Errors
    /// [`PipelineError::Input`], or [`PipelineError::Config`] for what is no map or no pattern.
    pub fn read(path: &Path) -> Result<Self, PipelineError> {
        let place = path.display().to_string();
        let fail = |problem: String| PipelineError::Config {
            place: place.clone(),
            problem,
        };
        let text = read_document(path, CAP)?;
        let file: File = yaml::read(&text).map_err(|e| {
            fail(format!(
                "is no name map with `set`, `config` and `tensors`: {e}"
            ))
        })?;
        let names = |v: &Value| {
            v.is_string()
                || v.as_array()
                    .is_some_and(|list| list.iter().all(Value::is_string))
        };
        if let Some((key, _)) = file.config.iter().find(|(_, v)| !names(v)) {
            return Err(fail(format!(
                "config: `{key}` must stand for a key, or a list of keys"
            )));
        }
        if file.tensors.len() > MOST_PATTERNS {
            return Err(fail(format!(
                "tensors: {} patterns are more than the {MOST_PATTERNS} that dlc reads",
                file.tensors.len()
            )));
        }
        let tensors = file.tensors.iter().map(|(pattern, name)| {
            let (Some(pattern), Some(name)) = (pattern.as_str(), name.as_str()) else {
                return Err(fail(format!(
                    "tensors: {pattern:?} must be a pattern, and stand for a name"
                )));
            };
            let regex = RegexBuilder::new(&format!("^(?:{pattern})$"))
                .size_limit(PATTERN_SIZE)
                .build()
                .map_err(|e| fail(format!("tensors: `{pattern}` is no pattern: {e}")))?;
            Ok((pattern.to_owned(), regex, name.to_owned()))
        });
        let tensors = tensors.collect::<Result<_, _>>()?;
        Ok(Self {
            place,
            set: file.set,
            config: file.config,
            tensors,
        })
    }

    /// The configuration under PEFT's keys.
    pub fn config(&self, theirs: Map<String, Value>) -> Map<String, Value> {
        let mut ours = Map::new();
        for (key, value) in theirs {
            match self.config.get(&key) {
                None => _ = ours.insert(key, value),
                Some(Value::Array(names)) => ours.extend(
                    names
                        .iter()
                        .filter_map(Value::as_str)
                        .map(|name| (name.to_owned(), value.clone())),
                ),
                Some(name) => ours.extend(name.as_str().map(|name| (name.to_owned(), value))),
            }
        }
        ours.extend(self.set.clone());
        ours
    }

    /// The tensors under PEFT's names; the first pattern that fits decides, and names that fit none
    /// stay.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for patterns that fit no tensor, and for two tensors under one
    /// name.
    pub fn tensors<T>(
        &self,
        theirs: BTreeMap<String, T>,
    ) -> Result<BTreeMap<String, T>, PipelineError> {
        let mut used = vec![false; self.tensors.len()];
        let mut clashes = Vec::new();
        let mut ours = BTreeMap::new();
        for (theirs, tensor) in theirs {
            let name = self
                .tensors
                .iter()
                .enumerate()
                .find_map(|(i, (_, pattern, name))| {
                    let groups = pattern.captures(&theirs)?;
                    used[i] = true;
                    let mut expanded = String::new();
                    groups.expand(name, &mut expanded);
                    Some(expanded)
                });
            let name = name.unwrap_or_else(|| theirs.clone());
            if ours.contains_key(&name) {
                clashes.push(format!("`{theirs}` becomes a second `{name}`"));
            }
            ours.insert(name, tensor);
        }
        let mut problems: Vec<String> = clashes.iter().take(SHOWN).cloned().collect();
        if clashes.len() > SHOWN {
            problems.push(format!("and {} more like these", clashes.len() - SHOWN));
        }
        let idle = self.tensors.iter().zip(used).filter(|(_, used)| !used);
        problems.extend(
            idle.map(|((pattern, ..), _)| format!("`{pattern}` fits no tensor of the adapter")),
        );
        if problems.is_empty() {
            return Ok(ours);
        }
        Err(PipelineError::Config {
            place: self.place.clone(),
            problem: format!("tensors: {}", problems.join("; ")),
        })
    }
}
