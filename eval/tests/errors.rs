//! Whatever is fed, the answer is an error with its place, never a panic.

mod common;

use std::collections::BTreeMap;

use common::{Case, PAST};
use dlc_errors::{Fault, Faulty};
use dlc_eval::{Array, EvalError, Segment, Wanted, run};
use dlc_ir::{NodeId, WeightTable, parse_graph};
use proptest::prelude::*;

fn i64s(shape: &[usize], x: i64) -> Array {
    Array::i64(shape, vec![x; shape.iter().product()]).expect("fits")
}

fn f32s(shape: &[usize]) -> Array {
    Array::f32(shape, vec![0.5; shape.iter().product()]).expect("fits")
}

#[test]
fn rejects_feeds_that_do_not_fit() {
    let cases = [
        (
            "input_ids",
            Some(i64s(&[2, 3], 5)),
            "gather %0: id 5 is outside of the table's 5 rows",
        ),
        (
            "input_ids",
            Some(i64s(&[2, 3], -1)),
            "gather %0: id -1 is outside of the table's 5 rows",
        ),
        (
            "input_ids",
            Some(i64s(&[2, 4], 1)),
            "positions: axis 1 is 3 long, but `seq` is 4 by the other inputs",
        ),
        (
            "input_ids",
            Some(i64s(&[6], 1)),
            "input_ids: is i64[6], not i64[batch, seq]",
        ),
        (
            "input_ids",
            Some(f32s(&[2, 3])),
            "input_ids: is f32[2, 3], not i64[batch, seq]",
        ),
        ("input_ids", None, "input_ids: is not fed"),
        (
            "mask",
            Some(i64s(&[2, 5], 2)),
            "attention %layers.0.attn.6: mask holds 2, not 0 or 1",
        ),
        ("mask", Some(i64s(&[2, 2], 1)), "which can't be `past+seq`"),
        (
            "positions",
            Some(i64s(&[2, 3], -4)),
            "rope %layers.0.attn.2: position -4 is negative",
        ),
        (
            "positions",
            Some(i64s(&[1, 3], 0)),
            "positions: axis 0 is 1 long, but `batch` is 2",
        ),
        (
            "past_key_values.1.key",
            Some(f32s(&[2, 1, 1, 4])),
            "past_key_values.1.key: axis 2 is 1 long, but `past` is 2",
        ),
        (
            "past_key_values.1.key",
            Some(f32s(&[2, 2, 2, 4])),
            "past_key_values.1.key: axis 1 is 2 long, not 1",
        ),
        (
            "attention_mask",
            Some(f32s(&[1])),
            "attention_mask: is not an input; the inputs are input_ids, mask",
        ),
    ];
    let case = Case::load("decoder");
    let weights = case.weights();
    for (name, feed, problem) in cases {
        let mut feeds = case.feeds(PAST, 1);
        match feed {
            Some(array) => feeds.insert(name.to_owned(), array),
            None => feeds.remove(name),
        };
        let error = run(&case.graph, &weights, &feeds).expect_err(problem);
        assert!(
            error.to_string().contains(problem),
            "{error}\nisn't about\n{problem}"
        );
        assert!(error.to_string().starts_with("graph decoder, "), "{error}");
        assert_eq!(error.fault(), Fault::BadInput, "{error}");
    }
}

#[test]
fn rejects_arrays_that_do_not_fill_their_shape() {
    assert!(Array::f32([2, 3], vec![0.0; 5]).is_err());
    assert!(Array::i64([usize::MAX, 2], vec![0; 2]).is_err());
    assert!(Array::f32([0, 7], vec![]).is_ok());
}

#[test]
fn rejects_weights_without_data() {
    let (graph, declared) =
        parse_graph(&std::fs::read_to_string(common::cases().join("gather.txt")).expect("there"))
            .expect("parses");
    let feeds = BTreeMap::from([("ids".to_owned(), i64s(&[1, 1], 0))]);
    let error = run(&graph, &declared, &feeds).expect_err("no data");
    assert!(
        error.to_string().contains("weight table: has no data"),
        "{error}"
    );
    let nodes: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
    assert!(matches!(
        Segment::new(&graph, &declared, nodes.clone()),
        Err(EvalError::Weight { .. })
    ));
    assert_eq!(
        Segment::new(&graph, &WeightTable::default(), nodes)
            .expect_err("other weights")
            .fault(),
        Fault::Bug
    );
}

#[test]
fn rejects_segments_and_wishes_that_make_no_sense() {
    let case = Case::load("decoder");
    let weights = case.weights();
    let nodes: Vec<NodeId> = case.graph.nodes().map(|(id, _)| id).collect();
    let backwards: Vec<NodeId> = nodes.iter().rev().copied().collect();
    assert!(Segment::new(&case.graph, &weights, backwards).is_err());
    assert!(Segment::new(&case.graph, &weights, vec![nodes[0], nodes[0]]).is_err());
    let small = Case::load("rms_norm");
    assert!(Segment::new(&small.graph, &small.weights(), nodes.clone()).is_err());

    let segment = Segment::new(&case.graph, &weights, nodes[..3].to_vec()).expect("a segment");
    let known = case.known(&case.feeds(PAST, 1));
    let (ids, logits) = (case.value("input_ids"), case.value("logits"));
    let made = case.graph.node(nodes[2]).outputs[0];
    assert!(
        segment
            .forward(&known, &[logits])
            .expect_err("not here")
            .to_string()
            .contains("%2: is neither read nor made here")
    );
    assert!(
        segment
            .forward(&BTreeMap::new(), &[made])
            .expect_err("unknown")
            .to_string()
            .contains("%input_ids: is not known")
    );
    let vjp = |value, seed: &Array, wanted: Wanted| {
        segment
            .vjp(&known, &[(value, seed.clone())], &wanted)
            .expect_err("makes no sense")
            .to_string()
    };
    let fits = f32s(&[2, 3, 8]);
    assert!(vjp(made, &f32s(&[2, 3]), Wanted::default()).contains("its seed f32[2, 3]"));
    assert!(vjp(logits, &fits, Wanted::default()).contains("neither read nor made"));
    assert!(vjp(ids, &i64s(&[2, 3], 1), Wanted::default()).contains("holds integers"));
    assert!(
        vjp(
            made,
            &fits,
            Wanted {
                values: vec![ids],
                weights: vec![]
            }
        )
        .contains("holds integers")
    );
    let stranger = weights.find("norm").expect("there");
    assert!(
        vjp(
            made,
            &fits,
            Wanted {
                values: vec![],
                weights: vec![stranger]
            }
        )
        .contains("is not used here")
    );
}

#[test]
fn a_shape_that_no_input_explains_is_an_error() {
    let case = Case::parse(
        "graph odd {\n  input x: f32[a+b]\n  %0 = silu %x : f32[a+b]\n  %1 = reshape %0 : f32[1, a+b]\n  output y = %1\n}",
    );
    let outputs = run(
        &case.graph,
        &case.weights(),
        &BTreeMap::from([("x".to_owned(), f32s(&[4]))]),
    )
    .expect("the sum is known");
    assert_eq!(outputs["y"].shape(), [1, 4]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_feed_panics(
        sizes in proptest::collection::vec(0usize..3, 3),
        total in 0usize..5,
        ids in -1i64..6,
        mask in proptest::collection::vec(0i64..2, 8),
        position in prop_oneof![Just(i64::MIN), Just(i64::MAX), -1i64..4],
        odd in 0usize..12,
    ) {
        let case = Case::load("decoder");
        let [batch, seq, past] = [sizes[0], sizes[1], sizes[2]];
        let total = if total == 4 { 1 } else { past + seq };
        let mut feeds = BTreeMap::from([
            ("input_ids".to_owned(), i64s(&[batch, seq], ids)),
            ("mask".to_owned(), Array::i64([batch, total], mask[..batch * total].to_vec()).expect("fits")),
            ("positions".to_owned(), i64s(&[batch, seq], position)),
        ]);
        for input in case.graph.inputs().iter().filter(|i| i.cache.is_some()) {
            feeds.insert(input.name.clone(), f32s(&[batch, 1, past, 4]));
        }
        if let Some(input) = case.graph.inputs().get(odd) {
            feeds.insert(input.name.clone(), f32s(&sizes));
        }
        if let Ok(outputs) = run(&case.graph, &case.weights(), &feeds) {
            for array in outputs.values() {
                prop_assert!(array.as_f32().is_some_and(|x| x.iter().all(|x| x.is_finite())));
            }
        }
    }
}
