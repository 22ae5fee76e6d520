//! U-Nets of diffusers, built from their spec: stages that halve the image on the way down, a
//! middle, and stages that double it on the way up and read what the way down left. The shared part
//! of the families that have one.
//!
//! A stage's blocks are `down.I.resnet.J`, `down.I.attn.J` and `down.I.sample`, in the middle
//! `mid.resnet.J` and `mid.attn.J`. Layers count stages.

use dlc_ir::{Diffusion, Dim, IrError, Op, Task, ValueId, sym};
use dlc_methods::diffusion::inputs;

use super::diffusers::{embed, float_input, id_input, lowered};
use super::net::Net;
use super::patches::batched;
use super::unet_blocks::{Conditions, Stage, conv2d, group_norm};
use super::unet_spec::{TextTime, UnetSpec};
use super::{Architecture, Facts};

impl Architecture for UnetSpec {
    fn facts(&self) -> Facts {
        Facts {
            hidden_size: self.channels.first().copied().unwrap_or_default(),
            diffusion: Some(self.diffusion.clone()),
            ..Facts::default()
        }
    }

    /// Inputs: `sample`, `timestep` and, where the model takes them, `encoder_hidden_states`,
    /// `class_labels`, `text_embeds` and `time_ids`. Output: `out_sample`.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let Diffusion {
            channels,
            out_channels,
            ..
        } = self.diffusion;
        let sides = [
            Dim::from(channels),
            sym(Diffusion::HEIGHT),
            sym(Diffusion::WIDTH),
        ];
        let image = float_input(net, inputs::SAMPLE, &sides)?;
        let (conditions, image) = self.conditions(net, image)?;
        let first = self.channels.first().copied().unwrap_or(1);
        let [kernel, last_kernel] = self.kernels;
        let image = conv2d(
            net,
            image,
            "conv_in",
            [first, channels, kernel],
            1,
            [kernel / 2; 2],
        )?;
        let image = self.stages(net, image, conditions)?;
        let image = group_norm(net, image, "conv_norm_out", first, self.groups, self.eps)?;
        let image = net.graph.add(Op::Silu, [image.into()])?;
        let sample = conv2d(
            net,
            image,
            "conv_out",
            [out_channels, first, last_kernel],
            1,
            [last_kernel / 2; 2],
        )?;
        net.output(Task::ImageGeneration.output(), sample)
    }
}

impl UnetSpec {
    /// The other inputs, embedded; and the image in the type that the graph computes in.
    fn conditions(
        &self,
        net: &mut Net<'_>,
        image: ValueId,
    ) -> Result<(Conditions, ValueId), IrError> {
        let timestep = float_input(net, inputs::TIMESTEP, &[])?;
        let text = self
            .diffusion
            .text_width
            .map(|width| float_input(net, inputs::TEXT, &[sym("text"), width.into()]))
            .transpose()?;
        let labels = self
            .diffusion
            .classes
            .map(|_| id_input(net, inputs::CLASS_LABELS))
            .transpose()?;
        let addition = match self.addition {
            Some(a) => Some((
                a,
                float_input(net, inputs::POOLED_TEXT, &[a.text.into()])?,
                float_input(net, inputs::TIME_IDS, &[a.sizes.into()])?,
            )),
            None => None,
        };
        let image = lowered(net, image)?;
        let text = text.map(|text| lowered(net, text)).transpose()?;
        let sinusoids = net
            .graph
            .add(Op::TimestepEmbedding(self.sinusoids), [timestep.into()])?;
        let sinusoids = lowered(net, sinusoids)?;
        let mut level = embed(
            net,
            sinusoids,
            "time_embedding",
            [self.sinusoids.dim, self.embedding],
        )?;
        if let (Some(labels), Some(classes)) = (labels, self.diffusion.classes) {
            let table = net.weight("class_embedding.weight", &[classes.count, self.embedding])?;
            let class = net.graph.add(Op::Gather, [table, labels.into()])?;
            level = net.add(level, class)?;
        }
        if let Some((addition, text, sizes)) = addition {
            let added = addition.embed(net, [text, sizes], self.embedding)?;
            level = net.add(level, added)?;
        }
        // Every resnet wants the noise level after this activation.
        let level = net.graph.add(Op::Silu, [level.into()])?;
        Ok((Conditions { level, text }, image))
    }

    /// The stages: down, middle, up.
    fn stages(
        &self,
        net: &mut Net<'_>,
        image: ValueId,
        conditions: Conditions,
    ) -> Result<ValueId, IrError> {
        let count = self.channels.len();
        let mut stage = Stage {
            spec: self,
            conditions,
            image,
            width: self.channels.first().copied().unwrap_or(1),
            layer: 0,
        };
        let mut left = vec![(image, stage.width)];
        for (i, &mixer) in self.down.iter().enumerate() {
            let (prefix, name) = (format!("down_blocks.{i}"), format!("down.{i}"));
            for j in 0..self.layers[i] {
                stage.resnet(
                    net,
                    &format!("{prefix}.resnets.{j}"),
                    &format!("{name}.resnet.{j}"),
                    self.channels[i],
                    None,
                )?;
                stage.mix(
                    net,
                    &format!("{prefix}.attentions.{j}"),
                    &format!("{name}.attn.{j}"),
                    mixer,
                    self.groups,
                )?;
                left.push((stage.image, stage.width));
            }
            if i + 1 < count {
                stage.halve(
                    net,
                    &format!("{prefix}.downsamplers.0.conv"),
                    &format!("{name}.sample"),
                )?;
                left.push((stage.image, stage.width));
            }
            stage.layer += 1;
        }
        if let Some(mixer) = self.middle {
            let width = stage.width;
            stage.resnet(net, "mid_block.resnets.0", "mid.resnet.0", width, None)?;
            stage.mix(
                net,
                "mid_block.attentions.0",
                "mid.attn.0",
                mixer,
                self.middle_groups,
            )?;
            stage.resnet(net, "mid_block.resnets.1", "mid.resnet.1", width, None)?;
        } else {
            net.leave_out("mid_block.");
        }
        stage.layer += 1;
        for (i, &mixer) in self.up.iter().enumerate() {
            let (prefix, name) = (format!("up_blocks.{i}"), format!("up.{i}"));
            for j in 0..=self.layers[count - 1 - i] {
                let skip = left.pop();
                stage.resnet(
                    net,
                    &format!("{prefix}.resnets.{j}"),
                    &format!("{name}.resnet.{j}"),
                    self.channels[count - 1 - i],
                    skip,
                )?;
                stage.mix(
                    net,
                    &format!("{prefix}.attentions.{j}"),
                    &format!("{name}.attn.{j}"),
                    mixer,
                    self.groups,
                )?;
            }
            if let Some(&(like, _)) = left.last() {
                stage.double(
                    net,
                    &format!("{prefix}.upsamplers.0.conv"),
                    &format!("{name}.sample"),
                    like,
                )?;
            }
            stage.layer += 1;
        }
        Ok(stage.image)
    }
}

impl TextTime {
    /// The width of what is embedded.
    fn inner(&self) -> usize {
        self.text + self.sizes * self.sinusoids.dim
    }

    fn embed(
        &self,
        net: &mut Net<'_>,
        [text, sizes]: [ValueId; 2],
        width: usize,
    ) -> Result<ValueId, IrError> {
        let sizes = net
            .graph
            .add(Op::TimestepEmbedding(self.sinusoids), [sizes.into()])?;
        let sizes = net.graph.add(
            Op::Reshape {
                shape: batched(&[self.sizes * self.sinusoids.dim]),
            },
            [sizes.into()],
        )?;
        let both = net
            .graph
            .add(Op::Concat { axis: 1 }, [text.into(), sizes.into()])?;
        let both = lowered(net, both)?;
        embed(net, both, "add_embedding", [self.inner(), width])
    }
}
