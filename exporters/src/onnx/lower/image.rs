//! What works on images, and the embedding of noise levels; alike in every profile.

use dlc_ir::{DType, Node, TimestepEmbedding};
use dlc_onnx::proto::INT32;

use super::super::builder::Name;
use super::context::Context;
use super::queries::noise_levels;
use super::shared::{define_full, from_f32, to_f32};
use crate::error::ExportError;

pub(super) fn conv2d(
    cx: &mut Context<'_>,
    node: &Node,
    stride: usize,
    [before, after]: [usize; 2],
) -> Result<(), ExportError> {
    let inputs = (0..node.inputs.len())
        .map(|at| cx.operand(node, at))
        .collect::<Result<Vec<_>, _>>()?;
    let [stride, before, after] = [stride, before, after].map(|n| n as i64);
    define_full(cx, node, |cx, out| {
        let call = cx.b.op("Conv", &inputs.iter().collect::<Vec<_>>());
        call.ints("strides", &[stride, stride])
            .ints("pads", &[before, before, after, after])
            .into(&[out]);
    })
}

/// `InstanceNormalization` of the groups, then scale and bias of the channels: `GroupNormalization`
/// itself is of opset 21, and runtimes take it apart. In single precision whatever the graph's
/// element type.
pub(super) fn group_norm(
    cx: &mut Context<'_>,
    node: &Node,
    groups: usize,
    eps: f32,
) -> Result<(), ExportError> {
    let value = Context::output_at(node, 0)?;
    let ty = cx.ty(value);
    let dtype = ty.dtype;
    let x = cx.operand(node, 0)?;
    let x = to_f32(cx, &x, dtype);
    let (ones, zeros, shape) = (
        cx.b.filled(DType::F32, groups, 1.0),
        cx.b.filled(DType::F32, groups, 0.0),
        cx.b.ints(&[0, groups as i64, -1]),
    );
    let x = cx.b.op("Reshape", &[&x, &shape]).out();
    let x =
        cx.b.op("InstanceNormalization", &[&x, &ones, &zeros])
            .float("epsilon", eps)
            .out();
    let shape = cx.shape_tensor(&ty.shape)?;
    let x = cx.b.op("Reshape", &[&x, &shape]).out();
    let x = from_f32(cx, x, dtype);
    let axes: Vec<i64> = (1..ty.shape.rank() as i64 - 1).collect();
    let axes = cx.b.ints(&axes);
    let column = |cx: &mut Context<'_>, at: usize| -> Result<Name, ExportError> {
        let vector = cx.operand(node, at)?;
        Ok(cx.b.op("Unsqueeze", &[&vector, &axes]).out())
    };
    let (scale, bias) = (column(cx, 1)?, column(cx, 2)?);
    let scaled = cx.b.op("Mul", &[&x, &scale]).out();
    define_full(cx, node, |cx, out| {
        cx.b.op("Add", &[&scaled, &bias]).into(&[out]);
    })
}

pub(super) fn upsample(
    cx: &mut Context<'_>,
    node: &Node,
    factor: usize,
) -> Result<(), ExportError> {
    let x = cx.operand(node, 0)?;
    let bytes = [1.0, 1.0, factor as f32, factor as f32]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let scales = cx.b.constant(
        &format!("const.f32.[1,1,{factor},{factor}]"),
        DType::F32,
        &[4],
        bytes,
    );
    define_full(cx, node, |cx, out| {
        let call =
            cx.b.op("Resize", &[&x, &Name::from(""), &scales])
                .text("mode", "nearest");
        call.text("coordinate_transformation_mode", "asymmetric")
            .text("nearest_mode", "floor")
            .into(&[out]);
    })
}

/// Gives every image its noise level: the only one, or its own. By a gather, since tract spreads no
/// axis of unknown length.
pub(super) fn spread_noise_levels(cx: &mut Context<'_>) -> Result<(), ExportError> {
    for value in noise_levels(cx.graph) {
        let outer = cx.b.enter(format!("{}/spread", cx.full_name(value)));
        let (given, images) = (cx.full(value)?, cx.axis(&cx.ty(value).shape.0[0])?);
        let (axis, zero, one) = (cx.b.ints(&[0]), cx.b.int(0), cx.b.int(1));
        let images = cx.b.op("Squeeze", &[&images, &axis]).out();
        let numbers = cx.b.op("Range", &[&zero, &images, &one]).out();
        let levels = cx.b.op("Shape", &[&given]).out();
        // tract's own type of sizes has no minimum.
        let narrow = |cx: &mut Context<'_>, x: &Name| cx.b.op("Cast", &[x]).int("to", INT32).out();
        let [numbers, levels, images, zero, one] =
            [&numbers, &levels, &images, &zero, &one].map(|x| narrow(cx, x));
        // A single level is every image's; of several, image `i` has level `i`, and more or fewer
        // than images lead past the end.
        let above = cx.b.op("Sub", &[&levels, &one]).out();
        let several = cx.b.op("Min", &[&above, &one]).out();
        let excess = cx.b.op("Sub", &[&levels, &images]).out();
        let excess = cx.b.op("Max", &[&excess, &zero]).out();
        let excess = cx.b.op("Mul", &[&excess, &levels]).out();
        let own = cx.b.op("Mul", &[&numbers, &several]).out();
        let chosen = cx.b.op("Add", &[&own, &excess]).out();
        let spread = cx.b.op("Gather", &[&given, &chosen]).out();
        cx.b.enter(outer);
        cx.stand_in(value, spread);
    }
    Ok(())
}

pub(super) fn timestep_embedding(
    cx: &mut Context<'_>,
    node: &Node,
    embedding: &TimestepEmbedding,
) -> Result<(), ExportError> {
    let timesteps = cx.operand(node, 0)?;
    let bytes = embedding
        .frequencies()
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect();
    let name = format!(
        "timesteps.dim{}.shift{:?}.frequencies",
        embedding.dim, embedding.shift
    );
    let (frequencies, axis) = (
        cx.b.constant(&name, DType::F32, &[embedding.dim / 2], bytes),
        cx.b.ints(&[-1]),
    );
    let column = cx.b.op("Unsqueeze", &[&timesteps, &axis]).out();
    let angles = cx.b.op("Mul", &[&column, &frequencies]).out();
    let (sines, cosines) = (
        cx.b.op("Sin", &[&angles]).out(),
        cx.b.op("Cos", &[&angles]).out(),
    );
    let waves = if embedding.flip_sin_to_cos {
        [cosines, sines]
    } else {
        [sines, cosines]
    };
    define_full(cx, node, |cx, out| {
        cx.b.op("Concat", &waves.each_ref())
            .int("axis", -1)
            .into(&[out]);
    })
}
