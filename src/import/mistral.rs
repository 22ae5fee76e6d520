//! Mistral 7B and its kin: Llama with one window for all layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::MISTRAL;
use super::spec::{DecoderSpec, require_all_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &[("MistralForCausalLM", Task::TextGeneration)],
    summary: "Mistral 7B and Nemo, with or without sliding window",
    keys: |_| MISTRAL,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config);
    let window = window(config);
    require_all_layers(config, spec.layers, window.is_some());
    Box::new(DecoderSpec {
        windows: vec![window; spec.layers],
        ..spec
    })
}
