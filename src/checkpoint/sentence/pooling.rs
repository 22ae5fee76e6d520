//! The configuration of the step `Pooling`.

use dlc_ir::{Pooling, Sentence};
use serde_json::{Map, Value};

use crate::checkpoint::SideKeys;
use crate::checkpoint::error::shown;

/// Flags of older versions, and what they stand for, in the order in which several results stand
/// one after another.
const FLAGS: [(&str, Pooling); 6] = [
    ("pooling_mode_cls_token", Pooling::Cls),
    ("pooling_mode_max_tokens", Pooling::Max),
    ("pooling_mode_mean_tokens", Pooling::Mean),
    (
        "pooling_mode_mean_sqrt_len_tokens",
        Pooling::MeanSqrtLenTokens,
    ),
    ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
    ("pooling_mode_lasttoken", Pooling::LastToken),
];

pub(super) const KEYS: SideKeys = SideKeys {
    heeded: &[
        "pooling_mode",
        "pooling_mode_cls_token",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
        "include_prompt",
    ],
    // The width that the model has anyway.
    harmless: &["word_embedding_dimension", "embedding_dimension"],
    neutral: &[],
};

/// Takes over what `config` says. `pooling_mode` decides over the flags; where no flag is set, it
/// is the mean.
pub(super) fn read(config: &Map<String, Value>, sentence: &mut Sentence) {
    let set = |key: &str| config.get(key) == Some(&Value::Bool(true));
    sentence.pooling = match config.get("pooling_mode") {
        None | Some(Value::Null) => FLAGS
            .iter()
            .filter(|(flag, _)| set(flag))
            .map(|(_, pooling)| pooling.clone())
            .collect(),
        Some(Value::Array(modes)) => modes.iter().map(mode).collect(),
        Some(one) => vec![mode(one)],
    };
    let unknown = config.keys().filter(|key| {
        key.starts_with("pooling_mode_") && set(key) && !KEYS.heeded.contains(&key.as_str())
    });
    sentence
        .pooling
        .extend(unknown.map(|key| Pooling::Other(format!("`{}`", shown(key)))));
    if sentence.pooling.is_empty() {
        sentence.pooling.push(Pooling::Mean);
    }
    sentence.exclude_prompt = config.get("include_prompt") == Some(&Value::Bool(false));
}

fn mode(value: &Value) -> Pooling {
    let known = Pooling::ALL
        .into_iter()
        .find(|pooling| value.as_str() == Some(pooling.name()));
    known.unwrap_or_else(|| {
        Pooling::Other(format!("the `pooling_mode` {}", shown(&value.to_string())))
    })
}
