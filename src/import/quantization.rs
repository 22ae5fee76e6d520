//! `quantization_config`: how a checkpoint is quantised, where that isn't followed already.

use serde_json::{Map, Value};

use super::config::{ConfigReader, show};
use crate::checkpoint::{METHODS, shown};

/// Refuses a way of quantising that dlc doesn't read; those that it reads have left no key.
pub(super) fn read(config: &mut ConfigReader<'_>) {
    const KEY: &str = "quantization_config";
    let Some(value) = config.get(KEY) else {
        return;
    };
    let is_off = *value == Value::Bool(false) || value.as_object().is_some_and(Map::is_empty);
    if is_off {
        return;
    }
    let method = value.get("quant_method").and_then(Value::as_str);
    let method = method.map(str::to_ascii_lowercase);
    let problem = match method.as_deref() {
        Some("gptq" | "awq") => {
            "but no tensor is quantised (`*.qweight`). Download the whole checkpoint".to_owned()
        }
        Some(other) => format!(
            "so the weights are quantised by {}; of what is quantised dlc reads {METHODS}, and GGUF. Take the original checkpoint, dlc quantises by itself",
            shown(other)
        ),
        None => format!(
            "which names no `quant_method`; of what is quantised dlc reads {METHODS}, and GGUF. Take the original checkpoint, dlc quantises by itself"
        ),
    };
    config.refuse(KEY, &format!("is {}, {problem}", show(value)));
}
