//! U-Nets without conditioning, or with a class (Ho et al., 2020): `UNet2DModel` of diffusers.

use dlc_ir::{Classes, Diffusion, Task};

use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Texts, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::{MOST_CHANNELS, require_text};
use super::spec::LARGEST_VOCABULARY;
use super::unet_config::{Common, stage_kinds};
use super::unet_spec::{Mixer, UnetSpec};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "UNet2DModel",
    architectures: &[("UNet2DModel", Task::ImageGeneration)],
    summary: "DDPM and other U-Nets without a text",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    optional("sample_size", Nothing),
    key("in_channels", Whole(3)),
    key("out_channels", Whole(3)),
    optional("center_input_sample", Flag(false)),
    key("time_embedding_type", Text("positional")),
    optional("time_embedding_dim", Nothing),
    key("freq_shift", Whole(0)),
    optional("flip_sin_to_cos", Flag(true)),
    key(
        "down_block_types",
        Texts(&[
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ]),
    ),
    optional("mid_block_type", Text("UNetMidBlock2D")),
    key(
        "up_block_types",
        Texts(&[
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "AttnUpBlock2D",
            "UpBlock2D",
        ]),
    ),
    key("block_out_channels", Wholes(&[224, 448, 672, 896])),
    key("layers_per_block", Whole(2)),
    key("mid_block_scale_factor", Whole(1)),
    key("downsample_padding", Whole(1)),
    optional("downsample_type", Text("conv")),
    optional("upsample_type", Text("conv")),
    key("act_fn", Text("silu")),
    optional("attention_head_dim", Whole(8)),
    key("norm_num_groups", Whole(32)),
    optional("attn_norm_num_groups", Nothing),
    key("norm_eps", Real(1e-5)),
    key("resnet_time_scale_shift", Text("default")),
    optional("add_attention", Flag(true)),
    optional("class_embed_type", Nothing),
    optional("num_class_embeds", Nothing),
];

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
