//! Speculative decoding on the built-in tract is lossless.

use dlc_bundle::Profile;
use dlc_runtime::{BackendKind, BackendSearch, start};

use crate::common::decoding::Pair;
use crate::common::drafts::check_draft;
use crate::common::golden::plain_decoders;
use crate::common::pieces::check_pieces;
use crate::common::variants::{VARIANTS, check_against_evaluator, check_forgetting};

#[test]
fn greedy_speculative_text_equals_plain_text_on_tract() {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap();
    for (profile, shared) in [
        (Profile::Portable, true),
        (Profile::Onnx, true),
        (Profile::Onnx, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut pair = Pair::compile(&backend, profile, folder.path(), shared);
        pair.check_greedy(6).unwrap();
        pair.check_processed(3).unwrap();
        pair.check_seeds().unwrap();
    }
}

#[test]
fn drafts_of_every_family_of_decoders_are_lossless_on_tract() {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap();
    let failures: Vec<String> = plain_decoders()
        .filter_map(|name| check_draft(&backend, name, Profile::Portable).err())
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn prompts_in_pieces_are_what_the_whole_is_on_tract() {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap();
    for profile in [Profile::Portable, Profile::Onnx] {
        check_pieces(&backend, profile).unwrap();
    }
}

#[test]
fn windows_scaled_rotations_and_biases_agree_with_the_evaluator_and_caches_forget_on_tract() {
    let search = BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    };
    let backend = start(&search).unwrap();
    for variant in VARIANTS {
        for profile in [Profile::Portable, Profile::Onnx] {
            check_against_evaluator(&backend, variant, profile).unwrap();
        }
    }
    check_forgetting(&backend, VARIANTS[1], Profile::Portable).unwrap();
}
