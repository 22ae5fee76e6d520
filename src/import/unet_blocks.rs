//! The blocks of U-Nets: resnets, attention, transformers, and what halves and doubles an image.

use dlc_ir::{BlockKind, Dim, IrError, Op, ValueId};

use super::net::Net;
use super::patches::{batched, to_image, to_sequence};
use super::transformer::{AttentionSpec, FeedForward};
use super::unet_spec::{Mixer, UnetSpec};

/// What the norm before a transformer, and those inside it, add to the variance.
const TRANSFORMER_EPS: f32 = 1e-6;
const LAYER_EPS: f32 = 1e-5;

/// What blocks read besides the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    /// The embedded noise level after `silu`, `[batch, embedding]`.
    pub(super) level: ValueId,
    pub(super) text: Option<ValueId>,
}

/// A U-Net on the way through its stages.
pub(super) struct Stage<'s> {
    pub(super) spec: &'s UnetSpec,
    pub(super) conditions: Conditions,
    /// The image as the last block left it.
    pub(super) image: ValueId,
    /// Its channels.
    pub(super) width: usize,
    /// The number of the stage.
    pub(super) layer: u32,
}

impl Stage<'_> {
    /// Two convolutions, the noise level between them, the input led around. `skip` is put after
    /// the image first: a value with its channels.
    pub(super) fn resnet(
        &mut self,
        net: &mut Net<'_>,
        tensors: &str,
        block: &str,
        width: usize,
        skip: Option<(ValueId, usize)>,
    ) -> Result<(), IrError> {
        net.graph
            .open_block(block, BlockKind::Resnet, self.layer, self.image)?;
        let (mut input, mut inner) = (self.image, self.width);
        if let Some((skip, channels)) = skip {
            input = net
                .graph
                .add(Op::Concat { axis: 1 }, [input.into(), skip.into()])?;
            inner += channels;
        }
        let x = self.norm_and_bend(net, input, &format!("{tensors}.norm1"), inner)?;
        let x = conv2d(
            net,
            x,
            &format!("{tensors}.conv1"),
            [width, inner, 3],
            1,
            [1, 1],
        )?;
        let level = net.linear(
            self.conditions.level,
            &format!("{tensors}.time_emb_proj"),
            [width, self.spec.embedding],
            true,
        )?;
        let level = net.graph.add(
            Op::Reshape {
                shape: batched(&[width, 1, 1]),
            },
            [level.into()],
        )?;
        let x = net.add(x, level)?;
        let x = self.norm_and_bend(net, x, &format!("{tensors}.norm2"), width)?;
        let x = conv2d(
            net,
            x,
            &format!("{tensors}.conv2"),
            [width, width, 3],
            1,
            [1, 1],
        )?;
        if inner != width {
            input = conv2d(
                net,
                input,
                &format!("{tensors}.conv_shortcut"),
                [width, inner, 1],
                1,
                [0, 0],
            )?;
        }
        let output = net.add(input, x)?;
        self.close(net, output, width)
    }

    /// What mixes places, if the stage has something that does.
    pub(super) fn mix(
        &mut self,
        net: &mut Net<'_>,
        tensors: &str,
        block: &str,
        mixer: Mixer,
        groups: usize,
    ) -> Result<(), IrError> {
        let output = match mixer {
            Mixer::None => return Ok(()),
            Mixer::Attention { heads } => {
                net.graph
                    .open_block(block, BlockKind::Attention, self.layer, self.image)?;
                self.attention(net, tensors, heads, groups)?
            }
            Mixer::Transformer {
                heads,
                layers,
                text_width,
                linear,
            } => {
                net.graph
                    .open_block(block, BlockKind::Transformer, self.layer, self.image)?;
                self.transformer(net, tensors, [heads, layers, text_width], linear)?
            }
        };
        self.close(net, output, self.width)
    }

    fn attention(
        &self,
        net: &mut Net<'_>,
        tensors: &str,
        heads: usize,
        groups: usize,
    ) -> Result<ValueId, IrError> {
        let norm = Groups {
            groups,
            eps: self.spec.eps,
        };
        attend_to_places(net, self.image, tensors, [self.width, heads], norm)
    }

    /// The projections at both ends are linear layers or, alike but for the tensors' shapes,
    /// convolutions of single places.
    fn transformer(
        &self,
        net: &mut Net<'_>,
        tensors: &str,
        [heads, layers, text_width]: [usize; 3],
        linear: bool,
    ) -> Result<ValueId, IrError> {
        let (width, size) = (self.width, self.size(net));
        let (first, last) = (format!("{tensors}.proj_in"), format!("{tensors}.proj_out"));
        let x = group_norm(
            net,
            self.image,
            &format!("{tensors}.norm"),
            width,
            self.spec.groups,
            TRANSFORMER_EPS,
        )?;
        let mut x = if linear {
            let x = to_sequence(net, x, size.clone())?;
            net.linear(x, &first, [width, width], true)?
        } else {
            let x = conv2d(net, x, &first, [width, width, 1], 1, [0, 0])?;
            to_sequence(net, x, size.clone())?
        };
        for layer in 0..layers {
            x = self.transformer_layer(
                net,
                &format!("{tensors}.transformer_blocks.{layer}"),
                x,
                [heads, text_width],
            )?;
        }
        let x = if linear {
            let x = net.linear(x, &last, [width, width], true)?;
            to_image(net, x, size)?
        } else {
            let x = to_image(net, x, size)?;
            conv2d(net, x, &last, [width, width, 1], 1, [0, 0])?
        };
        net.add(self.image, x)
    }

    fn transformer_layer(
        &self,
        net: &mut Net<'_>,
        tensors: &str,
        x: ValueId,
        [heads, text_width]: [usize; 2],
    ) -> Result<ValueId, IrError> {
        let width = self.width;
        let spec = AttentionSpec {
            width,
            context_width: width,
            heads,
            head_dim: width / heads,
            bias: false,
        };
        let normed = net.layer_norm(x, &format!("{tensors}.norm1"), width, LAYER_EPS)?;
        let mixed = spec.attend(net, [normed, normed], None, &format!("{tensors}.attn1"))?;
        let x = net.add(x, mixed)?;
        let normed = net.layer_norm(x, &format!("{tensors}.norm2"), width, LAYER_EPS)?;
        let text = self.conditions.text.unwrap_or(normed);
        let spec = AttentionSpec {
            context_width: text_width,
            ..spec
        };
        let mixed = spec.attend(net, [normed, text], None, &format!("{tensors}.attn2"))?;
        let x = net.add(x, mixed)?;
        let normed = net.layer_norm(x, &format!("{tensors}.norm3"), width, LAYER_EPS)?;
        let fed = FeedForward::Geglu.apply(net, normed, &format!("{tensors}.ff"), width)?;
        net.add(x, fed)
    }

    /// Half the height and width.
    pub(super) fn halve(
        &mut self,
        net: &mut Net<'_>,
        tensors: &str,
        block: &str,
    ) -> Result<(), IrError> {
        net.graph
            .open_block(block, BlockKind::Sampling, self.layer, self.image)?;
        let output = conv2d(
            net,
            self.image,
            tensors,
            [self.width, self.width, 3],
            2,
            [self.spec.downsample_padding, 1],
        )?;
        self.close(net, output, self.width)
    }

    /// Twice the height and width, or one less where `like`, which comes next, was halved from an
    /// odd one.
    pub(super) fn double(
        &mut self,
        net: &mut Net<'_>,
        tensors: &str,
        block: &str,
        like: ValueId,
    ) -> Result<(), IrError> {
        net.graph
            .open_block(block, BlockKind::Sampling, self.layer, self.image)?;
        let larger = net
            .graph
            .add(Op::Upsample { factor: 2 }, [self.image.into(), like.into()])?;
        let output = conv2d(net, larger, tensors, [self.width, self.width, 3], 1, [1, 1])?;
        self.close(net, output, self.width)
    }

    fn norm_and_bend(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        name: &str,
        width: usize,
    ) -> Result<ValueId, IrError> {
        let groups = Groups {
            groups: self.spec.groups,
            eps: self.spec.eps,
        };
        norm_and_bend(net, x, name, width, groups)
    }

    fn close(&mut self, net: &mut Net<'_>, output: ValueId, width: usize) -> Result<(), IrError> {
        (self.image, self.width) = (output, width);
        net.graph.close_block(output)
    }

    /// Channels, height and width of the image.
    fn size(&self, net: &Net<'_>) -> [Dim; 3] {
        size(net, self.image, self.width)
    }
}

/// A norm of groups of channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    pub(super) groups: usize,
    pub(super) eps: f32,
}

/// Channels, height and width of an image.
fn size(net: &Net<'_>, image: ValueId, width: usize) -> [Dim; 3] {
    let dims = &net.graph.value_type(image).shape.0;
    let side = |axis: usize| dims.get(axis).cloned().unwrap_or_else(|| Dim::from(1));
    [Dim::from(width), side(2), side(3)]
}

/// The image, `width` channels, and what its places see in each other.
pub(super) fn attend_to_places(
    net: &mut Net<'_>,
    image: ValueId,
    tensors: &str,
    [width, heads]: [usize; 2],
    norm: Groups,
) -> Result<ValueId, IrError> {
    let size = size(net, image, width);
    let name = format!("{tensors}.group_norm");
    let x = group_norm(net, image, &name, width, norm.groups, norm.eps)?;
    let x = to_sequence(net, x, size.clone())?;
    let spec = AttentionSpec {
        width,
        context_width: width,
        heads,
        head_dim: width / heads,
        bias: true,
    };
    let mixed = spec.attend(net, [x, x], None, tensors)?;
    let mixed = to_image(net, mixed, size)?;
    net.add(image, mixed)
}

/// A group norm over `width` channels, and `silu`.
pub(super) fn norm_and_bend(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    width: usize,
    norm: Groups,
) -> Result<ValueId, IrError> {
    let x = group_norm(net, x, name, width, norm.groups, norm.eps)?;
    net.graph.add(Op::Silu, [x.into()])
}

/// Group norm over `width` channels.
pub(super) fn group_norm(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    width: usize,
    groups: usize,
    eps: f32,
) -> Result<ValueId, IrError> {
    let scale = net.weight(&format!("{name}.weight"), &[width])?;
    let bias = net.weight(&format!("{name}.bias"), &[width])?;
    net.graph
        .add(Op::GroupNorm { groups, eps }, [x.into(), scale, bias])
}

/// A convolution with the tensors `{name}.weight [out, in, side, side]` and `{name}.bias`.
pub(super) fn conv2d(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    [out, inner, side]: [usize; 3],
    stride: usize,
    padding: [usize; 2],
) -> Result<ValueId, IrError> {
    let weight = net.weight(&format!("{name}.weight"), &[out, inner, side, side])?;
    let bias = net.weight(&format!("{name}.bias"), &[out])?;
    net.graph
        .add(Op::Conv2d { stride, padding }, [x.into(), weight, bias])
}
