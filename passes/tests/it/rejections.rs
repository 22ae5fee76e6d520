//! What fit-prune refuses, word for word.

use dlc_errors::{Fault, Faulty};
use dlc_ir::Module;
use dlc_passes::PassError;

use super::fakes::fit_prune;
use super::model::{Model, samples};

/// The error; the module must be as it was.
fn rejection(options: &str, module: &Module, samples: Vec<Vec<u32>>) -> PassError {
    let mut after = module.clone();
    let error = fit_prune(options, &mut after, samples).expect_err(options);
    assert_eq!(after.graphs, module.graphs, "{options}");
    error
}

fn line(what: &str, error: &PassError) -> String {
    format!("{what}\n    {:?}: {error}", error.fault())
}

#[test]
fn options_that_do_not_fit_are_rejected() {
    let module = Model::decoder().module();
    let cases = [
        "drop: 0",
        "keep: 1.0",
        "drop: 3",
        "drop: 4",
        "drop: 6, granularity: branch",
        "drop: 2, protect_first: 1, protect_last: 1",
        "drop: 1, protect_first: 2, protect_last: 2",
        "drop: 1, protect_first: 7",
        "drop: -1",
        "drop: 1.5",
        "drop: two",
        "keep: 0",
        "keep: 1.01",
        "keep: -0.5",
        "keep: .nan",
        "keep: most",
        "score: fitt",
        "score: fit+",
        "score: ''",
        "samples: 0",
        "length: 1",
        "granularity: head",
        "dropp: 1",
        "protect: 1",
        "7: 1",
        "xyzzy: 1",
    ];
    let report: Vec<String> = cases
        .iter()
        .map(|options| line(options, &rejection(options, &module, samples())))
        .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn calibration_data_that_can_not_be_scored_is_rejected() {
    let module = Model::decoder().module();
    let cases = [
        ("no samples", vec![]),
        ("a sample of one token", vec![vec![1, 2], vec![3]]),
        ("a token beyond the vocabulary", vec![vec![1, 23]]),
    ];
    let mut report = Vec::new();
    for (what, samples) in cases {
        for score in ["fit", "cosine"] {
            report.push(line(
                &format!("{what}, {score}"),
                &rejection(&format!("score: {score}"), &module, samples.clone()),
            ));
        }
    }
    insta::assert_snapshot!(report.join("\n"));
}

/// The decoder with a text replaced, under the options that meet the trouble.
fn edited(edits: &[(&str, &str)]) -> Module {
    Model::edited(edits).module()
}

#[test]
fn modules_that_are_no_chain_of_blocks_are_rejected() {
    let skip = [(
        "add %layers.0.mlp.6, %layers.1.attn.9",
        "add %layers.0.attn.10, %layers.1.attn.9",
    )];
    let stale = [(
        "(attn layer=1) from %layers.0.mlp.6",
        "(attn layer=1) from %layers.0.attn.10",
    )];
    let early = [
        ("  output logits = %2", "  output logits = %0"),
        (
            "gather @embed, %input_ids : f32[batch, seq, 12]",
            "gather @embed, %input_ids : f32[batch, seq, 12]",
        ),
    ];
    let in_block = [
        ("  output logits = %2", "  output logits = %layers.2.mlp.6"),
        (
            "  %1 = rms_norm %layers.2.mlp.6, @norm eps=1e-5 : f32[batch, seq, 12]\n  %2 = linear %1, @embed : f32[batch, seq, 23]\n",
            "",
        ),
    ];
    let unknown = [(
        "  input position_ids",
        "  input token_types: i64[batch, seq]\n  input position_ids",
    )];
    let bare = "graph target {\n  input input_ids: i64[batch, seq]\n  %0 = gather @embed, %input_ids : f32[batch, seq, 23]\n  output logits = %0\n}\nweight @embed: f32[23, 23]\n";
    let silent = [(
        "add %layers.1.attn.10, %layers.1.mlp.5",
        "mul %layers.1.attn.10, %layers.1.mlp.5",
    )];
    let mut renamed = Model::decoder().module();
    renamed.graphs[0].name = "encoder".into();
    let mut short = Model::decoder().module();
    short.model.context_length = 1;
    let mut again = Model::decoder().module();
    fit_prune("drop: 1", &mut again, samples()).unwrap();
    let cases = [
        ("a second fit-prune", "drop: 1", again),
        ("no target", "", renamed),
        ("no blocks", "", Model::of(bare).module()),
        (
            "no logits",
            "",
            edited(&[("output logits", "output scores")]),
        ),
        ("logits from before the blocks", "", edited(&early)),
        ("logits from within the last block", "", edited(&in_block)),
        ("a connection that skips a block", "", edited(&skip)),
        (
            "a block whose residual isn't what it reads",
            "",
            edited(&stale),
        ),
        ("an input of an unknown kind", "", edited(&unknown)),
        ("a context of one token", "", short),
        (
            "no matrix that writes into the residual",
            "score: fit-residual, granularity: branch",
            edited(&silent),
        ),
    ];
    let report: Vec<String> = cases
        .iter()
        .map(|(what, options, module)| line(what, &rejection(options, module, samples())))
        .collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn a_draft_without_attention_is_rejected() {
    let mut model = Model::decoder();
    for layer in 0..3 {
        model.numbers(&format!("{layer}.o")).fill(0.0);
    }
    let error = rejection(
        "granularity: branch, drop: 3, score: kl",
        &model.module(),
        samples(),
    );
    insta::assert_snapshot!(error, @"pass fit-prune: the draft would have no attention left; drop fewer blocks, or use granularity=layer");
}

#[test]
fn scores_that_are_not_finite_are_rejected() {
    let cases = [
        ("1.q", f32::NAN),
        ("1.down", f32::INFINITY),
        ("0.norm2", f32::NAN),
        ("1.up", 3e38),
        ("norm", f32::NAN),
        ("2.o", f32::NEG_INFINITY),
    ];
    let mut report = Vec::new();
    for (weight, number) in cases {
        let mut model = Model::decoder();
        model.numbers(weight)[3] = number;
        for score in ["fit", "trace", "cosine", "kl"] {
            let error = rejection(
                &format!("granularity: branch, score: {score}"),
                &model.module(),
                samples(),
            );
            assert_eq!(error.fault(), Fault::BadInput);
            assert!(matches!(error, PassError::NotFinite { .. }) || weight == "norm");
            report.push(line(&format!("{number:e} in {weight}, {score}"), &error));
        }
    }
    insta::assert_snapshot!(report.join("\n"));
}
