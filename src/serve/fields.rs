//! The fields of a request: each is taken by the one that heeds it, and what is left is refused.
//! null and absent are one, as in OpenAI's API.

use std::ops::{Deref, RangeInclusive};

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::problem::Problem;

/// An object of a request. Serde by itself takes a list of its values for one too.
#[derive(Debug)]
pub(super) struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Map::deserialize(deserializer)?;
        T::deserialize(Value::Object(map))
            .map(Self)
            .map_err(D::Error::custom)
    }
}

impl<T> Deref for Object<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The object that a request is, without what was taken from it.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(_) => Err(Problem::request("the request is JSON, but no object")),
            Err(error) => Err(Problem::request(format!("the request isn't JSON: {error}"))),
        }
    }

    /// The value of a field; None where it is absent or null.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Problem> {
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match serde_json::from_value(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(wrong(name, expected)),
            },
        }
    }

    /// The value of a field that the request must have.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, Problem> {
        self.take(name, expected)?
            .ok_or_else(|| Problem::field(name, format!("`{name}` is missing: it is {expected}")))
    }

    pub fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, Problem> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        match self.take::<f32>(name, &expected)? {
            Some(number) if !range.contains(&number) => Err(wrong(name, &expected)),
            number => Ok(number),
        }
    }

    pub fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, Problem> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        match self.take::<usize>(name, &expected)? {
            Some(number) if !range.contains(&number) => Err(wrong(name, &expected)),
            number => Ok(number),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        Ok(self.take(name, "true or false")?.unwrap_or(false))
    }

    /// Refuses a field that has another value than the one that changes nothing.
    pub fn only(&mut self, name: &str, neutral: &Value, why: &str) -> Result<(), Problem> {
        match self.map.remove(name) {
            Some(value) if !value.is_null() && value != *neutral => Err(Problem::field(
                name,
                format!("`{name}` isn't supported: {why}"),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took but those that concern the provider's books alone.
    pub fn finish(mut self) -> Result<(), Problem> {
        for name in [
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
        ] {
            self.map.remove(name);
        }
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let name: String = name.escape_debug().take(60).collect();
                let message = format!("`{name}` is a field that this server doesn't know");
                Err(Problem::field(&name, message))
            }
            None => Ok(()),
        }
    }
}

fn wrong(name: &str, expected: &str) -> Problem {
    Problem::field(name, format!("`{name}` must be {expected}"))
}
