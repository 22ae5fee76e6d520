//! What makes images of the latents of a latent diffusion model (Rombach et al., 2022): the decoder
//! of `AutoencoderKL` of diffusers. Its encoder is left out.
//!
//! Blocks are `mid.resnet.J`, `mid.attn.0`, `up.I.resnet.J`, `up.I.attn.J` and `up.I.sample`.

use dlc_ir::{BlockKind, Diffusion, Dim, IrError, Op, ValueId, sym};
use serde_json::Value;

use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Texts, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::{MOST_CHANNELS, float_input, lowered, require_text};
use super::net::Net;
use super::unet_blocks::{Groups, attend_to_places, conv2d, norm_and_bend};
use super::unet_config::{MOST_RESNETS, stage_kinds, widths};
use super::{Architecture, Facts, PartFamily};
use crate::checkpoint::Role;

/// What norms add to the variance.
const EPS: f32 = 1e-6;

pub(super) const FAMILY: PartFamily = PartFamily {
    class: "AutoencoderKL",
    keys: KEYS,
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("in_channels", Whole(3)),
    key("out_channels", Whole(3)),
    key("down_block_types", Texts(&["DownEncoderBlock2D"])),
    key("up_block_types", Texts(&["UpDecoderBlock2D"])),
    key("block_out_channels", Wholes(&[64])),
    key("layers_per_block", Whole(1)),
    key("act_fn", Text("silu")),
    key("latent_channels", Whole(4)),
    key("norm_num_groups", Whole(32)),
    key("sample_size", Whole(32)),
    key("scaling_factor", Real(0.18215)),
    optional("shift_factor", Nothing),
    optional("latents_mean", Nothing),
    optional("latents_std", Nothing),
    optional("force_upcast", Flag(true)),
    optional("use_quant_conv", Flag(true)),
    optional("use_post_quant_conv", Flag(true)),
    optional("mid_block_add_attention", Flag(true)),
];

struct Decoder {
    channels: usize,
    latents: usize,
    /// Channels of each stage on the way up.
    widths: Vec<usize>,
    /// Whether places see each other after each resnet of a stage.
    attends: Vec<bool>,
    /// Resnets of a stage.
    resnets: usize,
    middle_attends: bool,
    groups: Groups,
    /// What latents are divided by.
    scaling: f32,
    /// Mean and deviation of each channel, which latents have without.
    statistics: Option<[Vec<f32>; 2]>,
    /// Whether a convolution comes first.
    post_quant: bool,
}

fn read(config: &mut ConfigReader<'_>, role: Role) -> Box<dyn Architecture> {
    require_text(config, "act_fn", "silu");
    // Of the encoder, of training, and of half precision.
    for unread in [
        "in_channels",
        "down_block_types",
        "sample_size",
        "use_quant_conv",
        "force_upcast",
    ] {
        config.get(unread);
    }
    let mut widths = widths(config);
    widths.reverse();
    let known = ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"];
    let groups = config.required_size("norm_num_groups", MOST_CHANNELS);
    let undivided = widths.iter().find(|width| !width.is_multiple_of(groups));
    if let Some(width) = undivided.filter(|_| config.is_clean()) {
        let problem = format!("is {groups}, which doesn't divide the {width} channels of a stage");
        config.bad("norm_num_groups", problem);
    }
    let latents = config.required_size("latent_channels", MOST_CHANNELS);
    Box::new(Decoder {
        channels: config.required_size("out_channels", MOST_CHANNELS),
        latents,
        statistics: statistics(config, role, latents),
        attends: stage_kinds(config, "up_block_types", widths.len(), known),
        widths,
        resnets: config.required_size("layers_per_block", MOST_RESNETS) + 1,
        middle_attends: config.flag("mid_block_add_attention"),
        groups: Groups { groups, eps: EPS },
        scaling: config.required_factor("scaling_factor") as f32,
        post_quant: config.flag("use_post_quant_conv"),
    })
}

/// `latents_mean` and `latents_std`, where the pipeline takes them: of each channel of the latents.
/// What it leaves out is noted.
fn statistics(config: &mut ConfigReader<'_>, role: Role, latents: usize) -> Option<[Vec<f32>; 2]> {
    const KEYS: [&str; 2] = ["latents_mean", "latents_std"];
    let both = KEYS.map(|key| config.get(key).is_some()) == [true; 2];
    let taken = role == Role::Decoder { statistics: true } && both;
    let unread = ["shift_factor"].into_iter().chain(KEYS);
    for key in unread.filter(|key| !taken || !KEYS.contains(key)) {
        if let Some(value) = config.get(key) {
            let value = show(value);
            config.note(format!(
                "`{key}` is {value}, which is left out, as the pipeline of diffusers does"
            ));
        }
    }
    if !taken {
        return None;
    }
    let numbers = |key| numbers(config, key, latents);
    Some(KEYS.map(numbers))
}

/// A list of `count` numbers.
fn numbers(config: &mut ConfigReader<'_>, key: &'static str, count: usize) -> Vec<f32> {
    let value = config.get(key);
    let list = value.and_then(Value::as_array).map(Vec::as_slice);
    let number = |entry: &Value| Some(entry.as_f64()? as f32).filter(|x| x.is_finite());
    let list: Option<Vec<f32>> = list.and_then(|list| list.iter().map(number).collect());
    list.filter(|list| list.len() == count).unwrap_or_else(|| {
        let found = value.map_or_else(|| "missing".to_owned(), show);
        config.bad(
            key,
            format!("is {found}; it must be a list of {count} numbers"),
        );
        vec![1.0; count]
    })
}

impl Architecture for Decoder {
    fn facts(&self) -> Facts {
        Facts {
            decodes: Some(self.latents),
            ..Facts::default()
        }
    }

    /// Input: `latents`, as a sampler leaves them. Output: `images`.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        for encoder in ["encoder.", "quant_conv."] {
            net.ignore(encoder);
        }
        let (height, width) = (sym(Diffusion::HEIGHT), sym(Diffusion::WIDTH));
        let sides = [Dim::from(self.latents), height, width];
        let latents = float_input(net, Diffusion::LATENTS, &sides)?;
        let scale = Op::Scale {
            factor: 1.0 / self.scaling,
        };
        let latents = net.graph.add(scale, [latents.into()])?;
        let mut x = lowered(net, latents)?;
        if let Some([mean, deviation]) = &self.statistics {
            let shape = [self.latents, 1, 1];
            let deviation = net.table("vae_decoder.latents_std", &shape, deviation)?;
            x = net.graph.add(Op::Mul, [x.into(), deviation])?;
            let mean = net.table("vae_decoder.latents_mean", &shape, mean)?;
            x = net.add(x, mean)?;
        }
        if self.post_quant {
            let shape = [self.latents, self.latents, 1];
            x = conv2d(net, x, "post_quant_conv", shape, 1, [0, 0])?;
        }
        let first = self.widths.first().copied().unwrap_or(1);
        let shape = [first, self.latents, 3];
        let x = conv2d(net, x, "decoder.conv_in", shape, 1, [1, 1])?;
        let mut stage = Stage {
            decoder: self,
            image: x,
            width: first,
            layer: 0,
        };
        stage.middle(net)?;
        for up in 0..self.widths.len() {
            stage.up(net, up)?;
        }
        let (x, last) = (stage.image, stage.width);
        let x = norm_and_bend(net, x, "decoder.conv_norm_out", last, self.groups)?;
        let shape = [self.channels, last, 3];
        let x = conv2d(net, x, "decoder.conv_out", shape, 1, [1, 1])?;
        net.output(Diffusion::IMAGES, x)
    }
}

/// The decoder on its way up.
struct Stage<'d> {
    decoder: &'d Decoder,
    /// The image as the last block left it.
    image: ValueId,
    /// Its channels.
    width: usize,
    /// The number of the stage: the middle is 0.
    layer: u32,
}

impl Stage<'_> {
    fn middle(&mut self, net: &mut Net<'_>) -> Result<(), IrError> {
        let (name, width) = ("decoder.mid_block", self.width);
        self.resnet(net, &format!("{name}.resnets.0"), "mid.resnet.0", width)?;
        if self.decoder.middle_attends {
            self.attend(net, &format!("{name}.attentions.0"), "mid.attn.0")?;
        }
        self.resnet(net, &format!("{name}.resnets.1"), "mid.resnet.1", width)
    }

    fn up(&mut self, net: &mut Net<'_>, up: usize) -> Result<(), IrError> {
        self.layer += 1;
        let (tensors, block) = (format!("decoder.up_blocks.{up}"), format!("up.{up}"));
        let width = self.decoder.widths[up];
        for j in 0..self.decoder.resnets {
            let name = format!("{tensors}.resnets.{j}");
            self.resnet(net, &name, &format!("{block}.resnet.{j}"), width)?;
            if self.decoder.attends[up] {
                let name = format!("{tensors}.attentions.{j}");
                self.attend(net, &name, &format!("{block}.attn.{j}"))?;
            }
        }
        if up + 1 == self.decoder.widths.len() {
            return Ok(());
        }
        self.open(net, &format!("{block}.sample"), BlockKind::Sampling)?;
        let larger = Op::Upsample { factor: 2 };
        let larger = net.graph.add(larger, [self.image.into()])?;
        let name = format!("{tensors}.upsamplers.0.conv");
        let output = conv2d(net, larger, &name, [width, width, 3], 1, [1, 1])?;
        self.close(net, output, width)
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
        let (inner, groups) = (self.width, self.decoder.groups);
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
        let (width, groups) = (self.width, self.decoder.groups);
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
