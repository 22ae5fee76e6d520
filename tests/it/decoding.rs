//! Speculative decoding on the built-in tract is lossless.

use dlc::runtime::{BackendKind, BackendSearch, start};
use dlc_exporters::manifest::Profile;

use crate::common::decoding::Pair;

#[test]
fn greedy_speculative_text_equals_plain_text_on_tract() {
    let search = BackendSearch { force: Some(BackendKind::Tract), ..BackendSearch::default() };
    let backend = start(&search).unwrap();
    for profile in [Profile::Portable, Profile::Onnx] {
        let folder = tempfile::tempdir().unwrap();
        let mut pair = Pair::compile(&backend, profile, folder.path());
        pair.check_greedy(6).unwrap();
        pair.check_seeds().unwrap();
    }
}
