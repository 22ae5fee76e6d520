//! Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and windows on some layers.

use super::Family;
use super::config::ConfigReader;
use super::spec::{Biases, DecoderSpec, qwen_windows};

pub(super) const FAMILY: Family = Family { model_type: "qwen2", architectures: &["Qwen2ForCausalLM"], summary: "Qwen 1.5, 2 and 2.5, dense", read };

fn read(config: &mut ConfigReader<'_>) -> DecoderSpec {
    let spec = DecoderSpec::read(config, None);
    DecoderSpec { bias: Biases { qkv: true, ..Biases::default() }, windows: qwen_windows(config, spec.layers), ..spec }
}
