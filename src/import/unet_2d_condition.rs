//! U-Nets conditioned on a text (Rombach et al., 2022; Podell et al., 2023): `UNet2DConditionModel`
//! of diffusers.

use dlc_ir::{Classes, Diffusion, Task, TimestepEmbedding};

use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Texts, Whole, Wholes};
use super::defaults::{Key, key, optional};
use super::diffusers::require_text;
use super::spec::{LARGEST_VOCABULARY, MOST_HEADS, WIDEST};
use super::unet_config::{Common, MOST_TRANSFORMER_LAYERS, kernel, per_stage, stage_kinds};
use super::unet_spec::{Mixer, TextTime, UnetSpec};
use super::{Architecture, Family};

/// How many sizes SDXL takes: of the original and of the target, and where it was cropped.
const SIZES: usize = 6;

pub(super) const FAMILY: Family = Family {
    model_type: "UNet2DConditionModel",
    architectures: &[("UNet2DConditionModel", Task::ImageGeneration)],
    summary: "Stable Diffusion 1, 2 and XL",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    optional("sample_size", Nothing),
    key("in_channels", Whole(4)),
    key("out_channels", Whole(4)),
    optional("center_input_sample", Flag(false)),
    optional("flip_sin_to_cos", Flag(true)),
    key("freq_shift", Whole(0)),
    key(
        "down_block_types",
        Texts(&[
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ]),
    ),
    optional("mid_block_type", Text("UNetMidBlock2DCrossAttn")),
    key(
        "up_block_types",
        Texts(&[
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ]),
    ),
    key("only_cross_attention", Flag(false)),
    key("block_out_channels", Wholes(&[320, 640, 1280, 1280])),
    key("layers_per_block", Whole(2)),
    key("downsample_padding", Whole(1)),
    key("mid_block_scale_factor", Whole(1)),
    key("act_fn", Text("silu")),
    key("norm_num_groups", Whole(32)),
    key("norm_eps", Real(1e-5)),
    key("cross_attention_dim", Whole(1280)),
    key("transformer_layers_per_block", Whole(1)),
    key("attention_head_dim", Whole(8)),
    optional("dual_cross_attention", Flag(false)),
    optional("use_linear_projection", Flag(false)),
    optional("class_embed_type", Nothing),
    optional("addition_embed_type", Nothing),
    optional("addition_time_embed_dim", Nothing),
    optional("num_class_embeds", Nothing),
    key("resnet_time_scale_shift", Text("default")),
    optional("resnet_skip_time_act", Flag(false)),
    key("resnet_out_scale_factor", Whole(1)),
    key("time_embedding_type", Text("positional")),
    optional("time_embedding_dim", Nothing),
    key("conv_in_kernel", Whole(3)),
    key("conv_out_kernel", Whole(3)),
    optional("attention_type", Text("default")),
    optional("class_embeddings_concat", Flag(false)),
    optional("mid_block_only_cross_attention", Nothing),
];

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let common = Common::read(config);
    let stages = common.widths.len();
    // diffusers takes this key for the number of heads, whatever it is called, and refuses
    // `num_attention_heads`.
    let heads = per_stage(config, "attention_head_dim", stages, MOST_HEADS);
    let text_width = config.required_size("cross_attention_dim", WIDEST);
    let layers = per_stage(
        config,
        "transformer_layers_per_block",
        stages,
        MOST_TRANSFORMER_LAYERS,
    );
    let linear = config.flag("use_linear_projection");
    let down = stage_kinds(
        config,
        "down_block_types",
        stages,
        ["DownBlock2D", "CrossAttnDownBlock2D"],
    );
    let up = stage_kinds(
        config,
        "up_block_types",
        stages,
        ["UpBlock2D", "CrossAttnUpBlock2D"],
    );
    let has_middle = config.get("mid_block_type").is_some();
    require_text(config, "mid_block_type", "UNetMidBlock2DCrossAttn");
    if let Some(heads) = config.get("num_attention_heads") {
        let problem = format!(
            "is {}, which diffusers refuses; `attention_head_dim` is the number of heads here",
            show(heads)
        );
        config.unsupported("num_attention_heads", problem);
    }
    require_text(config, "attention_type", "default");
    // Of additions that aren't taken.
    config.get("addition_embed_type_num_heads");
    for (heads, width) in heads.iter().zip(&common.widths) {
        if config.is_clean() && !width.is_multiple_of(*heads) {
            config.bad(
                "attention_head_dim",
                format!("gives {heads} heads, which don't divide the {width} channels of a stage"),
            );
        }
    }
    let mixer = |stage: usize, crosses: bool| {
        let transformer = Mixer::Transformer {
            heads: heads[stage],
            layers: layers[stage],
            text_width,
            linear,
        };
        if crosses { transformer } else { Mixer::None }
    };
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
            size_step: Some(common.size_step(true)),
            out_channels,
            classes,
            text_width: Some(text_width),
        },
        down: down
            .into_iter()
            .enumerate()
            .map(|(stage, crosses)| mixer(stage, crosses))
            .collect(),
        middle: has_middle.then(|| mixer(stages - 1, true)),
        up: up
            .into_iter()
            .enumerate()
            .map(|(i, crosses)| mixer(stages - 1 - i, crosses))
            .collect(),
        addition: addition(config, common.sinusoids),
        kernels: [
            kernel(config, "conv_in_kernel"),
            kernel(config, "conv_out_kernel"),
        ],
        channels: common.widths,
        layers: common.layers,
        downsample_padding: common.downsample_padding,
        groups: common.groups,
        middle_groups: common.groups,
        eps: common.eps,
        sinusoids: common.sinusoids,
        embedding: common.embedding,
    })
}

/// What is added to the noise level; sinusoids are as those of the noise level, but for the width.
fn addition(config: &mut ConfigReader<'_>, like: TimestepEmbedding) -> Option<TextTime> {
    let kind = config.text("addition_embed_type")?;
    if kind != "text_time" {
        config.unsupported(
            "addition_embed_type",
            format!("is {}; dlc knows text_time", show(&kind.into())),
        );
        return None;
    }
    let dim = config.required_size("addition_time_embed_dim", WIDEST);
    let whole = config.required_size("projection_class_embeddings_input_dim", WIDEST);
    let text = whole.saturating_sub(SIZES.saturating_mul(dim));
    if config.is_clean() && text == 0 {
        let problem = format!(
            "is {whole}, which leaves nothing for the text beside {SIZES} sizes, {dim} wide each"
        );
        config.bad("projection_class_embeddings_input_dim", problem);
    }
    if config.is_clean() && (!dim.is_multiple_of(2) || like.shift >= dim as f32 / 2.0) {
        config.bad(
            "addition_time_embed_dim",
            format!("is {dim}, which sinusoids can't fill"),
        );
    }
    Some(TextTime {
        text,
        sizes: SIZES,
        sinusoids: TimestepEmbedding { dim, ..like },
    })
}
