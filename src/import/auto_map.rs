//! `auto_map`: the code that a checkpoint names for its classes.

use serde_json::Value;

use super::Family;
use super::config::ConfigReader;
use crate::checkpoint::shown;

/// Reads `auto_map`: classes of the family's own name are taken for those of transformers, others
/// are code that nobody here runs.
pub(super) fn read_auto_map(config: &mut ConfigReader<'_>, family: &Family) {
    const KEY: &str = "auto_map";
    let Some(Value::Object(map)) = config.get(KEY) else {
        return;
    };
    let classes = map
        .iter()
        .filter(|(auto, _)| *auto != "AutoTokenizer" && *auto != "AutoProcessor")
        .map(|(_, class)| class);
    let names: Vec<&str> = classes
        .map(|class| {
            class
                .as_str()
                .and_then(|path| path.rsplit('.').next())
                .unwrap_or("?")
        })
        .collect();
    let foreign: Vec<String> = names
        .iter()
        .filter(|name| !is_own_class(name, family))
        .map(|name| shown(name))
        .collect();
    if !foreign.is_empty() {
        let list = foreign.join(", ");
        config.refuse(KEY, &format!("names modelling code of the checkpoint's own ({list}); dlc reads models as transformers' built-in classes do"));
    } else if !names.is_empty() {
        config.note(format!(
            "`{KEY}` names code of the checkpoint's own; taken as transformers' built-in {} does",
            names.join(", ")
        ));
    }
}

/// Whether transformers itself has the class, in the family.
fn is_own_class(name: &str, family: &Family) -> bool {
    const HEADS: [&str; 9] = [
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForPreTraining",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "Model",
        "Config",
    ];
    let stem = |name: &str| {
        HEADS
            .iter()
            .find_map(|head| name.strip_suffix(head))
            .map(str::to_owned)
    };
    let own = family
        .architectures
        .first()
        .and_then(|(name, _)| stem(name));
    own.is_some() && stem(name) == own
}
