//! What the encoder and the decoder of an autoencoder of images have in common: the blocks on the way
//! down and up.

use dlc_ir::{BlockKind, IrError, Op, ValueId};

use super::net::Net;
use super::unet_blocks::{Groups, attend_to_places, conv2d, norm_and_bend};

/// One of the two on its way.
pub(super) struct Stage {
    /// What the names of its tensors begin with.
    pub(super) tensors: &'static str,
    /// The image as the last block left it.
    pub(super) image: ValueId,
    /// Its channels.
    pub(super) width: usize,
    /// The number of the stage.
    pub(super) layer: u32,
    pub(super) groups: Groups,
}

/// What changes the size of an image between two stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resize {
    /// Half the height and width.
    Halve,
    /// Twice the height and width.
    Double,
}

/// The resnets of a stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resnets {
    pub(super) count: usize,
    /// Channels of the stage.
    pub(super) width: usize,
    /// Whether places see each other after each of them.
    pub(super) attends: bool,
}

impl Stage {
    pub(super) fn middle(&mut self, net: &mut Net<'_>, attends: bool) -> Result<(), IrError> {
        let (name, width) = (format!("{}.mid_block", self.tensors), self.width);
        self.resnet(net, &format!("{name}.resnets.0"), "mid.resnet.0", width)?;
        if attends {
            self.attend(net, &format!("{name}.attentions.0"), "mid.attn.0")?;
        }
        self.resnet(net, &format!("{name}.resnets.1"), "mid.resnet.1", width)
    }

    /// The resnets of stage `number`, whose blocks are called `down` or `up`.
    pub(super) fn resnets(
        &mut self,
        net: &mut Net<'_>,
        way: &str,
        number: usize,
        resnets: Resnets,
    ) -> Result<(), IrError> {
        let tensors = format!("{}.{way}_blocks.{number}", self.tensors);
        for j in 0..resnets.count {
            let name = format!("{tensors}.resnets.{j}");
            let block = format!("{way}.{number}.resnet.{j}");
            self.resnet(net, &name, &block, resnets.width)?;
            if resnets.attends {
                let name = format!("{tensors}.attentions.{j}");
                self.attend(net, &name, &format!("{way}.{number}.attn.{j}"))?;
            }
        }
        Ok(())
    }

    /// The end of stage `number`. An image is halved with zeros below and to the right of it.
    pub(super) fn resize(
        &mut self,
        net: &mut Net<'_>,
        way: &str,
        number: usize,
        resize: Resize,
    ) -> Result<(), IrError> {
        let (width, tensors) = (
            self.width,
            format!("{}.{way}_blocks.{number}", self.tensors),
        );
        self.open(net, &format!("{way}.{number}.sample"), BlockKind::Sampling)?;
        let shape = [width, width, 3];
        let output = match resize {
            Resize::Halve => {
                let name = format!("{tensors}.downsamplers.0.conv");
                conv2d(net, self.image, &name, shape, 2, [0, 1])?
            }
            Resize::Double => {
                let larger = Op::Upsample { factor: 2 };
                let larger = net.graph.add(larger, [self.image.into()])?;
                let name = format!("{tensors}.upsamplers.0.conv");
                conv2d(net, larger, &name, shape, 1, [1, 1])?
            }
        };
        self.close(net, output, width)
    }

    /// A norm, `silu` and a convolution to `channels`.
    pub(super) fn last(&self, net: &mut Net<'_>, channels: usize) -> Result<ValueId, IrError> {
        let name = |part: &str| format!("{}.{part}", self.tensors);
        let (width, groups) = (self.width, self.groups);
        let x = norm_and_bend(net, self.image, &name("conv_norm_out"), width, groups)?;
        conv2d(net, x, &name("conv_out"), [channels, width, 3], 1, [1, 1])
    }

    /// Two convolutions, the input led around.
    fn resnet(
        &mut self,
        net: &mut Net<'_>,
        tensors: &str,
        block: &str,
        width: usize,
    ) -> Result<(), IrError> {
        self.open(net, block, BlockKind::Resnet)?;
        let (inner, groups) = (self.width, self.groups);
        let name = |part: &str| format!("{tensors}.{part}");
        let x = norm_and_bend(net, self.image, &name("norm1"), inner, groups)?;
        let x = conv2d(net, x, &name("conv1"), [width, inner, 3], 1, [1, 1])?;
        let x = norm_and_bend(net, x, &name("norm2"), width, groups)?;
        let x = conv2d(net, x, &name("conv2"), [width, width, 3], 1, [1, 1])?;
        let mut around = self.image;
        if inner != width {
            let shape = [width, inner, 1];
            around = conv2d(net, around, &name("conv_shortcut"), shape, 1, [0, 0])?;
        }
        let output = net.add(around, x)?;
        self.close(net, output, width)
    }

    fn attend(&mut self, net: &mut Net<'_>, tensors: &str, block: &str) -> Result<(), IrError> {
        self.open(net, block, BlockKind::Attention)?;
        let (width, groups) = (self.width, self.groups);
        let output = attend_to_places(net, self.image, tensors, [width, 1], groups)?;
        self.close(net, output, width)
    }

    fn open(&self, net: &mut Net<'_>, block: &str, kind: BlockKind) -> Result<(), IrError> {
        net.graph.open_block(block, kind, self.layer, self.image)
    }

    fn close(&mut self, net: &mut Net<'_>, output: ValueId, width: usize) -> Result<(), IrError> {
        (self.image, self.width) = (output, width);
        net.graph.close_block(output)
    }
}
