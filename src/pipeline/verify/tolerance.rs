//! How far a backend may be from the evaluator.

use dlc_bundle::{Manifest, Profile};
use dlc_ir::{DType, Graph};

/// How far a backend may be from the evaluator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute.
    pub absolute: f32,
    /// On top, as a share of the largest magnitude in the expected output.
    pub relative: f32,
}

impl Tolerance {
    /// 1e-4 absolute in f32 (plus 1e-5 of the largest output, for models with large logits); half
    /// types round every activation: 1e-2 and 0.2% of the largest output in f16 (11 bits), 0.1 and
    /// 10% in bf16 (8 bits).
    pub fn of_dtype(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self {
                absolute: 1e-2,
                relative: 2e-3,
            },
            DType::Bf16 => Self {
                absolute: 1e-1,
                relative: 1e-1,
            },
            DType::F32 | DType::I64 | DType::U8 => Self {
                absolute: 1e-4,
                relative: 1e-5,
            },
        }
    }

    /// That of the bundle's element type; 20% of the largest output for a graph that ONNX Runtime
    /// multiplies with quantised matrices, since `MatMulNBits`, which it makes of
    /// `DequantizeLinear` in blocks too, rounds activations to 8 bits. This
    /// finds a graph that is wrong, not one that is a little off; each product by itself is tested
    /// more closely. What a draft is off by costs acceptance and never changes the text; a target is
    /// one only where it keeps the codes of its checkpoint.
    pub fn of_graph(graph: &Graph, manifest: &Manifest) -> Self {
        let quantized = graph.nodes().any(|(_, node)| node.op.is_quantized());
        if quantized && manifest.profile != Profile::Portable {
            Self {
                absolute: 1e-2,
                relative: 0.2,
            }
        } else {
            Self::of_dtype(manifest.model.dtype)
        }
    }
}
