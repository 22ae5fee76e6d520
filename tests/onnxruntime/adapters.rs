//! Merged adapters on ONNX Runtime, in each profile.

use dlc_bundle::Profile;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::adapters::{all_adapters, check_adapter};

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let pairs = all_adapters().flat_map(|golden| Profile::ALL.map(|profile| (golden, profile)));
    let trial = |(golden, profile): (&'static str, Profile)| {
        let backend = backend.cloned();
        Trial::test(
            format!("adapters::{golden} {}", profile.name()),
            move || {
                Ok(check_adapter(
                    &backend.expect("not ignored"),
                    golden,
                    profile,
                )?)
            },
        )
    };
    pairs.map(trial).collect()
}
