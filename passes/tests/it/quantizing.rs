//! What quantize-draft leaves in the module, what it reports, and what it refuses.

use std::collections::BTreeMap;

use dlc_errors::Faulty;
use dlc_eval::run;
use dlc_ir::cost::{cost, quantized_matrices};
use dlc_ir::{
    Experts, Graph, GroupFormat, Module, Op, Quantizer, Refinement, Task, WeightTable, verify,
};
use dlc_passes::quantize::{matrices, perturbation, quantize_block};

use super::fakes::{fact, report_text, run_all};
use super::model::{EXPERTS, Model, assert_close, feeds, samples};

const FORMAT: GroupFormat = GroupFormat {
    bits: 4,
    group_size: 32,
};

/// What the parts of a quantised weight stand for, by hand.
fn dequantized(weights: &WeightTable, name: &str, format: GroupFormat, columns: usize) -> Vec<f32> {
    let part = |suffix: &str| {
        weights
            .find(&format!(
                "{name}.int{}x{}.{suffix}",
                format.bits, format.group_size
            ))
            .map(|id| weights[id].to_f32().unwrap())
    };
    let (codes, scales, zeros) = (
        part("codes").unwrap(),
        part("scales").unwrap(),
        part("zero_points"),
    );
    let code = |bytes: &[f32], i: usize| {
        if format.bits == 4 {
            (bytes[i / 2] as u32 >> (4 * (i % 2)) & 15) as f32
        } else {
            bytes[i]
        }
    };
    let (blocks, middle) = (
        columns.div_ceil(format.group_size),
        if format.bits == 4 { 8.0 } else { 128.0 },
    );
    let (row_codes, row_zeros) = (
        blocks * format.group_size * format.bits / 8,
        (blocks * format.bits).div_ceil(8),
    );
    let entry = |row: usize, column: usize| {
        let block = column / format.group_size;
        let zero = zeros
            .as_ref()
            .map_or(middle, |zeros| code(&zeros[row * row_zeros..], block));
        (code(&codes[row * row_codes..], column) - zero) * scales[row * blocks + block]
    };
    let rows = scales.len() / blocks;
    (0..rows * columns)
        .map(|i| entry(i / columns, i % columns))
        .collect()
}

fn quantized_nodes(graph: &Graph) -> Vec<String> {
    let name = |node: &dlc_ir::Node| {
        node.block
            .map_or("head".to_owned(), |b| graph.block(b).name.clone())
    };
    let mut names: Vec<String> = graph
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::QuantizedLinear(_)))
        .map(|(_, n)| name(n))
        .collect();
    names.dedup();
    names
}

fn logits(graph: &Graph, weights: &WeightTable, tokens: &[u32]) -> Vec<f32> {
    run(graph, weights, &feeds(graph, tokens)).unwrap()["logits"]
        .as_f32()
        .unwrap()
        .to_vec()
}

#[test]
fn without_a_draft_a_copy_of_the_target_is_quantised() {
    let before = Model::decoder().module();
    let mut module = before.clone();
    let runs = run_all(&[("quantize-draft", "")], &mut module).unwrap();
    let names: Vec<&str> = module.graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["target", "draft"]);
    assert_eq!(
        module.graphs[0].to_text(&module.weights),
        before.graphs[0].to_text(&before.weights)
    );
    let draft = &module.graphs[1];
    assert_eq!(verify::verify(draft, &module.weights), []);
    insta::assert_snapshot!("quantised_draft", draft.to_text(&module.weights));
    insta::assert_snapshot!("quantised_report", report_text(&runs[0].report));
}

#[test]
fn the_draft_computes_what_its_codes_stand_for() {
    let all = [
        "",
        "bits: 8",
        "symmetric: false",
        "bits: 8, symmetric: false, method: rtn",
        "group_size: 64",
    ];
    let edits: [&[_]; 2] = [&[], &EXPERTS];
    let cases = edits
        .iter()
        .flat_map(|edits| all.map(|options| (*edits, options)));
    for (edits, options) in cases {
        let mut module = Model::edited(edits).module();
        run_all(
            &[(
                "quantize-draft",
                &format!(
                    "head: none{}{options}",
                    if options.is_empty() { "" } else { ", " }
                ),
            )],
            &mut module,
        )
        .unwrap();
        let format = GroupFormat {
            bits: if options.contains("bits: 8") { 8 } else { 4 },
            group_size: if options.contains("64") { 64 } else { 32 },
        };
        let mut by_hand = Model::edited(edits);
        for matrix in matrices(&module.graphs[0], &module.weights)
            .into_iter()
            .filter(|m| !m.is_head)
        {
            let weight = &module.weights[matrix.weight];
            *by_hand.numbers(&weight.name) =
                dequantized(&module.weights, &weight.name, format, weight.shape[1]);
        }
        let expected = by_hand.module();
        for tokens in samples() {
            let (a, b) = (
                logits(&module.graphs[1], &module.weights, &tokens),
                logits(&expected.graphs[0], &expected.weights, &tokens),
            );
            assert!(
                a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4),
                "{options}"
            );
        }
    }
}

#[test]
fn experts_are_quantised_and_what_chooses_them_is_not() {
    let mut module = Model::edited(&EXPERTS).module();
    run_all(
        &[("quantize-draft", "blocks: layers.1.mlp, head: none")],
        &mut module,
    )
    .unwrap();
    let draft = &module.graphs[1];
    assert_eq!(verify::verify(draft, &module.weights), []);
    let block: Vec<&Op> = draft
        .nodes()
        .filter(|(_, node)| {
            node.block
                .is_some_and(|b| draft.block(b).name == "layers.1.mlp")
        })
        .map(|(_, node)| &node.op)
        .collect();
    let experts = Experts {
        top: 2,
        normalized: true,
        format: Some(FORMAT),
    };
    assert_eq!(block[1..3], [&Op::Linear, &Op::Experts(experts)]);
    // Gates, ups and downs of three experts, codes and scales.
    let bytes = 3 * (2 * 8 * (16 + 4) + 12 * (16 + 4));
    let quantized: u64 = quantized_matrices(draft, &module.weights)
        .map(|m| m.bytes)
        .sum();
    assert_eq!(quantized, bytes);
    let [target, draft] = [0, 1].map(|at| cost(&module.graphs[at], &module.weights));
    assert_eq!(target.parameters, draft.parameters);
    assert_eq!(target.flops_per_token, draft.flops_per_token);
}

#[test]
fn a_pruned_draft_is_quantised_in_its_place_and_blocks_may_be_chosen() {
    let prune = (
        "fit-prune",
        "drop: 1, score: kl, protect_first: 1, protect_last: 1",
    );
    let all = [
        "layers.0.attn",
        "layers.0.mlp",
        "layers.2.attn",
        "layers.2.mlp",
        "head",
    ];
    let cases: [(&str, &[&str]); 4] = [
        ("", &all),
        ("head: none", &all[..4]),
        (
            "blocks: layers.0",
            &["layers.0.attn", "layers.0.mlp", "head"],
        ),
        (
            "blocks: layers.2.mlp+layers.0.attn, head: none",
            &["layers.0.attn", "layers.2.mlp"],
        ),
    ];
    for (options, quantised) in cases {
        let mut module = Model::decoder().module();
        run_all(&[prune, ("quantize-draft", options)], &mut module).unwrap();
        assert_eq!(module.graphs.len(), 2, "{options}");
        assert_eq!(
            quantized_nodes(module.graph("draft").unwrap()),
            quantised,
            "{options}"
        );
    }
    // What one pass leaves, another may quantise in its own way.
    let mut module = Model::decoder().module();
    let runs = run_all(
        &[
            prune,
            ("quantize-draft", "blocks: layers.0, head: none"),
            ("quantize-draft", "bits: 8"),
        ],
        &mut module,
    )
    .unwrap();
    let draft = module.graph("draft").unwrap();
    assert_eq!(quantized_nodes(draft), all);
    let bits = |wanted| {
        draft
            .nodes()
            .filter(|(_, n)| matches!(n.op, Op::QuantizedLinear(f) if f.bits == wanted))
            .count()
    };
    assert_eq!((bits(4), bits(8)), (7, 8));
    assert_eq!(fact(&runs[6..], "matrices"), Some("8"));
}

#[test]
fn perturbations_are_what_quantising_does_and_blocks_are_quantised_one_by_one() {
    let Module {
        mut graphs,
        mut weights,
        ..
    } = Model::decoder().module();
    for quantizer in [
        Quantizer {
            format: FORMAT,
            symmetric: true,
            refinement: Refinement::Hqq,
        },
        Quantizer {
            format: GroupFormat { bits: 8, ..FORMAT },
            symmetric: false,
            refinement: Refinement::None,
        },
    ] {
        let block = graphs[0]
            .find_block(if quantizer.symmetric {
                "layers.1.attn"
            } else {
                "layers.0.mlp"
            })
            .unwrap();
        let touched: Vec<_> = matrices(&graphs[0], &weights)
            .into_iter()
            .filter(|m| m.block == Some(block))
            .collect();
        let said: BTreeMap<_, _> = touched
            .iter()
            .map(|m| {
                (
                    m.weight,
                    perturbation(&weights[m.weight], &quantizer).unwrap(),
                )
            })
            .collect();
        quantize_block(&mut graphs[0], &mut weights, block, &quantizer).unwrap();
        assert_eq!(verify::verify(&graphs[0], &weights), []);
        for (id, said) in said {
            let weight = &weights[id];
            let made = dequantized(&weights, &weight.name, quantizer.format, weight.shape[1]);
            let squares = made
                .iter()
                .zip(weight.to_f32().unwrap())
                .map(|(a, b)| f64::from(a - b).powi(2));
            assert_close(
                &weight.name,
                said.mean_square,
                squares.sum::<f64>() / made.len() as f64,
                1e-3,
            );
            assert!(
                said.mean_square <= said.mean_square_nearest && (0.0..=1.0).contains(&said.refined)
            );
        }
    }
    assert_eq!(
        quantized_nodes(&graphs[0]),
        ["layers.0.mlp", "layers.1.attn"]
    );
}

#[test]
fn what_can_not_be_quantised_is_rejected() {
    let half = Model::edited(&[("f32[", "bf16[")]).module();
    let mut encoder = Model::decoder().module();
    encoder.model.task = Task::FillMask;
    let mut quantised = Model::decoder().module();
    run_all(&[("quantize-draft", "")], &mut quantised).unwrap();
    let mut broken = Model::decoder();
    broken.numbers("1.up")[5] = f32::NAN;
    let cases = [
        ("bits: 3", Model::decoder().module()),
        ("group_size: 48", Model::decoder().module()),
        ("group_size: 16", Model::decoder().module()),
        ("refine: none", Model::decoder().module()),
        ("method: hqq2", Model::decoder().module()),
        ("head: false", Model::decoder().module()),
        ("bits: mixed, budget: 3", Model::decoder().module()),
        ("samples: 1", Model::decoder().module()),
        ("symmetric: maybe", Model::decoder().module()),
        ("blocks: layers.0+layers.7", Model::decoder().module()),
        ("blocks: layers.0.at", Model::decoder().module()),
        ("bit: 4", Model::decoder().module()),
        ("# bf16", half),
        ("# an encoder", encoder),
        ("# twice", quantised),
        ("# not a number", broken.module()),
    ];
    let mut report = Vec::new();
    for (options, module) in cases {
        let mut after = module.clone();
        let given = if options.starts_with('#') {
            ""
        } else {
            options
        };
        let error = run_all(&[("quantize-draft", given)], &mut after).expect_err(options);
        assert_eq!(after.graphs, module.graphs, "{options}");
        report.push(format!("{options}\n    {:?}: {error}", error.fault()));
    }
    insta::assert_snapshot!(report.join("\n"));
}
