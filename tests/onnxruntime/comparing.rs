//! How far bundles of another element type, and drafts, are from the whole model, by
//! `pipeline::compare_models`.

use dlc::pipeline::{HELD_BACK, Outcome, Reading, Runner, Side, compare_models, module_of_bundle};
use dlc_bundle::Profile;
use dlc_ir::DType;
use dlc_methods::divergence::Divergence;
use dlc_runtime::{Backend, Bundle, SessionOptions, TextTokenizer};
use libtest_mimic::{Failed, Trial};

use crate::common::decoding::{compile_quietly, compile_request};
use crate::common::fixture;

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let trial = |profile: Profile| {
        let backend = backend.cloned();
        Trial::test(
            format!(
                "comparing::an_f16_bundle_is_near_its_f32_one_{}",
                profile.name()
            ),
            move || check(&backend.expect("not ignored"), profile),
        )
    };
    Profile::ALL.map(trial).into_iter().collect()
}

fn check(backend: &Backend, profile: Profile) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let compiled = |name: &str, dtype: DType| {
        let mut request = compile_request(fixture("tiny-llama"), profile, folder.path().join(name));
        request.dtype = Some(dtype);
        compile_quietly(&request)?;
        Ok::<_, Failed>(Bundle::open(&request.output)?)
    };
    let (whole, half) = (compiled("f32", DType::F32)?, compiled("f16", DType::F16)?);
    let same = divergence(backend, [&whole, &whole])?;
    let near = divergence(backend, [&whole, &half])?;
    let (mean, agreement) = (near.mean_kl(), near.agreement());
    if same.kl_quantile(1.0) > 0.0 || same.agreement() < 1.0 {
        return Err("a bundle differs from itself".into());
    }
    // f16 rounds to 11 bits: 5e-4 of logits of some units, whose squares KL is about.
    if !(0.0 < mean && mean < 1e-4 && agreement > 0.98) {
        return Err(format!("KL {mean:e}, agreement {agreement}").into());
    }
    Ok(())
}

fn divergence(backend: &Backend, bundles: [&Bundle; 2]) -> Result<Divergence, Failed> {
    let session = SessionOptions::default();
    let reading = Reading {
        texts: HELD_BACK.split("\n\n").map(str::to_owned).collect(),
        length: 200,
        most_tokens: 600,
    };
    let [a, b] = bundles.map(module_of_bundle);
    let modules = [a?, b?];
    let side = |at: usize| {
        Ok::<_, Failed>(Side {
            name: format!("model {at}"),
            module: &modules[at],
            graph: modules[at].graph("target").ok_or("no target")?,
            bundle: Some(Runner {
                bundle: bundles[at],
                backend,
                session: &session,
            }),
            tokenizer: TextTokenizer::of_bundle(bundles[at])?,
            weight_bytes: None,
        })
    };
    match compare_models(&side(0)?, &side(1)?, &reading, &())?.outcome {
        Outcome::Distributions(divergence) => Ok(divergence),
        other => Err(format!("no distributions: {other:?}").into()),
    }
}
