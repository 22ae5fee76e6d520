//! The tokens that begin, end and pad a text, from `config.json` and `generation_config.json`.

use serde_json::Value;

use super::config::{ConfigReader, show};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    pub(super) pad: Option<u32>,
}

/// Reads both files: `generation` wins for what ends a text, because that is what transformers
/// stops at; else it fills gaps.
pub(super) fn read(
    config: &mut ConfigReader<'_>,
    generation: Option<&mut ConfigReader<'_>>,
) -> SpecialTokens {
    let Some(generation) = generation else {
        return read_one(config);
    };
    // What the class says of absent keys isn't said beside another file.
    let model = read_written(config);
    let generation = read_one(generation);
    SpecialTokens {
        bos: model.bos.or(generation.bos),
        eos: if generation.eos.is_empty() {
            model.eos
        } else {
            generation.eos
        },
        pad: model.pad.or(generation.pad),
    }
}

fn read_one(config: &mut ConfigReader<'_>) -> SpecialTokens {
    let mut ids = |key| tokens(config, key);
    SpecialTokens {
        bos: ids("bos_token_id").first().copied(),
        eos: ids("eos_token_id"),
        pad: ids("pad_token_id").first().copied(),
    }
}

/// As [`read_one`], without what the file leaves out.
fn read_written(config: &mut ConfigReader<'_>) -> SpecialTokens {
    let written =
        ["bos_token_id", "eos_token_id", "pad_token_id"].map(|key| config.is_written(key));
    let all = read_one(config);
    SpecialTokens {
        bos: all.bos.filter(|_| written[0]),
        eos: if written[1] { all.eos } else { Vec::new() },
        pad: all.pad.filter(|_| written[2]),
    }
}

/// One id or a list of ids; negative ids stand for none.
fn tokens(config: &mut ConfigReader<'_>, key: &'static str) -> Vec<u32> {
    let Some(value) = config.get(key) else {
        return Vec::new();
    };
    let list = value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice);
    let ids: Option<Vec<i64>> = list.iter().map(Value::as_i64).collect();
    let ids = ids.and_then(|ids| {
        ids.into_iter()
            .filter(|id| *id >= 0)
            .map(|id| u32::try_from(id).ok())
            .collect()
    });
    if ids.is_none() {
        config.bad(
            key,
            format!(
                "is {}; it must be a token id or a list of them",
                show(value)
            ),
        );
    }
    ids.unwrap_or_default()
}
