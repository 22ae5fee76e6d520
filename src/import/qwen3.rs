//! Qwen 3: Llama with queries and keys normed head by head, heads of their own width, and windows
//! on some layers.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::QWEN3;
use super::spec::{Biases, DecoderSpec, qwen_windows};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &[("Qwen3ForCausalLM", Task::TextGeneration)],
    summary: "Qwen 3, dense",
    keys: |_| QWEN3,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config);
    let attention = config.flag("attention_bias");
    let bias = Biases {
        qkv: attention,
        output: attention,
        mlp: false,
    };
    Box::new(DecoderSpec {
        bias,
        qk_norm: true,
        windows: qwen_windows(config, spec.layers),
        ..spec
    })
}
