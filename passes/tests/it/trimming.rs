//! What trim-head leaves in the draft, and what it refuses.

use dlc_errors::Faulty;
use dlc_eval::run;
use dlc_ir::{Graph, Module, WeightTable, verify};

use super::fakes::{BASIC_TOKENS, fact, run_all};
use super::model::{Model, VOCAB, feeds, samples};

const PRUNE: (&str, &str) = ("fit-prune", "drop: 1, score: kl");
const TRIM: (&str, &str) = ("trim-head", "tokens: 6");

fn logits(graph: &Graph, weights: &WeightTable) -> Vec<Vec<f32>> {
    let outputs = run(graph, weights, &feeds(graph, &samples()[0])).unwrap();
    outputs["logits"]
        .as_f32()
        .unwrap()
        .chunks(VOCAB)
        .map(<[f32]>::to_vec)
        .collect()
}

fn made(passes: &[(&str, &str)], model: &Model) -> Module {
    let mut module = model.module();
    run_all(passes, &mut module).unwrap();
    module
}

/// The usual samples hold 1 and 11 twice, and 19 others once.
const KEPT: [usize; 6] = [0, 1, 2, 11, 20, 21];

fn check_trimmed(trimmed: &Graph, weights: &WeightTable, whole: &[Vec<f32>]) {
    assert_eq!(verify::verify(trimmed, weights), []);
    for (row, whole) in logits(trimmed, weights).iter().zip(whole) {
        for (token, (cut, logit)) in row.iter().zip(whole).enumerate() {
            if KEPT.contains(&token) {
                assert!((cut - logit).abs() < 1e-5, "{token}: {cut} is not {logit}");
            } else {
                assert!(cut.is_infinite() && *cut < 0.0, "{token}: {cut}");
            }
        }
    }
}

#[test]
fn the_draft_scores_frequent_and_basic_tokens_as_before_and_no_others() {
    let model = Model::decoder();
    let whole = made(&[PRUNE], &model);
    let mut module = whole.clone();
    let runs = run_all(&[TRIM], &mut module).unwrap();
    assert_eq!(
        fact(&runs, "tokens"),
        Some("6 of 23, 2 of them special or single bytes")
    );
    assert_eq!(fact(&runs, "of the calibration text"), Some("40.00%"));
    let draft = module.graph("draft").unwrap();
    check_trimmed(
        draft,
        &module.weights,
        &logits(whole.graph("draft").unwrap(), &whole.weights),
    );
    assert_eq!(
        logits(&module.graphs[0], &module.weights),
        logits(&whole.graphs[0], &whole.weights)
    );
    assert!(BASIC_TOKENS.iter().all(|t| KEPT.contains(&(*t as usize))));
    insta::assert_snapshot!("trimmed_report", runs[0].report.diff.as_ref().unwrap());
}

#[test]
fn heads_that_bend_their_logits_or_have_biases_are_trimmed_too() {
    let activated = "  %2 = linear %1, @head, @head.bias : f32[batch, seq, 23]\n  %3 = scale %2 factor=0.1 : f32[batch, seq, 23]\n  %4 = tanh %3 : f32[batch, seq, 23]\n  output logits = %4";
    let model = Model::edited(&[
        (
            "  %2 = linear %1, @embed : f32[batch, seq, 23]\n  output logits = %2",
            activated,
        ),
        (
            "weight @norm: f32[12]",
            "weight @norm: f32[12]\nweight @head: f32[23, 12]\nweight @head.bias: f32[23]",
        ),
    ]);
    let (whole, trimmed) = (made(&[PRUNE], &model), made(&[PRUNE, TRIM], &model));
    check_trimmed(
        trimmed.graph("draft").unwrap(),
        &trimmed.weights,
        &logits(whole.graph("draft").unwrap(), &whole.weights),
    );
}

#[test]
fn trimming_and_quantising_may_come_in_any_order() {
    for options in ["", "bits: 8, symmetric: false"] {
        let quantize = ("quantize-draft", options);
        let model = Model::decoder();
        let whole = made(&[PRUNE, quantize], &model);
        let whole = logits(whole.graph("draft").unwrap(), &whole.weights);
        for passes in [[PRUNE, quantize, TRIM], [PRUNE, TRIM, quantize]] {
            let trimmed = made(&passes, &model);
            check_trimmed(trimmed.graph("draft").unwrap(), &trimmed.weights, &whole);
        }
    }
}

#[test]
fn what_can_not_be_trimmed_is_rejected() {
    let draft = || made(&[PRUNE], &Model::decoder());
    let norm = [(
        "  output logits = %2",
        "  %3 = layer_norm %2 eps=1e-5 : f32[batch, seq, 23]\n  output logits = %3",
    )];
    let cases = [
        ("tokens: 0", draft()),
        ("tokens: 1", draft()),
        ("tokens: 23", draft()),
        ("tokens: 8192", draft()),
        ("tokens: -1", draft()),
        ("token: 5", draft()),
        ("tokens: 6 # no draft", Model::decoder().module()),
        ("tokens: 6 # twice", made(&[PRUNE, TRIM], &Model::decoder())),
        (
            "tokens: 6 # no product",
            made(&[("quantize-draft", "")], &Model::edited(&norm)),
        ),
    ];
    let mut report = Vec::new();
    for (options, module) in cases {
        let mut after = module.clone();
        let error = run_all(
            &[("trim-head", options.split(" #").next().unwrap())],
            &mut after,
        )
        .expect_err(options);
        assert_eq!(after.graphs, module.graphs, "{options}");
        report.push(format!("{options}\n    {:?}: {error}", error.fault()));
    }
    insta::assert_snapshot!(report.join("\n"));
}
