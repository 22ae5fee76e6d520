//! Graphs in text form that are made to keep the parser busy: each takes time that grows with its
//! length, or is refused.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use dlc_ir::cost::cost;
use dlc_ir::{Graph, IrError, parse_graph};

/// Parses within a time that only quadratic work exceeds.
fn parse(text: &str) -> Result<Graph, IrError> {
    let start = Instant::now();
    let parsed = parse_graph(text);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?} for {} bytes",
        start.elapsed(),
        text.len()
    );
    parsed.map(|(graph, weights)| {
        cost(&graph, &weights);
        graph
    })
}

/// A graph of these lines.
fn graph(lines: impl IntoIterator<Item = String>) -> String {
    format!(
        "graph target {{\n{}\n}}\n",
        lines.into_iter().collect::<Vec<_>>().join("\n")
    )
}

fn many(n: usize, line: impl Fn(usize) -> String) -> impl Iterator<Item = String> {
    (0..n).map(line)
}

fn refused(text: &str, reason: &str) {
    let error = parse(text).unwrap_err().to_string();
    assert!(error.contains(reason) && error.len() < 1000, "{error}");
}

#[test]
fn sums_axes_and_operands_are_counted_first() {
    let sum = many(100_000, |i| format!("s{i}"))
        .collect::<Vec<_>>()
        .join("+");
    refused(
        &graph([format!("input attention_mask: i64[batch, {sum}]")]),
        "an axis has more than 64 terms",
    );
    let product = vec!["a"; 100_000].join("*");
    refused(
        &graph([format!("input x: f32[{product}]")]),
        "a term has more than 8 factors",
    );
    refused(
        &graph([format!("input x: f32[{}]", "a, ".repeat(100_000))]),
        "more than 32 axes",
    );
    refused(
        &graph(["input x: f32[4294967296, 4294967296]".to_owned()]),
        "more elements than can be counted",
    );
    let operands = "%x, ".repeat(100_000);
    refused(
        &graph([
            "input x: f32[a, 4]".to_owned(),
            format!("%0 = concat {operands}%x axis=0 : f32[a, 4]"),
        ]),
        "more than 1024 operands",
    );
    let attributes = many(100_000, |i| format!(" k{i}=1")).collect::<String>();
    refused(
        &graph([
            "input x: f32[a, 4]".to_owned(),
            format!("%0 = silu %x{attributes} : f32[a, 4]"),
        ]),
        "more than 1024 operands",
    );
}

#[test]
fn axes_that_double_from_line_to_line_end_at_the_limit() {
    let terms = |n: usize| vec!["a"; n].join("+");
    let doubled = many(10, |i| {
        let input = if i == 0 {
            "x".to_owned()
        } else {
            (i - 1).to_string()
        };
        format!(
            "%{i} = concat %{input}, %{input} axis=0 : f32[{}, 4]",
            terms(2 << i)
        )
    });
    refused(
        &graph(std::iter::once("input x: f32[a, 4]".to_owned()).chain(doubled)),
        "an axis has more than 64 terms",
    );
}

#[test]
fn many_inputs_nodes_blocks_outputs_and_weights_take_linear_time() {
    let x = || std::iter::once("input x: f32[a, 4]".to_owned());
    let output = || std::iter::once("output y = %x".to_owned());
    let inputs = parse(&graph(many(300_000, |i| format!("input x{i}: f32[a, 4]")))).unwrap();
    assert_eq!(inputs.inputs().len(), 300_000);
    refused(
        &graph(many(300_000, |i| {
            format!("input x{}: f32[a, 4]", i % 299_999)
        })),
        "defined twice",
    );
    let nodes = parse(&graph(
        x().chain(many(100_000, |i| format!("%{i} = silu %x : f32[a, 4]")))
            .chain(output()),
    ))
    .unwrap();
    assert_eq!(nodes.nodes().count(), 100_000);
    let block = |i| {
        format!(
            "block b{i} (mlp layer={i}) from %x {{\n%b{i}.0 = silu %x : f32[a, 4]\n}} to %b{i}.0"
        )
    };
    let blocks = parse(&graph(x().chain(many(50_000, block)).chain(output()))).unwrap();
    assert_eq!(blocks.blocks().count(), 50_000);
    assert_eq!(
        parse(&graph(
            x().chain(many(300_000, |i| format!("output y{i} = %x")))
        ))
        .unwrap()
        .outputs()
        .len(),
        300_000
    );
    let weights = many(300_000, |i| format!("weight @w{i}: f32[4]\n")).collect::<String>();
    parse(&(graph(x().chain(output())) + &weights)).unwrap();
}

#[test]
fn blocks_do_not_nest_however_often_they_are_opened() {
    let lines = std::iter::once("input x: f32[a, 4]".to_owned()).chain(many(300_000, |i| {
        format!("block b{i} (mlp layer=0) from %x {{")
    }));
    refused(&graph(lines), "stands inside another");
}

#[test]
fn everything_that_is_wrong_with_a_large_graph_is_a_short_message() {
    let blocks = many(50_000, |i| {
        format!("block b{i} (mlp layer=0) from %x {{\n}} to %x")
    });
    refused(
        &graph(std::iter::once("input x: f32[a, 4]".to_owned()).chain(blocks)),
        "the block has no nodes",
    );
    refused(
        &graph([format!("input x: {}", "f".repeat(1 << 20))]),
        "ffff...",
    );
}
