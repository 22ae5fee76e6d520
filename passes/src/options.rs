//! Options of passes: one typed struct each, filled from flags or YAML alike.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use crate::error::PassError;

/// Fills the options of `pass`. Keys that it doesn't have are refused, with the nearest that it
/// has.
///
/// # Errors
/// [`PassError::Options`] for an unknown key or a value that doesn't fit.
pub fn parse_options<T: Default + Serialize + DeserializeOwned>(
    pass: &'static str,
    given: &Mapping,
) -> Result<T, PassError> {
    let fail = |problem: String| PassError::Options { pass, problem };
    let defaults = serde_yaml::to_value(T::default()).map_err(|e| fail(e.to_string()))?;
    let known: Vec<&str> = defaults
        .as_mapping()
        .into_iter()
        .flat_map(Mapping::keys)
        .filter_map(Value::as_str)
        .collect();
    for key in given.keys() {
        let key = key
            .as_str()
            .ok_or_else(|| fail(format!("{key:?} is not an option name")))?;
        if !known.contains(&key) {
            let options = if known.is_empty() {
                "it has none".into()
            } else {
                format!("it has {}", known.join(", "))
            };
            return Err(fail(format!(
                "there is no option `{key}`{}; {options}",
                hint(key, known.iter().copied())
            )));
        }
    }
    for (key, value) in given {
        let alone = Value::Mapping(Mapping::from_iter([(key.clone(), value.clone())]));
        let plainly = |e: serde_yaml::Error| {
            e.to_string()
                .replace("expected usize", "expected a whole number")
                .replace("expected f64", "expected a number")
        };
        serde_yaml::from_value::<T>(alone).map_err(|e| {
            fail(format!(
                "option `{}`: {}",
                key.as_str().unwrap_or_default(),
                plainly(e)
            ))
        })?;
    }
    serde_yaml::from_value(Value::Mapping(given.clone())).map_err(|e| fail(e.to_string()))
}

/// `, did you mean X?` for the name most like `given`, or nothing if none is.
pub fn hint<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known
        .map(|k| (strsim::jaro_winkler(given, k), k))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, name)) if likeness > 0.75 => format!(", did you mean `{name}`?"),
        _ => String::new(),
    }
}
