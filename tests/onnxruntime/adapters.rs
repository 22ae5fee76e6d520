//! Merged adapters on ONNX Runtime, in each profile.

use dlc::runtime::Backend;
use dlc_exporters::manifest::Profile;
use libtest_mimic::Trial;

use crate::common::adapters::{KINDS, check_adapter};

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let pairs = KINDS.into_iter().flat_map(|kind| Profile::ALL.map(|profile| (kind, profile)));
    let trial = |(kind, profile): (&'static str, Profile)| {
        let backend = backend.cloned();
        Trial::test(format!("adapters::{kind} {}", profile.name()), move || Ok(check_adapter(&backend.expect("not ignored"), kind, profile)?))
    };
    pairs.map(trial).collect()
}
