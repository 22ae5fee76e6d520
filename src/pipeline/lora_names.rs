//! Adapters of diffusion models as diffusers and kohya's sd-scripts name them, under PEFT's names.
//!
//! diffusers names modules as the model does, after `unet.` or `transformer.`; sd-scripts write
//! them with underscores after `lora_unet_`, some as the model's first authors called them
//! (`input_blocks_1_1_...`). What stands for other models, and what isn't LoRA, is named.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::WeightTable;
use serde_json::{Map, Value, json};

use crate::checkpoint::{FileMetadata, TensorRecord, shown};

/// What PEFT puts before the names of modules.
const PEFT: &str = "base_model.model.";
/// What stands before the names of the denoiser's modules, dotted and with underscores.
const DOTTED: [&str; 2] = ["unet.", "transformer."];
const UNDERSCORED: [&str; 2] = ["lora_unet_", "lora_transformer_"];
/// What stands before those of text encoders.
const TEXT: [&str; 8] = [
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "lora_text_encoder_",
];
/// The key of diffusers' own metadata.
const METADATA: &str = "lora_adapter_metadata";
/// How the names of parts end, and what they are to PEFT.
const PARTS: [(&str, &str); 12] = [
    (".lora_A.weight", "lora_A.weight"),
    (".lora_B.weight", "lora_B.weight"),
    (".lora_B.bias", "lora_B.bias"),
    (".lora.down.weight", "lora_A.weight"),
    (".lora.up.weight", "lora_B.weight"),
    ("_lora.down.weight", "lora_A.weight"),
    ("_lora.up.weight", "lora_B.weight"),
    (".lora_down.weight", "lora_A.weight"),
    (".lora_up.weight", "lora_B.weight"),
    (".dora_scale", "lora_magnitude_vector"),
    (".lora_magnitude_vector.weight", "lora_magnitude_vector"),
    (".lora_magnitude_vector", "lora_magnitude_vector"),
];
/// Parts of names of adapters that aren't LoRA, and what these are called.
const OTHERS: [(&str, &str); 8] = [
    (
        ".lora_mid.",
        "LoRA with a core of its own (Tucker, of LyCORIS)",
    ),
    (".hada_", "LoHa (of LyCORIS)"),
    (".lokr_", "LoKr (of LyCORIS)"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".on_input", "IA3 (of LyCORIS)"),
    (".a1.weight", "GLoRA (of LyCORIS)"),
    (".b1.weight", "GLoRA (of LyCORIS)"),
];
/// The same, of ends of names.
const OTHER_ENDS: [(&str, &str); 4] = [
    (".diff", "whole differences (of LyCORIS)"),
    (".diff_b", "whole differences (of LyCORIS)"),
    (".w_norm", "norms (of LyCORIS)"),
    (".b_norm", "norms (of LyCORIS)"),
];

/// An adapter under PEFT's names.
#[derive(Debug)]
pub(super) struct Translated {
    pub config: Map<String, Value>,
    /// Where the configuration says nothing of scaling: alpha by module.
    pub alphas: Option<BTreeMap<String, f64>>,
    pub tensors: BTreeMap<String, TensorRecord>,
    /// What is left out.
    pub warnings: Vec<String>,
}

/// Translates the tensors of an adapter without a configuration to the model of these weights.
///
/// # Errors
/// Everything that isn't understood.
pub(super) fn translate(
    theirs: BTreeMap<String, TensorRecord>,
    metadata: &FileMetadata,
    weights: &WeightTable,
) -> Result<Translated, Vec<String>> {
    let model = Model::of(weights);
    let (mut tensors, mut alphas, mut text, mut problems) =
        (BTreeMap::new(), BTreeMap::new(), 0, Vec::new());
    let mut component = None;
    for (name, tensor) in theirs {
        if TEXT.iter().any(|prefix| name.starts_with(prefix)) {
            text += 1;
            continue;
        }
        let other = OTHERS
            .iter()
            .find(|(part, _)| name.contains(part))
            .or_else(|| OTHER_ENDS.iter().find(|(end, _)| name.ends_with(end)));
        if let Some((_, kind)) = other {
            problems.push(format!(
                "tensor {} is of {kind}, which dlc doesn't know",
                shown(&name)
            ));
            continue;
        }
        if name.ends_with(".dora_scale") && tensor.shape.first() == Some(&1) {
            problems.push(format!(
                "tensor {} norms columns (LyCORIS before `wd_on_out`), and dlc knows DoRA of rows",
                shown(&name)
            ));
            continue;
        }
        component = component.or_else(|| DOTTED.iter().find(|prefix| name.starts_with(*prefix)));
        match model.place(&name) {
            Ok((module, "alpha")) => match number(&tensor) {
                Some(alpha) => _ = alphas.insert(module, alpha),
                None => problems.push(format!("tensor {} is no number", shown(&name))),
            },
            Ok((module, part)) => {
                if tensors
                    .insert(format!("{PEFT}{module}.{part}"), tensor)
                    .is_some()
                {
                    problems.push(format!(
                        "tensor {} stands there twice, under two names",
                        shown(&name)
                    ));
                }
            }
            Err(problem) => problems.push(format!("tensor {} {problem}", shown(&name))),
        }
    }
    if tensors.is_empty() && problems.is_empty() {
        problems.push("holds nothing for the model that makes images".into());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let said = config(metadata, component.copied().unwrap_or_default())?;
    let dora = tensors
        .keys()
        .any(|name| name.ends_with("lora_magnitude_vector"));
    let config = said.clone().unwrap_or_else(|| {
        Map::from_iter([
            ("peft_type".to_owned(), json!("LORA")),
            ("use_dora".to_owned(), json!(dora)),
        ])
    });
    let mut warnings = Vec::new();
    if text > 0 {
        warnings.push(format!("{text} tensors for text encoders aren't merged: dlc compiles the model that makes images"));
    }
    if let Some(alpha) = metadata
        .get("ss_network_alpha")
        .filter(|_| alphas.is_empty() && said.is_none())
    {
        let alpha = shown(alpha);
        warnings.push(format!("its metadata says ss_network_alpha = {alpha}, and it holds no alphas; merged at full strength, as sd-scripts do"));
    }
    Ok(Translated {
        config,
        alphas: said.is_none().then_some(alphas),
        tensors,
        warnings,
    })
}

/// PEFT's configuration, as diffusers writes it into the file.
fn config(
    metadata: &FileMetadata,
    component: &str,
) -> Result<Option<Map<String, Value>>, Vec<String>> {
    let Some(text) = metadata.get(METADATA) else {
        return Ok(None);
    };
    let all: Value = serde_json::from_str(text)
        .map_err(|_| vec![format!("the file's own {METADATA} is not JSON")])?;
    let entries = all
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.strip_prefix(component)?.to_owned(), value.clone())));
    let mut config: Map<String, Value> = entries.collect();
    if config.is_empty() {
        return Ok(None);
    }
    config.entry("peft_type").or_insert_with(|| json!("LORA"));
    Ok(Some(config))
}

fn number(tensor: &TensorRecord) -> Option<f64> {
    let data = tensor.expr().filter(|data| data.elements() == 1)?;
    let mut value = [0.0];
    data.read_f32(0, &mut value);
    value[0].is_finite().then_some(f64::from(value[0]))
}

/// The modules that an adapter may name.
struct Model<'w> {
    modules: BTreeSet<&'w str>,
    /// Modules by their names with underscores.
    underscored: BTreeMap<String, &'w str>,
    /// How many resnets a stage has on the way down.
    layers: usize,
}

impl<'w> Model<'w> {
    fn of(weights: &'w WeightTable) -> Self {
        let modules: BTreeSet<&str> = weights
            .entries()
            .filter_map(|(_, w)| w.name.strip_suffix(".weight"))
            .collect();
        let underscored = modules
            .iter()
            .map(|module| (module.replace('.', "_"), *module))
            .collect();
        let layers = (0..modules.len())
            .take_while(|n| modules.contains(format!("down_blocks.0.resnets.{n}.conv1").as_str()))
            .count();
        Self {
            modules,
            underscored,
            layers,
        }
    }

    /// The module that a tensor's name means, and the part of it.
    fn place(&self, name: &str) -> Result<(String, &'static str), String> {
        let bare = DOTTED
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .or_else(|| name.strip_prefix(PEFT))
            .unwrap_or(name);
        let part = PARTS
            .iter()
            .find_map(|(end, part)| Some((bare.strip_suffix(end)?, *part)));
        let alpha = || {
            bare.strip_suffix(".alpha")
                .map(|module| (module.strip_suffix("_lora").unwrap_or(module), "alpha"))
        };
        let (module, part) = part
            .or_else(alpha)
            .ok_or("is no part of LoRA that dlc knows")?;
        let found = match UNDERSCORED
            .iter()
            .find_map(|prefix| module.strip_prefix(prefix))
        {
            Some(module) => self
                .underscored
                .get(module)
                .or_else(|| self.underscored.get(&self.of_first_authors(module)?))
                .copied(),
            None => self.dotted(module),
        };
        found
            .map(|module| (module.to_owned(), part))
            .ok_or_else(|| format!("is for {}, which the model doesn't have", shown(module)))
    }

    /// The module of a name with dots; older versions of diffusers put a processor between, and
    /// left out the number after `to_out`.
    fn dotted(&self, module: &str) -> Option<&'w str> {
        let plain = module.replace(".processor.", ".");
        let numbered = plain
            .strip_suffix(".to_out")
            .map(|start| format!("{start}.to_out.0"));
        [Some(plain), numbered]
            .into_iter()
            .flatten()
            .find_map(|module| self.modules.get(module.as_str()).copied())
    }

    /// The name in diffusers, with underscores, of a module of a U-Net as its first authors called
    /// it.
    fn of_first_authors(&self, name: &str) -> Option<String> {
        const ENDS: [(&str, &str); 6] = [
            ("time_embed_0", "time_embedding_linear_1"),
            ("time_embed_2", "time_embedding_linear_2"),
            ("label_emb_0_0", "add_embedding_linear_1"),
            ("label_emb_0_2", "add_embedding_linear_2"),
            ("input_blocks_0_0", "conv_in"),
            ("out_2", "conv_out"),
        ];
        if let Some((_, ours)) = ENDS.iter().find(|(theirs, _)| *theirs == name) {
            return Some((*ours).to_owned());
        }
        if let Some(rest) = name.strip_prefix("middle_block_") {
            let (place, inner) = rest.split_once('_')?;
            let place = match place {
                "0" => "resnets_0",
                "1" => "attentions_0",
                "2" => "resnets_1",
                _ => return None,
            };
            return Some(format!("mid_block_{place}_{}", of_resnet(inner)));
        }
        let down = name.strip_prefix("input_blocks_");
        let mut parts = down
            .or_else(|| name.strip_prefix("output_blocks_"))?
            .splitn(3, '_');
        let (block, place, inner) = (
            parts.next()?.parse::<usize>().ok()?,
            parts.next()?,
            parts.next()?,
        );
        let (stage, way) = if down.is_some() {
            (block.checked_sub(1)?, "down")
        } else {
            (block, "up")
        };
        let (stage, layer) = (stage / (self.layers + 1), stage % (self.layers + 1));
        Some(match (inner, place) {
            ("op", _) => format!("down_blocks_{stage}_downsamplers_0_conv"),
            ("conv", _) => format!("up_blocks_{stage}_upsamplers_0_conv"),
            (inner, "0") => format!("{way}_blocks_{stage}_resnets_{layer}_{}", of_resnet(inner)),
            (inner, "1") => format!("{way}_blocks_{stage}_attentions_{layer}_{inner}"),
            _ => return None,
        })
    }
}

/// The name in diffusers of a part of a resnet as its first authors called it; other names stay.
fn of_resnet(part: &str) -> &str {
    match part {
        "in_layers_0" => "norm1",
        "in_layers_2" => "conv1",
        "emb_layers_1" => "time_emb_proj",
        "out_layers_0" => "norm2",
        "out_layers_3" => "conv2",
        "skip_connection" => "conv_shortcut",
        other => other,
    }
}
