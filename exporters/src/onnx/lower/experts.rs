//! Mixtures of experts. Profile `ort` has `MoE` and `QMoE`, which compute the experts that a token
//! goes through alone. The others compute all experts and multiply those of no share by 0: no
//! operator of ai.onnx takes some of a tensor's matrices without a copy or a loop, and tract has no
//! loop.

use dlc_bundle::Profile;
use dlc_ir::{DType, Experts, GroupFormat, Node, Operand, WeightId};

use super::super::builder::{Call, Name};
use super::blocks;
use super::context::Context;
use super::forms::Form;
use super::parts::Part;
use super::quantized::{Matrix, dequantized};
use super::shared::{Product, define_full, define_like, from_f32, to_f32};
use crate::error::ExportError;
use crate::stack::Stack;
use crate::weights::Stored;

/// The matrices of a node's experts, each in its parts.
struct Matrices {
    parts: Vec<Vec<WeightId>>,
    count: usize,
    width: usize,
    inner: usize,
}

/// The matrices of an expert, by place.
const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

impl Matrices {
    fn of(cx: &Context<'_>, node: &Node, experts: Experts) -> Result<Self, ExportError> {
        let weight = |operand: &Operand| match operand {
            Operand::Weight(id) => Ok(*id),
            Operand::Value(_) => Err(ExportError::module("", "an expert's matrix is no weight")),
        };
        let inputs = node.inputs.iter().skip(Experts::LEADING).map(weight);
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let shape = |at: usize| {
            inputs
                .get(at)
                .map_or(&[][..], |id| &cx.target.weights[*id].shape)
        };
        let parts = experts.parts(shape(2).len());
        Ok(Self {
            count: inputs.len() / (Experts::MATRICES * parts),
            width: cx.width(cx.value_at(node, 0)?)?,
            inner: shape(0).first().copied().unwrap_or_default(),
            parts: inputs
                .chunks_exact(parts)
                .map(<[WeightId]>::to_vec)
                .collect(),
        })
    }

    /// The parts of matrices of all experts as one tensor each: matrices `of` each expert are a run,
    /// or `together` those of all experts. `shape` makes the tensor's shape from that of a part.
    fn store(
        &self,
        cx: &mut Context<'_>,
        of: &[usize],
        together: bool,
        shape: impl Fn(&[usize]) -> Vec<usize>,
    ) -> Vec<Part> {
        let experts = self.parts.chunks_exact(Experts::MATRICES);
        let mut parts = Vec::new();
        for part in 0..self.parts[GATE].len() {
            let run = |expert: &[Vec<WeightId>]| -> Vec<WeightId> {
                of.iter().map(|matrix| expert[*matrix][part]).collect()
            };
            let mut runs: Vec<Vec<WeightId>> = experts.clone().map(run).collect();
            if together {
                runs = vec![runs.concat()];
            }
            let first = &cx.target.weights[runs[0][0]];
            let stack = Stack {
                name: format!(
                    "{}.{}",
                    first.name,
                    if of.len() > 1 { "gated" } else { "all" }
                ),
                dtype: first.dtype,
                shape: shape(&first.shape),
                each: first.shape.clone(),
                runs,
            };
            parts.push(Part {
                name: Name::from(&*stack.name),
                dtype: stack.dtype,
                shape: stack.shape.clone(),
                stored: Stored::Stack(stack),
            });
        }
        parts
    }

    /// Rows `x` times the matrices `at` below each other, `[count * inner, width]`; times the last
    /// ones beside each other, `[width, count * inner]`.
    fn product(
        &self,
        cx: &mut Context<'_>,
        x: &Name,
        at: usize,
        format: Option<GroupFormat>,
        dtype: DType,
    ) -> Result<Product, ExportError> {
        match format {
            Some(format) if cx.target.profile != Profile::Portable => {
                self.product_in_blocks(cx, x, at, format, dtype)
            }
            _ => Ok(Product {
                rows: x.clone(),
                matrix: self.dense(cx, at, format, dtype)?,
                is_transposed: false,
                bias: None,
            }),
        }
    }

    fn product_in_blocks(
        &self,
        cx: &mut Context<'_>,
        x: &Name,
        at: usize,
        format: GroupFormat,
        dtype: DType,
    ) -> Result<Product, ExportError> {
        let beside = at == DOWN;
        let (out, inner, pieces) = if beside {
            (self.width, self.inner, self.count)
        } else {
            (self.count * self.inner, self.width, 1)
        };
        let parts = self.store(cx, &[at], beside, |part| {
            [&[out, pieces * part[1]], &part[2..]].concat()
        });
        let mut parts = parts.into_iter();
        let (Some(codes), Some(scales)) = (parts.next(), parts.next()) else {
            return Err(ExportError::module("", "an expert's matrix lacks parts"));
        };
        let matrix = blocks::Matrix {
            codes,
            scales,
            zero_points: parts.next(),
            out,
            inner,
            pieces,
        };
        blocks::product(cx, x, &matrix, format, dtype)
    }

    /// The matrix of [`product`](Self::product), in numbers.
    fn dense(
        &self,
        cx: &mut Context<'_>,
        at: usize,
        format: Option<GroupFormat>,
        dtype: DType,
    ) -> Result<Name, ExportError> {
        let beside = at == DOWN;
        let (rows, columns) = if beside {
            (self.width, self.inner)
        } else {
            (self.inner, self.width)
        };
        let (rows, whole) = (self.count * rows, [self.width, self.count * self.inner]);
        let parts = self.store(cx, &[at], beside, |part| match format {
            None if beside => whole.to_vec(),
            _ => [&[rows], &part[1..]].concat(),
        });
        let parts = whole_parts(cx, &parts);
        let Some(format) = format else {
            return Ok(parts[0].clone());
        };
        let matrix = Matrix {
            codes: parts[0].clone(),
            scales: parts[1].clone(),
            zero_points: parts.get(2).cloned(),
            out: rows,
            inner: columns,
        };
        let matrix = dequantized(cx, &matrix, format, dtype)?;
        if !beside {
            return Ok(matrix);
        }
        let shape = cx.b.ints(&whole.map(|n| n as i64));
        Ok(cx.b.op("Reshape", &[&matrix, &shape]).out())
    }
}

fn whole_parts(cx: &mut Context<'_>, parts: &[Part]) -> Vec<Name> {
    parts.iter().map(|part| part.whole(&mut cx.b)).collect()
}

/// What of ONNX Runtime's own domain computes a mixture.
pub(super) fn by_moe(
    cx: &mut Context<'_>,
    node: &Node,
    experts: Experts,
) -> Result<(), ExportError> {
    let matrices = Matrices::of(cx, node, experts)?;
    match experts.format {
        None => by_plain_moe(cx, node, experts, &matrices),
        Some(format)
            if [matrices.width, matrices.inner]
                .iter()
                .all(|n| n.is_multiple_of(format.group_size)) =>
        {
            by_quantized_moe(cx, node, experts, &matrices, format)
        }
        // It takes no rows that are filled up.
        Some(_) => densely(cx, node, experts),
    }
}

/// `MoE`. Its gated form takes gates and the other factors row by row in turns, and adds nothing to
/// the latter (`activation_beta`); measured with ONNX Runtime 1.31 on CPU.
fn by_plain_moe(
    cx: &mut Context<'_>,
    node: &Node,
    experts: Experts,
    matrices: &Matrices,
) -> Result<(), ExportError> {
    let (count, inner, width) = (matrices.count, matrices.inner, matrices.width);
    let (x, logits) = (cx.operand(node, 0)?, cx.flat(cx.value_at(node, 1)?)?);
    let into = matrices.store(cx, &[GATE, UP], false, |_| vec![count, 2 * inner, width]);
    let back = matrices.store(cx, &[DOWN], false, |_| vec![count, width, inner]);
    let [into, back] = [into, back].map(|parts| whole_parts(cx, &parts));
    let inputs = [&x, &logits, &into[0], &Name::from(""), &back[0]];
    finish_moe(cx, node, experts, |cx| cx.b.microsoft("MoE", &inputs))
}

/// `QMoE`, which rounds activations to 8 bits inside where codes have 8.
fn by_quantized_moe(
    cx: &mut Context<'_>,
    node: &Node,
    experts: Experts,
    matrices: &Matrices,
    format: GroupFormat,
) -> Result<(), ExportError> {
    let (x, logits) = (cx.operand(node, 0)?, cx.flat(cx.value_at(node, 1)?)?);
    let stacked = |times: usize| {
        let count = matrices.count;
        // Codes stand in groups; the operator has rows of bytes.
        move |part: &[usize]| vec![count, times * part[0], part[1..].iter().product()]
    };
    let into = matrices.store(cx, &[GATE, UP], false, stacked(2));
    let back = matrices.store(cx, &[DOWN], false, stacked(1));
    let [into, back] = [into, back].map(|parts| whole_parts(cx, &parts));
    let none = Name::from("");
    let mut inputs = vec![&x, &logits, &into[0], &into[1], &none, &back[0], &back[1]];
    if let (Some(into), Some(back)) = (into.get(2), back.get(2)) {
        inputs.extend([&none, &none, &none, &none, into, back]);
    }
    finish_moe(cx, node, experts, |cx| {
        cx.b.microsoft("QMoE", &inputs)
            .int("expert_weight_bits", format.bits as i64)
            .int("block_size", format.group_size as i64)
    })
}

/// Adds what `call` begins, with `silu(gate) * up` by attributes. Shares that aren't normalised are
/// multiplied by their sum afterwards: told to leave them, `MoE` fails where it writes over its
/// input, and `QMoE` normalises all the same (measured with ONNX Runtime 1.31 on CPU).
fn finish_moe(
    cx: &mut Context<'_>,
    node: &Node,
    experts: Experts,
    call: impl for<'c> FnOnce(&'c mut Context<'_>) -> Call<'c>,
) -> Result<(), ExportError> {
    let sum = if experts.normalized {
        None
    } else {
        Some(sum_of_shares(cx, node, experts)?)
    };
    define_full(cx, node, |cx, out| {
        let call = call(cx)
            .int("k", experts.top as i64)
            .int("normalize_routing_weights", 1)
            .text("activation_type", "swiglu")
            .float("activation_alpha", 1.0)
            .float("activation_beta", 0.0)
            .int("swiglu_fusion", 1);
        match &sum {
            None => call.into(&[out]),
            Some(sum) => {
                let made = call.out();
                cx.b.op("Mul", &[&made, sum]).into(&[out]);
            }
        }
    })
}

/// The sum of the shares of each token's experts, `[.., 1]`.
fn sum_of_shares(cx: &mut Context<'_>, node: &Node, experts: Experts) -> Result<Name, ExportError> {
    let dtype = cx.ty(cx.value_at(node, 1)?).dtype;
    let logits = cx.operand(node, 1)?;
    let Chosen { shares, .. } = chosen(cx, &logits, dtype, experts.top);
    let last = cx.b.ints(&[-1]);
    let sum =
        cx.b.op("ReduceSum", &[&shares, &last])
            .int("keepdims", 1)
            .out();
    Ok(from_f32(cx, sum, dtype))
}

/// All experts as one gated MLP, `inner` entries of each: products with all gates, all other
/// factors and, of the entries times their experts' shares, all last matrices beside each other,
/// which sums over the experts.
pub(super) fn densely(
    cx: &mut Context<'_>,
    node: &Node,
    experts: Experts,
) -> Result<(), ExportError> {
    let matrices = Matrices::of(cx, node, experts)?;
    let (count, inner) = (matrices.count as i64, matrices.inner as i64);
    let x = cx.value_at(node, 0)?;
    let dtype = cx.ty(x).dtype;
    let (x, shares) = (cx.flat(x)?, shares(cx, node, &matrices, experts)?);
    let product = |cx: &mut Context<'_>, at: usize| -> Result<Name, ExportError> {
        let product = matrices.product(cx, &x, at, experts.format, dtype)?;
        Ok(product.finish(cx, None))
    };
    let (gate, up) = (product(cx, GATE)?, product(cx, UP)?);
    let open = cx.b.op("Sigmoid", &[&gate]).out();
    let gate = cx.b.op("Mul", &[&gate, &open]).out();
    let gated = cx.b.op("Mul", &[&gate, &up]).out();
    let (apart, together) = (
        cx.b.ints(&[-1, count, inner]),
        cx.b.ints(&[-1, count * inner]),
    );
    let gated = cx.b.op("Reshape", &[&gated, &apart]).out();
    let gated = cx.b.op("Mul", &[&gated, &shares]).out();
    let gated = cx.b.op("Reshape", &[&gated, &together]).out();
    let product = matrices.product(cx, &gated, DOWN, experts.format, dtype)?;
    define_like(cx, node, Form::Flat, |cx, out| product.finish(cx, out))
}

/// The experts that each token goes through.
struct Chosen {
    /// Of all experts.
    probabilities: Name,
    /// Of those chosen, not normalised.
    shares: Name,
    which: Name,
}

/// The largest of each token's probabilities, in single precision.
fn chosen(cx: &mut Context<'_>, logits: &Name, dtype: DType, top: usize) -> Chosen {
    let logits = to_f32(cx, logits, dtype);
    let probabilities = cx.b.op("Softmax", &[&logits]).int("axis", -1).out();
    let top = cx.b.ints(&[top as i64]);
    let call = cx.b.op("TopK", &[&probabilities, &top]).int("axis", -1);
    let [shares, which] = call.outs();
    Chosen {
        probabilities,
        shares,
        which,
    }
}

/// Each expert's share of each token, 0 of those that it doesn't go through:
/// `[tokens, experts, 1]`.
fn shares(
    cx: &mut Context<'_>,
    node: &Node,
    matrices: &Matrices,
    experts: Experts,
) -> Result<Name, ExportError> {
    let logits = cx.value_at(node, 1)?;
    let dtype = cx.ty(logits).dtype;
    let logits = cx.flat(logits)?;
    let Chosen {
        probabilities,
        mut shares,
        which,
    } = chosen(cx, &logits, dtype, experts.top);
    if experts.normalized {
        let last = cx.b.ints(&[-1]);
        let sum =
            cx.b.op("ReduceSum", &[&shares, &last])
                .int("keepdims", 1)
                .out();
        shares = cx.b.op("Div", &[&shares, &sum]).out();
    }
    let none = cx.b.op("Sub", &[&probabilities, &probabilities]).out();
    let call = cx.b.op("ScatterElements", &[&none, &which, &shares]);
    let shares = call.int("axis", 1).out();
    let shares = from_f32(cx, shares, dtype);
    let shape = cx.b.ints(&[-1, matrices.count as i64, 1]);
    Ok(cx.b.op("Reshape", &[&shares, &shape]).out())
}
