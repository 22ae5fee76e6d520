//! U-Nets told nothing, or a class (Ho et al., 2020): `UNet2DModel` of diffusers.

use dlc_ir::{Classes, Diffusion, Task};

use super::config::ConfigReader;
use super::defaults::UNET_2D;
use super::diffusers::{MOST_CHANNELS, require_text};
use super::spec::LARGEST_VOCABULARY;
use super::unet::{Mixer, UnetSpec};
use super::unet_config::{Common, stage_kinds};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "UNet2DModel",
    architectures: &[("UNet2DModel", Task::ImageGeneration)],
    summary: "DDPM and other U-Nets without a text",
    keys: |_| UNET_2D,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let common = Common::read(config);
    let widths = &common.widths;
    let head_dim = config.size("attention_head_dim", MOST_CHANNELS);
    let down = stage_kinds(
        config,
        "down_block_types",
        widths.len(),
        ["DownBlock2D", "AttnDownBlock2D"],
    );
    let up = stage_kinds(
        config,
        "up_block_types",
        widths.len(),
        ["UpBlock2D", "AttnUpBlock2D"],
    );
    let has_middle = config.get("mid_block_type").is_some();
    for (key, known) in [
        ("mid_block_type", "UNetMidBlock2D"),
        ("downsample_type", "conv"),
        ("upsample_type", "conv"),
    ] {
        require_text(config, key, known);
    }
    let middle_groups = config
        .size("attn_norm_num_groups", MOST_CHANNELS)
        .unwrap_or(common.groups);
    let last = widths.last().copied().unwrap_or(1);
    if config.is_clean() && !last.is_multiple_of(middle_groups) {
        config.bad(
            "attn_norm_num_groups",
            format!("is {middle_groups}, which doesn't divide the {last} channels of the middle"),
        );
    }
    let mut mixer = |width: usize, attends: bool| {
        let head_dim = head_dim.unwrap_or(width);
        if attends && config.is_clean() && !width.is_multiple_of(head_dim) {
            config.bad(
                "attention_head_dim",
                format!("is {head_dim}, which doesn't divide the {width} channels of a stage"),
            );
        }
        if attends {
            Mixer::Attention {
                heads: (width / head_dim).max(1),
            }
        } else {
            Mixer::None
        }
    };
    let down = widths
        .iter()
        .zip(down)
        .map(|(width, attends)| mixer(*width, attends))
        .collect();
    let up = widths
        .iter()
        .rev()
        .zip(up)
        .map(|(width, attends)| mixer(*width, attends))
        .collect();
    let middle = mixer(last, true);
    let attends = config.flag("add_attention");
    let middle = if attends { middle } else { Mixer::None };
    let classes = config
        .size("num_class_embeds", LARGEST_VOCABULARY)
        .map(|count| Classes {
            count,
            unconditional: None,
        });
    let ([height, width], [channels, out_channels]) = (common.sample, common.channels);
    Box::new(UnetSpec {
        diffusion: Diffusion {
            channels,
            height,
            width,
            // Of other sizes diffusers makes nothing.
            size_step: Some(common.size_step(false)),
            out_channels,
            classes,
            text_width: None,
        },
        channels: common.widths,
        layers: common.layers,
        down,
        middle: has_middle.then_some(middle),
        up,
        downsample_padding: common.downsample_padding,
        groups: common.groups,
        middle_groups,
        eps: common.eps,
        kernels: [3, 3],
        sinusoids: common.sinusoids,
        embedding: common.embedding,
        addition: None,
    })
}
