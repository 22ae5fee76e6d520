//! Quantised products and drafts on the built-in tract, and what the command says of them.

use dlc_bundle::Profile;
use dlc_runtime::{Backend, BackendKind, BackendSearch, start};

use crate::command::Shell;
use crate::common::quantized::{CHEAP, check_cheap_draft, check_products};

fn tract() -> Backend {
    start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap()
}

#[test]
fn quantised_products_are_exact_on_tract() {
    check_products(&tract(), Profile::Portable).unwrap();
}

#[test]
fn a_draft_that_is_pruned_quantised_and_trimmed_is_lossless_on_tract() {
    check_cheap_draft(&tract(), Profile::Portable, 2).unwrap();
}

#[test]
fn tract_refuses_quantised_matrices_of_other_profiles_and_names_one_that_it_runs() {
    let shell = Shell::new();
    for (profile, why) in [
        ("onnx", "DequantizeLinear in blocks"),
        ("ort", "ONNX Runtime's own operators"),
    ] {
        let quantize = "quantize:bits=8,compare=false";
        let arguments = ["compile", "fixtures/goldens/bert", "--pass", quantize];
        let compiled = shell.ok(&[&arguments[..], &["--profile", profile, "-o", profile]].concat());
        assert!(
            compiled.stderr.contains(why) && compiled.stderr.contains("`--profile portable`"),
            "{}",
            compiled.stderr
        );
        let refused = shell.dlc(&["verify", profile, "--backend", "tract"]);
        assert_eq!(refused.code, Some(3), "{}", refused.stderr);
        assert!(
            refused.stderr.contains(why) && refused.stderr.contains("`--profile portable`"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn inspect_says_bits_bytes_and_tokens_and_bytes_depend_on_no_threads() {
    let shell = Shell::new();
    let passes = CHEAP.iter().flat_map(|pass| ["--pass", pass]);
    let arguments = ["fixtures/tiny-llama", "--profile", "ort"];
    let arguments: Vec<&str> = arguments.into_iter().chain(passes).collect();
    shell.compile_alike_on_any_threads(&arguments, "one");
    let inspected = shell.ok(&["inspect", "one"]).stdout;
    let draft: Vec<&str> = inspected
        .lines()
        .filter(|l| l.starts_with("draft:"))
        .collect();
    insta::assert_snapshot!(draft.join("\n"), @r"
    draft: 57 matrices in 4 bits, blocks of 32: 1540096 numbers in 987136 bytes
    draft: proposes 512 of 2048 tokens
    ");
}
