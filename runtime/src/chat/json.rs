//! Python's `json.dumps`, as Hugging Face's `tojson` calls it; and how Python writes floats.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::too_much;

/// The longest JSON, and the widest indentation.
const MOST_BYTES: usize = 32 << 20;
const WIDEST: usize = 64;

/// JSON with `", "` and `": "`, and nothing escaped for HTML; takes Python's `ensure_ascii`,
/// `indent`, `separators` and `sort_keys`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja's filters take their keywords so"
)]
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options
        .get::<Option<Value>>("indent")?
        .filter(|indent| !indent.is_none())
    {
        None => None,
        Some(indent) => match (indent.as_str(), usize::try_from(indent.clone())) {
            (Some(text), _) if text.len() <= WIDEST => Some(text.to_owned()),
            (None, Ok(width)) if width <= WIDEST => Some(" ".repeat(width)),
            _ => return Err(too_much("very wide JSON")),
        },
    };
    let default = if indent.is_some() {
        [",", ": "]
    } else {
        [", ", ": "]
    }
    .map(str::to_owned);
    let separators = match options
        .get::<Option<Value>>("separators")?
        .filter(|pair| !pair.is_none())
    {
        None => default,
        Some(pair) => [0, 1].map(|i| {
            pair.get_item_by_index(i)
                .map(|part| part.to_string())
                .unwrap_or_default()
        }),
    };
    if separators.iter().any(|separator| separator.len() > WIDEST) {
        return Err(too_much("very wide JSON"));
    }
    let [item, key] = separators;
    let mut writer = Writer {
        text: String::new(),
        indent,
        item,
        key,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    state.consume_fuel(writer.text.len() as u64 / 16)?;
    Ok(Value::from_safe_string(writer.text))
}

struct Writer {
    text: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.text.len() > MOST_BYTES {
            return Err(too_much("very long JSON"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self
                .text
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.dict(value, depth)?,
            other => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("{other} can't be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut empty = true;
        for item in value.try_iter()? {
            self.next("[", &mut empty, depth);
            self.value(&item, depth + 1)?;
        }
        self.end("[]", empty, depth);
        Ok(())
    }

    fn dict(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sorted {
            keys.sort();
        }
        let mut empty = true;
        for key in keys {
            self.next("{", &mut empty, depth);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default()),
                ValueKind::None => self.text.push_str("\"null\""),
                ValueKind::Bool => self.string(if key.is_true() { "true" } else { "false" }),
                ValueKind::Number => self.string(&number(&key)),
                other => {
                    return Err(Error::new(
                        ErrorKind::BadSerialization,
                        format!("{other} can't be a key of JSON"),
                    ));
                }
            }
            self.text.push_str(&self.key);
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.end("{}", empty, depth);
        Ok(())
    }

    /// Begins a list or dict with its first entry, or goes on to the next one.
    fn next(&mut self, open: &str, empty: &mut bool, depth: usize) {
        self.text.push_str(if *empty { open } else { &self.item });
        *empty = false;
        self.line(depth + 1);
    }

    fn end(&mut self, brackets: &str, empty: bool, depth: usize) {
        if empty {
            self.text.push_str(brackets);
        } else {
            self.line(depth);
            self.text.push_str(&brackets[1..]);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' => self.escape(u16::try_from(u32::from(c)).unwrap_or_default()),
                c if self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.escape(*unit);
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, unit: u16) {
        let _ = write!(self.text, "\\u{unit:04x}");
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        value.to_string()
    } else {
        f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
    }
}

/// A float as Python's `repr` and `str` write it: the shortest digits that read back the same, with
/// an exponent where it's below -4 or above 15.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = x.to_string();
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}
