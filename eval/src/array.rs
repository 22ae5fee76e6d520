//! Host tensors: what goes in and out of the evaluator.

use std::collections::BTreeMap;

use candle_core::{DType as CandleType, Device, Tensor};
use dlc_ir::{DType, ValueId};

use crate::error::EvalError;

/// Known values of a graph.
pub type Values = BTreeMap<ValueId, Array>;

/// A dense tensor in row-major order. Holds exactly as many elements as its shape says.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    data: ArrayData,
}

/// The elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum ArrayData {
    /// Numbers; stand for values of every float type.
    F32(Vec<f32>),
    /// Ids, masks and positions.
    I64(Vec<i64>),
}

impl Array {
    /// A tensor of numbers.
    ///
    /// # Errors
    /// [`EvalError::Array`] if `data` doesn't hold as many elements as `shape`.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self, EvalError> {
        Self::new(shape.into(), data.len(), ArrayData::F32(data))
    }

    /// A tensor of integers.
    ///
    /// # Errors
    /// [`EvalError::Array`] if `data` doesn't hold as many elements as `shape`.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Result<Self, EvalError> {
        Self::new(shape.into(), data.len(), ArrayData::I64(data))
    }

    fn new(shape: Vec<usize>, len: usize, data: ArrayData) -> Result<Self, EvalError> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements == Some(len) {
            Ok(Self { shape, data })
        } else {
            Err(EvalError::Array {
                problem: format!("{len} elements don't fill shape {shape:?}"),
            })
        }
    }

    /// Axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        match &self.data {
            ArrayData::F32(data) => data.len(),
            ArrayData::I64(data) => data.len(),
        }
    }

    /// The elements, in row-major order.
    pub fn data(&self) -> &ArrayData {
        &self.data
    }

    /// The elements, if they are numbers.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            ArrayData::F32(data) => Some(data),
            ArrayData::I64(_) => None,
        }
    }

    /// The elements, if they are integers.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            ArrayData::I64(data) => Some(data),
            ArrayData::F32(_) => None,
        }
    }

    /// The elements without a copy, if they are numbers.
    pub fn into_f32(self) -> Option<Vec<f32>> {
        match self.data {
            ArrayData::F32(data) => Some(data),
            ArrayData::I64(_) => None,
        }
    }

    /// Whether the elements may stand for a value of type `dtype`.
    pub(crate) fn is(&self, dtype: DType) -> bool {
        match self.data {
            ArrayData::F32(_) => dtype.is_float(),
            ArrayData::I64(_) => dtype == DType::I64,
        }
    }

    /// The name of the element type.
    pub(crate) fn kind(&self) -> &'static str {
        match self.data {
            ArrayData::F32(_) => "f32",
            ArrayData::I64(_) => "i64",
        }
    }

    pub(crate) fn to_tensor(&self) -> candle_core::Result<Tensor> {
        match &self.data {
            ArrayData::F32(data) => Tensor::from_slice(data, self.shape.as_slice(), &Device::Cpu),
            ArrayData::I64(data) => Tensor::from_slice(data, self.shape.as_slice(), &Device::Cpu),
        }
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> candle_core::Result<Self> {
        let flat = tensor.flatten_all()?;
        let data = match tensor.dtype() {
            CandleType::I64 => ArrayData::I64(flat.to_vec1()?),
            _ => ArrayData::F32(flat.to_vec1()?),
        };
        Ok(Self {
            shape: tensor.dims().to_vec(),
            data,
        })
    }
}
