//! What the text form says of an op besides its name; `crate::text` writes it.

use std::collections::HashMap;
use std::str::FromStr;

use super::Line;
use crate::error::IrError;
use crate::op::{
    Attention, BucketedBias, DisentangledBias, GroupFormat, Op, Rope, RopeScaling,
    TimestepEmbedding,
};
use crate::types::ValueType;

/// The words `key=value` after an op's operands.
pub(super) struct Attributes<'a> {
    pub(super) line: Line<'a>,
    pub(super) pairs: HashMap<&'a str, &'a str>,
}

impl Attributes<'_> {
    /// The op `name`; `ty` is the type of its first output.
    pub(super) fn op(&self, name: &str, ty: Option<&ValueType>) -> Result<Op, IrError> {
        let ty = || ty.ok_or_else(|| self.line.error("a type is missing"));
        Ok(match name {
            "gather" => Op::Gather,
            "linear" => Op::Linear,
            "quantized_linear" => Op::QuantizedLinear(GroupFormat {
                bits: self.get("bits")?,
                group_size: self.get("group_size")?,
            }),
            "gather_columns" => Op::GatherColumns,
            "rms_norm" => Op::RmsNorm {
                eps: self.get("eps")?,
            },
            "layer_norm" => Op::LayerNorm {
                eps: self.get("eps")?,
            },
            "group_norm" => Op::GroupNorm {
                groups: self.get("groups")?,
                eps: self.get("eps")?,
            },
            "conv2d" => Op::Conv2d {
                stride: self.get("stride")?,
                padding: self.padding()?,
            },
            "upsample_nearest" => Op::Upsample {
                factor: self.get("factor")?,
            },
            "timestep_embedding" => Op::TimestepEmbedding(TimestepEmbedding {
                dim: self.get("dim")?,
                flip_sin_to_cos: self.get("flip_sin_to_cos")?,
                shift: self.get("shift")?,
            }),
            "modulate" => Op::Modulate,
            "concat" => Op::Concat {
                axis: self.get("axis")?,
            },
            "transpose" => Op::Transpose {
                axes: self.numbers("axes")?,
            },
            "positions" => Op::Positions {
                padding: self.find("padding")?,
            },
            "rope" => Op::Rope(Rope {
                heads: self.get("heads")?,
                rotary_dim: self.find("rotary_dim")?,
                theta: self.get("theta")?,
                scaling: self.scaling()?,
            }),
            "attention" => Op::Attention(Attention {
                heads: self.get("heads")?,
                kv_heads: self.get("kv_heads")?,
                scale: self.get("scale")?,
                window: self.find("window")?,
                softcap: self.find("softcap")?,
                causal: self.find("causal")?.unwrap_or(true),
            }),
            "disentangled_bias" => Op::DisentangledBias(DisentangledBias {
                heads: self.get("heads")?,
                scale: self.get("scale")?,
                span: self.get("span")?,
                log_until: self.find("log_until")?,
                c2p: self.get("c2p")?,
                p2c: self.get("p2c")?,
            }),
            "bucketed_bias" => Op::BucketedBias(BucketedBias {
                buckets: self.get("buckets")?,
                until: self.get("until")?,
            }),
            "silu" => Op::Silu,
            "gelu" => match self.pairs.get("by") {
                Some(&"erf") => Op::Gelu { tanh: false },
                Some(&"tanh") => Op::Gelu { tanh: true },
                _ => return self.line.fail("gelu goes `by=erf` or `by=tanh`"),
            },
            "tanh" => Op::Tanh,
            "relu" => Op::Relu,
            "scale" => Op::Scale {
                factor: self.get("factor")?,
            },
            "clip" => Op::Clip {
                limit: self.get("limit")?,
            },
            "slice" => Op::Slice {
                axis: self.get("axis")?,
                start: self.get("start")?,
                len: self.get("len")?,
            },
            "mul" => Op::Mul,
            "add" => Op::Add,
            "reshape" => Op::Reshape {
                shape: ty()?.shape.clone(),
            },
            "cast" => Op::Cast { dtype: ty()?.dtype },
            _ => return self.line.fail(format!("`{name}` is not an op")),
        })
    }

    fn scaling(&self) -> Result<RopeScaling, IrError> {
        match self.pairs.get("scaling").copied() {
            None => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: self.get("factor")?,
            }),
            Some("dynamic") => Ok(RopeScaling::Dynamic {
                factor: self.get("factor")?,
                original: self.get("original")?,
            }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.get("factor")?,
                low: self.get("low")?,
                high: self.get("high")?,
                original: self.get("original")?,
            }),
            Some(other) => self.line.fail(format!("`{other}` is not a rope scaling")),
        }
    }

    fn padding(&self) -> Result<[usize; 2], IrError> {
        let numbers = self.numbers("padding")?;
        numbers.try_into().map_err(|_| {
            self.line
                .error("`padding=` takes two numbers, before and after")
        })
    }

    /// The numbers of a key, with commas between them.
    fn numbers(&self, key: &str) -> Result<Vec<usize>, IrError> {
        let text: String = self.get(key)?;
        text.split(',')
            .map(|number| self.line.number(number))
            .collect()
    }

    /// The value of a key that may be absent.
    fn find<T: FromStr>(&self, key: &str) -> Result<Option<T>, IrError> {
        self.pairs
            .get(key)
            .map(|text| self.line.number(text))
            .transpose()
    }

    fn get<T: FromStr>(&self, key: &str) -> Result<T, IrError> {
        let text = self
            .pairs
            .get(key)
            .ok_or_else(|| self.line.error(format!("`{key}=` is missing")))?;
        self.line.number(text)
    }
}
