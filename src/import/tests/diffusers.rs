//! Diffusion models: boundaries, blocks, facts, and what configurations are refused for.

use dlc_errors::Fault;
use dlc_ir::cost::{Sizes, graph_macs, macs};
use dlc_ir::{BlockKind, Classes, DType, Diffusion, Graph, Op, Operand, parse_graph_over};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::configurations::any_json;
use super::{DIFFUSION, Folder, fixture, import_fixture, import_folder, open, refuses};

fn graph(name: &str) -> Graph {
    import_fixture(name, None).graphs.remove(0)
}

fn refuses_patch(name: &str, patch: &Value, fault: Fault, parts: &[&str]) {
    refuses(
        &format!("{name} {patch}"),
        &Folder::patched(&format!("goldens/{name}"), patch),
        fault,
        &[&["config.json"], parts].concat(),
    );
}

#[test]
fn boundary_follows_diffusers() {
    let image = "f32[batch, 4, 8, 8]";
    let any_size = "f32[batch, 4, height, width]";
    let cases: [(&str, &[(&str, &str)]); 6] = [
        (
            "dit",
            &[
                ("hidden_states", image),
                ("timestep", "f32[batch]"),
                ("class_labels", "i64[batch]"),
            ],
        ),
        (
            "pixart",
            &[
                ("hidden_states", image),
                ("timestep", "f32[batch]"),
                ("encoder_hidden_states", "f32[batch, text, 24]"),
                ("encoder_attention_mask", "i64[batch, text]"),
            ],
        ),
        (
            "pixart-sizes",
            &[
                ("hidden_states", image),
                ("timestep", "f32[batch]"),
                ("encoder_hidden_states", "f32[batch, text, 20]"),
                ("encoder_attention_mask", "i64[batch, text]"),
                ("resolution", "f32[batch, 2]"),
                ("aspect_ratio", "f32[batch, 1]"),
            ],
        ),
        (
            "unet-ddpm-classes",
            &[
                ("sample", "f32[batch, 3, height, width]"),
                ("timestep", "f32[batch]"),
                ("class_labels", "i64[batch]"),
            ],
        ),
        (
            "unet-sd15",
            &[
                ("sample", any_size),
                ("timestep", "f32[batch]"),
                ("encoder_hidden_states", "f32[batch, text, 24]"),
            ],
        ),
        (
            "unet-sdxl",
            &[
                ("sample", any_size),
                ("timestep", "f32[batch]"),
                ("encoder_hidden_states", "f32[batch, text, 24]"),
                ("text_embeds", "f32[batch, 16]"),
                ("time_ids", "f32[batch, 6]"),
            ],
        ),
    ];
    for (name, wanted) in cases {
        for dtype in [None, Some(DType::F16)] {
            let graph = import_fixture(&format!("goldens/{name}"), dtype)
                .graphs
                .remove(0);
            let inputs: Vec<(String, String)> = graph
                .inputs()
                .iter()
                .map(|i| (i.name.clone(), graph.value(i.value).ty.to_string()))
                .collect();
            assert_eq!(
                inputs,
                wanted
                    .iter()
                    .map(|(n, t)| ((*n).to_owned(), (*t).to_owned()))
                    .collect::<Vec<_>>(),
                "{name}"
            );
            let [output] = graph.outputs() else {
                panic!("{name}: not one output")
            };
            assert_eq!(
                (output.name.as_str(), graph.value(output.value).ty.dtype),
                ("out_sample", DType::F32),
                "{name}"
            );
        }
    }
}

#[test]
fn blocks_of_transformers_add_to_their_input_and_read_nothing_of_each_other() {
    for (name, kinds) in [
        ("dit", &["attn", "mlp"][..]),
        ("pixart", &["attn", "cross_attn", "mlp"]),
    ] {
        let graph = graph(&format!("goldens/{name}"));
        let names: Vec<String> = graph.blocks().map(|(_, b)| b.name.clone()).collect();
        let layers = names.len() / kinds.len();
        assert_eq!(
            names,
            (0..layers)
                .flat_map(|n| kinds.iter().map(move |kind| format!("layers.{n}.{kind}")))
                .collect::<Vec<_>>()
        );
        let mut before = None;
        for (id, block) in graph.blocks() {
            assert_eq!(
                (block.kind.name(), block.kind.keeps_type()),
                (block.name.rsplit('.').next().expect("a kind"), true)
            );
            assert!(
                before.is_none_or(|output| output == block.input),
                "{}",
                block.name
            );
            let (_, last) = graph.block_nodes(id).last().expect("has nodes");
            assert_eq!(
                (&last.op, last.inputs[0], last.outputs[0]),
                (&Op::Add, Operand::Value(block.input), block.output),
                "{}",
                block.name
            );
            before = Some(block.output);
        }
    }
}

#[test]
fn blocks_of_u_nets_are_numbered_by_stage() {
    let blocks = |name: &str| -> Vec<String> {
        let graph = graph(&format!("goldens/{name}"));
        graph
            .blocks()
            .map(|(_, b)| format!("{} {} {}", b.layer, b.name, b.kind.name()))
            .collect()
    };
    let wanted = "0 down.0.resnet.0 resnet, 0 down.0.attn.0 transformer, 0 down.0.resnet.1 resnet, 0 down.0.attn.1 transformer, 0 down.0.sample sample, \
                  1 down.1.resnet.0 resnet, 1 down.1.resnet.1 resnet, 2 mid.resnet.0 resnet, 2 mid.attn.0 transformer, 2 mid.resnet.1 resnet, \
                  3 up.0.resnet.0 resnet, 3 up.0.resnet.1 resnet, 3 up.0.resnet.2 resnet, 3 up.0.sample sample, 4 up.1.resnet.0 resnet, \
                  4 up.1.attn.0 transformer, 4 up.1.resnet.1 resnet, 4 up.1.attn.1 transformer, 4 up.1.resnet.2 resnet, 4 up.1.attn.2 transformer";
    assert_eq!(blocks("unet-sd15").join(", "), wanted);
    let attention: Vec<String> = blocks("unet-ddpm")
        .into_iter()
        .filter(|b| b.ends_with(" attn"))
        .collect();
    let wanted = [
        "1 down.1.attn.0",
        "1 down.1.attn.1",
        "2 mid.attn.0",
        "3 up.0.attn.0",
        "3 up.0.attn.1",
        "3 up.0.attn.2",
    ];
    assert_eq!(attention, wanted.map(|name| format!("{name} attn")));
}

#[test]
fn a_block_that_changes_its_type_is_not_bypassed() {
    let mut graph = graph("goldens/unet-sd15");
    let block = |graph: &Graph, name: &str| graph.find_block(name).expect("is there");
    let sample = block(&graph, "down.0.sample");
    let error = graph.bypass(sample).expect_err("is refused").to_string();
    assert!(
        error.contains(
            "down.0.sample can't be bypassed: it makes f32[batch, 16, ceil(height/2), ceil(width/2)] of f32[batch, 16, height, width]"
        ),
        "{error}"
    );
    let attention = block(&graph, "mid.attn.0");
    assert_eq!(graph.block(attention).kind, BlockKind::Transformer);
    graph.bypass(attention).expect("keeps its type");
}

#[test]
fn text_is_parsed_back_and_multiply_adds_are_counted() {
    for name in DIFFUSION {
        let module = import_fixture(&format!("goldens/{name}"), None);
        let graph = &module.graphs[0];
        assert_eq!(
            &parse_graph_over(&graph.to_text(&module.weights), &module.weights).expect("parses"),
            graph,
            "{name}"
        );
        let sizes = |batch: u64| {
            let sizes = [("batch", batch), ("text", 7), ("height", 8), ("width", 12)];
            Sizes::from(sizes.map(|(symbol, size)| (symbol.to_owned(), size)))
        };
        let [one, two] = [1, 2]
            .map(|batch| graph_macs(graph, &module.weights, &sizes(batch)).expect("is countable"));
        assert!(one > 0 && two == 2 * one, "{name}: {one}, {two}");
        assert_eq!(graph_macs(graph, &module.weights, &Sizes::new()), None);
    }
}

#[test]
fn multiply_adds_of_single_nodes_are_those_of_the_formulas() {
    let module = import_fixture("goldens/unet-sd15", None);
    let graph = &module.graphs[0];
    let sizes = [("batch", 1), ("text", 5), ("height", 8), ("width", 8)];
    let sizes = Sizes::from(sizes.map(|(symbol, size)| (symbol.to_owned(), size)));
    let of = |op: fn(&Op) -> bool| -> Vec<u64> {
        graph
            .nodes()
            .filter(|(_, n)| op(&n.op))
            .map(|(_, n)| macs(graph, &module.weights, n, &sizes).expect("is countable"))
            .collect()
    };
    // The first convolution: 16 channels of 8 by 8, each from 4 channels of 3 by 3.
    assert_eq!(of(|op| matches!(op, Op::Conv2d { .. }))[0], 16 * 64 * 4 * 9);
    // The first attentions: 64 places, 16 wide, to themselves and to 5 tokens.
    assert_eq!(
        of(|op| matches!(op, Op::Attention(_)))[..2],
        [2 * 64 * 64 * 16, 2 * 64 * 5 * 16]
    );
    // The noise level: 16 sinusoids become 64.
    assert_eq!(of(|op| *op == Op::Linear)[0], 16 * 64);
    assert_eq!(of(|op| *op == Op::Silu)[0], 0);
}

#[test]
fn samplers_are_told_what_they_need() {
    let info = |name: &str| import_fixture(name, None).model;
    let square = |channels, side, out_channels| Diffusion {
        channels,
        height: side,
        width: side,
        size_step: None,
        out_channels,
        classes: None,
        text_width: None,
    };
    let digits = info("digits-dit");
    assert_eq!(
        (
            digits.family.as_str(),
            digits.heads,
            digits.head_dim,
            digits.hidden_size
        ),
        ("DiTTransformer2DModel", 4, 24, 96)
    );
    assert_eq!(
        digits.diffusion,
        Some(Diffusion {
            classes: Some(Classes {
                count: 10,
                unconditional: Some(10)
            }),
            ..square(1, 8, 1)
        })
    );
    let cases = [
        (
            "pixart",
            Diffusion {
                text_width: Some(24),
                ..square(4, 8, 8)
            },
            true,
        ),
        (
            "unet-sd15",
            Diffusion {
                size_step: Some(1),
                text_width: Some(24),
                ..square(4, 8, 4)
            },
            false,
        ),
        (
            "unet-ddpm",
            Diffusion {
                size_step: Some(2),
                ..square(1, 16, 1)
            },
            false,
        ),
        (
            "unet-ddpm-classes",
            Diffusion {
                width: 16,
                size_step: Some(2),
                classes: Some(Classes {
                    count: 7,
                    unconditional: None,
                }),
                ..square(3, 8, 6)
            },
            true,
        ),
    ];
    for (name, wanted, variance) in cases {
        let found = info(&format!("goldens/{name}"))
            .diffusion
            .expect("is a diffusion model");
        assert_eq!(
            (found.learns_variance(), found),
            (variance, wanted),
            "{name}"
        );
    }
}

#[test]
fn names_of_older_versions_are_read() {
    let same = |name: &str, patch: &Value| {
        let module = import_folder(&Folder::patched(&format!("goldens/{name}"), patch))
            .unwrap_or_else(|error| panic!("{patch}: {error}"));
        assert_eq!(
            module.graphs[0],
            graph(&format!("goldens/{name}")),
            "{patch}"
        );
    };
    for name in ["dit", "pixart"] {
        same(
            name,
            &json!({"_class_name": "Transformer2DModel", "double_self_attention": false, "only_cross_attention": false, "_name_or_path": "x"}),
        );
    }
    let checkpoint = open("goldens/unet-ddpm");
    let old = |name: &str| {
        [
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ]
        .iter()
        .fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    };
    let tensors: Vec<_> = checkpoint
        .tensor_names()
        .map(|name| {
            (
                old(name),
                checkpoint.tensor(name).expect("was listed").clone(),
            )
        })
        .collect();
    let view = |r: &crate::checkpoint::TensorRecord| {
        (
            safetensors::Dtype::F16,
            r.shape.clone(),
            r.blob.as_ref().to_vec(),
        )
    };
    let owned: Vec<_> = tensors
        .iter()
        .map(|(name, record)| (name, view(record)))
        .collect();
    let views = owned.iter().map(|(n, (t, s, b))| {
        (
            *n,
            safetensors::tensor::TensorView::new(*t, s.clone(), b).expect("fits"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("serialises");
    let folder = Folder::patched("goldens/unet-ddpm", &json!({}))
        .with("diffusion_pytorch_model.safetensors", &bytes);
    assert_eq!(
        import_folder(&folder).expect("imports").graphs[0],
        graph("goldens/unet-ddpm")
    );
}

#[test]
fn absurd_sizes_are_bad_input_that_names_the_key() {
    let sizes: [(&str, &[&str]); 4] = [
        (
            "dit",
            &[
                "in_channels",
                "sample_size",
                "num_layers",
                "num_attention_heads",
                "attention_head_dim",
                "patch_size",
                "num_embeds_ada_norm",
            ],
        ),
        (
            "pixart",
            &["caption_channels", "cross_attention_dim", "out_channels"],
        ),
        (
            "unet-ddpm",
            &[
                "sample_size",
                "in_channels",
                "out_channels",
                "norm_num_groups",
                "attention_head_dim",
                "layers_per_block",
            ],
        ),
        (
            "unet-sdxl",
            &[
                "cross_attention_dim",
                "attention_head_dim",
                "transformer_layers_per_block",
                "addition_time_embed_dim",
                "conv_in_kernel",
            ],
        ),
    ];
    for (name, keys) in sizes {
        for key in keys {
            for value in [
                json!(0),
                json!(-4),
                json!(4.5),
                json!("4"),
                json!(u64::MAX),
                json!(1_u64 << 40),
                json!([0, 4]),
                json!([]),
            ] {
                refuses_patch(
                    name,
                    &json!({ *key: value }),
                    Fault::BadInput,
                    &[&format!("`{key}` is {value}")],
                );
            }
        }
    }
    for value in [
        json!(0),
        json!([]),
        json!([16, 0]),
        json!([16, "32"]),
        json!(vec![16; 13]),
        json!([1_u64 << 40, 32]),
        json!({"a": 1}),
    ] {
        refuses_patch(
            "unet-sd15",
            &json!({"block_out_channels": value}),
            Fault::BadInput,
            &["`block_out_channels`"],
        );
    }
}

#[test]
fn contradictions_are_bad_input() {
    let cases = [
        (
            "dit",
            json!({"sample_size": 9}),
            "`sample_size` is 9, which patches of 2 don't divide",
        ),
        (
            "dit",
            json!({"attention_head_dim": 13, "num_attention_heads": 3}),
            "width of 39; it must be a multiple of 4",
        ),
        (
            "dit",
            json!({"num_attention_heads": 16384, "attention_head_dim": 16384}),
            "`attention_head_dim`",
        ),
        ("dit", json!({"norm_eps": -1}), "`norm_eps`"),
        (
            "pixart",
            json!({"cross_attention_dim": 24}),
            "`cross_attention_dim` is 24, but the text is projected to a width of 48",
        ),
        (
            "pixart",
            json!({"interpolation_scale": 0}),
            "`interpolation_scale`",
        ),
        (
            "unet-ddpm",
            json!({"norm_num_groups": 5}),
            "`norm_num_groups` is 5, which doesn't divide the 16 channels",
        ),
        (
            "unet-ddpm",
            json!({"attention_head_dim": 5}),
            "`attention_head_dim` is 5, which doesn't divide the 32 channels",
        ),
        (
            "unet-ddpm",
            json!({"attn_norm_num_groups": 5}),
            "`attn_norm_num_groups` is 5",
        ),
        (
            "unet-ddpm",
            json!({"down_block_types": ["DownBlock2D"]}),
            "`down_block_types`",
        ),
        ("unet-ddpm", json!({"freq_shift": 8}), "`freq_shift` is 8"),
        (
            "unet-ddpm",
            json!({"block_out_channels": [7, 14], "norm_num_groups": 7, "attention_head_dim": 7}),
            "an odd number",
        ),
        (
            "unet-sd15",
            json!({"attention_head_dim": 3}),
            "`attention_head_dim` gives 3 heads, which don't divide the 16 channels",
        ),
        (
            "unet-sd15",
            json!({"layers_per_block": [2, 2, 2]}),
            "`layers_per_block` is [2,2,2]",
        ),
        (
            "unet-sdxl",
            json!({"projection_class_embeddings_input_dim": 48}),
            "leaves nothing for the text",
        ),
        (
            "unet-sdxl",
            json!({"addition_time_embed_dim": 7}),
            "`addition_time_embed_dim` is 7",
        ),
    ];
    for (name, patch, part) in cases {
        refuses_patch(name, &patch, Fault::BadInput, &[part]);
    }
    let tensors = Folder::patched("goldens/unet-sd15", &json!({"layers_per_block": 1}));
    refuses(
        "fewer layers than the file",
        &tensors,
        Fault::BadInput,
        &["of different models"],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_dlc_cannot_do_is_refused_by_name_all_at_once() {
    let cases = [
        (
            "dit",
            json!({"norm_type": "ada_norm"}),
            vec!["`norm_type` is \"ada_norm\"; dlc knows ada_norm_zero"],
        ),
        (
            "dit",
            json!({"norm_elementwise_affine": true}),
            vec!["`norm_elementwise_affine`"],
        ),
        (
            "dit",
            json!({"activation_fn": "swiglu", "quant_bits": 3}),
            vec![
                "2 problems",
                "`activation_fn` is \"swiglu\"",
                "`quant_bits` is 3",
            ],
        ),
        (
            "dit",
            json!({"sample_size": 8192, "patch_size": 1}),
            vec!["`sample_size` gives 67108864 patches"],
        ),
        (
            "pixart",
            json!({"attention_type": "gated"}),
            vec!["`attention_type`"],
        ),
        (
            "unet-sd15",
            json!({"act_fn": "gelu", "class_embed_type": "timestep", "time_cond_proj_dim": 256, "dual_cross_attention": true}),
            vec![
                "4 problems",
                "`act_fn`",
                "`class_embed_type`",
                "`time_cond_proj_dim`",
                "`dual_cross_attention` is true, which attends to two texts",
            ],
        ),
        (
            "unet-sd15",
            json!({"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}),
            vec!["`down_block_types` has \"SimpleCross"],
        ),
        (
            "unet-sd15",
            json!({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}),
            vec!["`mid_block_type`"],
        ),
        (
            "unet-sd15",
            json!({"sample_size": 9}),
            vec!["`sample_size` is 9 by 9; dlc wants multiples of 2"],
        ),
        (
            "unet-sd15",
            json!({"encoder_hid_dim_type": "ip_image_proj", "encoder_hid_dim": 24}),
            vec!["`encoder_hid_dim_type`", "`encoder_hid_dim`"],
        ),
        (
            "unet-sd15",
            json!({"num_attention_heads": 4}),
            vec!["`num_attention_heads` is 4"],
        ),
        (
            "unet-sd15",
            json!({"conv_in_kernel": 4}),
            vec!["`conv_in_kernel` is 4"],
        ),
        (
            "unet-sd15",
            json!({"mid_block_scale_factor": 1.5}),
            vec!["`mid_block_scale_factor` is 1.5, which scales the middle's outputs"],
        ),
        (
            "unet-sdxl",
            json!({"addition_embed_type": "image"}),
            vec!["`addition_embed_type` is \"image\""],
        ),
        (
            "unet-ddpm",
            json!({"resnet_time_scale_shift": "scale_shift", "center_input_sample": true}),
            vec!["2 problems", "`center_input_sample`"],
        ),
        (
            "unet-ddpm",
            json!({"downsample_padding": 2}),
            vec!["`downsample_padding`"],
        ),
        (
            "unet-ddpm",
            json!({"downsample_type": "resnet"}),
            vec!["`downsample_type`"],
        ),
    ];
    for (name, patch, parts) in cases {
        refuses_patch(name, &patch, Fault::Unsupported, &parts);
    }
    refuses_patch(
        "unet-sd15",
        &json!({"_class_name": "UNet3DConditionModel"}),
        Fault::Unsupported,
        &["nearest that it knows is `UNet2DConditionModel`"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn arbitrary_values_never_panic(name in prop::sample::select(DIFFUSION.to_vec()), edits in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4)) {
        let name = format!("goldens/{name}");
        let text = std::fs::read(fixture(&name).join("config.json")).expect("fixture");
        let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
        let keys: Vec<String> = config.keys().filter(|key| *key != "_class_name").cloned().collect();
        for (at, value) in edits {
            config.insert(at.get(&keys).clone(), value);
        }
        let folder = Folder::patched(&name, &json!({})).with("config.json", Value::from(config).to_string().as_bytes());
        let _ = import_folder(&folder);
    }
}
