//! Mistral 7B and its kin: Llama with one window for all layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::spec::{DecoderSpec, require_all_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &[("MistralForCausalLM", Task::TextGeneration)],
    summary: "Mistral 7B and Nemo, with or without sliding window",
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config, None);
    // transformers' default for an absent key, null being none.
    let window = window(config).or(if config.has("sliding_window") { None } else { Some(4096) });
    require_all_layers(config, spec.layers, window.is_some());
    Box::new(DecoderSpec { windows: vec![window; spec.layers], ..spec })
}
