//! Every golden and every op on ONNX Runtime, in each profile.

use dlc_bundle::Profile;
use dlc_ir::DType;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::golden::Case;
use crate::common::ops::Sample;
use crate::common::session::Engine;
use crate::common::suite::{Comparison, Half, check_decoder, comparisons};

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let engine = |profile| backend.map(|backend| Engine::Backend(backend.clone(), profile));
    let mut trials = Vec::new();
    for profile in Profile::ALL {
        for Comparison { title, run } in comparisons(profile.name(), Half::Compared) {
            let engine = engine(profile);
            trials.push(Trial::test(format!("goldens::{title}"), move || {
                Ok(run(&engine.expect("not ignored"))?)
            }));
        }
        let engine = engine(profile);
        let title = format!("goldens::every_op_{}", profile.name());
        trials.push(Trial::test(title, move || {
            Ok(check_ops(&engine.expect("not ignored"))?)
        }));
    }
    let engine = engine(Profile::Onnx);
    trials.push(Trial::test(
        "goldens::bf16_is_refused_on_the_cpu",
        move || Ok(bf16_is_refused(&engine.expect("not ignored"))?),
    ));
    trials
}

fn check_ops(engine: &Engine) -> Result<(), String> {
    let samples = Sample::all();
    let failures = samples.iter().filter_map(|s| s.check(engine).err());
    let failures: Vec<String> = failures.collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n"))
    }
}

fn bf16_is_refused(engine: &Engine) -> Result<(), String> {
    let error = check_decoder(engine, "llama", DType::Bf16, Case::Sequence).unwrap_err();
    if error.contains("bf16 MatMul") && error.contains("--dtype f32") {
        Ok(())
    } else {
        Err(error)
    }
}
