//! Quantised products and drafts on ONNX Runtime, in each profile: profile `ort` has its
//! `MatMulNBits`, and of the products of `onnx` it makes that.

use dlc_bundle::Profile;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::packed::{check_compiled, check_kept};
use crate::common::quantized::{check_cheap_draft, check_products, check_targets};
use crate::common::session::Engine;

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for profile in Profile::ALL {
        let ours = backend.cloned();
        let products = move || Ok(check_products(&ours.expect("not ignored"), profile)?);
        trials.push(Trial::test(
            format!("quantized::products {}", profile.name()),
            products,
        ));
        let ours = backend.cloned();
        let codes = move || {
            Ok(check_kept(&Engine::Backend(
                ours.expect("not ignored"),
                profile,
            ))?)
        };
        trials.push(Trial::test(
            format!("quantized::kept_codes {}", profile.name()),
            codes,
        ));
        if profile != Profile::Portable {
            let ours = backend.cloned();
            let compiled = move || Ok(check_compiled(&ours.expect("not ignored"), profile)?);
            trials.push(Trial::test(
                format!("quantized::compiled_codes {}", profile.name()),
                compiled,
            ));
        }
        let ours = backend.cloned();
        let targets = move || Ok(check_targets(&ours.expect("not ignored"), profile)?);
        trials.push(Trial::test(
            format!("quantized::targets {}", profile.name()),
            targets,
        ));
        let ours = backend.cloned();
        let draft = move || Ok(check_cheap_draft(&ours.expect("not ignored"), profile, 12)?);
        trials.push(Trial::test(
            format!(
                "quantized::draft_that_is_pruned_quantised_and_trimmed {}",
                profile.name()
            ),
            draft,
        ));
    }
    trials
}
