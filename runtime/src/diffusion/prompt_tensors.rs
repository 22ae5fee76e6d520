//! What text encoders take and make of one text, and the denoiser's inputs that it becomes.

use dlc_ir::TextEncoder;
use dlc_methods::diffusion::inputs;

use super::tensors::FloatTensor;
use crate::{Result, RuntimeError};

/// What a text encoder takes of one text: as many numbers for each of its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTokens {
    /// The tokens, padding at the end.
    pub ids: Vec<i64>,
    /// 1 where a token is seen, 0 where padding is hidden.
    pub mask: Vec<i64>,
}

impl TextTokens {
    /// The input that says which tokens aren't padding.
    pub(super) const MASK: &str = "attention_mask";

    /// The numbers, `[1, tokens]`, by the graph's inputs.
    pub fn inputs(&self) -> [(&'static str, &[i64]); 2] {
        [("input_ids", &self.ids), (Self::MASK, &self.mask)]
    }
}

/// What a text encoder makes of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextState {
    /// The hidden states, [`TextEncoder::states`], `[1, tokens, width]`.
    pub states: FloatTensor,
    /// The state of the text as a whole, [`TextEncoder::POOLED`], `[1, width]`, if it makes one.
    pub pooled: Option<FloatTensor>,
}

/// An input of the denoiser, and what it takes.
pub(super) type NamedTensor = (&'static str, FloatTensor);

/// What all encoders together make of a text.
#[derive(Debug, Default)]
pub(super) struct Joined {
    states: Option<FloatTensor>,
    pooled: Option<FloatTensor>,
    mask: Option<FloatTensor>,
}

impl Joined {
    /// Takes what the next encoder made of the text's `tokens`.
    pub fn add(&mut self, reads: &TextEncoder, tokens: &TextTokens, made: TextState) -> Result<()> {
        let count = tokens.ids.len();
        let states = checked(reads, &reads.states, made.states, &[1, count])?;
        self.states = Some(match self.states.take() {
            None => states,
            Some(left) => side_by_side(&left, &states),
        });
        if let Some(pooled) = made.pooled {
            let pooled = checked(reads, TextEncoder::POOLED, pooled, &[1])?;
            self.pooled.get_or_insert(pooled);
        }
        if reads.masked {
            let data = tokens.mask.iter().map(|seen| *seen as f32).collect();
            let shape = vec![1, count];
            self.mask = Some(FloatTensor { shape, data });
        }
        Ok(())
    }

    /// What the denoiser takes of it.
    pub fn tensors(self) -> Vec<NamedTensor> {
        let tensors = [
            (inputs::TEXT, self.states),
            (inputs::POOLED_TEXT, self.pooled),
            (inputs::TEXT_MASK, self.mask),
        ];
        let tensors = tensors.into_iter();
        tensors
            .filter_map(|(name, tensor)| Some((name, tensor?)))
            .collect()
    }
}

/// An output of an encoder, if it is of one text: its first axes are `axes`, and its numbers finite.
fn checked(
    reads: &TextEncoder,
    output: &str,
    made: FloatTensor,
    axes: &[usize],
) -> Result<FloatTensor> {
    let broken = |problem: &str| RuntimeError::port(&reads.graph, output, problem);
    let FloatTensor { shape, data } = &made;
    let fits = shape.len() == axes.len() + 1 && shape.starts_with(axes);
    if !fits || shape.iter().product::<usize>() != data.len() {
        return Err(broken("isn't of the shape that states of a text have"));
    }
    if !data.iter().all(|x| x.is_finite()) {
        return Err(broken(
            "isn't finite: the model or its weights are broken (check with `dlc verify`)",
        ));
    }
    Ok(made)
}

/// The states of a text by two encoders, `[1, tokens, width]` each, joined along the last axis.
fn side_by_side(left: &FloatTensor, right: &FloatTensor) -> FloatTensor {
    let [tokens, a, b] = [left.shape[1], left.shape[2], right.shape[2]];
    let rows = left.data.chunks(a.max(1)).zip(right.data.chunks(b.max(1)));
    FloatTensor {
        data: rows.flat_map(|(a, b)| [a, b].concat()).collect(),
        shape: vec![1, tokens, a + b],
    }
}

/// Zeros in the place of what a text makes.
pub(super) fn zeros(tensors: &[NamedTensor]) -> Vec<NamedTensor> {
    let zero = |(name, tensor): &NamedTensor| {
        let data = vec![0.0; tensor.data.len()];
        let shape = tensor.shape.clone();
        (*name, FloatTensor { shape, data })
    };
    tensors.iter().map(zero).collect()
}

/// What denoisers are told of the size of an image, whether or not this one is: height and width in
/// pixels, that it is whole, and their ratio.
pub(super) fn sizes(size: [usize; 2], pixels: usize) -> [NamedTensor; 3] {
    let [height, width] = size.map(|side| side as f32 * pixels as f32);
    let row = |data: Vec<f32>| FloatTensor {
        shape: vec![1, data.len()],
        data,
    };
    [
        // Original size, upper left corner of what was cut out, and size of the image.
        (
            inputs::TIME_IDS,
            row(vec![height, width, 0.0, 0.0, height, width]),
        ),
        (inputs::RESOLUTION, row(vec![height, width])),
        (inputs::ASPECT_RATIO, row(vec![height / width])),
    ]
}
