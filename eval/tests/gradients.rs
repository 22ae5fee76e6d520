//! Every gradient against central finite differences, for every graph of `tests/cases`.
//!
//! Steps of 0.01 on numbers of size 1 in single precision: the truncation error is about 1e-4, the
//! rounding error about 1e-5. The tolerance is 5e-3, absolute below 1 and relative above.

mod common;

use common::{Case, Noise, PAST, assert_close, cases, numbers};
use dlc_eval::{Array, Segment, Values, Wanted};
use dlc_ir::{NodeId, ValueId};

const STEP: f32 = 1e-2;
const TOLERANCE: f32 = 5e-3;

/// The sum of seeds times outputs.
fn objective(case: &Case, known: &Values, seeds: &[(ValueId, Array)]) -> f64 {
    let weights = case.weights();
    let segment = Segment::new(&case.graph, &weights, all_nodes(case)).expect("a segment");
    let want: Vec<ValueId> = seeds.iter().map(|(v, _)| *v).collect();
    let values = segment.forward(known, &want).expect("runs");
    let dot = |(v, seed): &(ValueId, Array)| {
        numbers(&values[v])
            .iter()
            .zip(numbers(seed))
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    seeds.iter().map(dot).sum()
}

fn all_nodes(case: &Case) -> Vec<NodeId> {
    case.graph.nodes().map(|(id, _)| id).collect()
}

fn slopes(n: usize, mut at: impl FnMut(usize, f32) -> f64) -> Vec<f32> {
    (0..n)
        .map(|i| ((at(i, STEP) - at(i, -STEP)) / f64::from(2.0 * STEP)) as f32)
        .collect()
}

fn check(name: &str, past: usize) {
    let mut case = Case::load(name);
    let known = case.known(&case.feeds(past, 3));
    let mut noise = Noise::new(11);
    let (gradients, seeds) = {
        let weights = case.weights();
        let segment = Segment::new(&case.graph, &weights, all_nodes(&case)).expect("a segment");
        let outputs: Vec<ValueId> = case.graph.outputs().iter().map(|o| o.value).collect();
        let values = segment.forward(&known, &outputs).expect("runs");
        let seed = |v: &ValueId| {
            (
                *v,
                Array::f32(values[v].shape(), noise.numbers(values[v].elements())).expect("fits"),
            )
        };
        let seeds: Vec<(ValueId, Array)> = outputs.iter().map(seed).collect();
        let floats = segment
            .reads()
            .iter()
            .copied()
            .filter(|v| known[v].as_f32().is_some());
        let wanted = Wanted {
            values: floats.collect(),
            weights: segment.weights().to_vec(),
        };
        (
            segment
                .vjp(&known, &seeds, &wanted)
                .expect("differentiates"),
            seeds,
        )
    };
    assert!(!gradients.values.is_empty() || !gradients.weights.is_empty());
    for (value, gradient) in &gradients.values {
        let slopes = slopes(gradient.elements(), |i, step| {
            let mut data = numbers(&known[value]).to_vec();
            data[i] += step;
            let mut moved = known.clone();
            moved.insert(
                *value,
                Array::f32(known[value].shape(), data).expect("fits"),
            );
            objective(&case, &moved, &seeds)
        });
        assert_close(
            &format!("{name} {value:?}"),
            numbers(gradient),
            &slopes,
            TOLERANCE,
        );
    }
    for (weight, gradient) in &gradients.weights {
        let slopes = slopes(gradient.elements(), |i, step| {
            let before = case.data.clone();
            if let Some(data) = case.data.get_mut(weight) {
                data[i] += step;
            }
            let moved = objective(&case, &known, &seeds);
            case.data = before;
            moved
        });
        assert_close(
            &format!("{name} {weight:?}"),
            numbers(gradient),
            &slopes,
            TOLERANCE,
        );
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(cases()).expect("the cases are there") {
        let name = entry
            .expect("a file")
            .file_name()
            .into_string()
            .expect("a name");
        names.extend(name.strip_suffix(".txt").map(str::to_owned));
    }
    names.sort();
    assert!(names.len() >= 10);
    for name in names {
        check(&name, PAST);
    }
}

#[test]
fn gradients_hold_without_a_past() {
    for name in ["attention", "attention_window", "decoder"] {
        check(name, 0);
    }
}

#[test]
fn only_what_was_asked_for_is_returned_and_the_rest_of_the_graph_gives_zeros() {
    let case = Case::load("linear");
    let weights = case.weights();
    let segment = Segment::new(&case.graph, &weights, all_nodes(&case)).expect("a segment");
    let known = case.known(&case.feeds(0, 1));
    let middle = case.value("middle");
    let trace = segment.trace(&known).expect("runs");
    let seed = trace.value(middle).expect("is made");
    // Seeded at `middle`, the later layers have no say.
    let wanted = Wanted {
        values: vec![middle],
        weights: segment.weights()[1..].to_vec(),
    };
    let gradients = trace
        .vjp(&[(middle, seed.clone()), (middle, seed.clone())], &wanted)
        .expect("differentiates");
    assert_eq!(
        gradients.values.keys().copied().collect::<Vec<_>>(),
        [middle]
    );
    let doubled: Vec<f32> = numbers(&seed).iter().map(|x| 2.0 * x).collect();
    assert_eq!(numbers(&gradients.values[&middle]), doubled);
    let (bias, square) = (segment.weights()[1], segment.weights()[2]);
    assert_eq!(
        gradients.weights.keys().copied().collect::<Vec<_>>(),
        [bias, square]
    );
    assert!(
        numbers(&gradients.weights[&square])
            .iter()
            .all(|x| *x == 0.0)
    );
    let sums: Vec<f32> = (0..5)
        .map(|o| doubled.iter().skip(o).step_by(5).sum())
        .collect();
    assert_close("bias", numbers(&gradients.weights[&bias]), &sums, 1e-5);
}
