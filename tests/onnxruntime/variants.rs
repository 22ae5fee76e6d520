//! Heads wide enough for `GroupQueryAttention`: windows, scaled rotations and biases against the
//! evaluator, and forgetting in caches.

use dlc_bundle::Profile;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::variants::{VARIANTS, check_against_evaluator, check_forgetting};

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for variant in VARIANTS {
        for profile in Profile::ALL {
            let title = format!("variants::{} {}", variant.0, profile.name());
            let ours = backend.cloned();
            trials.push(Trial::test(title.clone(), move || {
                Ok(check_against_evaluator(
                    &ours.expect("not ignored"),
                    variant,
                    profile,
                )?)
            }));
            let ours = backend.cloned();
            trials.push(Trial::test(format!("{title} forgets"), move || {
                Ok(check_forgetting(
                    &ours.expect("not ignored"),
                    variant,
                    profile,
                )?)
            }));
        }
    }
    trials
}
