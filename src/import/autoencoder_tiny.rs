//! Decoder and encoder of a tiny autoencoder (Bohan, 2023: TAESD), as pipelines of diffusers make
//! pictures quickly of latents with it: `AutoencoderTiny`.

use dlc_ir::{Diffusion, IrError, Op, Operand, ValueId};

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Real, Text, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::{MOST_CHANNELS, image_input, lowered, require_text};
use super::net::Net;
use super::unet_blocks::conv2d;
use super::unet_config::{channels, per_stage};
use super::{Architecture, Facts, PartFamily};
use crate::checkpoint::Role;

pub(super) const FAMILY: PartFamily = PartFamily {
    class: "AutoencoderTiny",
    keys: KEYS,
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("in_channels", Whole(3)),
    key("out_channels", Whole(3)),
    key("encoder_block_out_channels", Wholes(&[64, 64, 64, 64])),
    key("decoder_block_out_channels", Wholes(&[64, 64, 64, 64])),
    key("act_fn", Text("relu")),
    key("upsample_fn", Text("nearest")),
    key("latent_channels", Whole(4)),
    key("upsampling_scaling_factor", Whole(2)),
    key("num_encoder_blocks", Wholes(&[1, 3, 3, 3])),
    key("num_decoder_blocks", Wholes(&[3, 3, 3, 1])),
    optional("latent_magnitude", Whole(3)),
    optional("latent_shift", Real(0.5)),
    optional("force_upcast", Flag(false)),
    key("scaling_factor", Real(1.0)),
    optional("shift_factor", Real(0.0)),
];

/// What latents are kept below, softly.
const LIMIT: f32 = 3.0;
/// Most blocks of a stage, and largest factor of a stage.
const MOST_BLOCKS: usize = 256;
const LARGEST_FACTOR: usize = 16;
const FACTOR: &str = "upsampling_scaling_factor";
/// How far the places of an image are apart that the encoder looks at.
const HALVES: usize = 2;

/// The encoder or the decoder.
struct TinyAutoencoder {
    decodes: bool,
    /// Channels of images.
    channels: usize,
    latents: usize,
    widths: Vec<usize>,
    /// Blocks of each stage.
    blocks: Vec<usize>,
    activation: Activation,
    /// How many times larger a picture is after each stage of the decoder but the last.
    factor: usize,
    scaling: f32,
}

/// The keys that one of the two reads and the other doesn't: channels of images and of stages, blocks.
const OF_ENCODER: [&str; 3] = [
    "in_channels",
    "encoder_block_out_channels",
    "num_encoder_blocks",
];
const OF_DECODER: [&str; 3] = [
    "out_channels",
    "decoder_block_out_channels",
    "num_decoder_blocks",
];

fn read(config: &mut ConfigReader<'_>, role: Role) -> Box<dyn Architecture> {
    require_text(config, "upsample_fn", "nearest");
    let decodes = !matches!(role, Role::Encoder(_));
    let (own, other) = if decodes {
        (OF_DECODER, OF_ENCODER)
    } else {
        (OF_ENCODER, OF_DECODER)
    };
    // Of pictures of latents, of half precision, and a copy of the decoder's widths.
    let unread = [
        "latent_magnitude",
        "latent_shift",
        "force_upcast",
        "block_out_channels",
    ];
    for unread in other.into_iter().chain(unread) {
        config.get(unread);
    }
    if let Some(shift) = config
        .get("shift_factor")
        .filter(|n| n.as_f64() != Some(0.0))
    {
        config.note(format!(
            "`shift_factor` is {shift}, which is left out, as the pipeline of diffusers does"
        ));
    }
    let factor = config.required_size(FACTOR, LARGEST_FACTOR);
    if !decodes && factor != HALVES {
        let problem = format!("is {factor}, and the encoder halves its images");
        config.unsupported(FACTOR, problem);
    }
    let [channels_key, widths, blocks] = own;
    let widths = channels(config, widths);
    Box::new(TinyAutoencoder {
        decodes,
        channels: config.required_size(channels_key, MOST_CHANNELS),
        latents: config.required_size("latent_channels", MOST_CHANNELS),
        blocks: per_stage(config, blocks, widths.len(), MOST_BLOCKS),
        widths,
        activation: Activation::read(config, "act_fn"),
        factor,
        scaling: config.required_factor("scaling_factor") as f32,
    })
}

impl Architecture for TinyAutoencoder {
    fn facts(&self) -> Facts {
        Facts {
            decodes: Some(self.latents),
            ..Facts::default()
        }
    }

    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        if self.decodes {
            self.decode(net)
        } else {
            self.encode(net)
        }
    }
}

impl TinyAutoencoder {
    /// Input: `latents`, as a sampler leaves them. Output: `images`.
    fn decode(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        net.ignore("encoder.");
        let latents = image_input(net, Diffusion::LATENTS, self.latents)?;
        let factor = 1.0 / self.scaling / LIMIT;
        let x = net.graph.add(Op::Scale { factor }, [latents.into()])?;
        let x = net.graph.add(Op::Tanh, [x.into()])?;
        let x = net.graph.add(Op::Scale { factor: LIMIT }, [x.into()])?;
        let mut x = lowered(net, x)?;
        let mut layers = Layers::of("decoder");
        let shape = [self.widths[0], self.latents, 3];
        x = conv2d(net, x, &layers.next(), shape, 1, [1, 1])?;
        x = net.activate(x, self.activation)?;
        layers.skip();
        for (stage, (&width, &blocks)) in self.widths.iter().zip(&self.blocks).enumerate() {
            x = self.blocks(net, x, &mut layers, [blocks, width])?;
            if stage + 1 == self.widths.len() {
                let shape = [self.channels, width, 3];
                x = conv2d(net, x, &layers.next(), shape, 1, [1, 1])?;
            } else {
                let larger = Op::Upsample {
                    factor: self.factor,
                };
                x = net.graph.add(larger, [x.into()])?;
                layers.skip();
                x = unbiased(net, x, &layers.next(), width, 1)?;
            }
        }
        let x = net.graph.add(Op::Scale { factor: 2.0 }, [x.into()])?;
        let one = net.table("vae_decoder.shift", &[1], &[-1.0])?;
        let x = net.add(x, one)?;
        net.output(Diffusion::IMAGES, x)
    }

    /// Input: `images`. Output: `latents`, as a sampler takes them.
    fn encode(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        net.ignore("decoder.");
        let images = image_input(net, Diffusion::IMAGES, self.channels)?;
        let x = lowered(net, images)?;
        let one = net.table("vae_encoder.shift", &[1], &[1.0])?;
        let x = net.add(x, one)?;
        let mut x = net.graph.add(Op::Scale { factor: 0.5 }, [x.into()])?;
        let mut layers = Layers::of("encoder");
        for (stage, (&width, &blocks)) in self.widths.iter().zip(&self.blocks).enumerate() {
            x = if stage == 0 {
                let shape = [width, self.channels, 3];
                conv2d(net, x, &layers.next(), shape, 1, [1, 1])?
            } else {
                unbiased(net, x, &layers.next(), width, HALVES)?
            };
            x = self.blocks(net, x, &mut layers, [blocks, width])?;
        }
        let last = self.widths[self.widths.len() - 1];
        let shape = [self.latents, last, 3];
        x = conv2d(net, x, &layers.next(), shape, 1, [1, 1])?;
        let factor = self.scaling;
        x = net.graph.add(Op::Scale { factor }, [x.into()])?;
        net.output(Diffusion::LATENTS, x)
    }

    fn blocks(
        &self,
        net: &mut Net<'_>,
        mut x: ValueId,
        layers: &mut Layers,
        [count, width]: [usize; 2],
    ) -> Result<ValueId, IrError> {
        for _ in 0..count {
            x = self.block(net, x, &layers.next(), width)?;
        }
        Ok(x)
    }

    /// Three convolutions, the input led around.
    fn block(
        &self,
        net: &mut Net<'_>,
        input: ValueId,
        name: &str,
        width: usize,
    ) -> Result<ValueId, IrError> {
        let mut x = input;
        for layer in [0, 2, 4] {
            if layer > 0 {
                x = net.activate(x, self.activation)?;
            }
            let name = format!("{name}.conv.{layer}");
            x = conv2d(net, x, &name, [width, width, 3], 1, [1, 1])?;
        }
        let sum = net.add(x, input)?;
        net.graph.add(Op::Relu, [sum.into()])
    }
}

/// A convolution of `width` channels without a bias.
fn unbiased(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    width: usize,
    stride: usize,
) -> Result<ValueId, IrError> {
    let weight = net.weight(&format!("{name}.weight"), &[width, width, 3, 3])?;
    let conv = Op::Conv2d {
        stride,
        padding: [1, 1],
    };
    net.graph.add(conv, [Operand::Value(x), weight])
}

/// The names of layers, which are numbered with those between them that have no weights.
struct Layers {
    of: &'static str,
    number: usize,
}

impl Layers {
    fn of(of: &'static str) -> Self {
        Self { of, number: 0 }
    }

    fn next(&mut self) -> String {
        let name = format!("{}.layers.{}", self.of, self.number);
        self.skip();
        name
    }

    fn skip(&mut self) {
        self.number += 1;
    }
}
