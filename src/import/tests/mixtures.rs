//! Mixtures of experts: which layers have them, how tokens choose, and what is refused.

use dlc_errors::Fault;
use dlc_ir::{Experts, Op};
use serde_json::{Value, json};

use super::{Folder, import_folder, refuses};

/// For each mixture its block, and how tokens choose.
fn mixtures_of(golden: &str, patch: &Value) -> Vec<(String, Experts)> {
    let folder = Folder::patched(&format!("goldens/{golden}"), patch);
    let module = import_folder(&folder).unwrap_or_else(|error| panic!("{patch}: {error}"));
    let graph = &module.graphs[0];
    let mixture = |node: &dlc_ir::Node| match node.op {
        Op::Experts(experts) => {
            let block = node.block.expect("experts stand in a block");
            Some((graph.block(block).name.clone(), experts))
        }
        _ => None,
    };
    graph
        .nodes()
        .filter_map(|(_, node)| mixture(node))
        .collect()
}

fn named(layers: &[usize], top: usize, normalized: bool) -> Vec<(String, Experts)> {
    let experts = Experts {
        top,
        normalized,
        format: None,
    };
    let name = |layer: &usize| (format!("layers.{layer}.mlp"), experts);
    layers.iter().map(name).collect()
}

#[test]
fn layers_have_the_experts_that_the_configuration_gives_them() {
    assert_eq!(
        mixtures_of("mixtral", &json!({})),
        named(&[0, 1, 2], 2, true)
    );
    // The other name of the key.
    let renamed = json!({"num_local_experts": 4, "num_experts": 4});
    assert_eq!(mixtures_of("mixtral", &renamed), named(&[0, 1, 2], 2, true));
    assert_eq!(
        mixtures_of("qwen3_moe", &json!({})),
        named(&[0, 2], 2, true)
    );
    let shares = json!({"norm_topk_prob": false, "num_experts_per_tok": 4});
    assert_eq!(mixtures_of("qwen3_moe", &shares), named(&[0, 2], 4, false));
    assert_eq!(
        mixtures_of("qwen3_moe-steps", &json!({})),
        named(&[1, 3], 3, false)
    );
}

#[test]
fn what_only_training_asks_for_changes_nothing() {
    let patch = json!({"output_router_logits": true, "router_aux_loss_coef": 0.5, "router_jitter_noise": 0.1});
    assert_eq!(mixtures_of("mixtral", &patch), named(&[0, 1, 2], 2, true));
}

#[test]
fn what_experts_cannot_be_is_refused_by_name() {
    let cases = [
        (
            "mixtral",
            json!({"num_experts_per_tok": 5}),
            Fault::BadInput,
            "`num_experts_per_tok` is 5, and there are 4 experts",
        ),
        (
            "mixtral",
            json!({"num_local_experts": 0}),
            Fault::BadInput,
            "`num_local_experts` is 0",
        ),
        (
            "mixtral",
            json!({"num_experts": 3}),
            Fault::BadInput,
            "`num_experts` is 3, but `num_local_experts`",
        ),
        (
            "mixtral",
            json!({"hidden_act": "gelu"}),
            Fault::Unsupported,
            "experts with silu alone",
        ),
        (
            "qwen3_moe",
            json!({"mlp_only_layers": "1"}),
            Fault::BadInput,
            "`mlp_only_layers` is \"1\"",
        ),
        (
            "qwen3_moe",
            json!({"mlp_only_layers": [-1]}),
            Fault::BadInput,
            "`mlp_only_layers` is [-1]",
        ),
        (
            "qwen3_moe",
            json!({"decoder_sparse_step": 0}),
            Fault::BadInput,
            "`decoder_sparse_step` is 0",
        ),
        (
            "qwen3_moe",
            json!({"shared_expert_intermediate_size": 8}),
            Fault::Unsupported,
            "`shared_expert_intermediate_size`",
        ),
        (
            "llama",
            json!({"num_local_experts": 4}),
            Fault::Unsupported,
            "`num_local_experts`",
        ),
    ];
    for (golden, patch, fault, part) in cases {
        let folder = Folder::patched(&format!("goldens/{golden}"), &patch);
        refuses(part, &folder, fault, &[part]);
    }
}
