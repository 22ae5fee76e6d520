//! Every golden through ONNX Runtime, in each profile.

use dlc_bundle::Profile;
use dlc_ir::DType;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::diffusion::{DIFFUSION, check_diffusion};
use crate::common::golden::{CASES, Case, ENCODERS, HALF_TOLERANCE, TOLERANCE, all_decoders};
use crate::common::lengths::check_lengths_on;
use crate::common::padding::check_padding;
use crate::common::session::{check_encoder, check_golden};

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for name in all_decoders() {
        for profile in Profile::ALL {
            for case in CASES {
                let backend = backend.cloned();
                let title = format!("goldens::{name}_{}_{case:?}", profile.name());
                trials.push(Trial::test(title, move || {
                    let check = check_golden(
                        &backend.expect("not ignored"),
                        name,
                        profile,
                        DType::F32,
                        case,
                        TOLERANCE,
                    );
                    check.map_err(Into::into)
                }));
            }
            let padded = backend.cloned();
            trials.push(Trial::test(
                format!("goldens::{name}_{}_padded_on_either_side", profile.name()),
                move || Ok(check_padding(&padded.expect("not ignored"), name, profile)?),
            ));
            let backend = backend.cloned();
            trials.push(Trial::test(
                format!("goldens::{name}_{}_f16", profile.name()),
                move || {
                    let check = check_golden(
                        &backend.expect("not ignored"),
                        name,
                        profile,
                        DType::F16,
                        Case::Sequence,
                        HALF_TOLERANCE,
                    );
                    check.map_err(Into::into)
                },
            ));
        }
    }
    for &name in ENCODERS {
        for (profile, dtype, tolerance) in Profile::ALL
            .into_iter()
            .flat_map(|p| [(p, DType::F32, TOLERANCE), (p, DType::F16, HALF_TOLERANCE)])
        {
            let backend = backend.cloned();
            let title = format!("goldens::{name}_{}_{dtype}", profile.name());
            trials.push(Trial::test(title, move || {
                Ok(check_encoder(
                    &backend.expect("not ignored"),
                    name,
                    profile,
                    dtype,
                    tolerance,
                )?)
            }));
        }
    }
    for &name in DIFFUSION {
        for (profile, dtype, tolerance) in Profile::ALL
            .into_iter()
            .flat_map(|p| [(p, DType::F32, TOLERANCE), (p, DType::F16, HALF_TOLERANCE)])
        {
            let backend = backend.cloned();
            let title = format!("goldens::{name}_{}_{dtype}", profile.name());
            trials.push(Trial::test(title, move || {
                Ok(check_diffusion(
                    &backend.expect("not ignored"),
                    name,
                    profile,
                    dtype,
                    tolerance,
                )?)
            }));
        }
    }
    for profile in Profile::ALL {
        let backend = backend.cloned();
        let title = format!("goldens::lengths_{}", profile.name());
        trials.push(Trial::test(title, move || {
            Ok(check_lengths_on(&backend.expect("not ignored"), profile)?)
        }));
    }
    let backend = backend.cloned();
    trials.push(Trial::test(
        "goldens::bf16_is_refused_on_the_cpu",
        move || {
            let error = check_golden(
                &backend.expect("not ignored"),
                "llama",
                Profile::Onnx,
                DType::Bf16,
                Case::Sequence,
                0.1,
            )
            .unwrap_err();
            if error.contains("bf16 MatMul") && error.contains("--dtype f32") {
                Ok(())
            } else {
                Err(error.into())
            }
        },
    ));
    trials
}
