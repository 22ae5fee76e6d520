//! What the text form says of an op besides its name; `crate::text` writes it.

use std::collections::HashMap;
use std::str::FromStr;

use super::Line;
use crate::error::IrError;
use crate::op::{
    Attention, BucketedBias, DisentangledBias, Experts, GroupFormat, Op, OpKind, Rope, RopeScaling,
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
        let Some(kind) = OpKind::find(name) else {
            return self.line.fail(format!("`{name}` is not an op"));
        };
        Ok(match kind {
            OpKind::Gather => Op::Gather,
            OpKind::Linear => Op::Linear,
            OpKind::QuantizedLinear => Op::QuantizedLinear(self.group_format()?),
            OpKind::QuantizedGather => Op::QuantizedGather(self.group_format()?),
            OpKind::Experts => Op::Experts(self.experts()?),
            OpKind::GatherColumns => Op::GatherColumns,
            OpKind::RmsNorm => Op::RmsNorm {
                eps: self.get("eps")?,
            },
            OpKind::LayerNorm => Op::LayerNorm {
                eps: self.get("eps")?,
            },
            OpKind::GroupNorm => Op::GroupNorm {
                groups: self.get("groups")?,
                eps: self.get("eps")?,
            },
            OpKind::Conv2d => Op::Conv2d {
                stride: self.get("stride")?,
                padding: self.padding()?,
            },
            OpKind::Upsample => Op::Upsample {
                factor: self.get("factor")?,
            },
            OpKind::TimestepEmbedding => Op::TimestepEmbedding(TimestepEmbedding {
                dim: self.get("dim")?,
                flip_sin_to_cos: self.get("flip_sin_to_cos")?,
                shift: self.get("shift")?,
            }),
            OpKind::Modulate => Op::Modulate,
            OpKind::Concat => Op::Concat {
                axis: self.get("axis")?,
            },
            OpKind::Transpose => Op::Transpose {
                axes: self.numbers("axes")?,
            },
            OpKind::Positions => Op::Positions {
                padding: self.find("padding")?,
            },
            OpKind::LastToken => Op::LastToken {
                padding: self.get("padding")?,
            },
            OpKind::FirstToken => Op::FirstToken {
                id: self.find("id")?,
            },
            OpKind::Rope => Op::Rope(Rope {
                heads: self.get("heads")?,
                rotary_dim: self.find("rotary_dim")?,
                theta: self.get("theta")?,
                scaling: self.scaling()?,
            }),
            OpKind::Attention => Op::Attention(Attention {
                heads: self.get("heads")?,
                kv_heads: self.get("kv_heads")?,
                scale: self.get("scale")?,
                window: self.find("window")?,
                softcap: self.find("softcap")?,
                causal: self.find("causal")?.unwrap_or(true),
            }),
            OpKind::DisentangledBias => Op::DisentangledBias(DisentangledBias {
                heads: self.get("heads")?,
                scale: self.get("scale")?,
                span: self.get("span")?,
                log_until: self.find("log_until")?,
                c2p: self.get("c2p")?,
                p2c: self.get("p2c")?,
            }),
            OpKind::BucketedBias => Op::BucketedBias(BucketedBias {
                buckets: self.get("buckets")?,
                until: self.get("until")?,
            }),
            OpKind::Silu => Op::Silu,
            OpKind::Gelu => self.gelu()?,
            OpKind::Tanh => Op::Tanh,
            OpKind::Relu => Op::Relu,
            OpKind::Scale => Op::Scale {
                factor: self.get("factor")?,
            },
            OpKind::Clip => Op::Clip {
                limit: self.get("limit")?,
            },
            OpKind::Slice => Op::Slice {
                axis: self.get("axis")?,
                start: self.get("start")?,
                len: self.get("len")?,
            },
            OpKind::Mul => Op::Mul,
            OpKind::Add => Op::Add,
            OpKind::Reshape => Op::Reshape {
                shape: ty()?.shape.clone(),
            },
            OpKind::Cast => Op::Cast { dtype: ty()?.dtype },
        })
    }

    fn gelu(&self) -> Result<Op, IrError> {
        match self.pairs.get("by") {
            Some(&"erf") => Ok(Op::Gelu { tanh: false }),
            Some(&"tanh") => Ok(Op::Gelu { tanh: true }),
            _ => self.line.fail("gelu goes `by=erf` or `by=tanh`"),
        }
    }

    fn experts(&self) -> Result<Experts, IrError> {
        Ok(Experts {
            top: self.get("top")?,
            normalized: self.get("normalized")?,
            format: match self.pairs.get("bits") {
                Some(_) => Some(self.group_format()?),
                None => None,
            },
        })
    }

    fn group_format(&self) -> Result<GroupFormat, IrError> {
        Ok(GroupFormat {
            bits: self.get("bits")?,
            group_size: self.get("group_size")?,
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
            Some("yarn") => Ok(RopeScaling::Yarn {
                factor: self.get("factor")?,
                fast: self.get("fast")?,
                slow: self.get("slow")?,
                original: self.get("original")?,
                truncate: self.get("truncate")?,
                attention: self.get("attention")?,
            }),
            Some("longrope") => Ok(RopeScaling::LongRope {
                short: self.numbers("short")?.into(),
                long: self.numbers("long")?.into(),
                original: self.get("original")?,
                attention: self.get("attention")?,
            }),
            Some(other) => self.line.fail(format!("`{other}` is not a rope scaling")),
        }
    }

    fn padding(&self) -> Result<[usize; 2], IrError> {
        let numbers: Vec<usize> = self.numbers("padding")?;
        numbers.try_into().map_err(|_| {
            self.line
                .error("`padding=` takes two numbers, before and after")
        })
    }

    /// The numbers of a key, with commas between them.
    fn numbers<T: FromStr>(&self, key: &str) -> Result<Vec<T>, IrError> {
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
