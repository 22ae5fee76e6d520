//! Weights: named constants that stay where they are until somebody reads a range of them.
//!
//! A weight's data is an expression over byte ranges of mapped files. Nothing here opens a file or keeps a converted copy.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::error::IrError;
use crate::index::{IndexVec, WeightId};
use crate::types::{DType, Dim, ValueType};

/// A byte range of a shared buffer, usually a mapped file.
#[derive(Clone)]
pub struct Blob {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Blob {
    /// The bytes at `range` of `bytes`, if the buffer has them.
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*bytes).as_ref().get(range.clone())?;
        Some(Self { bytes, range })
    }

    fn key(&self) -> (usize, usize, usize) {
        (Arc::as_ptr(&self.bytes).cast::<u8>() as usize, self.range.start, self.range.end)
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        (*self.bytes).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes at {})", self.range.len(), self.range.start)
    }
}

/// How a weight's elements come about. Evaluated range by range, so that memory never grows with the weight.
#[derive(Debug, Clone)]
pub enum Expr {
    /// Little-endian elements of type `dtype`, as they lie in a file.
    Mapped {
        /// Where they lie.
        blob: Blob,
        /// Their type.
        dtype: DType,
    },
    /// The same numbers in another float type, rounded to nearest even.
    Cast {
        /// The numbers.
        input: Arc<Expr>,
        /// The type to round to.
        dtype: DType,
    },
}

/// Equal keys mean equal expressions, and so equal data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ExprKey {
    Mapped((usize, usize, usize), DType),
    Cast(Box<ExprKey>, DType),
}

impl Expr {
    /// `self` as `dtype`; nothing is added if it has that type.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.dtype() == dtype { self } else { Self::Cast { input: Arc::new(self), dtype } }
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Mapped { dtype, .. } | Self::Cast { dtype, .. } => *dtype,
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        match self {
            Self::Mapped { blob, dtype } => blob.as_ref().len() / dtype.size(),
            Self::Cast { input, .. } => input.elements(),
        }
    }

    fn key(&self) -> ExprKey {
        match self {
            Self::Mapped { blob, dtype } => ExprKey::Mapped(blob.key(), *dtype),
            Self::Cast { input, dtype } => ExprKey::Cast(Box::new(input.key()), *dtype),
        }
    }

    /// Elements `from .. from + out.len()` as single-precision numbers; `out` stays as it is where the range passes the end.
    fn read_f32(&self, from: usize, out: &mut [f32]) {
        match self {
            Self::Mapped { blob, dtype } => decode(*dtype, blob.as_ref().get(from * dtype.size()..).unwrap_or_default(), out),
            Self::Cast { input, dtype } => {
                input.read_f32(from, out);
                round(*dtype, out);
            }
        }
    }

    /// Little-endian bytes of the elements from `from` on, as many as `out` holds.
    fn write_bytes(&self, from: usize, out: &mut [u8]) {
        match self {
            Self::Mapped { blob, dtype } => {
                let bytes = blob.as_ref().get(from * dtype.size()..).unwrap_or_default();
                let n = bytes.len().min(out.len());
                out[..n].copy_from_slice(&bytes[..n]);
            }
            Self::Cast { input, dtype } => {
                let mut numbers = [0f32; TILE];
                let tile_bytes = TILE * dtype.size();
                for (i, tile) in out.chunks_mut(tile_bytes).enumerate() {
                    let numbers = &mut numbers[..tile.len() / dtype.size()];
                    input.read_f32(from + i * TILE, numbers);
                    encode(*dtype, numbers, tile);
                }
            }
        }
    }
}

/// Elements that are converted at a time; small enough for the first-level cache.
const TILE: usize = 2048;

fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let n2 = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match dtype {
        DType::F32 => out.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::F16 => out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(o, b)| *o = f16_to_f32(n2(b))),
        DType::Bf16 => out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(o, b)| *o = bf16::from_bits(n2(b)).to_f32()),
        DType::I64 => out
            .iter_mut()
            .zip(bytes.chunks_exact(8))
            .for_each(|(o, b)| *o = i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32),
    }
}

/// Exact, and without branches that would keep the compiler from vectorising the loop around it.
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // 2^112 moves the exponent from half's bias to single's; it also turns half's subnormals into normal numbers.
    let finite = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = u32::from(bits & 0x7c00 == 0x7c00) * 0x7f80_0000;
    f32::from_bits(finite.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

fn encode(dtype: DType, numbers: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => out.chunks_exact_mut(4).zip(numbers).for_each(|(o, x)| o.copy_from_slice(&x.to_le_bytes())),
        DType::F16 => out.chunks_exact_mut(2).zip(numbers).for_each(|(o, x)| o.copy_from_slice(&f16::from_f32(*x).to_le_bytes())),
        DType::Bf16 => out.chunks_exact_mut(2).zip(numbers).for_each(|(o, x)| o.copy_from_slice(&bf16::from_f32(*x).to_le_bytes())),
        DType::I64 => out.chunks_exact_mut(8).zip(numbers).for_each(|(o, x)| o.copy_from_slice(&(*x as i64).to_le_bytes())),
    }
}

fn round(dtype: DType, numbers: &mut [f32]) {
    match dtype {
        DType::F16 => numbers.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        DType::Bf16 => numbers.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        DType::F32 | DType::I64 => {}
    }
}

/// A named constant tensor.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    data: Option<Expr>,
}

impl Weight {
    /// The type that graphs see.
    pub fn ty(&self) -> ValueType {
        ValueType::new(self.dtype, self.shape.iter().map(|&n| Dim::from(n)))
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the data in bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Elements `from .. from + out.len()` as single-precision numbers.
    pub fn read_f32(&self, from: usize, out: &mut [f32]) -> Result<(), IrError> {
        self.expr(from, out.len())?.read_f32(from, out);
        Ok(())
    }

    /// Every element as a single-precision number.
    pub fn to_f32(&self) -> Result<Vec<f32>, IrError> {
        let mut out = vec![0.0; self.elements()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// Little-endian bytes of the elements from `from` on, as many as fit into `out`.
    pub fn write_bytes(&self, from: usize, out: &mut [u8]) -> Result<(), IrError> {
        self.expr(from, out.len() / self.dtype.size())?.write_bytes(from, out);
        Ok(())
    }

    /// Index of the first element that is NaN or infinite.
    pub fn first_non_finite(&self) -> Result<Option<usize>, IrError> {
        let mut numbers = vec![0f32; TILE];
        for from in (0..self.elements()).step_by(TILE) {
            let tile = &mut numbers[..TILE.min(self.elements() - from)];
            self.read_f32(from, tile)?;
            // A sum of products with 0 is NaN as soon as one number is not finite, and vectorises.
            if tile.iter().map(|x| x * 0.0).sum::<f32>() != 0.0 || tile.iter().any(|x| !x.is_finite()) {
                return Ok(tile.iter().position(|x| !x.is_finite()).map(|i| from + i));
            }
        }
        Ok(None)
    }

    fn expr(&self, from: usize, n: usize) -> Result<&Expr, IrError> {
        let data = self.data.as_ref().ok_or_else(|| weight_error(&self.name, "has no data: it was only named in a text".into()))?;
        if from.checked_add(n).is_none_or(|end| end > self.elements()) {
            return Err(weight_error(&self.name, format!("elements {from} to {from}+{n} of {} were asked for", self.elements())));
        }
        Ok(data)
    }
}

fn weight_error(name: &str, problem: String) -> IrError {
    IrError::Weight { name: name.to_owned(), problem }
}

/// The weights of a module. Equal expressions under one shape are one weight.
#[derive(Debug, Clone, Default)]
pub struct WeightTable {
    weights: IndexVec<WeightId, Weight>,
    by_name: HashMap<String, WeightId>,
    by_key: HashMap<(ExprKey, Vec<usize>), WeightId>,
}

impl WeightTable {
    /// Adds a weight, or returns the one with the same data and shape. A name that stands for other data already is an error, and so is
    /// an expression whose length isn't that of the shape.
    pub fn add(&mut self, name: &str, shape: &[usize], data: Expr) -> Result<WeightId, IrError> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(data.elements()) {
            return Err(weight_error(name, format!("holds {} elements, which don't fit shape {shape:?}", data.elements())));
        }
        let key = (data.key(), shape.to_vec());
        if let Some(&id) = self.by_key.get(&key) {
            return Ok(id);
        }
        let id = self.insert(Weight { name: name.to_owned(), dtype: data.dtype(), shape: shape.to_vec(), data: Some(data) })?;
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// Adds a weight of which only name and type are known; graphs that use it can be printed and compared, not run.
    pub fn declare(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<WeightId, IrError> {
        self.insert(Weight { name: name.to_owned(), dtype, shape: shape.to_vec(), data: None })
    }

    fn insert(&mut self, weight: Weight) -> Result<WeightId, IrError> {
        if self.by_name.contains_key(&weight.name) {
            return Err(weight_error(&weight.name, "is defined twice".into()));
        }
        let id = self.weights.next_id();
        self.by_name.insert(weight.name.clone(), id);
        Ok(self.weights.push(weight))
    }

    /// The weight with this name.
    pub fn find(&self, name: &str) -> Option<WeightId> {
        self.by_name.get(name).copied()
    }

    /// The weight, or nothing for an id of another table.
    pub fn get(&self, id: WeightId) -> Option<&Weight> {
        self.weights.get(id)
    }

    /// Ids and weights in the order in which they were added.
    pub fn entries(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.weights.entries()
    }

    /// How many weights there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Keeps the weights for which `keep` holds; returns where each id went.
    pub(crate) fn retain(&mut self, keep: impl Fn(WeightId) -> bool) -> HashMap<WeightId, WeightId> {
        let mut moved = HashMap::new();
        let old = std::mem::take(&mut self.weights);
        for (id, weight) in old.entries().filter(|(id, _)| keep(*id)) {
            moved.insert(id, self.weights.push(weight.clone()));
        }
        let follow = |id: &mut WeightId| moved.get(id).copied().map(|new| *id = new).is_some();
        self.by_name.retain(|_, id| follow(id));
        self.by_key.retain(|_, id| follow(id));
        moved
    }
}

impl std::ops::Index<WeightId> for WeightTable {
    type Output = Weight;
    fn index(&self, id: WeightId) -> &Weight {
        &self.weights[id]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_decodes_exactly_for_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}: {ours} is not {theirs}");
        }
    }

    #[test]
    fn a_cast_rounds_to_nearest_even_and_reads_any_range() {
        let numbers: Vec<f32> = (0..5000).map(|i| 1.0 + i as f32 * 1e-4).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let blob = Blob::new(Arc::new(bytes), 0..numbers.len() * 4).expect("in range");
        let mut table = WeightTable::default();
        let expr = Expr::Mapped { blob, dtype: DType::F32 }.cast(DType::F16);
        let id = table.add("w", &[50, 100], expr.clone()).expect("fits");
        assert_eq!(table.add("again", &[50, 100], expr).expect("fits"), id);
        let mut out = vec![0u8; 2 * 3000];
        table[id].write_bytes(1500, &mut out).expect("in range");
        for (b, x) in out.chunks_exact(2).zip(&numbers[1500..]) {
            assert_eq!(f16::from_le_bytes([b[0], b[1]]), f16::from_f32(*x));
        }
        assert!(table[id].write_bytes(4999, &mut out).is_err());
    }
}
