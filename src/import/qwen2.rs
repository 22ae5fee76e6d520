//! Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values, and windows on some layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::QWEN2;
use super::spec::{Biases, DecoderSpec, qwen_windows};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &[("Qwen2ForCausalLM", Task::TextGeneration)],
    summary: "Qwen 1.5, 2 and 2.5, dense",
    keys: |_| QWEN2,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config);
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: true,
            ..Biases::default()
        },
        windows: qwen_windows(config, spec.layers),
        ..spec
    })
}
