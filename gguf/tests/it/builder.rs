//! Writes GGUF files byte by byte, right ones and wrong ones.

use std::path::Path;
use std::sync::Arc;

use dlc_gguf::{Gguf, GgufError};

/// A GGUF file in parts.
#[derive(Debug, Clone)]
pub struct Builder {
    pub magic: Vec<u8>,
    pub version: u32,
    /// What the header says of the numbers of tensors and entries, where it lies.
    pub counts: [Option<u64>; 2],
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
    /// Where data begins is a multiple of it.
    pub alignment: usize,
}

/// A value of the metadata.
#[derive(Debug, Clone)]
pub enum Meta<'a> {
    U32(u32),
    F32(f32),
    Text(&'a str),
    /// A type and its bytes.
    Raw(u32, Vec<u8>),
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Meta<'_> {
    fn parts(&self) -> (u32, Vec<u8>) {
        match self {
            Self::U32(n) => (4, n.to_le_bytes().into()),
            Self::F32(x) => (6, x.to_le_bytes().into()),
            Self::Text(s) => (8, text(s)),
            Self::Raw(kind, bytes) => (*kind, bytes.clone()),
        }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            magic: b"GGUF".into(),
            version: 3,
            counts: [None; 2],
            entries: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
            alignment: 32,
        }
    }
}

impl Builder {
    pub fn with(mut self, key: &str, value: &Meta<'_>) -> Self {
        let (kind, bytes) = value.parts();
        self.entries
            .push([text(key), kind.to_le_bytes().into(), bytes].concat());
        self
    }

    /// A tensor with its data, at the next aligned place; axes innermost first.
    pub fn tensor(mut self, name: &str, axes: &[u64], kind: u32, data: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(32);
        self.data.resize(offset, 0);
        self.data.extend(data);
        self.record(name, axes, kind, offset as u64)
    }

    /// A tensor's record alone.
    pub fn record(mut self, name: &str, axes: &[u64], kind: u32, offset: u64) -> Self {
        let axes_bytes = axes.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.tensors.push(
            [
                text(name),
                (axes.len() as u32).to_le_bytes().into(),
                axes_bytes,
                kind.to_le_bytes().into(),
                offset.to_le_bytes().into(),
            ]
            .concat(),
        );
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let [tensors, entries] = self.counts;
        let mut bytes = [
            self.magic.clone(),
            self.version.to_le_bytes().into(),
            tensors
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes()
                .into(),
            entries
                .unwrap_or(self.entries.len() as u64)
                .to_le_bytes()
                .into(),
            self.entries.concat(),
            self.tensors.concat(),
        ]
        .concat();
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub fn open(&self) -> Result<Gguf, GgufError> {
        open(self.bytes())
    }
}

/// The file of these bytes.
pub fn open(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    Gguf::parse(Path::new("model.gguf"), Arc::new(bytes))
}

/// A file in `fixtures/` of the repository.
pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}
