//! Tensors in host memory, and their way into and out of the backend's values.

use dlc_ir::DType;
use half::{bf16, f16};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

/// A dense tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// As many elements as the dimensions' product.
    pub data: HostData,
}

/// The elements of a [`HostTensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum HostData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl HostTensor {
    /// A tensor of 32-bit floats.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self {
            shape: shape.into(),
            data: HostData::F32(data),
        }
    }

    /// A tensor of 64-bit integers.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Self {
        Self {
            shape: shape.into(),
            data: HostData::I64(data),
        }
    }

    /// A tensor of the float type that a port calls `dtype`: 16-bit ones for `f16`, else 32-bit
    /// ones.
    pub fn floats(dtype: DType, shape: impl Into<Vec<usize>>, data: &[f32]) -> Self {
        let data = match dtype {
            DType::F16 => HostData::F16(data.iter().map(|&x| f16::from_f32(x)).collect()),
            _ => HostData::F32(data.to_vec()),
        };
        Self {
            shape: shape.into(),
            data,
        }
    }

    /// The elements as 32-bit floats, converted if they are 16-bit ones; None for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match &self.data {
            HostData::F32(data) => Some(data.clone()),
            HostData::F16(data) => Some(data.iter().map(|x| x.to_f32()).collect()),
            HostData::I64(_) => None,
        }
    }

    /// A value of the backend. The error is the problem alone.
    pub(crate) fn to_value(&self) -> Result<DynValue, String> {
        let value = match &self.data {
            HostData::F32(data) => {
                Tensor::from_array((self.shape.clone(), data.clone())).map(Tensor::into_dyn)
            }
            HostData::F16(data) => {
                Tensor::from_array((self.shape.clone(), data.clone())).map(Tensor::into_dyn)
            }
            HostData::I64(data) => {
                Tensor::from_array((self.shape.clone(), data.clone())).map(Tensor::into_dyn)
            }
        };
        value.map_err(|error| error.message().to_owned())
    }

    /// A copy of the backend's value, which must lie in host memory. The error is the problem
    /// alone.
    pub(crate) fn from_value(value: &DynValue) -> Result<Self, String> {
        let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
            return Err(format!("{} isn't a tensor", value.dtype()));
        };
        let shape: Vec<usize> = shape.iter().map(|&dim| dim.max(0) as usize).collect();
        let data = match ty {
            TensorElementType::Float32 => value
                .try_extract_tensor()
                .map(|(_, data)| HostData::F32(data.to_vec())),
            TensorElementType::Float16 => value
                .try_extract_tensor()
                .map(|(_, data)| HostData::F16(data.to_vec())),
            TensorElementType::Int64 => value
                .try_extract_tensor()
                .map(|(_, data)| HostData::I64(data.to_vec())),
            other => {
                return Err(format!(
                    "has the element type {other}, and only f32, f16 and i64 are read"
                ));
            }
        };
        Ok(Self {
            shape,
            data: data.map_err(|error| error.message().to_owned())?,
        })
    }
}

/// A value of the backend, of the float type that a port calls `dtype`. The error is the problem
/// alone.
pub(crate) fn float_value(
    dtype: DType,
    shape: Vec<usize>,
    data: &[f32],
) -> Result<DynValue, String> {
    if dtype == DType::Bf16 {
        let data: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
        return Tensor::from_array((shape, data))
            .map(Tensor::into_dyn)
            .map_err(|error| error.message().to_owned());
    }
    HostTensor::floats(dtype, shape, data).to_value()
}
