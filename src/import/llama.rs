//! Llama 1 to 3.2 and what shares its architecture: `TinyLlama`, `SmolLM`, Yi, `DeepSeek`
//! distillates.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::defaults::LLAMA;
use super::spec::{Biases, DecoderSpec, require_all_layers};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    architectures: &[("LlamaForCausalLM", Task::TextGeneration)],
    summary: "Llama 1 to 3.2, TinyLlama, SmolLM 1 and 2, Yi",
    keys: |_| LLAMA,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config);
    require_all_layers(config, spec.layers, false);
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: config.flag("mlp_bias"),
        },
        ..spec
    })
}
