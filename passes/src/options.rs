//! Options of passes: one typed struct each, filled from flags or YAML alike.
//!
//! [`options!`] declares a struct. All that is said of an option is written there, once: its name,
//! meaning, type, default and range. What `dlc passes` and the documents say, what is checked and
//! what errors name comes from it.

mod names;
mod range;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use crate::error::PassError;

pub(crate) use names::names;
pub use range::Range;

/// What is known of an option. Displayed, it is the meaning, and in parentheses range and default.
#[derive(Debug, Clone, PartialEq)]
pub struct OptionInfo {
    /// Its name.
    pub name: &'static str,
    /// What it means; of one without a default also what happens if it is absent.
    pub meaning: String,
    /// The values that it takes, if its type doesn't say so.
    pub range: Option<Range>,
    /// Its value where none is given.
    pub default: Option<Value>,
}

/// The options of a pass, or those that several share; [`options!`] implements it.
pub(crate) trait PassOptions: Default + Serialize {
    /// Every option, in order.
    fn infos() -> Vec<OptionInfo>;

    /// The value of an option where none is given, if it has one then.
    fn default_of(name: &str) -> Option<Value> {
        let mut defaults = values(&Self::default()).ok()?;
        defaults.remove(name).filter(|value| !value.is_null())
    }

    /// Refuses values out of range.
    fn check_ranges(&self, pass: &'static str) -> Result<(), PassError> {
        values(self)
            .and_then(|values| {
                Self::infos()
                    .iter()
                    .try_for_each(|info| info.check(values.get(info.name)))
            })
            .map_err(|problem| PassError::Options { pass, problem })
    }
}

/// Declares the options of a pass: fields with their documentation, which is their meaning too,
/// their default, and what else there is to say.
///
/// - `else NUMBER`: the default of an option that is absent unless it is given
/// - `in RANGE`: a [`Range`]; enums have theirs by themselves
///
/// `..name: Type` at the end takes in other options.
macro_rules! options {
    (@optional) => { None };
    (@optional $value:expr) => { Some($value) };
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident {
            $(
                $(#[doc = $doc:literal])+
                $option:ident: $type:ty =
                    $default:expr $(, else $absent:expr)? $(, in $range:expr)?;
            )*
            $(..$shared:ident: $Shared:ty)?
        }
    ) => {
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        $(#[$meta])*
        $vis struct $Name {
            $($(#[doc = $doc])+ pub $option: $type,)*
            $(
                #[doc = concat!("Those of [`", stringify!($Shared), "`].")]
                #[serde(flatten)]
                pub $shared: $Shared,
            )?
        }

        impl Default for $Name {
            fn default() -> Self {
                Self {
                    $($option: $default,)*
                    $($shared: <$Shared>::default(),)?
                }
            }
        }

        impl $crate::options::PassOptions for $Name {
            fn infos() -> Vec<$crate::options::OptionInfo> {
                let own: Vec<$crate::options::OptionInfo> = vec![$({
                    let range: Option<$crate::options::Range> =
                        $crate::options::options!(@optional $($range)?);
                    let absent: Option<f64> = $crate::options::options!(@optional $($absent)?);
                    let names = $crate::options::names::<$type>();
                    $crate::options::OptionInfo {
                        name: stringify!($option),
                        meaning: $crate::options::phrase(concat!($($doc),+)),
                        range: range.or(names.map($crate::options::Range::Names)),
                        default: Self::default_of(stringify!($option)).or(absent.map(Into::into)),
                    }
                }),*];
                [own, $(<$Shared as $crate::options::PassOptions>::infos())?].concat()
            }
        }
    };
}

pub(crate) use options;

/// Fills the options of `pass`. Keys that it doesn't have are refused, with the nearest that it
/// has.
///
/// # Errors
/// [`PassError::Options`] for an unknown key or a value that doesn't fit.
pub(crate) fn parse_options<T: PassOptions + DeserializeOwned>(
    pass: &'static str,
    given: &Mapping,
) -> Result<T, PassError> {
    let infos = T::infos();
    given
        .iter()
        .try_for_each(|(key, value)| {
            let info = find(&infos, key)?;
            info.check(Some(value))?;
            let alone = Value::Mapping(Mapping::from_iter([(key.clone(), value.clone())]));
            serde_yaml::from_value::<T>(alone)
                .map(drop)
                .map_err(|e| format!("option `{}`: {}", info.name, plainly(&e)))
        })
        .and_then(|()| {
            serde_yaml::from_value(Value::Mapping(given.clone())).map_err(|e| e.to_string())
        })
        .map_err(|problem| PassError::Options { pass, problem })
}

/// The option that `key` names.
fn find<'a>(infos: &'a [OptionInfo], key: &Value) -> Result<&'a OptionInfo, String> {
    let name = key
        .as_str()
        .ok_or_else(|| format!("{key:?} is not an option name"))?;
    infos.iter().find(|info| info.name == name).ok_or_else(|| {
        let known: Vec<&str> = infos.iter().map(|info| info.name).collect();
        let options = if known.is_empty() {
            "it has none".into()
        } else {
            format!("it has {}", known.join(", "))
        };
        let hint = hint(name, known.iter().copied());
        format!("there is no option `{name}`{hint}; {options}")
    })
}

/// What serde says, without the names of Rust's types.
fn plainly(error: &serde_yaml::Error) -> String {
    let whole = "expected a whole number";
    error
        .to_string()
        .replace("expected usize", whole)
        .replace("expected u64", whole)
        .replace("expected f64", "expected a number")
}

impl OptionInfo {
    /// Refuses a value out of range; one of another type is left to serde.
    fn check(&self, value: Option<&Value>) -> Result<(), String> {
        match (&self.range, value) {
            (Some(range), Some(value)) if !range.contains(value) => Err(format!(
                "option `{}`: {} doesn't fit; ask for {range}",
                self.name,
                shown(value)
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for OptionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.meaning)?;
        let default = self
            .default
            .as_ref()
            .map(|value| format!("default {}", shown(value)));
        match (&self.range, default) {
            (None, None) => Ok(()),
            (Some(range), None) => write!(f, " ({range})"),
            (None, Some(default)) => write!(f, " ({default})"),
            (Some(range), Some(default)) => write!(f, " ({range}; {default})"),
        }
    }
}

/// A number, word or truth value as YAML writes it, whole numbers without a point.
fn shown(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => {
            let text = number.to_string();
            text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
        }
        other => format!("{other:?}"),
    }
}

/// The values of options by their names.
fn values(options: &impl Serialize) -> Result<Mapping, String> {
    match serde_yaml::to_value(options).map_err(|e| e.to_string())? {
        Value::Mapping(values) => Ok(values),
        other => Err(format!("{other:?} are no options")),
    }
}

/// A sentence of documentation as a phrase: without its full stop, and small where a word begins.
pub(crate) fn phrase(documentation: &str) -> String {
    let text = documentation.trim();
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            format!("{}{}", first.to_lowercase(), letters.as_str())
        }
        _ => text.to_owned(),
    }
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
