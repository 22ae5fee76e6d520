//! Mistral 7B and its kin: Llama with one window for all layers.

use super::Family;
use super::config::ConfigReader;
use super::spec::{DecoderSpec, require_all_layers, window};

pub(super) const FAMILY: Family =
    Family { model_type: "mistral", architectures: &["MistralForCausalLM"], summary: "Mistral 7B and Nemo, with or without sliding window", read };

fn read(config: &mut ConfigReader<'_>) -> DecoderSpec {
    let spec = DecoderSpec::read(config, None);
    // transformers' default for an absent key, null being none.
    let window = window(config).or(if config.has("sliding_window") { None } else { Some(4096) });
    require_all_layers(config, spec.layers, window.is_some());
    DecoderSpec { windows: vec![window; spec.layers], ..spec }
}
