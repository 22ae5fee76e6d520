//! What makes images of the latents of a latent diffusion model (Rombach et al., 2022), and latents of
//! images: decoder and encoder of `AutoencoderKL` of diffusers.
//!
//! Blocks are `mid.resnet.J`, `mid.attn.0`, `up.I.resnet.J`, `up.I.attn.J` and `up.I.sample`, of the
//! encoder `down` instead of `up`.

use dlc_ir::{Diffusion, IrError, Op, Operand, ValueId};
use serde_json::Value;

use super::autoencoder_stage::{Resize, Resnets, Stage};
use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Texts, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::{MOST_CHANNELS, image_input, lowered, require_text};
use super::net::Net;
use super::unet_blocks::{Groups, conv2d};
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

/// The encoder or the decoder.
struct Autoencoder {
    decodes: bool,
    /// Channels of images.
    channels: usize,
    latents: usize,
    /// Channels of each stage of the encoder, and in reverse of the decoder.
    widths: Vec<usize>,
    /// Whether places see each other after each resnet of a stage.
    attends: Vec<bool>,
    /// Resnets of a stage.
    resnets: usize,
    middle_attends: bool,
    groups: Groups,
    /// What latents of a sampler are divided by.
    scaling: f32,
    /// Mean and deviation of each channel, which latents of a sampler have without.
    statistics: Option<[Vec<f32>; 2]>,
    /// Whether a convolution stands at the side of the latents.
    quant: bool,
    /// Whether it computes in single precision where the denoiser computes in half.
    upcast: bool,
}

/// The keys that one of the two reads and the other doesn't: channels, kinds of stages, convolution.
const OF_ENCODER: [&str; 3] = ["in_channels", "down_block_types", "use_quant_conv"];
const OF_DECODER: [&str; 3] = ["out_channels", "up_block_types", "use_post_quant_conv"];

fn read(config: &mut ConfigReader<'_>, role: Role) -> Box<dyn Architecture> {
    require_text(config, "act_fn", "silu");
    let decodes = !matches!(role, Role::Encoder(_));
    let (own, other, kinds) = if decodes {
        let kinds = ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"];
        (OF_DECODER, OF_ENCODER, kinds)
    } else {
        let kinds = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"];
        (OF_ENCODER, OF_DECODER, kinds)
    };
    // Of the other one, and of training.
    for unread in other.into_iter().chain(["sample_size"]) {
        config.get(unread);
    }
    let widths = widths(config);
    let groups = config.required_size("norm_num_groups", MOST_CHANNELS);
    let undivided = widths.iter().find(|width| !width.is_multiple_of(groups));
    if let Some(width) = undivided.filter(|_| config.is_clean()) {
        let problem = format!("is {groups}, which doesn't divide the {width} channels of a stage");
        config.bad("norm_num_groups", problem);
    }
    let latents = config.required_size("latent_channels", MOST_CHANNELS);
    let [channels, stages, quant] = own;
    Box::new(Autoencoder {
        decodes,
        channels: config.required_size(channels, MOST_CHANNELS),
        latents,
        statistics: statistics(config, role, latents),
        attends: stage_kinds(config, stages, widths.len(), kinds),
        widths,
        resnets: config.required_size("layers_per_block", MOST_RESNETS),
        middle_attends: config.flag("mid_block_add_attention"),
        groups: Groups { groups, eps: EPS },
        scaling: config.required_factor("scaling_factor") as f32,
        quant: config.flag(quant),
        upcast: config.flag("force_upcast") && role.vae().upcast,
    })
}

/// `latents_mean` and `latents_std`, where the pipeline takes them: of each channel of the latents.
/// What it leaves out is noted.
fn statistics(config: &mut ConfigReader<'_>, role: Role, latents: usize) -> Option<[Vec<f32>; 2]> {
    const KEYS: [&str; 2] = ["latents_mean", "latents_std"];
    let both = KEYS.map(|key| config.get(key).is_some()) == [true; 2];
    let taken = role.vae().statistics && both;
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

impl Architecture for Autoencoder {
    fn facts(&self) -> Facts {
        Facts {
            decodes: Some(self.latents),
            upcast: self.upcast,
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

impl Autoencoder {
    /// Input: `latents`, as a sampler leaves them. Output: `images`.
    fn decode(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        for encoder in ["encoder.", "quant_conv."] {
            net.ignore(encoder);
        }
        let latents = image_input(net, Diffusion::LATENTS, self.latents)?;
        let scale = Op::Scale {
            factor: 1.0 / self.scaling,
        };
        let latents = net.graph.add(scale, [latents.into()])?;
        let mut x = lowered(net, latents)?;
        if let Some([mean, deviation]) = self.tables(net)? {
            x = net.graph.add(Op::Mul, [x.into(), deviation])?;
            x = net.add(x, mean)?;
        }
        if self.quant {
            let shape = [self.latents, self.latents, 1];
            x = conv2d(net, x, "post_quant_conv", shape, 1, [0, 0])?;
        }
        let widths: Vec<usize> = self.widths.iter().rev().copied().collect();
        let mut stage = self.stage(net, x, self.latents, widths[0])?;
        stage.middle(net, self.middle_attends)?;
        for (number, &width) in widths.iter().enumerate() {
            stage.layer += 1;
            // One more than on the way down.
            let resnets = self.resnets(number, width, 1);
            stage.resnets(net, "up", number, resnets)?;
            if number + 1 < widths.len() {
                stage.resize(net, "up", number, Resize::Double)?;
            }
        }
        let x = stage.last(net, self.channels)?;
        net.output(Diffusion::IMAGES, x)
    }

    /// Input: `images`. Output: `latents`, the means of their distributions, as a sampler takes
    /// them.
    fn encode(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        for decoder in ["decoder.", "post_quant_conv."] {
            net.ignore(decoder);
        }
        let images = image_input(net, Diffusion::IMAGES, self.channels)?;
        let x = lowered(net, images)?;
        let mut stage = self.stage(net, x, self.channels, self.widths[0])?;
        for (number, &width) in self.widths.iter().enumerate() {
            let resnets = self.resnets(number, width, 0);
            stage.resnets(net, "down", number, resnets)?;
            if number + 1 < self.widths.len() {
                stage.resize(net, "down", number, Resize::Halve)?;
            }
            stage.layer += 1;
        }
        stage.middle(net, self.middle_attends)?;
        // The means, then the logarithms of the variances.
        let moments = 2 * self.latents;
        let mut x = stage.last(net, moments)?;
        if self.quant {
            x = conv2d(net, x, "quant_conv", [moments, moments, 1], 1, [0, 0])?;
        }
        let means = Op::Slice {
            axis: 1,
            start: 0,
            len: self.latents,
        };
        x = net.graph.add(means, [x.into()])?;
        if let Some([mean, deviation]) = self.tables(net)? {
            x = net.add(x, mean)?;
            x = net.graph.add(Op::Mul, [x.into(), deviation])?;
        }
        let scale = Op::Scale {
            factor: self.scaling,
        };
        x = net.graph.add(scale, [x.into()])?;
        net.output(Diffusion::LATENTS, x)
    }

    fn stage(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        channels: usize,
        width: usize,
    ) -> Result<Stage, IrError> {
        let tensors = if self.decodes { "decoder" } else { "encoder" };
        let name = format!("{tensors}.conv_in");
        Ok(Stage {
            tensors,
            image: conv2d(net, x, &name, [width, channels, 3], 1, [1, 1])?,
            width,
            layer: 0,
            groups: self.groups,
        })
    }

    fn resnets(&self, stage: usize, width: usize, more: usize) -> Resnets {
        Resnets {
            count: self.resnets + more,
            width,
            attends: self.attends[stage],
        }
    }

    /// Mean and deviation of the latents, or what undoes them: their negatives and inverses.
    fn tables(&self, net: &mut Net<'_>) -> Result<Option<[Operand; 2]>, IrError> {
        let Some([mean, deviation]) = &self.statistics else {
            return Ok(None);
        };
        let graph = if self.decodes {
            Diffusion::IMAGE_DECODER
        } else {
            Diffusion::IMAGE_ENCODER
        };
        let of = |numbers: &[f32], undo: fn(f32) -> f32| -> Vec<f32> {
            let numbers = numbers.iter().copied();
            numbers
                .map(|x| if self.decodes { x } else { undo(x) })
                .collect()
        };
        let mut table = |name: &str, numbers: Vec<f32>| {
            net.table(&format!("{graph}.{name}"), &[self.latents, 1, 1], &numbers)
        };
        let deviation = table("latents_std", of(deviation, |x| 1.0 / x))?;
        Ok(Some([table("latents_mean", of(mean, |x| -x))?, deviation]))
    }
}
