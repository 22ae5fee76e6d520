//! The metadata of a GGUF file: keys with values of 13 types. Strings and arrays stay in the file.

use std::collections::BTreeMap;

use dlc_errors::printable::shown;

use crate::scan::Scan;

/// The longest key that the format allows.
const LONGEST_KEY: usize = 65_535;
/// The longest string that is read: a chat template, an entry of a tokenizer's table.
const LONGEST_STRING: usize = 16 << 20;
/// The shortest entry: an empty key, a type and a byte.
const LEAST_ENTRY: usize = 8 + 4 + 1;
/// How deep arrays may lie in arrays.
const DEEPEST: usize = 4;

/// The type of a value, by the format's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(scan: &mut Scan<'_>) -> Result<Self, String> {
        let number = scan.u32()?;
        let kind = usize::try_from(number)
            .ok()
            .and_then(|number| Self::ALL.get(number));
        kind.copied().ok_or_else(|| {
            format!("has metadata of type {number}, which GGUF doesn't define. Download it again")
        })
    }

    /// Bytes of a value, at least.
    fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

/// A value of the metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'b> {
    /// A whole number of any width.
    Int(i128),
    /// A number in single precision.
    F32(f32),
    /// A number in double precision.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text, which should be UTF-8.
    Bytes(&'b [u8]),
    /// Values of one type.
    Array(Array<'b>),
}

impl<'b> Value<'b> {
    /// A whole number that isn't negative.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Int(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }

    /// A number of any type; single precision is read as its shortest decimal, as people wrote it.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(n as f64),
            Self::F32(x) => x.to_string().parse().ok(),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// A text in UTF-8.
    pub fn text(self) -> Option<&'b str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Several values.
    pub fn array(self) -> Option<Array<'b>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The value as messages show it.
    pub fn shown(self) -> String {
        match self {
            Self::Int(n) => n.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Bytes(bytes) => format!("\"{}\"", shown(&String::from_utf8_lossy(bytes))),
            Self::Array(array) => format!("an array of {}", array.length),
        }
    }

    fn read(scan: &mut Scan<'b>, kind: Kind, depth: usize) -> Result<Self, String> {
        let number = |scan: &mut Scan<'b>| -> Result<[u8; 8], String> {
            let bytes = scan.take(kind.least())?;
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Ok(wide)
        };
        Ok(match kind {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => {
                Self::Int(u64::from_le_bytes(number(scan)?).into())
            }
            Kind::I8 => Self::Int((u64::from_le_bytes(number(scan)?) as i8).into()),
            Kind::I16 => Self::Int((u64::from_le_bytes(number(scan)?) as i16).into()),
            Kind::I32 => Self::Int((u64::from_le_bytes(number(scan)?) as i32).into()),
            Kind::I64 => Self::Int(i64::from_le_bytes(number(scan)?).into()),
            Kind::F32 => Self::F32(f32::from_bits(u64::from_le_bytes(number(scan)?) as u32)),
            Kind::F64 => Self::F64(f64::from_le_bytes(number(scan)?)),
            Kind::Bool => Self::Bool(scan.take(1)? != [0]),
            Kind::String => Self::Bytes(scan.string(LONGEST_STRING, "a text")?),
            Kind::Array => Self::Array(Array::read(scan, depth)?),
        })
    }
}

/// An array that is read entry by entry.
#[derive(Debug, Clone, Copy)]
pub struct Array<'b> {
    bytes: &'b [u8],
    kind: Kind,
    length: usize,
    depth: usize,
}

/// Two arrays are equal if their bytes are.
impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.bytes, self.kind, self.length) == (other.bytes, other.kind, other.length)
    }
}

impl<'b> Array<'b> {
    fn read(scan: &mut Scan<'b>, depth: usize) -> Result<Self, String> {
        if depth >= DEEPEST {
            return Err(format!(
                "has arrays in arrays, more than {DEEPEST} deep. Download it again"
            ));
        }
        let kind = Kind::read(scan)?;
        let length = scan.count(kind.least(), "entries in an array")?;
        let mut end = scan.clone();
        if matches!(kind, Kind::String | Kind::Array) {
            for _ in 0..length {
                Value::read(&mut end, kind, depth + 1)?;
            }
        } else {
            end.take(length * kind.least())?;
        }
        let bytes = scan.take(end.at() - scan.at())?;
        Ok(Self {
            bytes,
            kind,
            length,
            depth,
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The entries.
    pub fn iter(self) -> impl Iterator<Item = Value<'b>> {
        let mut scan = Scan::new(self.bytes, 0);
        (0..self.length).map_while(move |_| Value::read(&mut scan, self.kind, self.depth + 1).ok())
    }
}

/// The metadata of a file.
#[derive(Debug, Clone, Default)]
pub struct Metadata<'b> {
    values: BTreeMap<&'b str, Value<'b>>,
}

impl<'b> Metadata<'b> {
    pub(crate) fn read(scan: &mut Scan<'b>, count: usize) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = scan.string(LONGEST_KEY, "a key")?;
            let key = std::str::from_utf8(key)
                .map_err(|_| "has a key that isn't UTF-8. Download it again".to_owned())?;
            let of_key = |problem: String| format!("key `{}`: {problem}", shown(key));
            let kind = Kind::read(scan).map_err(of_key)?;
            let value = Value::read(scan, kind, 0).map_err(of_key)?;
            if values.insert(key, value).is_some() {
                return Err(of_key("is there twice. Download the file again".into()));
            }
        }
        Ok(Self { values })
    }

    /// Bytes that an entry takes at least.
    pub(crate) const LEAST: usize = LEAST_ENTRY;

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'b>> {
        self.values.get(key).copied()
    }

    /// All keys and values, by key.
    pub fn entries(&self) -> impl Iterator<Item = (&'b str, Value<'b>)> {
        self.values.iter().map(|(key, value)| (*key, *value))
    }
}
