//! The parts of the transformers in diffusion models: attention to oneself or to a text, and the
//! feed-forward layers.

use dlc_ir::{Attention, IrError, Op, Operand, ValueId};
use serde_json::Value;

use super::config::{ConfigReader, show};
use super::net::Net;

/// The shape of an attention layer of diffusers.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionSpec {
    /// Width of what attends, and of the result.
    pub(super) width: usize,
    /// Width of what is attended to.
    pub(super) context_width: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// Whether queries, keys and values have a bias.
    pub(super) bias: bool,
}

impl AttentionSpec {
    /// `x [batch, n, width]` attending to `context [batch, keys, context_width]`, where `mask` says
    /// so if there is one; the result is projected.
    pub(super) fn attend(
        &self,
        net: &mut Net<'_>,
        [x, context]: [ValueId; 2],
        mask: Option<ValueId>,
        name: &str,
    ) -> Result<ValueId, IrError> {
        let inner = self.heads * self.head_dim;
        let q = net.linear(x, &format!("{name}.to_q"), [inner, self.width], self.bias)?;
        let k = net.linear(
            context,
            &format!("{name}.to_k"),
            [inner, self.context_width],
            self.bias,
        )?;
        let v = net.linear(
            context,
            &format!("{name}.to_v"),
            [inner, self.context_width],
            self.bias,
        )?;
        let scale = (1.0 / (self.head_dim as f64).sqrt()) as f32;
        let op = Op::Attention(Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale,
            window: None,
            softcap: None,
            causal: false,
        });
        let inputs: Vec<Operand> = [q, k, v]
            .into_iter()
            .chain(mask)
            .map(Operand::from)
            .collect();
        let mixed = net
            .graph
            .add_node(op, inputs)?
            .first()
            .copied()
            .unwrap_or(v);
        net.linear(
            mixed,
            &format!("{name}.to_out.0"),
            [self.width, inner],
            true,
        )
    }
}

/// The activation between the two layers of a feed-forward part, by its name in diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// GELU.
    Gelu { tanh: bool },
    /// Half of the first layer's output times GELU of the other half (Shazeer, 2020).
    Geglu,
}

impl FeedForward {
    pub(super) fn read(config: &mut ConfigReader<'_>, key: &'static str) -> Self {
        match config.text(key) {
            Some("gelu") => Self::Gelu { tanh: false },
            Some("gelu-approximate") => Self::Gelu { tanh: true },
            None | Some("geglu") => Self::Geglu,
            Some(other) => {
                config.unsupported(
                    key,
                    format!(
                        "is {}; dlc knows gelu, gelu-approximate and geglu",
                        show(&Value::from(other))
                    ),
                );
                Self::Geglu
            }
        }
    }

    /// `x [batch, n, width]` through a layer four times as wide and back.
    pub(super) fn apply(
        self,
        net: &mut Net<'_>,
        x: ValueId,
        name: &str,
        width: usize,
    ) -> Result<ValueId, IrError> {
        let inner = 4 * width;
        let first = format!("{name}.net.0.proj");
        let activated = match self {
            Self::Gelu { tanh } => {
                let up = net.linear(x, &first, [inner, width], true)?;
                net.graph.add(Op::Gelu { tanh }, [up.into()])?
            }
            Self::Geglu => {
                let both = net.linear(x, &first, [2 * inner, width], true)?;
                let (up, gate) = (
                    net.columns(both, 0, inner)?,
                    net.columns(both, inner, inner)?,
                );
                let gate = net.graph.add(Op::Gelu { tanh: false }, [gate.into()])?;
                net.graph.add(Op::Mul, [up.into(), gate.into()])?
            }
        };
        net.linear(activated, &format!("{name}.net.2"), [width, inner], true)
    }
}

/// Row `row` of `rows [batch, n, width]`, as `[batch, 1, width]`.
pub(super) fn row(net: &mut Net<'_>, rows: ValueId, row: usize) -> Result<ValueId, IrError> {
    net.graph.add(
        Op::Slice {
            axis: 1,
            start: row,
            len: 1,
        },
        [rows.into()],
    )
}
