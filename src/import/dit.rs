//! Diffusion transformers conditioned on a class (Peebles and Xie, 2023): `DiT` of diffusers.

use dlc_ir::{BlockKind, Classes, Diffusion, IrError, Op, Task, TimestepEmbedding, ValueId};
use dlc_methods::diffusion::inputs;

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::diffusers::{embed, float_input, id_input, ignore_training, lowered, require_text};
use super::net::Net;
use super::patches::{PatchSpec, batched};
use super::spec::{LARGEST_VOCABULARY, eps};
use super::transformer::{AttentionSpec, FeedForward, row};
use super::{Architecture, Facts, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "DiTTransformer2DModel",
    architectures: &[("DiTTransformer2DModel", Task::ImageGeneration)],
    summary: "DiT of all sizes",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
pub(super) const KEYS: &[Key] = &[
    key("num_attention_heads", Whole(16)),
    key("attention_head_dim", Whole(72)),
    key("in_channels", Whole(4)),
    optional("out_channels", Nothing),
    key("num_layers", Whole(28)),
    optional("attention_bias", Flag(true)),
    key("sample_size", Whole(32)),
    key("patch_size", Whole(2)),
    key("activation_fn", Text("gelu-approximate")),
    key("num_embeds_ada_norm", Whole(1000)),
    key("norm_type", Text("ada_norm_zero")),
    optional("norm_elementwise_affine", Flag(false)),
    key("norm_eps", Real(1e-5)),
];

/// How wide the sinusoids of the noise level are.
const SINUSOIDS: usize = 256;
/// What norms add to the variance where the configuration doesn't say.
const EPS: f32 = 1e-6;

struct Dit {
    patches: PatchSpec,
    feed_forward: FeedForward,
    classes: usize,
    /// What the norm before the feed-forward layers adds to the variance.
    eps: f32,
}

pub(super) fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    require_text(config, "norm_type", "ada_norm_zero");
    ignore_training(config);
    Box::new(Dit {
        patches: PatchSpec::read(config),
        feed_forward: FeedForward::read(config, "activation_fn"),
        classes: config.required_size("num_embeds_ada_norm", LARGEST_VOCABULARY),
        eps: eps(config, "norm_eps"),
    })
}

impl Architecture for Dit {
    fn facts(&self) -> Facts {
        let classes = Classes {
            count: self.classes,
            unconditional: Some(self.classes),
        };
        Facts {
            hidden_size: self.patches.width(),
            heads: self.patches.heads,
            kv_heads: self.patches.heads,
            head_dim: self.patches.head_dim,
            diffusion: Some(Diffusion {
                classes: Some(classes),
                ..self.patches.diffusion()
            }),
            ..Facts::default()
        }
    }

    /// Inputs: `hidden_states`, `timestep` and `class_labels`. Output: `out_sample`.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let image = float_input(net, inputs::HIDDEN_STATES, &self.patches.sides())?;
        let timestep = float_input(net, inputs::TIMESTEP, &[])?;
        let labels = id_input(net, inputs::CLASS_LABELS)?;
        let image = lowered(net, image)?;
        let mut residual = self.patches.embed(net, image, 1.0)?;

        let sinusoids = TimestepEmbedding {
            dim: SINUSOIDS,
            flip_sin_to_cos: true,
            shift: 1.0,
        };
        let sinusoids = net
            .graph
            .add(Op::TimestepEmbedding(sinusoids), [timestep.into()])?;
        let sinusoids = lowered(net, sinusoids)?;
        let mut conditions = Vec::new();
        for layer in 0..self.patches.layers {
            conditions.push(self.condition(net, layer, sinusoids, labels)?);
        }
        let mut modulations = Vec::new();
        for (layer, condition) in conditions.iter().enumerate() {
            modulations.push(self.modulation(
                net,
                &format!("transformer_blocks.{layer}.norm1.linear"),
                *condition,
                6,
            )?);
        }
        // The last layer goes by the first block's condition.
        let last = conditions
            .first()
            .map(|condition| self.modulation(net, "proj_out_1", *condition, 2))
            .transpose()?;

        for (layer, modulation) in modulations.into_iter().enumerate() {
            residual = self.attention(net, layer, residual, modulation)?;
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
            .add(Op::LayerNorm { eps: EPS }, [residual.into()])?;
        let normed = last.map_or(Ok(normed), |rows| modulate(net, normed, rows, [0, 1]))?;
        let shape = [
            self.patches.patch * self.patches.patch * self.patches.out_channels,
            self.patches.width(),
        ];
        let patches = net.linear(normed, "proj_out_2", shape, true)?;
        let sample = self.patches.join(net, patches)?;
        net.output(Task::ImageGeneration.output(), sample)
    }
}

impl Dit {
    /// What a block takes of noise level and class, `[batch, width]`.
    fn condition(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        sinusoids: ValueId,
        labels: ValueId,
    ) -> Result<ValueId, IrError> {
        let (prefix, width) = (
            format!("transformer_blocks.{layer}.norm1.emb"),
            self.patches.width(),
        );
        let level = embed(
            net,
            sinusoids,
            &format!("{prefix}.timestep_embedder"),
            [SINUSOIDS, width],
        )?;
        let table = net.weight(
            &format!("{prefix}.class_embedder.embedding_table.weight"),
            &[self.classes + 1, width],
        )?;
        let class = net.graph.add(Op::Gather, [table, labels.into()])?;
        net.add(level, class)
    }

    /// Shifts, scales and gates, `[batch, rows, width]`.
    fn modulation(
        &self,
        net: &mut Net<'_>,
        name: &str,
        condition: ValueId,
        rows: usize,
    ) -> Result<ValueId, IrError> {
        let width = self.patches.width();
        let activated = net.graph.add(Op::Silu, [condition.into()])?;
        let all = net.linear(activated, name, [rows * width, width], true)?;
        net.graph.add(
            Op::Reshape {
                shape: batched(&[rows, width]),
            },
            [all.into()],
        )
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
            .add(Op::LayerNorm { eps: EPS }, [residual.into()])?;
        let x = modulate(net, x, modulation, [0, 1])?;
        let PatchSpec {
            heads,
            head_dim,
            attention_bias: bias,
            ..
        } = self.patches;
        let width = self.patches.width();
        let spec = AttentionSpec {
            width,
            context_width: width,
            heads,
            head_dim,
            bias,
        };
        let mixed = spec.attend(
            net,
            [x, x],
            None,
            &format!("transformer_blocks.{layer}.attn1"),
        )?;
        close_gated(net, residual, mixed, modulation, 2)
    }
}

/// The block `layers.N.mlp`, whose shift, scale and gate are the last three of the six rows of
/// `modulation`: its residual output.
pub(super) fn modulated_mlp(
    net: &mut Net<'_>,
    layer: usize,
    [residual, modulation]: [ValueId; 2],
    feed_forward: FeedForward,
    eps: f32,
    width: usize,
) -> Result<ValueId, IrError> {
    net.graph.open_block(
        &format!("layers.{layer}.mlp"),
        BlockKind::Mlp,
        layer as u32,
        residual,
    )?;
    let x = net.graph.add(Op::LayerNorm { eps }, [residual.into()])?;
    let x = modulate(net, x, modulation, [3, 4])?;
    let down = feed_forward.apply(net, x, &format!("transformer_blocks.{layer}.ff"), width)?;
    close_gated(net, residual, down, modulation, 5)
}

/// `x` shifted and scaled by two rows of `rows`.
pub(super) fn modulate(
    net: &mut Net<'_>,
    x: ValueId,
    rows: ValueId,
    [shift, scale]: [usize; 2],
) -> Result<ValueId, IrError> {
    let (shift, scale) = (row(net, rows, shift)?, row(net, rows, scale)?);
    net.graph
        .add(Op::Modulate, [x.into(), scale.into(), shift.into()])
}

/// Closes the open block with `residual + gate * x`, the gate being a row of `rows`.
pub(super) fn close_gated(
    net: &mut Net<'_>,
    residual: ValueId,
    x: ValueId,
    rows: ValueId,
    gate: usize,
) -> Result<ValueId, IrError> {
    let gate = row(net, rows, gate)?;
    let gated = net.graph.add(Op::Mul, [x.into(), gate.into()])?;
    let output = net.add(residual, gated)?;
    net.graph.close_block(output)?;
    Ok(output)
}
