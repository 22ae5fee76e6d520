//! Layers that differ from each other: which rotate, how, and which have a window.

use dlc_errors::Fault;
use dlc_ir::{Op, RopeScaling};
use serde_json::{Value, json};

use super::{Folder, import_folder, refuses};

/// For each layer the window, and the base and scaling of the rotation.
type Layers = Vec<(Option<usize>, Option<(f64, RopeScaling)>)>;

fn layers_of(golden: &str, patch: &Value) -> Layers {
    let folder = Folder::patched(&format!("goldens/{golden}"), patch);
    let module = import_folder(&folder).unwrap_or_else(|error| panic!("{patch}: {error}"));
    let (mut layers, mut rotation) = (Layers::new(), None);
    for (_, node) in module.graphs[0].nodes() {
        match &node.op {
            Op::Rope(rope) => rotation = Some((rope.theta, rope.scaling.clone())),
            Op::Attention(attention) => layers.push((attention.window, rotation.take())),
            _ => {}
        }
    }
    layers
}

#[test]
fn smollm3_rotates_the_layers_that_its_configuration_names() {
    let rotated = |patch: Value| -> Vec<bool> {
        let layers = layers_of("smollm3", &patch);
        layers
            .iter()
            .map(|(_, rotation)| rotation.is_some())
            .collect()
    };
    assert_eq!(rotated(json!({})), [true, true, false, true]);
    let absent = json!({"no_rope_layers": null, "no_rope_layer_interval": 2});
    assert_eq!(rotated(absent), [true, false, true, false]);
    let usual = json!({"no_rope_layers": null, "no_rope_layer_interval": null});
    assert_eq!(rotated(usual), [true, true, true, false]);
    // transformers reads no more of a list than there are layers.
    let longer = json!({"no_rope_layers": [0, 1, 1, 0, 1]});
    assert_eq!(rotated(longer), [false, true, true, false]);
    let sliding = json!({"use_sliding_window": true, "sliding_window": 6, "layer_types": null});
    let windows: Vec<_> = layers_of("smollm3", &sliding).iter().map(|l| l.0).collect();
    assert_eq!(windows, [None, None, Some(6), None]);
    for list in [json!([1, 1, 0]), json!(["yes", 1, 1, 1])] {
        let folder = Folder::patched("goldens/smollm3", &json!({"no_rope_layers": list}));
        refuses(
            "no_rope_layers",
            &folder,
            Fault::BadInput,
            &["`no_rope_layers` is ["],
        );
    }
}

#[test]
fn gemma3_rotates_layers_with_a_window_by_a_base_of_their_own() {
    let linear = RopeScaling::Linear { factor: 2.0 };
    let local = (Some(6), Some((50.0, RopeScaling::None)));
    let expected = [local.clone(), (None, Some((300.0, linear.clone()))), local];
    assert_eq!(layers_of("gemma3_text", &json!({})), expected);
    // As in checkpoints on the hub.
    let old = json!({
        "rope_parameters": null, "rope_theta": 300.0, "rope_local_base_freq": 50,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "_sliding_window_pattern": null,
        "layer_types": null, "sliding_window_pattern": 2,
    });
    assert_eq!(layers_of("gemma3_text", &old), expected);
    let bare = json!({"rope_parameters": null, "layer_types": ["full_attention", "sliding_attention", "full_attention"]});
    let [global, local] = [1e6, 1e4].map(|theta| Some((theta, RopeScaling::None)));
    let bare_layers = [(None, global.clone()), (Some(6), local), (None, global)];
    assert_eq!(layers_of("gemma3_text", &bare), bare_layers);
}

#[test]
fn what_gemma3_says_and_transformers_does_not_follow_is_refused_by_name() {
    let wrong = [
        (
            json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2}}),
            "`rope_scaling.type` is not read",
        ),
        (
            json!({"layer_types": null, "_sliding_window_pattern": 3}),
            "`_sliding_window_pattern` is not read by transformers, which takes 6",
        ),
        (
            json!({"rope_theta": 7.0}),
            "`rope_theta` has different values",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 3}}),
            "`rope_scaling` and `rope_parameters` differ",
        ),
    ];
    for (patch, part) in wrong {
        let folder = Folder::patched("goldens/gemma3_text", &patch);
        refuses(&patch.to_string(), &folder, Fault::BadInput, &[part]);
    }
    let beyond = [
        (
            json!({"use_bidirectional_attention": true}),
            "`use_bidirectional_attention` is true",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2, "truncate": false}}}),
            "`rope_parameters` has `truncate`",
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 2}}),
            "`rope_parameters.factor`",
        ),
    ];
    for (patch, part) in beyond {
        let folder = Folder::patched("goldens/gemma3_text", &patch);
        refuses(&patch.to_string(), &folder, Fault::Unsupported, &[part]);
    }
}

#[test]
fn classes_need_the_token_that_pads() {
    for patch in [json!({"pad_token_id": null}), json!({"pad_token_id": -1})] {
        let folder = Folder::patched("goldens/llama-classifier", &patch);
        let part = "`pad_token_id` is no token";
        refuses(&patch.to_string(), &folder, Fault::Unsupported, &[part]);
    }
}
