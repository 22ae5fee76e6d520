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
    for profile in [Profile::Portable, Profile::Onnx] {
        check_products(&tract(), profile).unwrap();
    }
}

#[test]
fn a_draft_that_is_pruned_quantised_and_trimmed_is_lossless_on_tract() {
    for profile in [Profile::Portable, Profile::Onnx] {
        check_cheap_draft(&tract(), profile, 2).unwrap();
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
