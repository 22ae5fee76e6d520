//! The modules of a diffusion model that adapters may change, part by part, and the names that
//! trainers have for them: looked up among the model's own, never guessed.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::Module;
use dlc_passes::AdaptedPart;

/// What names of text encoders begin with, unless the trainer had transformers 5.
const TEXT_BODY: &str = "text_model.";

/// What adapters change of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Component {
    Denoiser,
    /// A text encoder, as diffusers names it. Its graph has the same name.
    Text(&'static str),
}

impl Component {
    pub const ALL: [Self; 4] = [
        Self::Denoiser,
        Self::Text("text_encoder"),
        Self::Text("text_encoder_2"),
        Self::Text("text_encoder_3"),
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Denoiser => "the denoiser",
            Self::Text(name) => name,
        }
    }

    /// The modules of the component in `model`, once for each way in which trainers begin their
    /// names; nothing if the model was read without it.
    fn modules(self, model: &Module) -> Vec<Modules<'_>> {
        match self {
            Self::Denoiser => vec![Modules::of_denoiser(model)],
            Self::Text(name) => {
                let starts = [format!("{name}."), format!("{name}.{TEXT_BODY}")];
                let graph = model.graph(name);
                let with = |prefix| Modules::of_part(model, name, prefix);
                graph.map_or_else(Vec::new, |_| starts.into_iter().map(with).collect())
            }
        }
    }

    /// The modules of the component in `model`, under the names among which `count` finds the most;
    /// nothing if the model was read without it.
    pub fn named<'m>(
        self,
        model: &'m Module,
        count: impl Fn(&Modules<'m>) -> usize,
    ) -> Option<Modules<'m>> {
        let mut all = self.modules(model).into_iter();
        let first = all.next()?;
        Some(all.fold(first, |best, other| {
            if count(&other) > count(&best) {
                other
            } else {
                best
            }
        }))
    }

    /// The component of `model` in which `count` finds the most; the denoiser if it is nowhere more
    /// than there.
    pub fn with_most<'m>(model: &'m Module, count: impl Fn(&Modules<'m>) -> usize) -> Self {
        let found = |component: Self| component.named(model, &count).map_or(0, |m| count(&m));
        Self::ALL.into_iter().fold(Self::Denoiser, |best, other| {
            if found(other) > found(best) {
                other
            } else {
                best
            }
        })
    }
}

/// The modules of a component, under the names that a trainer has for them.
#[derive(Debug)]
pub(super) struct Modules<'m> {
    /// The graph that they are of, unless it is the first.
    pub part: Option<AdaptedPart>,
    names: BTreeSet<&'m str>,
    /// Modules by their names with underscores.
    underscored: BTreeMap<String, &'m str>,
    /// How many resnets a stage of a U-Net has on the way down.
    layers: usize,
}

impl<'m> Modules<'m> {
    fn of_denoiser(model: &'m Module) -> Self {
        let parts: Vec<String> = model
            .graphs
            .iter()
            .skip(1)
            .map(|g| format!("{}.", g.name))
            .collect();
        let names = model.weights.entries().map(|(_, w)| w.name.as_str());
        Self::among(
            None,
            names.filter(|name| !parts.iter().any(|part| name.starts_with(part.as_str()))),
        )
    }

    fn of_part(model: &'m Module, graph: &str, prefix: String) -> Self {
        let names: Vec<&str> = model
            .weights
            .entries()
            .filter_map(|(_, w)| w.name.strip_prefix(prefix.as_str()))
            .collect();
        let graph = graph.to_owned();
        Self::among(Some(AdaptedPart { graph, prefix }), names)
    }

    /// The modules with weights of these names.
    fn among(part: Option<AdaptedPart>, weights: impl IntoIterator<Item = &'m str>) -> Self {
        let names: BTreeSet<&str> = weights
            .into_iter()
            .filter_map(|name| name.strip_suffix(".weight"))
            .collect();
        let underscored = names
            .iter()
            .map(|module| (module.replace('.', "_"), *module))
            .collect();
        let layers = (0..names.len())
            .take_while(|n| names.contains(format!("down_blocks.0.resnets.{n}.conv1").as_str()))
            .count();
        Self {
            part,
            names,
            underscored,
            layers,
        }
    }

    /// The module of a name with dots. Older versions of diffusers put a processor between, left
    /// out the number after `to_out`, and called a text encoder's matrices as a U-Net's.
    pub fn dotted(&self, name: &str) -> Option<&'m str> {
        const OF_TEXT: [(&str, &str); 4] = [
            (".to_q", ".q_proj"),
            (".to_k", ".k_proj"),
            (".to_v", ".v_proj"),
            (".to_out", ".out_proj"),
        ];
        let plain = name.replace(".processor.", ".");
        let numbered = plain
            .strip_suffix(".to_out")
            .map(|start| format!("{start}.to_out.0"));
        let of_text = OF_TEXT
            .iter()
            .find_map(|(end, ours)| Some(format!("{}{ours}", plain.strip_suffix(end)?)));
        [Some(plain), numbered, of_text]
            .into_iter()
            .flatten()
            .find_map(|name| self.names.get(name.as_str()).copied())
    }

    /// The module of a name with underscores, of diffusers or of the U-Net's first authors.
    pub fn underscored(&self, name: &str) -> Option<&'m str> {
        let find = |name: &str| self.underscored.get(name).copied();
        find(name).or_else(|| find(&self.of_first_authors(name)?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::fixture::fixture;
    use crate::import::{ImportOptions, import};

    fn model(name: &str) -> Module {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        import(&checkpoint, &ImportOptions::default()).unwrap()
    }

    /// Modules with matrices or kernels among the weights whose names begin with `prefix`, those of
    /// other graphs aside.
    fn adaptable<'m>(model: &'m Module, prefix: &str) -> Vec<&'m str> {
        let parts = || model.graphs.iter().skip(1).map(|g| format!("{}.", g.name));
        let own = |name: &str| !prefix.is_empty() || !parts().any(|part| name.starts_with(&part));
        let found: Vec<&str> = model
            .weights
            .entries()
            .filter(|(_, w)| w.shape.len() > 1 && own(&w.name))
            .filter_map(|(_, w)| w.name.strip_prefix(prefix)?.strip_suffix(".weight"))
            .collect();
        assert!(found.len() > 10, "{prefix}: {found:?}");
        found
    }

    const UNETS: [&str; 5] = [
        "pipelines/sd15",
        "pipelines/sd2",
        "goldens/unet-sd15",
        "goldens/unet-sdxl",
        "goldens/unet-stages",
    ];

    /// The name of a U-Net's module with underscores as its first authors called it, from where
    /// they put it: blocks on the way down count resnets and downsamplers after `conv_in`, those on
    /// the way up resnets, each with the attention and the upsampler after it.
    fn first_authors(module: &str, layers: usize, has_attention: impl Fn(usize) -> bool) -> String {
        for (ours, theirs) in [
            ("conv_in", "input_blocks_0_0"),
            ("conv_out", "out_2"),
            ("time_embedding.linear_", "time_embed_"),
            ("add_embedding.linear_", "label_emb_0_"),
        ] {
            if let Some(number) = module.strip_prefix(ours) {
                let number = number.parse().map_or_else(
                    |_| String::new(),
                    |number: usize| (2 * (number - 1)).to_string(),
                );
                return format!("{theirs}{number}");
            }
        }
        let parts: Vec<&str> = module.split('.').collect();
        let (way, stage, rest) = match parts[..] {
            ["mid_block", kind, number, ref inner @ ..] => {
                let place = match (kind, number) {
                    ("attentions", _) => 1,
                    (_, "0") => 0,
                    _ => 2,
                };
                return format!("middle_block_{place}_{}", inner_name(kind, inner));
            }
            [way, stage, ref rest @ ..] => (way, stage.parse::<usize>().unwrap(), rest),
            _ => panic!("{module}"),
        };
        let (kind, layer, inner) = (rest[0], rest[1].parse::<usize>().unwrap(), &rest[2..]);
        let block = stage * (layers + 1) + layer;
        match (way, kind) {
            ("down_blocks", "downsamplers") => {
                format!("input_blocks_{}_0_op", (stage + 1) * (layers + 1))
            }
            ("up_blocks", "upsamplers") => {
                let place = 1 + usize::from(has_attention(stage));
                format!("output_blocks_{}_{place}_conv", block + layers)
            }
            _ => {
                let (start, block) = if way == "down_blocks" {
                    ("input", block + 1)
                } else {
                    ("output", block)
                };
                let place = usize::from(kind == "attentions");
                format!("{start}_blocks_{block}_{place}_{}", inner_name(kind, inner))
            }
        }
    }

    fn inner_name(kind: &str, inner: &[&str]) -> String {
        let inner = inner.join("_");
        let theirs = match inner.as_str() {
            "conv1" => "in_layers_2",
            "time_emb_proj" => "emb_layers_1",
            "conv2" => "out_layers_3",
            "conv_shortcut" => "skip_connection",
            other => other,
        };
        if kind == "resnets" {
            theirs.to_owned()
        } else {
            inner
        }
    }

    #[test]
    fn every_module_is_found_again_under_the_names_of_every_trainer() {
        for name in UNETS {
            let model = model(name);
            let all = adaptable(&model, "");
            let modules = Component::Denoiser.named(&model, |_| 0).unwrap();
            assert_eq!(modules.part, None);
            let has_attention = |stage: usize| {
                let start = format!("up_blocks.{stage}.attentions.");
                all.iter().any(|module| module.starts_with(&start))
            };
            let mut seen = BTreeSet::new();
            for module in &all {
                let kohya = module.replace('.', "_");
                let first = first_authors(module, modules.layers, has_attention);
                assert_eq!(modules.underscored(&kohya), Some(*module), "{name}");
                assert_eq!(modules.underscored(&first), Some(*module), "{name} {first}");
                assert_eq!(modules.dotted(module), Some(*module), "{name}");
                assert!(seen.insert(kohya) && seen.insert(first), "{name} {module}");
            }
        }
    }

    #[test]
    fn every_module_of_a_text_encoder_is_found_with_and_without_its_body() {
        const TEXT: Component = Component::Text("text_encoder");
        let model = model("pipelines/sd15");
        for prefix in ["text_encoder.", "text_encoder.text_model."] {
            let all = adaptable(&model, prefix);
            let count = |modules: &Modules<'_>| {
                let is_there = |module: &&&str| modules.dotted(module).is_some();
                all.iter().filter(is_there).count()
            };
            assert_eq!(Component::with_most(&model, count), TEXT);
            let modules = TEXT.named(&model, count).unwrap();
            assert_eq!(modules.part.as_ref().unwrap().prefix, prefix);
            for module in &all {
                assert_eq!(modules.dotted(module), Some(*module));
                let kohya = module.replace('.', "_");
                assert_eq!(modules.underscored(&kohya), Some(*module));
            }
        }
        let old = TEXT.named(&model, |_| 0).unwrap();
        let attention = "text_model.encoder.layers.1.self_attn";
        for (theirs, ours) in [("to_q", "q_proj"), ("to_out", "out_proj")] {
            let ours = format!("{attention}.{ours}");
            assert_eq!(old.dotted(&format!("{attention}.{theirs}")), Some(&*ours));
        }
        assert!(
            Component::Text("text_encoder_2")
                .named(&model, |_| 0)
                .is_none()
        );
    }
}
