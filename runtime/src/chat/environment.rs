//! The template engine as Hugging Face's `apply_chat_template` sets it up, and what Jinja has that
//! the engine lacks.

use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Object, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::limits::{checked, kept, namespace, pairs_of, pay_for, too_much};
use super::source::{CHECKED, KEPT, MODULO};
use super::{functions, json, methods};

/// Steps of the engine, and 64 times as many bytes that it may make; a long conversation takes some
/// ten thousand.
const FUEL: u64 = 2_000_000;

/// An environment with the template `chat`, whose source is prepared.
pub(super) fn environment(source: &str, now: SystemTime) -> Result<Environment<'_>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(print);
    environment.add_function(CHECKED, |state: &mut State, value: Value| {
        checked(state, value)
    });
    environment.add_function(KEPT, |state: &mut State, value: Value| kept(state, value));
    environment.add_function(MODULO, |left: &Value, right: &Value| {
        methods::modulo(left, right)
    });
    environment.add_function(
        "namespace",
        |state: &mut State, initial: Option<Value>, attributes: Kwargs| {
            namespace(state, initial, &attributes)
        },
    );
    environment.add_function("raise_exception", functions::raise_exception);
    environment.add_function("strftime_now", move |format: &str| {
        functions::strftime(format, now)
    });
    environment.add_global("dict", Value::from_object(Dict));
    environment.add_global("debug", Value::UNDEFINED);
    add_filters(&mut environment);
    add_tests(&mut environment);
    environment.add_template("chat", source)?;
    Ok(environment)
}

/// Floats as Python prints them; the rest is the engine's own.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number
        && !value.is_integer()
        && let Ok(x) = f64::try_from(value.clone())
    {
        return out
            .write_str(&json::float(x))
            .map_err(|_| too_much("a very long text"));
    }
    minijinja::escape_formatter(out, state, value)
}

fn add_filters(environment: &mut Environment) {
    environment.add_filter(
        "tojson",
        |state: &mut State, value: &Value, options: Kwargs| json::tojson(state, value, options),
    );
    environment.add_filter("center", |text: &str, width: Option<usize>| {
        methods::justify(text, "center", &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .count()
    });
    environment.add_filter(
        "int",
        |state: &State,
         value: &Value,
         default: Option<Value>,
         base: Option<u32>,
         options: Kwargs| {
            let default = default.or_else(|| (!options.has("default")).then(|| Value::from(0)));
            minijinja::filters::int(state, value, default, base, options)
        },
    );
    environment.add_filter(
        "float",
        |state: &State, value: &Value, default: Option<Value>, options: Kwargs| {
            let default = default.or_else(|| (!options.has("default")).then(|| Value::from(0.0)));
            minijinja::filters::float(state, value, default, options)
        },
    );
    environment.add_filter("pprint", |value: &Value| format!("{value:?}"));
    environment.add_filter("truncate", truncate);
    environment.add_filter("format", |text: &str, values: Rest<Value>| {
        methods::check_columns(text, &values)?;
        minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, text, &values)
    });
}

/// Jinja's `truncate`, with its tolerance of 5 characters.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja's filters take their keywords so"
)]
fn truncate(text: &str, length: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let length = length.or(options.get("length")?).unwrap_or(255);
    let whole_words = !options.get::<Option<bool>>("killwords")?.unwrap_or(false);
    let end: String = options
        .get::<Option<String>>("end")?
        .unwrap_or_else(|| "...".to_owned());
    let leeway = options.get::<Option<usize>>("leeway")?.unwrap_or(5);
    options.assert_all_used()?;
    let tail = end.chars().count();
    if length < tail {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("expected length >= {tail}, got {length}"),
        ));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let cut: String = text.chars().take(length - tail).collect();
    let kept = if whole_words {
        cut.rsplit_once(' ').map_or(cut.as_str(), |(kept, _)| kept)
    } else {
        &cut
    };
    Ok(format!("{kept}{end}"))
}

type Compare = fn(&Value, &Value) -> bool;

fn add_tests(environment: &mut Environment) {
    let iterable = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String
                | ValueKind::Seq
                | ValueKind::Iterable
                | ValueKind::Map
                | ValueKind::Undefined
        )
    };
    environment.add_test("iterable", move |value: &Value| iterable(value));
    environment.add_test("sequence", move |value: &Value| iterable(value));
    let compares: [(&[&str], Compare); 6] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ];
    for (names, holds) in compares {
        for name in names {
            environment.add_test(*name, move |state: &State, a: &Value, b: &Value| {
                pay_for(state, a).map(|()| holds(a, b))
            });
        }
    }
    environment.add_test("in", |state: &State, value: &Value, container: &Value| {
        pay_for(state, container)?;
        minijinja::tests::is_in(state, value, container)
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// `dict(...)` and `dict.fromkeys(...)`.
#[derive(Debug)]
struct Dict;

impl Object for Dict {
    fn call(self: &Arc<Self>, state: &mut State, args: &[Value]) -> Result<Value, Error> {
        let (initial, named): (Option<Value>, Kwargs) = minijinja::value::from_args(args)?;
        let mut pairs = initial.map_or_else(|| Ok(vec![]), |initial| pairs_of(&initial))?;
        for name in named.args() {
            pairs.push((Value::from(name), named.get(name)?));
        }
        checked(state, Value::from_pairs(pairs))
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        if method != "fromkeys" {
            return Err(Error::from(ErrorKind::UnknownMethod));
        }
        let (keys, value): (Value, Option<Value>) = minijinja::value::from_args(args)?;
        let value = value.unwrap_or(Value::from(()));
        checked(
            state,
            Value::from_pairs(keys.try_iter()?.map(|key| (key, value.clone()))),
        )
    }
}
