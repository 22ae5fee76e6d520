//! Python's methods of texts, lists and dicts, beside those that the engine's companion has: what
//! it lacks, and what could grow too much.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::{pairs_of, pay_for, too_much};

/// The widest column, and the most digits, that a format may ask for in all.
const MOST_COLUMNS: usize = 1 << 20;
/// Bytes that a format may become at most, by its directives and the longest argument.
const MOST_FORMATTED: usize = 32 << 20;

/// Calls `method` of a value.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_text(state, text, method, args)?,
        (None, ValueKind::Map) => of_dict(value, method, args)?,
        (None, ValueKind::Seq | ValueKind::Iterable) => of_list(state, value, method, args)?,
        _ => None,
    };
    own.map_or_else(
        || minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        Ok,
    )
}

/// `text % values`, as Python formats texts, and the remainder of numbers.
pub(super) fn modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    let Some(text) = left.as_str() else {
        return remainder(left, right);
    };
    check_columns(text, std::slice::from_ref(right))?;
    let args: Vec<Value> = if right.is_tuple() {
        right.try_iter()?.collect()
    } else {
        vec![right.clone()]
    };
    format(FormatStyle::Printf, text, &args).map(Value::from)
}

/// With the sign of the divisor, as in Python.
fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !(number(left) && number(right)) {
        return Err(invalid(format!(
            "unsupported operand types for %: {} and {}",
            left.kind(),
            right.kind()
        )));
    }
    if let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone()))
        && left.is_integer() | (left.kind() == ValueKind::Bool)
        && right.is_integer() | (right.kind() == ValueKind::Bool)
    {
        let rest = a
            .checked_rem(b)
            .ok_or_else(|| invalid("division by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) {
            rest + b
        } else {
            rest
        }));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(invalid("division by zero"));
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }))
}

/// Refuses formats that ask for very wide columns, in digits or as an argument for `*`.
pub(super) fn check_columns(text: &str, args: &[Value]) -> Result<(), Error> {
    let digits = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty());
    let mut columns: usize = digits
        .map(|digits| digits.parse().unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add);
    if text.contains('*') {
        let numbers = args.iter().flat_map(|arg| {
            if arg.is_tuple() {
                arg.try_iter().into_iter().flatten().collect()
            } else {
                vec![arg.clone()]
            }
        });
        columns = numbers
            .filter_map(|n| i64::try_from(n).ok())
            .fold(columns, |sum, n| {
                sum.saturating_add(n.unsigned_abs() as usize)
            });
    }
    if columns > MOST_COLUMNS {
        return Err(too_much("very wide columns"));
    }
    let directives = text.matches(['{', '%']).count();
    let longest = args.iter().map(longest_text).max().unwrap_or(0);
    if directives.saturating_mul(longest) > MOST_FORMATTED {
        Err(too_much("a very long text"))
    } else {
        Ok(())
    }
}

/// The longest text in a value, or among the entries of one.
fn longest_text(value: &Value) -> usize {
    match value.kind() {
        ValueKind::Map => value
            .try_iter()
            .into_iter()
            .flatten()
            .filter_map(|key| value.get_item(&key).ok())
            .map(|v| length(&v))
            .max()
            .unwrap_or(0),
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()
            .into_iter()
            .flatten()
            .map(|v| length(&v))
            .max()
            .unwrap_or(0),
        _ => length(value),
    }
}

/// The length of a text in bytes; what else can be printed is paid for where it is made.
fn length(value: &Value) -> usize {
    value.as_str().map_or(0, str::len)
}

/// Pays for the entries of a list before it is made.
fn pay_for_items(state: &State, n: usize) -> Result<(), Error> {
    state.consume_fuel(1 + n as u64 / 2)
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

fn of_text(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "format" => {
            check_columns(text, args)?;
            return Ok(None);
        }
        "split" | "rsplit" => split(state, text, method == "rsplit", args)?,
        "splitlines" => {
            pay_for_items(state, text.matches(['\n', '\r']).count())?;
            return Ok(None);
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            for value in values.try_iter()? {
                if value.as_str().is_none() {
                    return Err(invalid(format!("join needs texts, not a {}", value.kind())));
                }
            }
            return Ok(None);
        }
        "replace" => {
            // Python takes the number as a third argument too; an empty text stands between all
            // characters.
            pay_for_items(state, text.len() / 64)?;
            return Ok(None);
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => parts(
            text.split_once(separator(args)?),
            separator(args)?,
            [text, "", ""],
        ),
        "rpartition" => parts(
            text.rsplit_once(separator(args)?),
            separator(args)?,
            ["", "", text],
        ),
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if method == "index" {
                text.find(what)
            } else {
                text.rfind(what)
            };
            Value::from(
                text[..found.ok_or_else(|| invalid("substring not found"))?]
                    .chars()
                    .count(),
            )
        }
        "swapcase" => text.chars().map(swap_case).collect::<String>().into(),
        "casefold" => text.replace('ß', "ss").to_lowercase().into(),
        "expandtabs" => expand_tabs(text, args)?.into(),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            format!("{sign}{}{digits}", "0".repeat(missing(width, text)?)).into()
        }
        "ljust" | "rjust" | "center" => justify(text, method, args)?.into(),
        "isdecimal" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        "isidentifier" => {
            let first = text
                .chars()
                .next()
                .is_some_and(|c| c.is_alphabetic() || c == '_');
            (first && text.chars().all(|c| c.is_alphanumeric() || c == '_')).into()
        }
        "istitle" => (text.chars().any(char::is_uppercase)
            && minijinja::filters::title(text.into()) == text)
            .into(),
        "isprintable" => (!text.chars().any(char::is_control)).into(),
        _ => return Ok(None),
    }))
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        Err(invalid("empty separator"))
    } else {
        Ok(separator)
    }
}

fn parts(found: Option<(&str, &str)>, separator: &str, whole: [&str; 3]) -> Value {
    let parts = found.map_or(whole, |(before, after)| [before, separator, after]);
    Value::from(Tuple::from(parts.map(Value::from).to_vec()))
}

/// `split` and `rsplit`: at white space without a separator.
fn split(state: &State, text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, named): (Rest<Value>, minijinja::value::Kwargs) = from_args(args)?;
    let separator = positional
        .first()
        .cloned()
        .or(named.get("sep")?)
        .filter(|value| !value.is_none());
    let most: Option<i64> = match positional.get(1) {
        Some(most) => Some(i64::try_from(most.clone())?),
        None => named.get("maxsplit")?,
    };
    named.assert_all_used()?;
    let most = most.filter(|most| *most >= 0).map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    });
    let limit = most.saturating_add(1);
    let found: Vec<&str> = if let Some(separator) = &separator {
        let separator = separator
            .as_str()
            .filter(|separator| !separator.is_empty())
            .ok_or_else(|| invalid("empty separator"))?;
        pay_for_items(state, text.matches(separator).count())?;
        if from_right {
            let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
            parts.reverse();
            parts
        } else {
            text.splitn(limit, separator).collect()
        }
    } else {
        pay_for_items(state, text.split_whitespace().count())?;
        words(text, most, from_right)
    };
    Ok(found.into_iter().map(Value::from).collect())
}

fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut rest = text.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let cut = if found.len() == most {
            None
        } else if from_right {
            rest.rfind(char::is_whitespace)
        } else {
            rest.find(char::is_whitespace)
        };
        let (word, other) = match cut {
            None => (rest, ""),
            Some(at) if from_right => (rest[at..].trim_start(), rest[..at].trim_end()),
            Some(at) => (&rest[..at], rest[at..].trim_start()),
        };
        found.push(word);
        rest = other;
    }
    if from_right {
        found.reverse();
    }
    found
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() {
        c.to_lowercase().collect()
    } else {
        c.to_uppercase().collect()
    }
}

fn expand_tabs(text: &str, args: &[Value]) -> Result<String, Error> {
    let (size,): (Option<usize>,) = from_args(args)?;
    let size = size.unwrap_or(8);
    if text.matches('\t').count().saturating_mul(size) > MOST_COLUMNS {
        return Err(too_much("very wide columns"));
    }
    let (mut expanded, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        if c == '\t' {
            let blanks = if size == 0 { 0 } else { size - column % size };
            expanded.push_str(&" ".repeat(blanks));
            column += blanks;
        } else {
            expanded.push(c);
            column = if matches!(c, '\n' | '\r') {
                0
            } else {
                column + 1
            };
        }
    }
    Ok(expanded)
}

/// How many columns a text lacks.
fn missing(width: usize, text: &str) -> Result<usize, Error> {
    if width > MOST_COLUMNS {
        Err(too_much("very wide columns"))
    } else {
        Ok(width.saturating_sub(text.chars().count()))
    }
}

pub(super) fn justify(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(invalid(
            "the fill character must be exactly one character long",
        ));
    }
    let missing = missing(width, text)?;
    // Where one is left over, Python puts it to the left of even widths, and to the right of odd
    // ones.
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!(
        "{}{text}{}",
        fill.repeat(left),
        fill.repeat(missing - left)
    ))
}

fn of_list(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            pay_for(state, value)?;
            let found = value.try_iter()?.position(|item| item == *what);
            Value::from(found.ok_or_else(|| invalid(format!("{what} is not in list")))?)
        }
        "count" => {
            pay_for(state, value)?;
            return Ok(None);
        }
        "copy" => {
            let () = from_args(args)?;
            value.clone()
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
            return Err(invalid(format!(
                "`{method}` changes a list, which templates may not"
            )));
        }
        _ => return Ok(None),
    }))
}

fn of_dict(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let () = from_args(args)?;
            Value::from_pairs(pairs_of(value)?)
        }
        "pop" | "popitem" | "update" | "setdefault" | "clear" => {
            return Err(invalid(format!(
                "`{method}` changes a dict, which templates may not"
            )));
        }
        _ => return Ok(None),
    }))
}
