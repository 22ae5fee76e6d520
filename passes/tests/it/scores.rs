//! The Fisher scores: against a backward through the whole graph, against finite differences, and
//! what they don't depend on.

use std::collections::BTreeMap;

use dlc_eval::{Segment, Values, Wanted, cross_entropy};
use dlc_ir::{Granularity, Module, WeightId};
use dlc_passes::PassError;
use dlc_passes::fit_prune::units;
use dlc_passes::scoring::{
    FisherScores, Objective, TensorFisher, fisher_scores, fisher_scores_with_head,
};

use super::fakes::table;
use super::model::{EXPERTS, Model, VOCAB, assert_close, feeds, loss, samples};

fn scores(module: &Module, samples: &[Vec<u32>]) -> FisherScores {
    fisher_scores_with_head(
        &module.graphs[0],
        &module.weights,
        Objective::NextToken,
        samples,
        &(),
    )
    .unwrap()
}

/// The tensor's scores by the name of its weight.
fn by_name(module: &Module, scores: &FisherScores) -> BTreeMap<String, TensorFisher> {
    scores
        .blocks
        .values()
        .flatten()
        .map(|t| (module.weights[t.weight].name.clone(), t.clone()))
        .collect()
}

/// Squared gradients of every weight of the blocks by one vector-Jacobian product over all nodes,
/// mean over samples.
fn whole_model(module: &Module, samples: &[Vec<u32>]) -> BTreeMap<WeightId, Vec<f64>> {
    let graph = &module.graphs[0];
    let segment = Segment::new(
        graph,
        &module.weights,
        graph.nodes().map(|(id, _)| id).collect(),
    )
    .unwrap();
    let logits = graph.find_output("logits").unwrap().value;
    let wanted = Wanted {
        values: vec![],
        weights: segment.weights().to_vec(),
    };
    let mut sums: BTreeMap<WeightId, Vec<f64>> = BTreeMap::new();
    for tokens in samples {
        let fed = feeds(graph, tokens);
        let known: Values = graph
            .inputs()
            .iter()
            .map(|i| (i.value, fed[&i.name].clone()))
            .collect();
        let trace = segment.trace(&known).unwrap();
        // The last position predicts nothing: its rows are cut off before the loss, and get no
        // gradient.
        let all = trace.value(logits).unwrap().into_f32().unwrap();
        let (last, n) = (all.len() - VOCAB, tokens.len() - 1);
        let cut = dlc_eval::Array::f32([1, n, VOCAB], all[..last].to_vec()).unwrap();
        let seed = cross_entropy(&cut, &tokens[1..])
            .unwrap()
            .1
            .into_f32()
            .unwrap();
        let seed =
            dlc_eval::Array::f32([1, n + 1, VOCAB], [seed, vec![0.0; VOCAB]].concat()).unwrap();
        for (weight, gradient) in trace.vjp(&[(logits, seed)], &wanted).unwrap().weights {
            let gradient = gradient.into_f32().unwrap();
            let sum = sums
                .entry(weight)
                .or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut()
                .zip(gradient)
                .for_each(|(s, g)| *s += f64::from(g).powi(2) / samples.len() as f64);
        }
    }
    sums
}

fn check_against_whole_model(name: &str, model: &Model, tensors: usize) {
    let module = model.module();
    let scores = scores(&module, &samples());
    let expected = whole_model(&module, &samples());
    let mut seen = 0;
    for tensor in scores.blocks.values().flatten() {
        let weight = &module.weights[tensor.weight];
        let theta: Vec<f64> = weight
            .to_f32()
            .unwrap()
            .into_iter()
            .map(|x| f64::from(x).powi(2))
            .collect();
        let squares = &expected[&tensor.weight];
        let what = format!("{name} {}", weight.name);
        assert_close(&what, tensor.trace, squares.iter().sum(), 1e-6);
        assert_close(
            &what,
            tensor.elementwise,
            squares.iter().zip(&theta).map(|(f, t)| f * t).sum(),
            1e-6,
        );
        assert_close(
            &what,
            tensor.mean_square,
            theta.iter().sum::<f64>() / theta.len() as f64,
            1e-12,
        );
        assert_eq!(
            tensor.writes_residual,
            matches!(weight.name.rsplit_once('.'), Some((_, "o" | "down"))),
            "{what}"
        );
        assert!(tensor.trace > 0.0, "{what}");
        seen += 1;
    }
    assert_eq!((scores.blocks.len(), seen), (6, tensors), "{name}");
    let (head, trace) = scores.head.expect("a product makes the logits");
    // Of a tied head, a backward through the whole graph finds the embedding's gradient too.
    if module.weights[head].name != "embed" {
        assert_close(name, trace, expected[&head].iter().sum(), 1e-5);
    }
    let mean = samples()
        .iter()
        .map(|s| loss(&module.graphs[0], &module.weights, s))
        .sum::<f64>()
        / 3.0;
    assert_close(name, scores.loss, mean, 1e-6);
}

/// A node between two blocks.
const BETWEEN: [(&str, &str); 3] = [
    (
        "  block layers.1.attn (attn layer=1) from %layers.0.mlp.6 {",
        "  %9 = silu %layers.0.mlp.6 : f32[batch, seq, 12]\n  block layers.1.attn (attn layer=1) from %9 {",
    ),
    ("rms_norm %layers.0.mlp.6", "rms_norm %9"),
    ("add %layers.0.mlp.6", "add %9"),
];

/// A head that isn't the embedding, its logits activated afterwards.
const UNTIED: [(&str, &str); 2] = [
    (
        "  %2 = linear %1, @embed : f32[batch, seq, 23]",
        "  %9 = linear %1, @head : f32[batch, seq, 23]\n  %2 = tanh %9 : f32[batch, seq, 23]",
    ),
    (
        "weight @embed: f32[23, 12]",
        "weight @embed: f32[23, 12]\nweight @head: f32[23, 12]",
    ),
];

/// A factor and a norm between a block's last product and its residual.
const AFTER: [(&str, &str); 2] = [
    (
        "  %layers.0.mlp.6 = add %layers.0.attn.10, %layers.0.mlp.5 :",
        "  %layers.0.mlp.9 = scale %layers.0.mlp.5 factor=0.5 : f32[batch, seq, 12]\n  %layers.0.mlp.6 = add %layers.0.attn.10, %layers.0.mlp.9 :",
    ),
    (
        "  %layers.1.attn.10 = add %layers.0.mlp.6, %layers.1.attn.9 :",
        "  %layers.1.attn.19 = rms_norm %layers.1.attn.9, @1.norm1 eps=1e-5 : f32[batch, seq, 12]\n  %layers.1.attn.10 = add %layers.0.mlp.6, %layers.1.attn.19 :",
    ),
];

/// Everything in half precision; logits cast back as importers do.
const HALF: [(&str, &str); 2] = [
    ("f32[", "f16["),
    (
        "  output logits = %2",
        "  %3 = cast %2 : f32[batch, seq, 23]\n  output logits = %3",
    ),
];

/// Tolerance 1e-6; measured: 2e-8 at most, the loss being rounded to `f32`.
#[test]
fn scores_are_those_of_a_backward_through_the_whole_graph() {
    check_against_whole_model("decoder", &Model::decoder(), 30);
    check_against_whole_model("a node between blocks", &Model::edited(&BETWEEN), 30);
    check_against_whole_model("a head of its own", &Model::edited(&UNTIED), 30);
    check_against_whole_model("a factor and a norm after", &Model::edited(&AFTER), 30);
    check_against_whole_model("half precision", &Model::edited(&HALF), 30);
    check_against_whole_model("experts", &Model::edited(&EXPERTS), 37);
}

#[test]
fn columns_are_sums_over_the_tensors_of_a_unit() {
    let module = Model::decoder().module();
    let scores = scores(&module, &samples());
    for (option, granularity) in [
        ("layer", Granularity::Layer),
        ("branch", Granularity::Branch),
    ] {
        let table = table(
            &format!("granularity: {option}, score: fit+fit-elementwise+fit-residual+trace"),
            &module,
        );
        for (i, unit) in units(&module.graphs[0], granularity).iter().enumerate() {
            let sum = |f: fn(&TensorFisher) -> f64| {
                unit.blocks
                    .iter()
                    .flat_map(|b| &scores.blocks[b])
                    .map(f)
                    .sum::<f64>()
            };
            let expected = [
                sum(|t| t.trace * t.mean_square),
                sum(|t| t.elementwise),
                sum(|t| {
                    if t.writes_residual {
                        t.trace * t.mean_square
                    } else {
                        0.0
                    }
                }),
                sum(|t| t.trace),
            ];
            for (column, expected) in table.columns.iter().zip(expected) {
                assert_close(
                    &format!("{} {}", unit.name, column.name),
                    column.values[i],
                    expected,
                    1e-12,
                );
            }
        }
        let names: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["fit", "fit-elementwise", "fit-residual", "trace"]);
    }
}

/// Central differences of fourth order of each sample's loss, from runs of the whole graph:
/// squared, and summed over the entries of `weight`.
fn finite_differences(model: &mut Model, weight: &str, samples: &[Vec<u32>]) -> (f64, f64) {
    const STEP: f32 = 0.005;
    let graph = model.module().graphs.remove(0);
    let (mut trace, mut elementwise) = (0.0, 0.0);
    for entry in 0..model.numbers(weight).len() {
        let theta = model.numbers(weight)[entry];
        let mut losses = |steps: f32| -> Vec<f64> {
            model.numbers(weight)[entry] = theta + steps * STEP;
            let weights = model.weights();
            samples.iter().map(|s| loss(&graph, &weights, s)).collect()
        };
        let moved = [-2.0, -1.0, 1.0, 2.0].map(&mut losses);
        losses(0.0);
        let [two_back, back, on, two_on] = moved;
        for (((a, b), c), d) in two_back.iter().zip(&back).zip(&on).zip(&two_on) {
            let slope = (a - 8.0 * b + 8.0 * c - d) / (12.0 * f64::from(STEP));
            trace += slope * slope / samples.len() as f64;
            elementwise += slope * slope * f64::from(theta).powi(2) / samples.len() as f64;
        }
    }
    (trace, elementwise)
}

/// Tolerance 5e-4; measured: 1.6e-4 at most, rounding of the evaluator's `f32` forward divided by
/// the step.
#[test]
fn scores_are_those_of_finite_differences() {
    let mut model = Model::decoder();
    let module = model.module();
    let samples = &samples()[1..];
    let scores = by_name(&module, &scores(&module, samples));
    for weight in ["0.norm1", "0.q.bias", "1.k", "1.o", "1.norm2", "1.down"] {
        let (trace, elementwise) = finite_differences(&mut model, weight, samples);
        assert_close(
            &format!("trace of {weight}"),
            scores[weight].trace,
            trace,
            5e-4,
        );
        assert_close(
            &format!("elementwise of {weight}"),
            scores[weight].elementwise,
            elementwise,
            5e-4,
        );
    }
}

#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let module = Model::decoder().module();
    let in_pool = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| scores(&module, &samples()))
    };
    assert_eq!(in_pool(1), in_pool(2));
}

#[test]
fn samples_are_scored_one_by_one_and_averaged() {
    let module = Model::decoder().module();
    let all = scores(&module, &samples());
    let alone: Vec<FisherScores> = samples()
        .iter()
        .map(|s| scores(&module, std::slice::from_ref(s)))
        .collect();
    for (block, tensors) in &all.blocks {
        for (i, tensor) in tensors.iter().enumerate() {
            let mean = |f: fn(&TensorFisher) -> f64| {
                alone.iter().map(|s| f(&s.blocks[block][i])).sum::<f64>() / 3.0
            };
            assert_close("trace", tensor.trace, mean(|t| t.trace), 1e-12);
            assert_close(
                "elementwise",
                tensor.elementwise,
                mean(|t| t.elementwise),
                1e-12,
            );
        }
    }
    assert_close(
        "loss",
        all.loss,
        alone.iter().map(|s| s.loss).sum::<f64>() / 3.0,
        1e-12,
    );
    // The same sample twice weighs no more than once.
    let (once, twice) = (
        scores(&module, &samples()[..1]),
        scores(&module, &[samples()[0].clone(), samples()[0].clone()]),
    );
    assert_eq!(once, twice);
}

#[test]
fn half_precision_is_scored_as_the_numbers_that_it_stores() {
    let half = Model::edited(&HALF).module();
    let mut rounded = Model::decoder();
    for (_, weight) in half.weights.entries() {
        *rounded.numbers(&weight.name) = weight.to_f32().unwrap();
    }
    assert_eq!(
        scores(&half, &samples()),
        scores(&rounded.module(), &samples())
    );
}

#[test]
fn a_weight_that_blocks_share_is_scored_by_its_use_in_each() {
    let mut apart = Model::decoder();
    *apart.numbers("2.down") = apart.numbers("0.down").clone();
    let shared = Model::edited(&[
        ("@2.down", "@0.down"),
        (
            "\nweight @0.down: f32[12, 20]\nweight @norm",
            "\nweight @norm",
        ),
    ]);
    assert_eq!(
        table(
            "score: fit+fit-elementwise+fit-residual+trace",
            &shared.module()
        ),
        table(
            "score: fit+fit-elementwise+fit-residual+trace",
            &apart.module()
        )
    );
}

#[test]
fn samples_that_nothing_can_be_learned_from_are_refused() {
    let module = Model::decoder().module();
    let cases: [(&[&[u32]], &str); 4] = [
        (
            &[],
            "calibration: there is no sample to score on; give a file with some text",
        ),
        (
            &[&[1, 2], &[]],
            "calibration: sample 2 holds less than 2 tokens, so there is none to predict",
        ),
        (
            &[&[1]],
            "calibration: sample 1 holds less than 2 tokens, so there is none to predict",
        ),
        (
            &[&[1, 23]],
            "calibration: sample 1 holds token 23, outside of the vocabulary of 23",
        ),
    ];
    for (samples, problem) in cases {
        let samples: Vec<Vec<u32>> = samples.iter().map(|s| s.to_vec()).collect();
        let error = fisher_scores(
            &module.graphs[0],
            &module.weights,
            Objective::NextToken,
            &samples,
            &(),
        )
        .unwrap_err();
        assert!(matches!(error, PassError::Calibration { .. }));
        assert_eq!(error.to_string(), problem);
    }
}
