//! Diffusion transformers conditioned on a text (Chen et al., 2023): `PixArt`-alpha and -sigma of
//! diffusers.

use dlc_ir::{
    BlockKind, DType, Diffusion, IrError, Op, Task, TimestepEmbedding, ValueId, ValueType, sym,
};
use dlc_methods::diffusion::inputs;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::diffusers::{embed, float_input, ignore_training, lowered, require_text};
use super::dit::{close_gated, modulate, modulated_mlp};
use super::net::Net;
use super::patches::{PatchSpec, batched};
use super::spec::{WIDEST, eps};
use super::transformer::{AttentionSpec, FeedForward};
use super::{Architecture, Facts, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "PixArtTransformer2DModel",
    architectures: &[("PixArtTransformer2DModel", Task::ImageGeneration)],
    summary: "PixArt-alpha and PixArt-sigma",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
pub(super) const KEYS: &[Key] = &[
    key("num_attention_heads", Whole(16)),
    key("attention_head_dim", Whole(72)),
    key("in_channels", Whole(4)),
    optional("out_channels", Whole(8)),
    key("num_layers", Whole(28)),
    key("cross_attention_dim", Whole(1152)),
    optional("attention_bias", Flag(true)),
    key("sample_size", Whole(128)),
    key("patch_size", Whole(2)),
    key("activation_fn", Text("gelu-approximate")),
    key("norm_type", Text("ada_norm_single")),
    optional("norm_elementwise_affine", Flag(false)),
    key("norm_eps", Real(1e-6)),
    optional("interpolation_scale", Nothing),
    optional("use_additional_conditions", Nothing),
    optional("caption_channels", Nothing),
    optional("attention_type", Text("default")),
];

const SINUSOIDS: TimestepEmbedding = TimestepEmbedding {
    dim: 256,
    flip_sin_to_cos: true,
    shift: 0.0,
};
/// What the last norm adds to the variance.
const LAST_EPS: f32 = 1e-6;
/// The side of the latent image from which on models take resolution and aspect ratio unless
/// they say otherwise.
const TOLD_FROM: usize = 128;

struct PixArt {
    patches: PatchSpec,
    feed_forward: FeedForward,
    /// Width of the text that goes in.
    text_width: usize,
    /// Whether the text is projected to the model's own width first.
    projected: bool,
    /// Width of the text that blocks attend to.
    context_width: usize,
    /// Whether the model takes resolution and aspect ratio.
    sizes: bool,
    /// By how much positions are divided.
    stretch: f32,
    eps: f32,
}

pub(super) fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    require_text(config, "norm_type", "ada_norm_single");
    require_text(config, "attention_type", "default");
    ignore_training(config);
    // Of the norms' kind that isn't here.
    config.get("num_embeds_ada_norm");
    let patches = PatchSpec::read(config);
    let (width, side) = (patches.width(), patches.sample[0]);
    let caption = config.size("caption_channels", WIDEST);
    let context_width = config.required_size("cross_attention_dim", WIDEST);
    if config.is_clean() && caption.is_some() && context_width != width {
        config.bad(
            "cross_attention_dim",
            format!("is {context_width}, but the text is projected to a width of {width}"),
        );
    }
    let sizes = config
        .optional_flag("use_additional_conditions")
        .unwrap_or(side == TOLD_FROM);
    if config.is_clean() && sizes && !width.is_multiple_of(3) {
        config.bad("attention_head_dim", format!("gives a width of {width}, of which resolution and aspect ratio can't have a third each"));
    }
    let stretch = config
        .factor("interpolation_scale")
        .map_or((side / 64).max(1) as f32, |x| x as f32);
    Box::new(PixArt {
        patches,
        feed_forward: FeedForward::read(config, "activation_fn"),
        text_width: caption.unwrap_or(context_width),
        projected: caption.is_some(),
        context_width,
        sizes,
        stretch,
        eps: eps(config, "norm_eps"),
    })
}

impl Architecture for PixArt {
    fn facts(&self) -> Facts {
        Facts {
            hidden_size: self.patches.width(),
            heads: self.patches.heads,
            kv_heads: self.patches.heads,
            head_dim: self.patches.head_dim,
            diffusion: Some(Diffusion {
                text_width: Some(self.text_width),
                ..self.patches.diffusion()
            }),
            ..Facts::default()
        }
    }

    /// Inputs: `hidden_states`, `timestep`, `encoder_hidden_states`, `encoder_attention_mask` and,
    /// where the model takes them, `resolution` and `aspect_ratio`. Output: `out_sample`.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let image = float_input(net, inputs::HIDDEN_STATES, &self.patches.sides())?;
        let timestep = float_input(net, inputs::TIMESTEP, &[])?;
        let text = float_input(net, inputs::TEXT, &[sym("text"), self.text_width.into()])?;
        let mask = net.graph.input(
            inputs::TEXT_MASK,
            ValueType::new(DType::I64, [sym("batch"), sym("text")]),
            None,
        )?;
        let sizes = if self.sizes {
            vec![
                float_input(net, inputs::RESOLUTION, &[2.into()])?,
                float_input(net, inputs::ASPECT_RATIO, &[1.into()])?,
            ]
        } else {
            vec![]
        };
        let (image, text) = (lowered(net, image)?, lowered(net, text)?);
        let mut residual = self.patches.embed(net, image, self.stretch)?;

        let width = self.patches.width();
        let embedded = self.level(net, timestep, &sizes)?;
        let activated = net.graph.add(Op::Silu, [embedded.into()])?;
        let level = net.linear(activated, "adaln_single.linear", [6 * width, width], true)?;
        let level = net.graph.add(
            Op::Reshape {
                shape: batched(&[6, width]),
            },
            [level.into()],
        )?;
        let text = if self.projected {
            self.project(net, text)?
        } else {
            text
        };
        let mut modulations = Vec::new();
        for layer in 0..self.patches.layers {
            let table = net.weight(
                &format!("transformer_blocks.{layer}.scale_shift_table"),
                &[6, width],
            )?;
            modulations.push(net.add(level, table)?);
        }
        // The same row of the noise level for both rows of the table.
        let row = net.graph.add(
            Op::Reshape {
                shape: batched(&[1, width]),
            },
            [embedded.into()],
        )?;
        let rows = net
            .graph
            .add(Op::Concat { axis: 1 }, [row.into(), row.into()])?;
        let table = net.weight("scale_shift_table", &[2, width])?;
        let last = net.add(rows, table)?;

        for (layer, modulation) in modulations.into_iter().enumerate() {
            residual = self.attention(net, layer, residual, modulation)?;
            residual = self.cross_attention(net, layer, residual, [text, mask])?;
            residual = modulated_mlp(
                net,
                layer,
                [residual, modulation],
                self.feed_forward,
                self.eps,
                self.patches.width(),
            )?;
        }
        let normed = net
            .graph
            .add(Op::LayerNorm { eps: LAST_EPS }, [residual.into()])?;
        let normed = modulate(net, normed, last, [0, 1])?;
        let shape = [
            self.patches.patch * self.patches.patch * self.patches.out_channels,
            width,
        ];
        let patches = net.linear(normed, "proj_out", shape, true)?;
        let sample = self.patches.join(net, patches)?;
        net.output(Task::ImageGeneration.output(), sample)
    }
}

impl PixArt {
    /// The noise level and, where the model takes them, resolution and aspect ratio:
    /// `[batch, width]`.
    fn level(
        &self,
        net: &mut Net<'_>,
        timestep: ValueId,
        sizes: &[ValueId],
    ) -> Result<ValueId, IrError> {
        let width = self.patches.width();
        let level = number(net, timestep, "timestep_embedder", width)?;
        let &[resolution, ratio] = sizes else {
            return Ok(level);
        };
        let third = width / 3;
        let resolution = number(net, resolution, "resolution_embedder", third)?;
        let resolution = net.graph.add(
            Op::Reshape {
                shape: batched(&[2 * third]),
            },
            [resolution.into()],
        )?;
        let ratio = number(net, ratio, "aspect_ratio_embedder", third)?;
        let ratio = net.graph.add(
            Op::Reshape {
                shape: batched(&[third]),
            },
            [ratio.into()],
        )?;
        let both = net
            .graph
            .add(Op::Concat { axis: 1 }, [resolution.into(), ratio.into()])?;
        net.add(level, both)
    }

    fn project(&self, net: &mut Net<'_>, text: ValueId) -> Result<ValueId, IrError> {
        let width = self.patches.width();
        let x = net.linear(
            text,
            "caption_projection.linear_1",
            [width, self.text_width],
            true,
        )?;
        let x = net.graph.add(Op::Gelu { tanh: true }, [x.into()])?;
        net.linear(x, "caption_projection.linear_2", [width, width], true)
    }

    fn heads(&self, context_width: usize) -> AttentionSpec {
        let PatchSpec {
            heads,
            head_dim,
            attention_bias: bias,
            ..
        } = self.patches;
        AttentionSpec {
            width: self.patches.width(),
            context_width,
            heads,
            head_dim,
            bias,
        }
    }

    /// The block `layers.N.attn`: its residual output.
    fn attention(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        modulation: ValueId,
    ) -> Result<ValueId, IrError> {
        net.graph.open_block(
            &format!("layers.{layer}.attn"),
            BlockKind::Attention,
            layer as u32,
            residual,
        )?;
        let x = net
            .graph
            .add(Op::LayerNorm { eps: self.eps }, [residual.into()])?;
        let x = modulate(net, x, modulation, [0, 1])?;
        let mixed = self.heads(self.patches.width()).attend(
            net,
            [x, x],
            None,
            &format!("transformer_blocks.{layer}.attn1"),
        )?;
        close_gated(net, residual, mixed, modulation, 2)
    }

    /// The block `layers.N.cross_attn`, without a norm: its residual output.
    fn cross_attention(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        [text, mask]: [ValueId; 2],
    ) -> Result<ValueId, IrError> {
        net.graph.open_block(
            &format!("layers.{layer}.cross_attn"),
            BlockKind::CrossAttention,
            layer as u32,
            residual,
        )?;
        let name = format!("transformer_blocks.{layer}.attn2");
        let mixed =
            self.heads(self.context_width)
                .attend(net, [residual, text], Some(mask), &name)?;
        let output = net.add(residual, mixed)?;
        net.graph.close_block(output)?;
        Ok(output)
    }
}

/// Numbers `[batch]` or `[batch, count]`, embedded: `[..., width]`.
fn number(net: &mut Net<'_>, x: ValueId, name: &str, width: usize) -> Result<ValueId, IrError> {
    let x = net
        .graph
        .add(Op::TimestepEmbedding(SINUSOIDS), [x.into()])?;
    let x = lowered(net, x)?;
    embed(
        net,
        x,
        &format!("adaln_single.emb.{name}"),
        [SINUSOIDS.dim, width],
    )
}
