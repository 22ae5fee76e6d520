//! What all diffusion models of diffusers have in common: their boundary, the embedding of noise
//! levels, and how their configurations put sizes.
//!
//! Floats on the boundary are f32 whatever the graph computes in. So is `timestep`, one for each
//! image: some samplers ask for noise levels between two of those trained on.

use dlc_ir::{DType, Diffusion, Dim, IrError, Op, ValueId, ValueType, sym};
use serde_json::Value;

use super::config::{ConfigReader, show};
use super::net::Net;

/// The name of the noisy image's channels in configurations, and their most.
pub(super) const MOST_CHANNELS: usize = 1 << 16;
/// The longest side of a latent image.
pub(super) const LARGEST_SAMPLE: usize = 1 << 13;

/// A float input `[batch, ...]`.
pub(super) fn float_input(
    net: &mut Net<'_>,
    name: &str,
    sides: &[Dim],
) -> Result<ValueId, IrError> {
    let dims = [sym("batch")].into_iter().chain(sides.iter().cloned());
    net.graph
        .input(name, ValueType::new(DType::F32, dims), None)
}

/// An image with `channels`, of any size.
pub(super) fn image_input(
    net: &mut Net<'_>,
    name: &str,
    channels: usize,
) -> Result<ValueId, IrError> {
    let (height, width) = (sym(Diffusion::HEIGHT), sym(Diffusion::WIDTH));
    float_input(net, name, &[Dim::from(channels), height, width])
}

/// An input of one integer for each image.
pub(super) fn id_input(net: &mut Net<'_>, name: &str) -> Result<ValueId, IrError> {
    net.graph
        .input(name, ValueType::new(DType::I64, [sym("batch")]), None)
}

/// `x`, f32, in the type that the graph computes in.
pub(super) fn lowered(net: &mut Net<'_>, x: ValueId) -> Result<ValueId, IrError> {
    if net.dtype == DType::F32 {
        Ok(x)
    } else {
        net.graph.add(Op::Cast { dtype: net.dtype }, [x.into()])
    }
}

/// A linear layer of `width`, `silu`, and another: what diffusers calls a `TimestepEmbedding`.
pub(super) fn embed(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    [inner, width]: [usize; 2],
) -> Result<ValueId, IrError> {
    let x = net.linear(x, &format!("{name}.linear_1"), [width, inner], true)?;
    let x = net.graph.add(Op::Silu, [x.into()])?;
    net.linear(x, &format!("{name}.linear_2"), [width, width], true)
}

/// Height and width of the noisy image: `sample_size`, one number or two.
pub(super) fn sample_size(config: &mut ConfigReader<'_>) -> [usize; 2] {
    const KEY: &str = "sample_size";
    if let Some(Value::Array(sides)) = config.get(KEY) {
        let side = |side: &Value| {
            side.as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=LARGEST_SAMPLE).contains(n))
        };
        if let [Some(height), Some(width)] = sides.iter().map(side).collect::<Vec<_>>()[..] {
            return [height, width];
        }
        config.bad(
            KEY,
            format!(
                "is {}; it must be one whole number from 1 to {LARGEST_SAMPLE} or two",
                show(&Value::from(sides.clone()))
            ),
        );
        return [1, 1];
    }
    [config.required_size(KEY, LARGEST_SAMPLE); 2]
}

/// Refuses a text other than `known`, if the key is there.
pub(super) fn require_text(config: &mut ConfigReader<'_>, key: &'static str, known: &str) {
    if let Some(text) = config.text(key)
        && text != known
    {
        config.unsupported(key, format!("is {}; dlc knows {known}", show(&text.into())));
    }
}

/// Takes note of keys that change nothing in what a trained model computes in single precision.
pub(super) fn ignore_training(config: &mut ConfigReader<'_>) {
    for key in ["dropout", "upcast_attention", "num_train_timesteps"] {
        config.get(key);
    }
}
