//! What blocks remember between evaluations, on ONNX Runtime, in each profile.

use dlc_bundle::Profile;
use dlc_ir::DType;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::sampling::check_memory;

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let pairs = Profile::ALL
        .into_iter()
        .flat_map(|profile| [(profile, DType::F32), (profile, DType::F16)]);
    let trial = |(profile, kept): (Profile, DType)| {
        let backend = backend.cloned();
        let title = format!("sampling::memory_{}_{kept}", profile.name());
        Trial::test(title, move || {
            Ok(check_memory(&backend.expect("not ignored"), profile, kept)?)
        })
    };
    pairs.map(trial).collect()
}
