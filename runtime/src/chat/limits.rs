//! What keeps templates from growing beyond their means: every value that a template makes is
//! measured, and its size paid for in fuel.
//!
//! So no value is deeper or larger than printing, comparing or copying it can bear. A namespace
//! can't hold a namespace, itself least of all.

use minijinja::value::{Kwargs, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State, Value};

/// How deep lists and dicts may lie in each other, and how many values and bytes one may hold in
/// all, shared ones counted wherever they stand.
const MOST_NESTED: usize = 64;
const MOST_VALUES: usize = 200_000;
const MOST_BYTES: usize = 32 << 20;
/// Values that are looked at for one step's worth of fuel.
const VALUES_PER_FUEL: usize = 2;
/// Marks a namespace; no template can spell it as an attribute.
const NAMESPACE: &str = " namespace";

/// Refuses values that are too deep or too large, and pays for looking at them. What would be made
/// when it is used is made at once.
pub(super) fn checked(state: &State, value: Value) -> Result<Value, Error> {
    let value = made(value)?;
    measure(state, &value, false).map(|()| value)
}

/// The same for a value that a namespace keeps.
pub(super) fn kept(state: &State, value: Value) -> Result<Value, Error> {
    let value = made(value)?;
    measure(state, &value, true).map(|()| value)
}

/// Pays for looking at all of a value.
pub(super) fn pay_for(state: &State, value: &Value) -> Result<(), Error> {
    measure(state, value, false)
}

/// A list instead of something that can be iterated over: a slice of a slice of a slice would take
/// longer and longer.
fn made(value: Value) -> Result<Value, Error> {
    let lazy = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !value.is_tuple()
        && value.downcast_object_ref::<Vec<Value>>().is_none();
    if !lazy {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() == MOST_VALUES {
            return Err(too_much("too long a list"));
        }
        items.push(item);
    }
    Ok(Value::from(items))
}

/// `namespace(...)`.
pub(super) fn namespace(
    state: &State,
    initial: Option<Value>,
    attributes: &Kwargs,
) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(initial) = initial {
        pairs.extend(pairs_of(&initial)?);
    }
    for name in attributes.args() {
        pairs.push((Value::from(name), attributes.get(name)?));
    }
    for (_, value) in &pairs {
        measure(state, value, true)?;
    }
    pairs.push((Value::from(NAMESPACE), Value::from(true)));
    minijinja::functions::namespace(Some(ValueOrKwargs::from(Value::from_pairs(pairs))))
}

/// The entries of a dict, or of a list of pairs, as Python's `dict` takes them.
pub(super) fn pairs_of(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let keys = value.try_iter()?;
    if value.kind() == ValueKind::Map {
        return keys
            .map(|key| value.get_item(&key).map(|value| (key, value)))
            .collect();
    }
    keys.map(|pair| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)))
        .collect()
}

/// An error of a template that wants too much.
pub(super) fn too_much(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("the template makes {what}, which no chat needs"),
    )
}

fn measure(state: &State, value: &Value, kept: bool) -> Result<(), Error> {
    let mut size = Size::default();
    size.add(value, 0, kept)?;
    if size.values > VALUES_PER_FUEL {
        state.consume_fuel((size.values / VALUES_PER_FUEL) as u64)
    } else {
        Ok(())
    }
}

#[derive(Default)]
struct Size {
    values: usize,
    bytes: usize,
}

impl Size {
    fn add(&mut self, value: &Value, depth: usize, kept: bool) -> Result<(), Error> {
        self.values += 1;
        self.bytes = self
            .bytes
            .saturating_add(value.as_str().map_or(0, str::len));
        if self.values > MOST_VALUES || self.bytes > MOST_BYTES && depth > 0 {
            return Err(too_much("too large a list"));
        }
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(());
        }
        if depth > MOST_NESTED {
            return Err(too_much("lists in lists too deep"));
        }
        if value.len().is_some_and(|len| len > MOST_VALUES) {
            return Err(too_much("too long a list"));
        }
        let pairs = kind == ValueKind::Map;
        if pairs
            && (kept || depth > 0)
            && value
                .get_attr(NAMESPACE)
                .is_ok_and(|mark| !mark.is_undefined())
        {
            return Err(too_much("a namespace in another value"));
        }
        let Some(object) = value.as_object() else {
            return Ok(());
        };
        if pairs {
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                self.add(&key, depth + 1, kept)?;
                self.add(&value, depth + 1, kept)?;
            }
        } else {
            for item in object.try_iter().into_iter().flatten() {
                self.add(&item, depth + 1, kept)?;
            }
        }
        Ok(())
    }
}
