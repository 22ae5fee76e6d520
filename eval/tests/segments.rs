//! A graph segment by segment is the whole graph, forward and backward.

mod common;

use std::collections::BTreeMap;

use common::{Case, Noise, PAST, assert_close, numbers};
use dlc_eval::{Array, Segment, Values, Wanted, run};
use dlc_ir::{NodeId, ValueId, WeightId};

/// The nodes before the first block, of each block, and after the last.
fn pieces(case: &Case) -> Vec<Vec<NodeId>> {
    let mut pieces: Vec<Vec<NodeId>> = Vec::new();
    let mut last = None;
    for (id, node) in case.graph.nodes() {
        if last != Some(node.block) {
            pieces.push(Vec::new());
            last = Some(node.block);
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push(id);
        }
    }
    pieces
}

fn made(case: &Case, nodes: &[NodeId]) -> Vec<ValueId> {
    nodes
        .iter()
        .flat_map(|n| case.graph.node(*n).outputs.clone())
        .collect()
}

#[test]
fn segments_in_turn_give_the_outputs_of_the_whole_graph() {
    let case = Case::load("decoder");
    let weights = case.weights();
    for past in [0, PAST] {
        let feeds = case.feeds(past, 2);
        let whole = run(&case.graph, &weights, &feeds).expect("runs");
        let mut known = case.known(&feeds);
        for piece in pieces(&case) {
            let segment = Segment::new(&case.graph, &weights, piece.clone()).expect("a segment");
            let values = segment.forward(&known, &made(&case, &piece)).expect("runs");
            known.extend(values);
        }
        for output in case.graph.outputs() {
            assert_eq!(known[&output.value], whole[&output.name], "{}", output.name);
        }
    }
}

/// What scoring does: forward once, keeping the border of each block; then from the last block to
/// the first.
#[test]
fn gradients_passed_from_block_to_block_are_those_of_the_whole_graph() {
    let case = Case::load("decoder");
    let weights = case.weights();
    let known = case.known(&case.feeds(0, 2));
    let logits = case.value("logits");
    let pieces = pieces(&case);
    let segments: Vec<Segment<'_>> = pieces
        .iter()
        .map(|nodes| Segment::new(&case.graph, &weights, nodes.clone()).expect("a segment"))
        .collect();

    let all = Segment::new(&case.graph, &weights, pieces.concat()).expect("a segment");
    let seed = seed(&all.forward(&known, &[logits]).expect("runs")[&logits]);
    let wanted = Wanted {
        values: vec![],
        weights: all.weights().to_vec(),
    };
    let whole = all
        .vjp(&known, &[(logits, seed.clone())], &wanted)
        .expect("differentiates")
        .weights;

    let borders: Vec<ValueId> = case
        .graph
        .blocks()
        .map(|(_, b)| b.input)
        .chain(case.graph.blocks().map(|(_, b)| b.output).next_back())
        .collect();
    let mut values: Values = known.clone();
    for (segment, border) in segments.iter().zip(&borders) {
        let forward = segment.forward(&values, &[*border]).expect("runs");
        values.extend(forward);
    }
    let mut sums: BTreeMap<WeightId, Vec<f32>> = BTreeMap::new();
    let mut incoming = (logits, seed);
    for (at, segment) in segments.iter().enumerate().rev() {
        let border = at.checked_sub(1).map(|before| borders[before]);
        let wanted = Wanted {
            values: border.into_iter().collect(),
            weights: segment.weights().to_vec(),
        };
        let gradients = segment
            .vjp(&values, std::slice::from_ref(&incoming), &wanted)
            .expect("differentiates");
        for (weight, gradient) in gradients.weights {
            let sum = sums
                .entry(weight)
                .or_insert_with(|| vec![0.0; gradient.elements()]);
            sum.iter_mut()
                .zip(numbers(&gradient))
                .for_each(|(s, g)| *s += g);
        }
        if let Some(next) = gradients.values.into_iter().next() {
            incoming = next;
        }
    }
    assert_eq!(sums.len(), whole.len());
    for (weight, sum) in &sums {
        assert_close(&weights[*weight].name, sum, numbers(&whole[weight]), 1e-4);
    }
}

#[test]
fn a_cached_run_continues_the_run_before_it() {
    let case = Case::load("decoder");
    let weights = case.weights();
    let whole = case.feeds(0, 4);
    let full = run(&case.graph, &weights, &whole).expect("runs");
    let columns = |array: &Array, range: std::ops::Range<usize>| {
        let (rows, columns) = (array.shape()[0], array.shape()[1]);
        let data = array.as_i64().expect("integers");
        let part = (0..rows)
            .flat_map(|r| data[r * columns..][range.clone()].to_vec())
            .collect();
        Array::i64([rows, range.len()], part).expect("fits")
    };
    let mut caches: BTreeMap<String, Array> = whole
        .iter()
        .filter(|(name, _)| name.starts_with("past"))
        .map(|(n, a)| (n.clone(), a.clone()))
        .collect();
    let mut steps = Vec::new();
    for t in 0..common::SEQ {
        let mut feeds = caches.clone();
        for (name, from) in [("input_ids", t), ("positions", t), ("mask", 0)] {
            feeds.insert(name.to_owned(), columns(&whole[name], from..t + 1));
        }
        let outputs = run(&case.graph, &weights, &feeds).expect("runs");
        caches = outputs
            .iter()
            .filter_map(|(n, a)| {
                Some((
                    format!("past_key_values.{}", n.strip_prefix("present.")?),
                    a.clone(),
                ))
            })
            .collect();
        steps.push(outputs["logits"].clone());
    }
    let (vocab, seq) = (5, common::SEQ);
    for (t, step) in steps.iter().enumerate() {
        for b in 0..common::BATCH {
            // The first token of the first sequence is padding.
            if (b, t) != (0, 0) {
                let expected = &numbers(&full["logits"])[(b * seq + t) * vocab..][..vocab];
                assert_close(
                    &format!("batch {b} token {t}"),
                    &numbers(step)[b * vocab..][..vocab],
                    expected,
                    1e-5,
                );
            }
        }
    }
}

#[test]
fn segments_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Segment<'_>>();
}

#[test]
fn a_pool_of_one_thread_gives_the_same_numbers() {
    let case = Case::load("decoder");
    let weights = case.weights();
    let feeds = case.feeds(PAST, 2);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a pool");
    let alone = pool
        .install(|| run(&case.graph, &weights, &feeds))
        .expect("runs");
    assert_eq!(alone, run(&case.graph, &weights, &feeds).expect("runs"));
}

fn seed(like: &Array) -> Array {
    Array::f32(like.shape(), Noise::new(9).numbers(like.elements())).expect("fits")
}
