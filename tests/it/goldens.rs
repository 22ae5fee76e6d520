//! Every golden and every op on the evaluator and on tract.

use std::collections::BTreeSet;

use dlc_bundle::Profile;
use dlc_ir::{DType, Graph, Node, Op, OpKind, Operand, parse_graph, verify};
use dlc_passes::fold_constants;
use dlc_runtime::{BackendKind, BackendSearch, start};

use crate::common::diffusion::DIFFUSION;
use crate::common::golden::{ENCODERS, all_decoders, module};
use crate::common::ops::Sample;
use crate::common::session::Engine;
use crate::common::suite::{Half, comparisons};

fn tract(profile: Profile) -> Engine {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    Engine::Backend(start(&search).unwrap(), profile)
}

fn compare(engine: &Engine, half: Half) {
    let comparisons = comparisons(engine.name(), half).into_iter();
    let failures: Vec<String> = comparisons
        .filter_map(|comparison| {
            let error = (comparison.run)(engine).err()?;
            Some(format!("{}: {error}", comparison.title))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_evaluator_agrees_with_the_references() {
    compare(&Engine::Evaluator, Half::LeftOut);
}

#[test]
fn tract_agrees_with_the_references_in_portable() {
    compare(&tract(Profile::Portable), Half::Compared);
}

#[test]
fn tract_agrees_with_the_references_in_onnx() {
    compare(&tract(Profile::Onnx), Half::Compared);
}

/// Printing tells all of an op, and inference agrees with the types that the text states.
#[test]
fn every_op_is_printed_parsed_and_inferred() {
    for sample in Sample::all() {
        let text = sample.graph().to_text(&sample.module.weights);
        let (parsed, declared) = parse_graph(&text).unwrap();
        assert_eq!(parsed.to_text(&declared), text);
        let ops = |graph: &Graph| graph.nodes().map(|n| n.1.op.clone()).collect::<Vec<Op>>();
        assert_eq!(ops(&parsed), ops(sample.graph()), "{text}");
        verify::check(sample.graph(), &sample.module.weights).unwrap();
    }
}

/// Nothing that weights alone decide is left to be computed in every run.
#[test]
fn once_constants_are_folded_no_node_reads_weights_alone() {
    for name in ENCODERS
        .iter()
        .chain(DIFFUSION)
        .copied()
        .chain(all_decoders())
    {
        let mut module = module(name, DType::F32);
        let folded = fold_constants(&mut module).unwrap();
        assert_eq!(folded > 0, name.starts_with("deberta"), "{name}");
        for graph in &module.graphs {
            verify::check(graph, &module.weights).unwrap();
            let is_constant = |node: &Node| {
                let mut inputs = node.inputs.iter();
                inputs.all(|input| matches!(input, Operand::Weight(_)))
            };
            let left = graph.nodes().find(|(_, node)| is_constant(node));
            assert_eq!(left.map(|(_, node)| &node.op), None, "{name}");
        }
    }
}

#[test]
fn every_op_is_lowered_and_tract_agrees_with_the_evaluator() {
    let engines = [Profile::Portable, Profile::Onnx].map(tract);
    let samples = Sample::all();
    // tract doesn't run DequantizeLinear in blocks.
    let runs = |sample: &Sample, engine: &Engine| {
        !sample.is_quantized() || engine.name() == Profile::Portable.name()
    };
    let pairs = samples
        .iter()
        .flat_map(|s| engines.iter().map(move |e| (s, e)));
    let checks = pairs
        .filter(|(sample, engine)| runs(sample, engine))
        .map(|(sample, engine)| sample.check(engine));
    let failures: Vec<String> = checks.filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_op_has_a_sample_that_says_something() {
    let samples = Sample::all();
    let sampled: BTreeSet<OpKind> = samples.iter().map(|sample| sample.kind).collect();
    assert_eq!(sampled, OpKind::ALL.iter().copied().collect());
    for sample in samples {
        let output = sample.run(&Engine::Evaluator).unwrap();
        assert!(output.iter().any(|x| *x != 0.0), "{}", sample.name);
    }
}
