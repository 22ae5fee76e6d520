//! U-Nets told a text (Rombach et al., 2022; Podell et al., 2023): `UNet2DConditionModel` of
//! diffusers.

use dlc_ir::{Classes, Diffusion, Task, TimestepEmbedding};

use super::config::{ConfigReader, show};
use super::defaults::UNET_2D_CONDITION;
use super::diffusers::require_text;
use super::spec::{LARGEST_VOCABULARY, MOST_HEADS, WIDEST};
use super::unet::{Mixer, TextTime, UnetSpec};
use super::unet_config::{Common, MOST_TRANSFORMER_LAYERS, kernel, per_stage, stage_kinds};
use super::{Architecture, Family};

/// How many sizes SDXL is told: of the original and of the target, and where it was cropped.
const SIZES: usize = 6;

pub(super) const FAMILY: Family = Family {
    model_type: "UNet2DConditionModel",
    architectures: &[("UNet2DConditionModel", Task::ImageGeneration)],
    summary: "Stable Diffusion 1, 2 and XL",
    keys: |_| UNET_2D_CONDITION,
    aliases: &[],
    read,
};

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
