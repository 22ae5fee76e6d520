//! The IR's behaviour on graphs in text form.
#![allow(missing_docs, clippy::unwrap_used)]

use dlc_ir::cost::cost;
use dlc_ir::diff::diff;
use dlc_ir::{
    BlockKind, DType, EntityId, Graph, GraphBuilder, IrError, Node, Op, Operand, Output, ValueId,
    ValueType, WeightTable, parse_graph, parse_graph_over, verify,
};
use proptest::prelude::*;

const DECODER: &str = include_str!("graphs/decoder.dlc");

fn decoder() -> (Graph, WeightTable) {
    parse_graph(DECODER).unwrap()
}

/// Parses the decoder with `from` replaced by `to`, and returns the error.
fn rejection(from: &str, to: &str) -> String {
    assert!(DECODER.contains(from), "the decoder has no `{from}`");
    parse_graph(&DECODER.replacen(from, to, 1))
        .unwrap_err()
        .to_string()
}

#[test]
fn text_is_parsed_and_printed_back_unchanged() {
    let (graph, weights) = decoder();
    let text = graph.to_text(&weights);
    assert_eq!(text, DECODER);
    assert_eq!(parse_graph_over(&text, &weights).unwrap(), graph);
}

#[test]
fn every_scaling_of_rotations_is_parsed_and_printed_back_unchanged() {
    let linear = "scaling=linear factor=2.0";
    let scalings = [
        "scaling=dynamic factor=2.0 original=64",
        "scaling=yarn factor=4.0 fast=32.0 slow=1.0 original=64 truncate=false attention=1.1",
        "scaling=longrope original=64 attention=1.25 short=1.0,1.5 long=2.0,1e-5",
    ];
    for scaling in scalings {
        let text = DECODER.replace(linear, scaling);
        let (graph, weights) = parse_graph(&text).unwrap();
        assert_eq!(graph.to_text(&weights), text);
    }
    let lists = [
        ("short=1.0", "`short=` and `long=` must hold 2 numbers each"),
        ("short=1.0,x", "`x`"),
    ];
    for (list, part) in lists {
        let scaling = format!("scaling=longrope original=64 attention=1.0 {list} long=1.0,2.0");
        let error = rejection(linear, &scaling);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn broken_text_is_rejected_with_its_line() {
    let cases = [
        ("graph target {", "grape target {"),
        (
            "%0 = gather @embed, %input_ids",
            "%0 = gather @embed, %input_id",
        ),
        ("%0 = gather @embed", "%0 = gather @nothing"),
        ("%0 = gather", "%0 = scatter"),
        ("heads=2 theta=10000.0", "theta=10000.0"),
        ("heads=2 theta=10000.0", "heads=3 theta=10000.0"),
        ("scaling=linear", "scaling=spiral"),
        ("kv_heads=1", "kv_heads=0"),
        (
            "f32[batch, 1, past, 4] (cache layer=0 key)",
            "f32[batch, 1, past, 5] (cache layer=0 key)",
        ),
        ("i64[batch, past+seq]", "i64[batch, past]"),
        ("i64[batch, past+seq]", "i64[batch, past+]"),
        ("(mlp layer=0)", "(moe layer=0)"),
        ("(mlp layer=0)", "(mlp layer=99999999999)"),
        ("weight @norm: f32[8]", "weight @norm: f32[9]"),
        (
            "weight @norm: f32[8]",
            "weight @norm: f32[4294967296, 4294967296, 4294967296]",
        ),
        ("weight @norm: f32[8]", "weight @k: f32[8]"),
        ("weight @q: f32[8, 8]", "weight @q: f32[]"),
        ("weight @q.bias: f32[8]", "weight @q.bias: f32[]"),
        (
            "output present.1.key = %layers.1.attn.3 (cache",
            "output present.1.key = %input_ids (cache",
        ),
        (
            "  output logits = %2\n",
            "  output logits = %2\n  output logits = %1\n",
        ),
        ("  input position_ids", "  input input_ids"),
        ("%layers.0.mlp.1 =", "%layers.0.mlp.0 ="),
        ("} to %layers.0.mlp.3", "} to %0"),
        ("from %layers.0.attn.9 {", "from %1 {"),
        (
            "output present.0.key = %layers.0.attn.7 (cache layer=0 key)",
            "output present.0.key = %layers.0.attn.7",
        ),
        (
            "  output present.0.key = %layers.0.attn.7 (cache layer=0 key)",
            "  output present.0.key = %layers.0.attn.7 (cache layer=7 key)",
        ),
        ("rms_norm %layers.0.attn.9", "rms_norm %layers.0.attn.6"),
        ("\n}\n", "\n"),
    ];
    let report: Vec<String> = cases
        .iter()
        .map(|(from, to)| {
            format!(
                "{} -> {}\n    {}",
                from.trim(),
                to.trim(),
                rejection(from, to)
            )
        })
        .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn a_bypassed_layer_leaves_with_its_cache_and_its_weights() {
    let (target, weights) = decoder();
    let mut draft = target.clone();
    draft.name = "draft".into();
    for name in ["layers.0.attn", "layers.0.mlp"] {
        draft.bypass(draft.find_block(name).unwrap()).unwrap();
        verify::check(&draft, &weights).unwrap_or_else(|e| panic!("after {name}: {e}"));
    }
    assert_eq!(draft.remove_dead(), 12);
    assert_eq!(
        draft.remove_unused_inputs(),
        ["past_key_values.0.key", "past_key_values.0.value"]
    );
    assert_eq!(draft.renumber_caches(), [1]);
    assert_eq!(verify::verify(&draft, &weights), []);
    assert_eq!(draft.weights().len(), 2);
    insta::assert_snapshot!(diff((&target, &weights), (&draft, &weights)));
}

#[test]
fn a_graph_does_not_differ_from_itself() {
    let (graph, weights) = decoder();
    let same = diff((&graph, &weights), (&graph, &weights));
    assert!(same.is_empty());
    assert_eq!(
        same.kept,
        ["layers.0.attn", "layers.0.mlp", "layers.1.attn"]
    );
}

#[test]
fn only_blocks_of_some_kinds_may_change_their_type() {
    let text = |kind: &str| {
        format!(
            "graph target {{
  input x: f32[batch, 2, 4, 4]
  block b ({kind} layer=0) from %x {{
    %b.0 = upsample_nearest %x factor=2 : f32[batch, 2, 8, 8]
  }} to %b.0
  output y = %b.0
}}"
        )
    };
    for kind in BlockKind::ALL {
        let parsed = parse_graph(&text(kind.name()));
        assert_eq!(parsed.is_ok(), !kind.keeps_type(), "{}", kind.name());
        if let Err(error) = parsed {
            assert!(
                error
                    .to_string()
                    .contains("V6 at b: its residual input and output are of different types"),
                "{error}"
            );
        }
    }
}

#[test]
fn ops_on_images_are_refused_where_their_inputs_do_not_fit() {
    let cases = [
        (
            "conv2d %x, @k stride=0 padding=0,0 : f32[batch, 3, 2, 2]",
            "has no place",
        ),
        (
            "conv2d %x, @k stride=1 padding=0,18446744073709551615 : f32[batch, 3, 2, 2]",
            "has no place",
        ),
        (
            "conv2d %x, @large stride=1 padding=0,0 : f32[batch, 3, 2, 2]",
            "has no place",
        ),
        (
            "conv2d %x, @v stride=1 padding=0,0 : f32[batch, 3, 2, 2]",
            "is not [out, in, height, width]",
        ),
        (
            "conv2d %x, @k, @v stride=1 padding=0,0 : f32[batch, 3, 2, 2]",
            "the bias is not f32[3]",
        ),
        (
            "conv2d %t, @k stride=1 padding=0,0 : f32[batch, 3, 2, 2]",
            "is not [batch, channels, height, width]",
        ),
        (
            "conv2d %x, @k stride=1 padding=1 : f32[batch, 3, 4, 4]",
            "two numbers",
        ),
        (
            "group_norm %x, @v, @v groups=0 eps=1e-5 : f32[batch, 2, 4, 4]",
            "0 groups don't divide",
        ),
        (
            "group_norm %x, @v, @v groups=3 eps=1e-5 : f32[batch, 2, 4, 4]",
            "3 groups don't divide",
        ),
        (
            "upsample_nearest %x factor=0 : f32[batch, 2, 0, 0]",
            "0 times as large",
        ),
        (
            "upsample_nearest %x factor=18446744073709551615 : f32[batch, 2, 4, 4]",
            "times as large",
        ),
        ("concat %x axis=1 : f32[batch, 2, 4, 4]", "2 or more inputs"),
        ("concat %x, %x axis=4 : f32[batch, 2, 4, 4]", "no axis 4"),
        (
            "concat %x, %t axis=1 : f32[batch, 2, 4, 4]",
            "inputs differ",
        ),
        (
            "transpose %x axes=0,1,2 : f32[batch, 2, 4]",
            "are not the axes",
        ),
        (
            "transpose %x axes=0,1,1,3 : f32[batch, 2, 2, 4]",
            "are not the axes",
        ),
        (
            "timestep_embedding %t dim=7 flip_sin_to_cos=true shift=0.0 : f32[batch, 7]",
            "7 wide",
        ),
        (
            "timestep_embedding %t dim=8 flip_sin_to_cos=true shift=4.0 : f32[batch, 8]",
            "a shift of 4",
        ),
        (
            "timestep_embedding %t dim=8 flip_sin_to_cos=true shift=NaN : f32[batch, 8]",
            "a shift of NaN",
        ),
        ("add %x, @v : f32[batch, 2, 4, 4]", "inputs differ"),
        ("add @v, %x : f32[2]", "inputs differ"),
        ("modulate %x, %x : f32[batch, 2, 4, 4]", "takes 3 inputs"),
        (
            "layer_norm %x, @v, @v, @v eps=1e-5 : f32[batch, 2, 4, 4]",
            "takes 1 to 3 inputs",
        ),
    ];
    for (node, part) in cases {
        let weights =
            "weight @k: f32[3, 2, 3, 3]\nweight @large: f32[3, 2, 5, 5]\nweight @v: f32[2]";
        let text = format!(
            "graph g {{\n  input x: f32[batch, 2, 4, 4]\n  input t: f32[batch]\n  %0 = {node}\n  output y = %0\n}}\n{weights}"
        );
        let error = parse_graph(&text).expect_err(node).to_string();
        assert!(error.contains(part), "{node}: {error}");
    }
}

/// What parsing makes of one node over an image of any height and width, and halves of it.
fn over_any_size(node: &str) -> Result<Graph, String> {
    let text = format!(
        "graph g {{
  input x: f32[batch, 2, height, width]
  input up: f32[batch, 2, ceil(height/2), ceil(width/2)]
  input down: f32[batch, 2, floor(height/2), floor(width/2)]
  %0 = {node}
  output y = %0
}}
weight @k: f32[2, 2, 3, 3]
weight @large: f32[2, 2, 5, 5]"
    );
    parse_graph(&text)
        .map(|(graph, _)| graph)
        .map_err(|error| error.to_string())
}

#[test]
fn sizes_of_images_may_be_symbols_that_are_halved_and_doubled() {
    for node in [
        "conv2d %x, @k stride=1 padding=1,1 : f32[batch, 2, height, width]",
        "conv2d %x, @k stride=2 padding=1,1 : f32[batch, 2, ceil(height/2), ceil(width/2)]",
        "conv2d %x, @k stride=2 padding=0,1 : f32[batch, 2, floor(height/2), floor(width/2)]",
        "conv2d %up, @k stride=2 padding=1,1 : f32[batch, 2, ceil(height/4), ceil(width/4)]",
        "upsample_nearest %x factor=2 : f32[batch, 2, 2*height, 2*width]",
        "upsample_nearest %up, %x factor=2 : f32[batch, 2, height, width]",
        "upsample_nearest %down, %x factor=2 : f32[batch, 2, height, width]",
        "reshape %up : f32[batch, ceil(height/2)*ceil(width/2), 2]",
        "reshape %x : f32[2*batch*width, height]",
    ] {
        over_any_size(node).unwrap_or_else(|error| panic!("{node}: {error}"));
    }
    for (node, part) in [
        (
            "conv2d %x, @large stride=1 padding=1,1 : f32[batch, 2, height, width]",
            "no number of places",
        ),
        (
            "conv2d %down, @k stride=2 padding=1,1 : f32[batch, 2, ceil(height/4), ceil(width/4)]",
            "no number of places",
        ),
        (
            "upsample_nearest %up, %x factor=4 : f32[batch, 2, height, width]",
            "doesn't end with",
        ),
        (
            "upsample_nearest %up factor=2 : f32[batch, 2, height, width]",
            "not the types written here",
        ),
        (
            "concat %x, %up axis=1 : f32[batch, 4, height, width]",
            "inputs differ",
        ),
        (
            "reshape %up : f32[batch, ceil(height/2)*ceil(height/2), 2]",
            "as many elements",
        ),
        (
            "silu %x : f32[batch, 2, ceil(height/0), width]",
            "not an axis",
        ),
        (
            "silu %x : f32[batch, 2, round(height/2), width]",
            "not an axis",
        ),
    ] {
        let error = over_any_size(node).expect_err(node);
        assert!(error.contains(part), "{node}: {error}");
    }
}

const QUANTIZED: &str = "graph target {
  input x: f32[batch, 40]
  %0 = quantized_linear %x, @codes, @scales, @zeros, @bias bits=4 group_size=16 : f32[batch, 6]
  %1 = gather_columns %0, @columns : f32[batch, 9]
  output y = %1
}
weight @codes: u8[6, 3, 8]
weight @scales: f32[6, 3]
weight @zeros: u8[6, 2]
weight @bias: f32[6]
weight @columns: i64[9]
";

#[test]
fn relative_positions_are_refused_where_their_inputs_do_not_fit() {
    let over_a_text = |node: &str| {
        let text = format!(
            "graph g {{
  input x: f32[batch, seq, 4]
  input other: f32[batch, text, 4]
  %0 = {node}
  output y = %0
}}
weight @table: f32[8, 2]
weight @odd: f32[6, 2]"
        );
        parse_graph(&text).map_err(|error| error.to_string())
    };
    let fits = "bucketed_bias %x, @table buckets=8 until=4 : f32[1, 2, seq, seq]";
    over_a_text(fits).expect("fits");
    for (node, part) in [
        (
            "bucketed_bias %x, @odd buckets=6 until=4 : f32[1, 2, seq, seq]",
            "6 buckets can't be shared up to distance 4",
        ),
        (
            "bucketed_bias %x, @table buckets=8 until=2 : f32[1, 2, seq, seq]",
            "8 buckets can't be shared up to distance 2",
        ),
        (
            "bucketed_bias %x, @table buckets=4 until=4 : f32[1, 2, seq, seq]",
            "no table of 4 rows",
        ),
        (
            "attention %x, %other, %other heads=2 kv_heads=2 scale=1.0 window=2 causal=false : f32[batch, seq, 4]",
            "a window over one sequence only",
        ),
        (
            "attention %x, %x, %x heads=2 kv_heads=2 scale=1.0 softcap=2.0 causal=false : f32[batch, seq, 4]",
            "no cap in both directions",
        ),
    ] {
        let error = over_a_text(node).expect_err(node);
        assert!(error.contains(part), "{node}: {error}");
    }
}

#[test]
fn quantised_products_are_printed_parsed_and_counted() {
    let (graph, weights) = parse_graph(QUANTIZED).unwrap();
    assert_eq!(graph.to_text(&weights), QUANTIZED);
    let cost = cost(&graph, &weights);
    assert_eq!(
        (cost.parameters, cost.flops_per_token),
        (6 * 40 + 6, 2 * 6 * 40)
    );
    assert_eq!(cost.weight_bytes, 144 + 72 + 12 + 24 + 72);
}

#[test]
fn quantised_products_are_refused_where_their_parts_do_not_fit() {
    let cases = [
        ("bits=4", "bits=3"),
        ("group_size=16", "group_size=48"),
        ("group_size=16", "group_size=32"),
        ("u8[6, 3, 8]", "u8[6, 3, 16]"),
        ("u8[6, 3, 8]", "f32[6, 3, 8]"),
        ("f32[6, 3]", "f16[6, 3]"),
        ("u8[6, 2]", "u8[6, 3]"),
        ("f32[6]", "f32[7]"),
        ("f32[6]", "u8[6]"),
        ("@scales, @zeros, @bias", "@scales, @bias, @zeros"),
        ("x: f32[batch, 40]", "x: i64[batch, 40]"),
        ("i64[9]", "f32[9]"),
        ("i64[9]", "i64[9, 1]"),
    ];
    let rejection = |(from, to): &(&str, &str)| {
        format!(
            "{from} -> {to}\n    {}",
            parse_graph(&QUANTIZED.replacen(from, to, 1)).unwrap_err()
        )
    };
    insta::assert_snapshot!(cases.iter().map(rejection).collect::<Vec<_>>().join("\n"));
}

#[test]
fn nodes_are_replaced_and_outputs_extended_only_where_types_fit() {
    let (graph, weights) = parse_graph(QUANTIZED).unwrap();
    let columns = Operand::Weight(weights.find("columns").unwrap());
    let mut extended = graph.clone();
    extended
        .extend_output(&weights, "y", Op::GatherColumns, &[columns])
        .unwrap();
    assert!(
        extended
            .body_text(&weights)
            .contains("  %2 = gather_columns %1, @columns : f32[batch, 9]\n  output y = %2")
    );
    assert!(
        extended
            .extend_output(&weights, "z", Op::Relu, &[])
            .is_err()
    );
    assert!(
        extended
            .extend_output(&weights, "y", Op::Relu, &[columns])
            .is_err()
    );
    // What stands before a replaced node may change its type, and what reads it follows.
    let mut narrower = graph.clone();
    narrower
        .replace_nodes(&weights, |_, node| {
            (node.op == Op::GatherColumns).then(|| (Op::Relu, vec![node.inputs[0]]))
        })
        .unwrap();
    assert!(
        narrower
            .body_text(&weights)
            .contains("  %1 = relu %0 : f32[batch, 6]")
    );
    let broken = |_, node: &Node| Some((Op::Relu, node.inputs.clone()));
    let before = narrower.clone();
    assert!(narrower.replace_nodes(&weights, broken).is_err());
    assert_eq!(narrower, before);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*") {
        let _ = parse_graph(&text);
    }

    #[test]
    fn damaged_text_never_panics_and_what_still_parses_verifies(at in 0..DECODER.len(), len in 0..20usize, with in "[ -~\n]{0,8}") {
        let end = (at + len).min(DECODER.len());
        let text = format!("{}{with}{}", &DECODER[..at], &DECODER[end..]);
        if let Ok((graph, weights)) = parse_graph(&text) {
            prop_assert_eq!(verify::verify(&graph, &weights), vec![]);
            let (again, _) = parse_graph(&graph.to_text(&weights)).unwrap();
            prop_assert_eq!(again, graph);
        }
    }
}

#[test]
fn errors_tell_building_editing_missing_values_and_invalid_graphs_apart() {
    let mut builder = GraphBuilder::new("g", WeightTable::default());
    let vector = ValueType::new(DType::F32, [4.into()]);
    let x = builder.input("x", vector.clone(), None).unwrap();
    let nowhere = ValueId::from_index(9);
    let missing = builder.add(Op::Silu, [nowhere.into()]).unwrap_err();
    assert!(matches!(missing, IrError::Missing { .. }));
    assert_eq!(
        missing.to_string(),
        "graph g: operand 0 of silu is missing: nothing before makes it"
    );
    builder.open_block("a", BlockKind::Mlp, 0, x).unwrap();
    let nested = builder.open_block("b", BlockKind::Mlp, 0, x).unwrap_err();
    assert!(matches!(nested, IrError::Build { .. }));
    assert_eq!(
        nested.to_string(),
        "graph g: block b stands inside another, a; close that first"
    );
    let y = builder.add(Op::Silu, [x.into()]).unwrap();
    let late = builder.input("z", vector, None).unwrap_err();
    assert!(matches!(late, IrError::Build { .. }));
    builder.close_block(y).unwrap();
    for _ in 0..30 {
        builder.output("y", y, None);
    }
    let invalid = builder.finish().unwrap_err();
    let IrError::Invalid { violations, .. } = &invalid else {
        panic!("{invalid}");
    };
    assert_eq!(violations.len(), 29);
    assert!(invalid.to_string().ends_with("; and 5 more"), "{invalid}");

    let (mut graph, weights) = decoder();
    let before = graph.clone();
    let edit = graph.extend_output(&weights, "scores", Op::Silu, &[]);
    let edit = edit.unwrap_err();
    assert!(matches!(edit, IrError::Edit { .. }));
    assert!(
        edit.to_string()
            .starts_with("graph target: there is no output scores, but logits, "),
        "{edit}"
    );
    assert_eq!(graph, before);
}

const EXPERTS: &str = "graph target {
  input x: f32[batch, seq, 6]
  input logits: f32[batch, seq, 3]
  %0 = experts %x, %logits, @a.gate, @a.up, @a.down, @b.gate, @b.up, @b.down, @c.gate, @c.up, @c.down top=2 normalized=true : f32[batch, seq, 6]
  output y = %0
}
weight @a.gate: f32[4, 6]
weight @a.up: f32[4, 6]
weight @a.down: f32[6, 4]
weight @b.gate: f32[4, 6]
weight @b.up: f32[4, 6]
weight @b.down: f32[6, 4]
weight @c.gate: f32[4, 6]
weight @c.up: f32[4, 6]
weight @c.down: f32[6, 4]
";

#[test]
fn of_experts_a_token_costs_those_that_it_goes_through() {
    let (graph, weights) = parse_graph(EXPERTS).unwrap();
    assert_eq!(graph.to_text(&weights), EXPERTS);
    let cost = cost(&graph, &weights);
    assert_eq!(cost.parameters, 3 * 3 * 4 * 6);
    assert_eq!(cost.flops_per_token, 2 * 2 * 3 * 4 * 6);
    let sizes = [("batch", 2), ("seq", 5)].map(|(name, n)| (name.to_owned(), n));
    let macs = dlc_ir::cost::graph_macs(&graph, &weights, &sizes.into_iter().collect());
    assert_eq!(macs, Some(2 * 5 * cost.flops_per_token / 2));
}

#[test]
fn experts_are_refused_where_their_parts_do_not_fit() {
    let cases = [
        ("top=2", "top=0"),
        ("top=2", "top=4"),
        (", @c.down top", " top"),
        ("logits: f32[batch, seq, 3]", "logits: f32[batch, seq, 4]"),
        ("logits: f32[batch, seq, 3]", "logits: f16[batch, seq, 3]"),
        ("x: f32[batch, seq, 6]", "x: i64[batch, seq, 6]"),
        ("@a.gate: f32[4, 6]", "@a.gate: f32[6]"),
        ("@b.up: f32[4, 6]", "@b.up: f32[5, 6]"),
        ("@c.down: f32[6, 4]", "@c.down: f32[4, 6]"),
        ("@c.down: f32[6, 4]", "@c.down: f16[6, 4]"),
        ("normalized=true", "normalized=true bits=4 group_size=16"),
        ("normalized=true", "normalized=true bits=4"),
        (" normalized=true", ""),
    ];
    let rejection = |(from, to): &(&str, &str)| {
        format!(
            "{from} -> {to}\n    {}",
            parse_graph(&EXPERTS.replacen(from, to, 1)).unwrap_err()
        )
    };
    insta::assert_snapshot!(cases.iter().map(rejection).collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_boundary_changes_only_where_names_and_values_fit() {
    let (mut graph, weights) = decoder();
    let before = graph.clone();
    let named = |name: &str, graph: &Graph| Output {
        name: name.to_owned(),
        value: graph.outputs()[0].value,
        cache: None,
    };
    let twice = vec![named("a", &graph), named("a", &graph)];
    assert!(graph.set_outputs(&weights, twice).is_err());
    let taken = graph.rename_input(&weights, "input_ids", "position_ids");
    assert!(taken.is_err());
    let absent = graph.rename_input(&weights, "ids", "tokens").unwrap_err();
    assert!(absent.to_string().contains("input ids"), "{absent}");
    assert_eq!(graph, before);

    graph.rename_input(&weights, "input_ids", "tokens").unwrap();
    let both = vec![named("b", &graph), named("a", &graph)];
    graph.set_outputs(&weights, both).unwrap();
    let names: Vec<&str> = graph.outputs().iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    let text = graph.to_text(&weights);
    assert!(text.contains("gather @embed, %tokens"), "{text}");
    assert_eq!(parse_graph_over(&text, &weights).unwrap(), graph);
}
