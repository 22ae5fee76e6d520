//! What works on images, and the embedding of noise levels; alike in every profile.

use dlc_bundle::Profile;
use dlc_ir::{DType, Dim, Node, Shape, TimestepEmbedding, ValueId};
use dlc_onnx::proto::{INT32, data_type};

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

/// The groups normed, then scale and bias of the channels: `GroupNormalization` itself is of opset
/// 21, and runtimes take it apart. In single precision whatever the graph's element type.
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
    let shape = cx.b.ints(&[0, groups as i64, -1]);
    let x = cx.b.op("Reshape", &[&x, &shape]).out();
    let is_fixed = ty.shape.0.iter().skip(1).all(|dim| dim.known().is_some());
    // Convolutions in bf16 need opset 22, whose `InstanceNormalization` has no CUDA kernel.
    let has_kernel = dtype != DType::Bf16;
    let x = if has_kernel && (is_fixed || cx.target.profile == Profile::Ort) {
        let (ones, zeros) = (
            cx.b.filled(DType::F32, groups, 1.0),
            cx.b.filled(DType::F32, groups, 0.0),
        );
        cx.b.op("InstanceNormalization", &[&x, &ones, &zeros])
            .float("epsilon", eps)
            .out()
    } else {
        normed_rows(cx, &x, eps, &format!("norm/{}/{groups}", ty.shape))?
    };
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

/// `x [batch, groups, n]` less its mean, divided by its deviation, along the last axis; `key` names
/// what `n` follows from. By primitives: tract takes a mean's division by a symbolic number for a
/// mask, and minutes to follow such masks through a graph.
fn normed_rows(cx: &mut Context<'_>, x: &Name, eps: f32, key: &str) -> Result<Name, ExportError> {
    let share = cx.once(key, |cx| {
        let entries = cx.b.op("Shape", &[x]).int("start", 2).int("end", 3).out();
        let to = i64::from(data_type(DType::F32));
        let entries = cx.b.op("Cast", &[&entries]).int("to", to).out();
        Ok(cx.b.op("Reciprocal", &[&entries]).out())
    })?;
    let (axis, eps) = (cx.b.ints(&[2]), cx.b.float(DType::F32, eps));
    let mean = |cx: &mut Context<'_>, x: &Name| {
        let sum = cx.b.op("ReduceSum", &[x, &axis]).int("keepdims", 1).out();
        cx.b.op("Mul", &[&sum, &share]).out()
    };
    let middle = mean(cx, x);
    let centred = cx.b.op("Sub", &[x, &middle]).out();
    let squares = cx.b.op("Mul", &[&centred, &centred]).out();
    let variance = mean(cx, &squares);
    let variance = cx.b.op("Add", &[&variance, &eps]).out();
    let deviation = cx.b.op("Sqrt", &[&variance]).out();
    Ok(cx.b.op("Div", &[&centred, &deviation]).out())
}

/// In f32 for bf16, which `Resize` has no CUDA kernel for: it copies entries, so nothing is rounded.
pub(super) fn upsample(
    cx: &mut Context<'_>,
    node: &Node,
    factor: usize,
) -> Result<(), ExportError> {
    let dtype = cx.ty(Context::output_at(node, 0)?).dtype;
    let mut x = cx.operand(node, 0)?;
    if dtype == DType::Bf16 {
        x = to_f32(cx, &x, dtype);
    }
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
    let cut = cut_off(cx, node, factor)?;
    define_full(cx, node, |cx, out| {
        let mut call =
            cx.b.op("Resize", &[&x, &Name::from(""), &scales])
                .text("mode", "nearest")
                .text("coordinate_transformation_mode", "asymmetric")
                .text("nearest_mode", "floor");
        if let Some([starts, ends, axes]) = cut {
            let larger = call.out();
            call = cx.b.op("Slice", &[&larger, &starts, &ends, &axes]);
        }
        if dtype == DType::Bf16 {
            let wide = call.out();
            call =
                cx.b.op("Cast", &[&wide])
                    .int("to", i64::from(data_type(dtype)));
        }
        call.into(&[out]);
    })
}

/// Starts, ends and axes of what is left where the second input has less height or width than the
/// first, enlarged; none if it is known to have as much. Not `Resize` to a size: tract wants to
/// know it when it loads the graph.
fn cut_off(
    cx: &mut Context<'_>,
    node: &Node,
    factor: usize,
) -> Result<Option<[Name; 3]>, ExportError> {
    if node.inputs.len() < 2 {
        return Ok(None);
    }
    let sides = |value: ValueId| cx.ty(value).shape.0.get(2..).unwrap_or_default();
    let (before, wanted) = (sides(cx.value_at(node, 0)?), sides(cx.value_at(node, 1)?));
    let fits = |(a, b): (&Dim, &Dim)| b.known().is_some() && a.times(&factor.into()) == *b;
    if before.iter().zip(wanted).all(fits) {
        return Ok(None);
    }
    let like = cx.operand(node, 1)?;
    let ends = cx.once(&format!("shape/{}/sides", Shape(wanted.to_vec())), |cx| {
        Ok(cx
            .b
            .op("Shape", &[&like])
            .int("start", 2)
            .int("end", 4)
            .out())
    })?;
    Ok(Some([cx.b.ints(&[0, 0]), ends, cx.b.ints(&[2, 3])]))
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
