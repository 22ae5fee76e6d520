//! The decoder of a tiny autoencoder (Bohan, 2023: TAESD), as pipelines of diffusers make pictures
//! quickly of latents with it: `AutoencoderTiny`. The encoder is left out.

use dlc_ir::{Diffusion, Dim, IrError, Op, Operand, ValueId, sym};

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Real, Text, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::{MOST_CHANNELS, float_input, lowered, require_text};
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

struct TinyDecoder {
    channels: usize,
    latents: usize,
    widths: Vec<usize>,
    /// Blocks of each stage.
    blocks: Vec<usize>,
    activation: Activation,
    /// How many times larger a picture is after each stage but the last.
    factor: usize,
    scaling: f32,
}

fn read(config: &mut ConfigReader<'_>, _: Role) -> Box<dyn Architecture> {
    require_text(config, "upsample_fn", "nearest");
    // Of the encoder, of pictures of latents, of half precision, and a copy of the decoder's widths.
    for unread in [
        "in_channels",
        "encoder_block_out_channels",
        "num_encoder_blocks",
        "latent_magnitude",
        "latent_shift",
        "force_upcast",
        "block_out_channels",
    ] {
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
    let widths = channels(config, "decoder_block_out_channels");
    Box::new(TinyDecoder {
        channels: config.required_size("out_channels", MOST_CHANNELS),
        latents: config.required_size("latent_channels", MOST_CHANNELS),
        blocks: per_stage(config, "num_decoder_blocks", widths.len(), MOST_BLOCKS),
        widths,
        activation: Activation::read(config, "act_fn"),
        factor: config.required_size("upsampling_scaling_factor", LARGEST_FACTOR),
        scaling: config.required_factor("scaling_factor") as f32,
    })
}

impl Architecture for TinyDecoder {
    fn facts(&self) -> Facts {
        Facts {
            decodes: Some(self.latents),
            ..Facts::default()
        }
    }

    /// Input: `latents`, as a sampler leaves them. Output: `images`.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        net.ignore("encoder.");
        let (height, width) = (sym(Diffusion::HEIGHT), sym(Diffusion::WIDTH));
        let sides = [Dim::from(self.latents), height, width];
        let latents = float_input(net, Diffusion::LATENTS, &sides)?;
        let factor = 1.0 / self.scaling / LIMIT;
        let x = net.graph.add(Op::Scale { factor }, [latents.into()])?;
        let x = net.graph.add(Op::Tanh, [x.into()])?;
        let x = net.graph.add(Op::Scale { factor: LIMIT }, [x.into()])?;
        let mut x = lowered(net, x)?;
        let first = self.widths.first().copied().unwrap_or(1);
        let mut layers = Layers(0);
        let shape = [first, self.latents, 3];
        x = conv2d(net, x, &layers.next(), shape, 1, [1, 1])?;
        x = net.activate(x, self.activation)?;
        layers.skip();
        for (stage, (&width, &blocks)) in self.widths.iter().zip(&self.blocks).enumerate() {
            for _ in 0..blocks {
                x = self.block(net, x, &layers.next(), width)?;
            }
            if stage + 1 == self.widths.len() {
                let shape = [self.channels, width, 3];
                x = conv2d(net, x, &layers.next(), shape, 1, [1, 1])?;
            } else {
                let larger = Op::Upsample {
                    factor: self.factor,
                };
                x = net.graph.add(larger, [x.into()])?;
                layers.skip();
                let next = width;
                let name = format!("{}.weight", layers.next());
                let weight = net.weight(&name, &[next, width, 3, 3])?;
                let conv = Op::Conv2d {
                    stride: 1,
                    padding: [1, 1],
                };
                x = net.graph.add(conv, [Operand::Value(x), weight])?;
            }
        }
        let x = net.graph.add(Op::Scale { factor: 2.0 }, [x.into()])?;
        let one = net.table("vae_decoder.shift", &[1], &[-1.0])?;
        let x = net.add(x, one)?;
        net.output(Diffusion::IMAGES, x)
    }
}

impl TinyDecoder {
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

/// The names of layers, which are numbered with those between them that have no weights.
struct Layers(usize);

impl Layers {
    fn next(&mut self) -> String {
        let name = format!("decoder.layers.{}", self.0);
        self.skip();
        name
    }

    fn skip(&mut self) {
        self.0 += 1;
    }
}
