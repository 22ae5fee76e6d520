//! Which layers of a decoder see a window of the last tokens alone.

use serde_json::Value;

use super::config::{ConfigReader, show};
use super::spec::LONGEST_CONTEXT;

/// A window size, if the key is there.
pub(super) fn window(config: &mut ConfigReader<'_>) -> Option<usize> {
    config.size("sliding_window", LONGEST_CONTEXT)
}

/// For each layer whether `layer_types` calls it sliding; nothing where the key is absent or wrong.
pub(super) fn sliding_layers(config: &mut ConfigReader<'_>, layers: usize) -> Option<Vec<bool>> {
    const KEY: &str = "layer_types";
    let value = config.get(KEY)?;
    let Some(list) = value.as_array().filter(|list| list.len() == layers) else {
        config.bad(
            KEY,
            format!(
                "is {}; it must be a list of {layers} strings, one for each layer",
                show(value)
            ),
        );
        return None;
    };
    let kinds = list.iter().map(|kind| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(kind),
    });
    match kinds.collect::<Result<Vec<bool>, _>>() {
        Ok(kinds) => Some(kinds),
        Err(kind) => {
            config.unsupported(
                KEY,
                format!(
                    "has {}; dlc knows full_attention and sliding_attention",
                    show(kind)
                ),
            );
            None
        }
    }
}

/// Refuses `layer_types` that don't say `sliding` of every layer, for families in which all layers
/// are alike.
pub(super) fn require_all_layers(config: &mut ConfigReader<'_>, layers: usize, sliding: bool) {
    if let Some(kinds) = sliding_layers(config, layers)
        && kinds.contains(&!sliding)
    {
        let all = if sliding {
            "sliding_attention"
        } else {
            "full_attention"
        };
        config.unsupported(
            "layer_types",
            format!("has other layers than {all}, which this architecture doesn't"),
        );
    }
}

/// The windows of the qwen families: [`switched_windows`], and where `layer_types` is absent all
/// layers from `max_window_layers` on have one.
pub(super) fn qwen_windows(config: &mut ConfigReader<'_>, layers: usize) -> Vec<Option<usize>> {
    let first = config.get("max_window_layers").and_then(Value::as_u64);
    let windows = switched_windows(config, layers, |layer| {
        layer as u64 >= first.unwrap_or_default()
    });
    let any = windows.iter().any(Option::is_some);
    if first.is_none() && any && config.get("layer_types").is_none() {
        config.bad(
            "max_window_layers",
            "must be a whole number from 0 on".into(),
        );
    }
    windows
}

/// Windows of which `use_sliding_window` decides whether there are any, and `layer_types` which
/// layers have one, or where that is absent `sliding`.
pub(super) fn switched_windows(
    config: &mut ConfigReader<'_>,
    layers: usize,
    sliding: impl Fn(usize) -> bool,
) -> Vec<Option<usize>> {
    let wanted = config.flag("use_sliding_window");
    let window = window(config).filter(|_| wanted);
    let kinds = sliding_layers(config, layers);
    if kinds
        .as_ref()
        .is_some_and(|kinds| window.is_none() && kinds.contains(&true))
    {
        config.bad(
            "layer_types",
            "has sliding_attention, but `use_sliding_window` and `sliding_window` give no window"
                .into(),
        );
    }
    let kinds = kinds.unwrap_or_else(|| (0..layers).map(sliding).collect());
    kinds
        .into_iter()
        .map(|sliding| window.filter(|_| sliding))
        .collect()
}
