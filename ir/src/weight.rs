//! Weights: named constants that stay where they are until somebody reads a range of them.
//!
//! A weight's data is an expression over byte ranges of mapped files. Nothing here opens a file or
//! keeps a converted copy.

use std::collections::HashMap;

use crate::dim::Dim;
use crate::error::IrError;
use crate::expr::{Expr, ExprKey};
use crate::index::{IndexVec, WeightId};
use crate::types::{DType, ValueType};

/// How a checkpoint stores what graphs see as a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// As graphs see it.
    #[default]
    Plain,
    /// A matrix of `out` rows and `in` columns as `[in, out]` (`GPT-2`'s `Conv1D`).
    Transposed,
    /// Less 1 (Gemma's norms).
    LessOne,
}

impl Storage {
    /// The stored tensor as graphs of `shape` see it.
    pub fn load(self, stored: Expr, shape: &[usize]) -> Expr {
        match (self, shape) {
            (Self::Transposed, &[out, _]) => stored.transposed(out),
            (Self::LessOne, _) => stored.offset(1.0),
            _ => stored,
        }
    }

    /// What graphs of `shape` see as it is stored.
    pub fn save(self, seen: Expr, shape: &[usize]) -> Expr {
        match (self, shape) {
            (Self::Transposed, &[_, inner]) => seen.transposed(inner),
            (Self::LessOne, _) => seen.offset(-1.0),
            _ => seen,
        }
    }

    /// The shape of the stored tensor.
    pub fn shape(self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Transposed => shape.iter().rev().copied().collect(),
            Self::Plain | Self::LessOne => shape.to_vec(),
        }
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
    /// How the checkpoint stores it.
    pub storage: Storage,
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
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data, and for elements past its end.
    pub fn read_f32(&self, from: usize, out: &mut [f32]) -> Result<(), IrError> {
        self.checked(from, out.len())?.read_f32(from, out);
        Ok(())
    }

    /// Every element as a single-precision number.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data.
    pub fn to_f32(&self) -> Result<Vec<f32>, IrError> {
        let mut out = vec![0.0; self.elements()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// Little-endian bytes of the elements from `from` on, as many as fit into `out`.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data, and for elements past its end.
    pub fn write_bytes(&self, from: usize, out: &mut [u8]) -> Result<(), IrError> {
        self.checked(from, out.len() / self.dtype.size())?
            .write_bytes(from, out);
        Ok(())
    }

    /// Index of the first element that is NaN or infinite.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data.
    pub fn first_non_finite(&self) -> Result<Option<usize>, IrError> {
        Ok(self.checked(0, self.elements())?.first_non_finite())
    }

    /// How the elements come about; none for a weight that was only named in a text.
    pub fn expr(&self) -> Option<&Expr> {
        self.data.as_ref()
    }

    /// The elements before they are rounded to the weight's type.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data.
    pub fn unrounded(&self) -> Result<&Expr, IrError> {
        Ok(self.checked(0, 0)?.unrounded())
    }

    /// A matrix with rows and columns exchanged.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data, and for one that isn't a matrix.
    pub fn transposed(&self) -> Result<Self, IrError> {
        let &[rows, columns] = self.shape.as_slice() else {
            let problem = format!("has shape {:?}: it is no matrix", self.shape);
            return Err(weight_error(&self.name, problem));
        };
        let data = self.checked(0, 0)?.clone().transposed(columns);
        Ok(Self {
            shape: vec![columns, rows],
            storage: Storage::Plain,
            data: Some(data),
            ..self.clone()
        })
    }

    fn checked(&self, from: usize, n: usize) -> Result<&Expr, IrError> {
        let data = self.data.as_ref().ok_or_else(|| {
            weight_error(
                &self.name,
                "has no data: it was only named in a text".into(),
            )
        })?;
        if from.checked_add(n).is_none_or(|end| end > self.elements()) {
            return Err(weight_error(
                &self.name,
                format!(
                    "elements {from} to {from}+{n} of {} were asked for",
                    self.elements()
                ),
            ));
        }
        Ok(data)
    }
}

fn weight_error(name: &str, problem: String) -> IrError {
    IrError::Weight {
        name: name.to_owned(),
        problem,
    }
}

/// The weights of a module. Equal expressions under one shape are one weight.
#[derive(Debug, Clone, Default)]
pub struct WeightTable {
    weights: IndexVec<WeightId, Weight>,
    by_name: HashMap<String, WeightId>,
    by_key: HashMap<(ExprKey, Vec<usize>), WeightId>,
}

impl WeightTable {
    /// Adds a weight, or returns the one with the same data and shape.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a name that stands for other data already, and for an expression
    /// whose length isn't that of the shape.
    pub fn add(&mut self, name: &str, shape: &[usize], data: Expr) -> Result<WeightId, IrError> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(data.elements()) {
            return Err(weight_error(
                name,
                format!(
                    "holds {} elements, which don't fit shape {shape:?}",
                    data.elements()
                ),
            ));
        }
        let key = (data.key(), shape.to_vec());
        if let Some(&id) = self.by_key.get(&key) {
            return Ok(id);
        }
        let weight = Weight {
            name: name.to_owned(),
            dtype: data.dtype(),
            shape: shape.to_vec(),
            storage: Storage::Plain,
            data: Some(data),
        };
        let id = self.insert(weight)?;
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// As [`add`](Self::add), but a name that stands for other data gets a number.
    ///
    /// # Errors
    /// [`IrError::Weight`] for an expression whose length isn't that of the shape.
    pub fn add_apart(
        &mut self,
        name: &str,
        shape: &[usize],
        data: Expr,
    ) -> Result<WeightId, IrError> {
        if let Some(&id) = self.by_key.get(&(data.key(), shape.to_vec())) {
            return Ok(id);
        }
        let numbered = (2..).map(|number| format!("{name}.{number}"));
        let free = std::iter::once(name.to_owned())
            .chain(numbered)
            .find(|name| !self.by_name.contains_key(name));
        self.add(free.as_deref().unwrap_or(name), shape, data)
    }

    /// Adds a weight of `dtype` from the tensor that a checkpoint stores for it, as
    /// [`add`](Self::add) does.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_stored(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        stored: Expr,
        storage: Storage,
    ) -> Result<WeightId, IrError> {
        let id = self.add(name, shape, storage.load(stored, shape).cast(dtype))?;
        self.weights[id].storage = storage;
        Ok(id)
    }

    /// Adds a weight of which only name and type are known; graphs that use it can be printed and
    /// compared, not run.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a name that is taken.
    pub fn declare(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
    ) -> Result<WeightId, IrError> {
        self.insert(Weight {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            storage: Storage::Plain,
            data: None,
        })
    }

    fn insert(&mut self, weight: Weight) -> Result<WeightId, IrError> {
        if self.by_name.contains_key(&weight.name) {
            return Err(weight_error(&weight.name, "is defined twice".into()));
        }
        let id = self.weights.next_id();
        self.by_name.insert(weight.name.clone(), id);
        Ok(self.weights.push(weight))
    }

    /// Gives a weight other data of the same length, made from the data that it has. What `make`
    /// gets is not yet rounded to the weight's type, and what it returns is rounded once.
    ///
    /// # Errors
    /// [`IrError::Weight`] for a weight without data, and for one that would get another length; it
    /// then stays as it was.
    pub fn rewrite(
        &mut self,
        id: WeightId,
        make: impl FnOnce(Expr) -> Expr,
    ) -> Result<(), IrError> {
        let weight = &mut self.weights[id];
        let data = weight.checked(0, 0)?;
        let old_key = data.key();
        let made = make(data.unrounded().clone());
        if made.elements() != weight.elements() {
            return Err(weight_error(
                &weight.name,
                format!(
                    "would hold {} elements instead of {}",
                    made.elements(),
                    weight.elements()
                ),
            ));
        }
        let made = made.cast(weight.dtype);
        self.by_key.remove(&(old_key, weight.shape.clone()));
        self.by_key.insert((made.key(), weight.shape.clone()), id);
        weight.data = Some(made);
        Ok(())
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
    pub(crate) fn retain(
        &mut self,
        keep: impl Fn(WeightId) -> bool,
    ) -> HashMap<WeightId, WeightId> {
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
    use std::sync::Arc;

    use half::f16;

    use super::*;
    use crate::expr::Blob;

    #[test]
    fn a_cast_rounds_to_nearest_even_and_reads_any_range() {
        let numbers: Vec<f32> = (0..5000).map(|i| 1.0 + i as f32 * 1e-4).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let blob = Blob::new(Arc::new(bytes), 0..numbers.len() * 4).expect("in range");
        let mut table = WeightTable::default();
        let expr = Expr::Mapped {
            blob,
            dtype: DType::F32,
        }
        .cast(DType::F16);
        let id = table.add("w", &[50, 100], expr.clone()).expect("fits");
        assert_eq!(table.add("again", &[50, 100], expr).expect("fits"), id);
        let mut out = vec![0u8; 2 * 3000];
        table[id].write_bytes(1500, &mut out).expect("in range");
        for (b, x) in out.chunks_exact(2).zip(&numbers[1500..]) {
            assert_eq!(f16::from_le_bytes([b[0], b[1]]), f16::from_f32(*x));
        }
        assert!(table[id].write_bytes(4999, &mut out).is_err());
    }

    #[test]
    fn what_is_stored_less_one_is_stored_again_to_the_bit() {
        let numbers = [1e-12f32, -0.3, 7.7];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let blob = Blob::new(Arc::new(bytes), 0..12).expect("in range");
        let seen = Storage::LessOne.load(
            Expr::Mapped {
                blob,
                dtype: DType::F32,
            },
            &[3],
        );
        let mut out = [0.0; 3];
        seen.read_f32(0, &mut out);
        assert_eq!(out.map(f32::to_bits), numbers.map(|x| (x + 1.0).to_bits()));
        Storage::LessOne.save(seen, &[3]).read_f32(0, &mut out);
        assert_eq!(out.map(f32::to_bits), numbers.map(f32::to_bits));
    }
}
