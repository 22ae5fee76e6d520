//! Gemma 2: norms around attention and MLP, capped scores and logits, a window on every other
//! layer.

use dlc_ir::{Storage, Task};

use super::activation::Activation;
use super::config::ConfigReader;
use super::defaults::GEMMA2;
use super::spec::{Biases, DecoderSpec, sliding_layers, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    architectures: &[("Gemma2ForCausalLM", Task::TextGeneration)],
    summary: "Gemma 2, 2B to 27B",
    keys: |_| GEMMA2,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let spec = DecoderSpec::read(config);
    // transformers reads `hidden_activation`; older configurations carry a `hidden_act` beside it
    // that nobody reads.
    config.get("hidden_act");
    let activation = Activation::read(config, "hidden_activation");
    if config.flag("use_bidirectional_attention") {
        config.unsupported(
            "use_bidirectional_attention",
            "is true; dlc reads Gemma 2 as a decoder".into(),
        );
    }
    let scale_of = config.required_factor("query_pre_attn_scalar");
    let softcaps = ["attn_logit_softcapping", "final_logit_softcapping"]
        .map(|key| config.factor(key).map(|cap| cap as f32));
    let window = window(config);
    let sliding = sliding_layers(config, spec.layers)
        .unwrap_or_else(|| (0..spec.layers).map(|layer| layer % 2 == 0).collect());
    let attention = config.flag("attention_bias");
    Box::new(DecoderSpec {
        activation,
        softcaps,
        attention_scale: scale_of.powf(-0.5) as f32,
        embedding_scale: Some((spec.hidden_size as f64).sqrt() as f32),
        sandwich: true,
        norms: Storage::LessOne,
        bias: Biases {
            qkv: attention,
            output: attention,
            mlp: false,
        },
        windows: sliding
            .into_iter()
            .map(|sliding| window.filter(|_| sliding))
            .collect(),
        ..spec
    })
}
