//! Phi-3 and 3.5 mini, Phi-4: Llama with fused projections, and windows in some.

use dlc_ir::{RopeScaling, Task};

use super::config::ConfigReader;
use super::defaults::PHI3;
use super::rope;
use super::spec::{DecoderSpec, window};
use super::{Architecture, Family};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    architectures: &[("Phi3ForCausalLM", Task::TextGeneration)],
    summary: "Phi-3 mini and medium with 4k context, Phi-4",
    keys: |_| PHI3,
    aliases: &[],
    read,
};

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    // Only `longrope` reads it, which is refused.
    config.get("original_max_position_embeddings");
    let spec = DecoderSpec::read_with(config, |config, head_dim| {
        rope::read_partial(config, head_dim, Some(1.0))
    });
    if spec.rotary.scaling != RopeScaling::None {
        config.bad(
            "rope_scaling",
            "has a type that transformers refuses for this architecture".into(),
        );
    }
    let window = window(config);
    Box::new(DecoderSpec {
        fused: true,
        windows: vec![window; spec.layers],
        ..spec
    })
}
