//! Adapters of diffusion models as diffusers and kohya's sd-scripts name them, under PEFT's names.
//!
//! diffusers names modules as the models do, after the name of the component; sd-scripts write
//! them with underscores after `lora_unet_` or `lora_te_`, some as the U-Net's first authors called
//! them (`input_blocks_1_1_...`). One file may be for several components, each of which becomes an
//! adapter of its own. What stands for other models, and what isn't LoRA, is named.

use std::collections::{BTreeMap, BTreeSet};

use dlc_ir::Module;
use dlc_passes::AdaptedPart;
use serde_json::{Map, Value, json};

use super::lora_modules::{Component, Modules};
use crate::checkpoint::{FileMetadata, TensorRecord, shown};

/// What PEFT puts before the names of modules.
const PEFT: &str = "base_model.model.";
/// What stands before the names of a component's modules: with a dot at its end before names with
/// dots, else before names with underscores.
const STARTS: [(&str, Component); 12] = [
    ("unet.", Component::Denoiser),
    ("transformer.", Component::Denoiser),
    ("lora_unet_", Component::Denoiser),
    ("lora_transformer_", Component::Denoiser),
    ("text_encoder.", Component::Text("text_encoder")),
    ("lora_te_", Component::Text("text_encoder")),
    ("lora_te1_", Component::Text("text_encoder")),
    ("lora_text_encoder_", Component::Text("text_encoder")),
    ("text_encoder_2.", Component::Text("text_encoder_2")),
    ("lora_te2_", Component::Text("text_encoder_2")),
    ("text_encoder_3.", Component::Text("text_encoder_3")),
    ("lora_te3_", Component::Text("text_encoder_3")),
];
/// The key of diffusers' own metadata.
const METADATA: &str = "lora_adapter_metadata";
/// The part that says how strong a module's change is.
const ALPHA: &str = "alpha";
/// How the names of parts end, and what they are to PEFT.
const PARTS: [(&str, &str); 16] = [
    (".lora_A.weight", "lora_A.weight"),
    (".lora_B.weight", "lora_B.weight"),
    (".lora_B.bias", "lora_B.bias"),
    (".lora.down.weight", "lora_A.weight"),
    (".lora.up.weight", "lora_B.weight"),
    (".lora_linear_layer.down.weight", "lora_A.weight"),
    (".lora_linear_layer.up.weight", "lora_B.weight"),
    ("_lora.down.weight", "lora_A.weight"),
    ("_lora.up.weight", "lora_B.weight"),
    (".lora_down.weight", "lora_A.weight"),
    (".lora_up.weight", "lora_B.weight"),
    (".dora_scale", "lora_magnitude_vector"),
    (".lora_magnitude_vector.weight", "lora_magnitude_vector"),
    (".lora_magnitude_vector", "lora_magnitude_vector"),
    ("_lora.alpha", ALPHA),
    (".alpha", ALPHA),
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

/// An adapter of one component under PEFT's names.
#[derive(Debug)]
pub(super) struct Translated {
    /// The graph that it changes, if not the first.
    pub part: Option<AdaptedPart>,
    pub config: Map<String, Value>,
    /// Where the configuration says nothing of scaling: alpha by module.
    pub alphas: Option<BTreeMap<String, f64>>,
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// A tensor of a file.
struct Named {
    name: String,
    /// What it is for, if its name begins with that.
    component: Option<Component>,
    /// Its name after that.
    rest: String,
    /// Whether its module is written with underscores.
    underscored: bool,
    tensor: TensorRecord,
}

impl Named {
    fn new(name: String, tensor: TensorRecord) -> Self {
        let start = STARTS.iter().find(|(start, _)| name.starts_with(start));
        let (start, component) = start.map_or((PEFT, None), |(start, of)| (*start, Some(*of)));
        Self {
            component,
            rest: name.strip_prefix(start).unwrap_or(&name).to_owned(),
            underscored: start.ends_with('_'),
            name,
            tensor,
        }
    }

    /// Its module, as its trainer calls it, and what it is of the module.
    fn split(&self) -> Option<(&str, &'static str)> {
        PARTS
            .iter()
            .find_map(|(end, part)| Some((self.rest.strip_suffix(end)?, *part)))
    }

    /// Its module among `modules`.
    fn module<'m>(&self, modules: &Modules<'m>) -> Option<&'m str> {
        let (module, _) = self.split()?;
        if self.underscored {
            modules.underscored(module)
        } else {
            modules.dotted(module)
        }
    }

    /// What can't be merged of it, whatever module it is of.
    fn unknown(&self) -> Option<String> {
        let (name, ends) = (&self.name, |end: &str| self.name.ends_with(end));
        let other = OTHERS.iter().find(|(part, _)| name.contains(part));
        if let Some((_, kind)) = other.or_else(|| OTHER_ENDS.iter().find(|(end, _)| ends(end))) {
            return Some(format!("is of {kind}, which dlc doesn't know"));
        }
        (ends(".dora_scale") && self.tensor.shape.first() == Some(&1)).then(|| {
            "norms columns (LyCORIS before `wd_on_out`), and dlc knows DoRA of rows".to_owned()
        })
    }
}

/// The part that an adapter of PEFT with tensors of these names was trained for; none if that is
/// the denoiser, or nothing here.
pub(super) fn part<'n>(
    names: impl Iterator<Item = &'n String>,
    model: &Module,
) -> Option<AdaptedPart> {
    let module = |name: &'n String| {
        let bare = name.strip_prefix(PEFT)?;
        Some(bare.split_once(".lora_")?.0)
    };
    let named: BTreeSet<&str> = names.filter_map(module).collect();
    let count = |modules: &Modules<'_>| {
        let is_there = |name: &&&str| modules.dotted(name).is_some();
        named.iter().filter(is_there).count()
    };
    Component::with_most(model, count).named(model, count)?.part
}

/// Translates the tensors of an adapter without a configuration to adapters of the components of
/// `model`; returns what is left out as well.
///
/// # Errors
/// Everything that isn't understood.
pub(super) fn translate(
    theirs: BTreeMap<String, TensorRecord>,
    metadata: &FileMetadata,
    model: &Module,
) -> Result<(Vec<Translated>, Vec<String>), Vec<String>> {
    let (mut adapters, mut warnings, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for (component, tensors) in by_component(theirs, model) {
        let count = |modules: &Modules<'_>| {
            let is_there = |tensor: &&Named| tensor.module(modules).is_some();
            tensors.iter().filter(is_there).count()
        };
        let Some(modules) = component.named(model, count) else {
            let (count, name) = (tensors.len(), component.name());
            warnings.push(format!(
                "{count} tensors for {name} aren't merged: the model is read without it"
            ));
            continue;
        };
        match of_component(&modules, component, tensors, metadata) {
            Ok((adapter, notes)) => {
                adapters.push(adapter);
                warnings.extend(notes);
            }
            Err(found) => problems.extend(found),
        }
    }
    if adapters.is_empty() && problems.is_empty() {
        let rest = warnings
            .first()
            .map_or("it holds no tensors", String::as_str);
        problems.push(format!("holds nothing for what the model has: {rest}"));
    }
    if problems.is_empty() {
        Ok((adapters, warnings))
    } else {
        Err(problems)
    }
}

/// The tensors by component. Those whose names say nothing of one are for the component that has
/// most of their modules.
fn by_component(
    theirs: BTreeMap<String, TensorRecord>,
    model: &Module,
) -> BTreeMap<Component, Vec<Named>> {
    let (told, untold): (Vec<Named>, Vec<Named>) = theirs
        .into_iter()
        .map(|(name, tensor)| Named::new(name, tensor))
        .partition(|tensor| tensor.component.is_some());
    let other = Component::with_most(model, |modules| {
        let is_there = |tensor: &&Named| tensor.module(modules).is_some();
        untold.iter().filter(is_there).count()
    });
    let mut all: BTreeMap<Component, Vec<Named>> = BTreeMap::new();
    for tensor in told.into_iter().chain(untold) {
        let component = tensor.component.unwrap_or(other);
        all.entry(component).or_default().push(tensor);
    }
    all
}

/// The adapter of one component, and what the user should know of it.
fn of_component(
    modules: &Modules<'_>,
    component: Component,
    theirs: Vec<Named>,
    metadata: &FileMetadata,
) -> Result<(Translated, Vec<String>), Vec<String>> {
    let (mut tensors, mut alphas, mut problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for named in theirs {
        let added = add(&named, modules, &mut tensors, &mut alphas);
        let shown = shown(&named.name);
        problems.extend(
            added
                .err()
                .map(|problem| format!("tensor {shown} {problem}")),
        );
    }
    let said = config(metadata, component).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    if said.is_some() && !alphas.is_empty() {
        problems.push(format!(
            "it holds alphas, and its {METADATA} says how strong it is too: which counts isn't known"
        ));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let has_part = |part: &str| tensors.keys().any(|name: &String| name.ends_with(part));
    let dora = has_part("lora_magnitude_vector");
    let warnings = if said.is_none() {
        of_strength(&tensors, &alphas, metadata)
    } else {
        vec![]
    };
    let alphas = said.is_none().then_some(alphas);
    let plain = || {
        Map::from_iter([
            ("peft_type".to_owned(), json!("LORA")),
            ("use_dora".to_owned(), json!(dora)),
        ])
    };
    let adapter = Translated {
        part: modules.part.clone(),
        config: said.unwrap_or_else(plain),
        alphas,
        tensors,
    };
    Ok((adapter, warnings))
}

/// Adds a tensor under PEFT's name, or its number to the alphas.
fn add(
    named: &Named,
    modules: &Modules<'_>,
    tensors: &mut BTreeMap<String, TensorRecord>,
    alphas: &mut BTreeMap<String, f64>,
) -> Result<(), String> {
    if let Some(problem) = named.unknown() {
        return Err(problem);
    }
    let (theirs, part) = named.split().ok_or("is no part of LoRA that dlc knows")?;
    let missing = || format!("is for {}, which the model doesn't have", shown(theirs));
    let module = named.module(modules).ok_or_else(missing)?;
    let twice = if part == ALPHA {
        let alpha = number(&named.tensor).ok_or("is no number")?;
        alphas.insert(module.to_owned(), alpha).is_some()
    } else {
        let name = format!("{PEFT}{module}.{part}");
        tensors.insert(name, named.tensor.clone()).is_some()
    };
    if twice {
        return Err("stands there twice, under two names".to_owned());
    }
    Ok(())
}

/// What to say of modules whose strength nothing says.
fn of_strength(
    tensors: &BTreeMap<String, TensorRecord>,
    alphas: &BTreeMap<String, f64>,
    metadata: &FileMetadata,
) -> Vec<String> {
    if alphas.is_empty() {
        let said = metadata.get("ss_network_alpha").map(|alpha| shown(alpha));
        let warning = |alpha| {
            format!(
                "its metadata says ss_network_alpha = {alpha}, and it holds no alphas; merged at full strength, as sd-scripts do"
            )
        };
        return said.map(warning).into_iter().collect();
    }
    let module = |name: &String| {
        let bare = name.strip_prefix(PEFT)?.strip_suffix(".lora_A.weight")?;
        (!alphas.contains_key(bare)).then(|| bare.to_owned())
    };
    let bare: Vec<String> = tensors.keys().filter_map(module).collect();
    let warning = |first: &String| {
        format!(
            "{} modules have no alpha, {} for one; merged at full strength, as sd-scripts do",
            bare.len(),
            shown(first)
        )
    };
    bare.first().map(warning).into_iter().collect()
}

/// PEFT's configuration of a component, as diffusers writes it into the file.
fn config(
    metadata: &FileMetadata,
    component: Component,
) -> Result<Option<Map<String, Value>>, String> {
    let Some(text) = metadata.get(METADATA) else {
        return Ok(None);
    };
    let all: Value =
        serde_json::from_str(text).map_err(|_| format!("the file's own {METADATA} is not JSON"))?;
    let all = all
        .as_object()
        .ok_or_else(|| format!("the file's own {METADATA} is no object"))?;
    let is_dotted = |start: &&(&str, Component)| start.0.ends_with('.');
    let starts = || STARTS.iter().filter(is_dotted);
    let of = |wanted: &str| {
        let entries = all.iter();
        let entries = entries
            .filter_map(|(key, value)| Some((key.strip_prefix(wanted)?.to_owned(), value.clone())));
        Some(entries.collect::<Map<String, Value>>()).filter(|config| !config.is_empty())
    };
    let told = |key: &String| starts().any(|(start, _)| key.starts_with(start));
    let mut own = starts().filter(|(_, of)| *of == component);
    let config = own
        .find_map(|(start, _)| of(start))
        .or_else(|| of("").filter(|_| !all.keys().any(told)));
    Ok(config.map(|mut config| {
        config.entry("peft_type").or_insert_with(|| json!("LORA"));
        config
    }))
}

fn number(tensor: &TensorRecord) -> Option<f64> {
    let data = tensor.expr().filter(|data| data.elements() == 1)?;
    let mut value = [0.0];
    data.read_f32(0, &mut value);
    value[0].is_finite().then_some(f64::from(value[0]))
}
