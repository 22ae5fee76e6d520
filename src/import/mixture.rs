//! Mixtures of experts in the place of a layer's MLP: what the families that have them share.

use dlc_ir::{Experts, IrError, Op, Operand, ValueId};
use serde_json::Value;

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::net::Net;

const MOST_EXPERTS: usize = 1 << 9;
const LONGEST_STEP: usize = 1 << 16;

/// The experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mixture {
    experts: Experts,
    count: usize,
    /// Width of each expert inside.
    size: usize,
    spelling: Spelling,
}

/// What tensors of a mixture are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spelling {
    /// The module, inside of its layer.
    pub(super) module: &'static str,
    /// Gate, up and down, inside of their expert.
    pub(super) matrices: [&'static str; Experts::MATRICES],
}

impl Mixture {
    /// Reads how many experts there are, `size` wide inside, and how many a token goes through.
    pub(super) fn read(
        config: &mut ConfigReader<'_>,
        size: usize,
        activation: Activation,
        normalized: bool,
        spelling: Spelling,
    ) -> Self {
        let count = config.required_size("num_local_experts", MOST_EXPERTS);
        let top = config.required_size("num_experts_per_tok", MOST_EXPERTS);
        if config.is_clean() && top > count {
            config.bad(
                "num_experts_per_tok",
                format!("is {top}, and there are {count} experts"),
            );
        }
        if config.is_clean() && activation != Activation::Silu {
            config.unsupported(
                "hidden_act",
                "is not silu, and dlc knows experts with silu alone".into(),
            );
        }
        Self {
            experts: Experts {
                top,
                normalized,
                format: None,
            },
            count,
            size,
            spelling,
        }
    }

    /// What the experts make of `x`, `hidden` wide.
    pub(super) fn build(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        layer: &str,
        hidden: usize,
    ) -> Result<ValueId, IrError> {
        let module = format!("{layer}.{}", self.spelling.module);
        let router = [self.count, hidden];
        let logits = net.linear(x, &format!("{module}.gate"), router, false)?;
        let mut inputs: Vec<Operand> = vec![x.into(), logits.into()];
        let shapes = [
            [self.size, hidden],
            [self.size, hidden],
            [hidden, self.size],
        ];
        for expert in 0..self.count {
            for (matrix, shape) in self.spelling.matrices.iter().zip(shapes) {
                let name = format!("{module}.experts.{expert}.{matrix}.weight");
                inputs.push(net.weight(&name, &shape)?);
            }
        }
        let made = net.graph.add_node(Op::Experts(self.experts), inputs)?;
        made.first().copied().ok_or_else(|| IrError::Type {
            op: "experts",
            problem: "make no value".into(),
        })
    }
}

/// For each layer whether it has experts: every `decoder_sparse_step`th one, but for those that
/// `mlp_only_layers` lists.
pub(super) fn sparse_layers(config: &mut ConfigReader<'_>, layers: usize) -> Vec<bool> {
    const DENSE: &str = "mlp_only_layers";
    let step = config.required_size("decoder_sparse_step", LONGEST_STEP);
    let mut dense: Vec<u64> = Vec::new();
    if let Some(value) = config.get(DENSE) {
        let entries = value.as_array();
        let numbers = entries.and_then(|list| list.iter().map(Value::as_u64).collect());
        if numbers.is_none() {
            let problem = format!("is {}; it must be a list of layers", show(value));
            config.bad(DENSE, problem);
        }
        dense = numbers.unwrap_or_default();
    }
    let has_experts =
        |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64));
    (0..layers).map(has_experts).collect()
}
