//! A GGUF file: header, metadata, and where its tensors lie. No byte of a tensor is read.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlc_errors::printable::shown;
use dlc_files::{InputError, mapped, open_input};
use dlc_ir::{Blob, Expr};

use crate::error::GgufError;
use crate::kind::TensorKind;
use crate::metadata::Metadata;
use crate::scan::Scan;

const MAGIC: &[u8] = b"GGUF";
/// Where data is aligned if the file doesn't say it.
const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// The coarsest alignment that is taken: a page of any machine.
const LARGEST_ALIGNMENT: usize = 1 << 20;
/// `GGML_MAX_DIMS`.
const MOST_AXES: u32 = 4;
/// The longest name of a tensor that is read; ggml takes 63 bytes.
const LONGEST_NAME: usize = 1024;
/// The shortest record of a tensor: an empty name, one axis, a type and an offset.
const LEAST_RECORD: usize = 8 + 4 + 8 + 4 + 8;

/// Whether a file begins as GGUF files do.
pub fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// An opened GGUF file of version 2 or 3. It is mapped, so it must stay as it is for as long as an
/// expression of it lives.
#[derive(Clone)]
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Where the metadata begins, and how many entries it has.
    metadata: (usize, usize),
    tensors: Vec<GgufTensor>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({})", self.path.display())
    }
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name, as llama.cpp calls it.
    pub name: String,
    /// How its elements are stored.
    pub kind: TensorKind,
    /// Axes, outermost first (the file has them the other way); none is 0.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file; nothing where the type is unknown.
    range: Range<usize>,
}

impl Gguf {
    /// Opens a file.
    ///
    /// # Errors
    /// [`GgufError::Input`] for a file that can't be read, else as [`parse`](Self::parse).
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (file, size) = open_input(path)?;
        if size == 0 {
            return Err(GgufError::damaged(path, "is empty. Download it again"));
        }
        let map = mapped::map(&file, path).map_err(|error| InputError::system(path, error))?;
        Self::parse(path, Arc::new(map))
    }

    /// The file of these bytes; `path` is what messages call it.
    ///
    /// # Errors
    /// [`GgufError::Damaged`] for bytes that break the format, [`GgufError::Unsupported`] for
    /// another version or byte order.
    pub fn parse(
        path: &Path,
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    ) -> Result<Self, GgufError> {
        let all = (*bytes).as_ref();
        let mut scan = Scan::new(all, 0);
        let damaged = |problem: String| GgufError::damaged(path, problem);
        if !is_gguf(scan.take(MAGIC.len()).map_err(damaged)?) {
            return Err(damaged(
                "is no GGUF file: it doesn't begin with GGUF. Check the path".into(),
            ));
        }
        check_version(path, scan.u32().map_err(damaged)?)?;
        let (start, count, tensors) = read_parts(all, scan).map_err(damaged)?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata: (start, count),
            tensors,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        (*self.bytes).as_ref().len() as u64
    }

    /// What the file says of itself.
    pub fn metadata(&self) -> Metadata<'_> {
        let (start, count) = self.metadata;
        // It was read like this when the file was opened.
        Metadata::read(&mut Scan::new((*self.bytes).as_ref(), start), count).unwrap_or_default()
    }

    /// The tensors in the order of their records.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The bytes of a tensor; none for a type that dlc doesn't read.
    pub fn blob(&self, tensor: &GgufTensor) -> Option<Blob> {
        Blob::new(self.bytes.clone(), tensor.range.clone())
    }

    /// The elements of a tensor; nothing for a type that dlc doesn't read.
    pub fn expr(&self, tensor: &GgufTensor) -> Option<Expr> {
        tensor.kind.expr(self.blob(tensor)?)
    }
}

fn check_version(path: &Path, version: u32) -> Result<(), GgufError> {
    let problem = match version {
        2 | 3 => return Ok(()),
        1 => "is GGUF of version 1, and dlc reads 2 and 3. Take a newer file of the model".into(),
        // The smallest byte of a small number comes last.
        n if n.swap_bytes() <= 0xffff => "is big-endian GGUF, and dlc reads little-endian files. \
             Take the model's usual file"
            .into(),
        n => format!("is GGUF of version {n}, and dlc reads 2 and 3"),
    };
    Err(GgufError::Unsupported {
        path: path.to_owned(),
        problems: vec![problem],
    })
}

/// Where the metadata begins, how many entries it has, and the tensors.
fn read_parts(all: &[u8], mut scan: Scan<'_>) -> Result<(usize, usize, Vec<GgufTensor>), String> {
    let tensors = scan.count(LEAST_RECORD, "tensors")?;
    let entries = scan.count(Metadata::LEAST, "metadata entries")?;
    let start = scan.at();
    let alignment = alignment(&Metadata::read(&mut scan, entries)?)?;
    let mut records = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let record = Record::read(&mut scan)?;
        if !names.insert(record.name) {
            return Err(record.problem("is there twice"));
        }
        records.push(record);
    }
    let data = scan
        .at()
        .checked_next_multiple_of(alignment)
        .ok_or(crate::scan::CUT)?;
    let placed: Result<Vec<_>, _> = records
        .iter()
        .map(|record| record.place(data, alignment, all.len()))
        .collect();
    let placed = placed?;
    check_overlaps(&placed)?;
    Ok((start, entries, placed))
}

fn alignment(metadata: &Metadata<'_>) -> Result<usize, String> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT);
    };
    let taken = |n: &usize| n.is_power_of_two() && *n <= LARGEST_ALIGNMENT;
    value.size().filter(taken).ok_or_else(|| {
        format!(
            "key `{ALIGNMENT_KEY}`: is {}, not a power of two up to {LARGEST_ALIGNMENT}. Download the file again",
            value.shown()
        )
    })
}

/// A tensor's record.
struct Record<'b> {
    name: &'b str,
    number: u32,
    shape: Vec<usize>,
    offset: u64,
}

impl<'b> Record<'b> {
    fn read(scan: &mut Scan<'b>) -> Result<Self, String> {
        let name = std::str::from_utf8(scan.string(LONGEST_NAME, "the name of a tensor")?)
            .map_err(|_| "has a tensor whose name isn't UTF-8. Download it again".to_owned())?;
        let mut record = Self {
            name,
            number: 0,
            shape: Vec::new(),
            offset: 0,
        };
        let axes = scan.u32()?;
        if axes == 0 || axes > MOST_AXES {
            return Err(record.problem(&format!("has {axes} axes, not 1 to {MOST_AXES}")));
        }
        for _ in 0..axes {
            let length = scan.u64()?;
            let length = usize::try_from(length).ok().filter(|n| *n > 0);
            let Some(length) = length else {
                return Err(record.problem("has an axis that is empty or too long"));
            };
            record.shape.push(length);
        }
        record.shape.reverse();
        record.number = scan.u32()?;
        record.offset = scan.u64()?;
        Ok(record)
    }

    fn problem(&self, what: &str) -> String {
        format!(
            "tensor `{}`: {what}. Download the file again",
            shown(self.name)
        )
    }

    /// The tensor in a file of `size` bytes, whose data begins at `data`.
    fn place(&self, data: usize, alignment: usize, size: usize) -> Result<GgufTensor, String> {
        let kind = TensorKind::of(self.number);
        let start = usize::try_from(self.offset)
            .ok()
            .and_then(|offset| data.checked_add(offset))
            .filter(|start| *start <= size)
            .ok_or_else(|| self.problem("lies past the end of the file"))?;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(self.problem(&format!(
                "begins at {}, which isn't a multiple of {alignment}",
                self.offset
            )));
        }
        let bytes = match kind.block() {
            Some(block) => self.bytes(block)?,
            None => 0,
        };
        let end = start
            .checked_add(bytes)
            .filter(|end| *end <= size)
            .ok_or_else(|| self.problem("lies past the end of the file"))?;
        Ok(GgufTensor {
            name: self.name.to_owned(),
            kind,
            shape: self.shape.clone(),
            range: start..end,
        })
    }

    fn bytes(&self, (elements, bytes): (usize, usize)) -> Result<usize, String> {
        let row = self.shape.last().copied().unwrap_or_default();
        if !row.is_multiple_of(elements) {
            return Err(self.problem(&format!(
                "has rows of {row} elements, which aren't blocks of {elements}"
            )));
        }
        self.shape
            .iter()
            .try_fold(1usize, |n, axis| n.checked_mul(*axis))
            .and_then(|all| (all / elements).checked_mul(bytes))
            .ok_or_else(|| self.problem("is larger than any file"))
    }
}

fn check_overlaps(tensors: &[GgufTensor]) -> Result<(), String> {
    let mut by_start: Vec<&GgufTensor> = tensors.iter().collect();
    by_start.sort_by_key(|tensor| tensor.range.start);
    for pair in by_start.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(format!(
                "tensors `{}` and `{}` overlap. Download the file again",
                shown(&pair[0].name),
                shown(&pair[1].name)
            ));
        }
    }
    Ok(())
}
