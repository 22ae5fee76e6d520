//! What ops there are, without their attributes.

use super::Op;

macro_rules! kinds {
    ($($kind:ident $(($($part:tt)*))? $({$($fields:tt)*})? = $name:literal,)*) => {
        /// An op without its attributes. Its name is that of the text form.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum OpKind {
            $(#[doc = concat!("[`Op::", stringify!($kind), "`].")] $kind,)*
        }

        impl OpKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The name in the text form.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }

        impl Op {
            /// The op without its attributes.
            #[must_use]
            pub fn kind(&self) -> OpKind {
                match self {
                    $(Self::$kind $(($($part)*))? $({$($fields)*})? => OpKind::$kind,)*
                }
            }
        }
    };
}

kinds! {
    Gather = "gather",
    Linear = "linear",
    QuantizedLinear(_) = "quantized_linear",
    QuantizedGather(_) = "quantized_gather",
    Experts(_) = "experts",
    GatherColumns = "gather_columns",
    RmsNorm { .. } = "rms_norm",
    LayerNorm { .. } = "layer_norm",
    GroupNorm { .. } = "group_norm",
    Conv2d { .. } = "conv2d",
    Upsample { .. } = "upsample_nearest",
    TimestepEmbedding(_) = "timestep_embedding",
    Modulate = "modulate",
    Positions { .. } = "positions",
    LastToken { .. } = "last_token",
    FirstToken { .. } = "first_token",
    Rope(_) = "rope",
    Attention(_) = "attention",
    DisentangledBias(_) = "disentangled_bias",
    BucketedBias(_) = "bucketed_bias",
    Silu = "silu",
    Gelu { .. } = "gelu",
    Tanh = "tanh",
    Relu = "relu",
    Scale { .. } = "scale",
    Clip { .. } = "clip",
    Mul = "mul",
    Add = "add",
    Concat { .. } = "concat",
    Transpose { .. } = "transpose",
    Slice { .. } = "slice",
    Reshape { .. } = "reshape",
    Cast { .. } = "cast",
}

impl OpKind {
    /// The kind called `name`, if there is one.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}
