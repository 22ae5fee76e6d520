//! Settings of `tokenizer_config.json` that would change how texts are read or written, where
//! `tokenizer.json` does otherwise. `tokenizer.json` decides: transformers 5 takes `add_bos_token`
//! and `add_eos_token` from it, and the other settings only in some of its classes.

use serde_json::{Map, Value};

/// What the tokenizer does of what the settings ask for.
pub(super) struct Behaviour<'p> {
    /// The name and the text of the token that a text begins with and ends with, and whether it
    /// does.
    pub edges: [(&'static str, Option<String>, bool); 2],
    /// Normalizer and pre-tokenizer, as the file has them.
    pub steps: [&'p Value; 2],
    /// Whether the model is a BPE, whose texts are never cleaned up.
    pub bpe: bool,
}

/// A sentence for each setting that isn't heeded.
pub(super) fn unheeded(config: &Map<String, Value>, behaviour: &Behaviour) -> Vec<String> {
    let mut found = Vec::new();
    for (key, token, does) in &behaviour.edges {
        if let (Some(asked), Some(token)) = (config.get(*key).and_then(Value::as_bool), token)
            && asked != *does
        {
            let does = if *does { "adds" } else { "doesn't add" };
            found.push(format!("tokenizer_config.json: `{key}: {asked}` isn't heeded: tokenizer.json {does} `{token}`"));
        }
    }
    let step = |key: &str| behaviour.steps.iter().find_map(|step| setting(step, key));
    let adds_space = step("add_prefix_space")
        .and_then(Value::as_bool)
        .or_else(|| step("prepend_scheme").map(|scheme| scheme != "never"));
    for (key, does) in [
        ("add_prefix_space", adds_space),
        ("do_lower_case", step("lowercase").and_then(Value::as_bool)),
        (
            "tokenize_chinese_chars",
            step("handle_chinese_chars").and_then(Value::as_bool),
        ),
        (
            "strip_accents",
            step("strip_accents").and_then(Value::as_bool),
        ),
    ] {
        if let (Some(asked), Some(does)) = (config.get(key).and_then(Value::as_bool), does)
            && asked != does
        {
            found.push(format!("tokenizer_config.json: `{key}: {asked}` isn't heeded: tokenizer.json does otherwise"));
        }
    }
    for (key, matters) in [
        ("clean_up_tokenization_spaces", !behaviour.bpe),
        (
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            true,
        ),
        ("fix_mistral_regex", true),
    ] {
        if matters && config.get(key) == Some(&Value::Bool(true)) {
            found.push(format!("tokenizer_config.json: `{key}: true` isn't heeded"));
        }
    }
    found
}

/// The value of a key of a step or of a step in it.
fn setting<'v>(step: &'v Value, key: &str) -> Option<&'v Value> {
    match step {
        Value::Object(object) => object
            .get(key)
            .or_else(|| object.values().find_map(|inner| setting(inner, key))),
        Value::Array(steps) => steps.iter().find_map(|inner| setting(inner, key)),
        _ => None,
    }
}
