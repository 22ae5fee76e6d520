//! Speculative decoding on ONNX Runtime is lossless: 24 prompts of 64 tokens in each profile.

use dlc_bundle::Profile;
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::batches::check_batch;
use crate::common::decoding::Pair;
use crate::common::drafts::check_draft;
use crate::common::golden::all_decoders;
use crate::common::pieces::{check_pairs, check_pieces};

/// Targets whose passes agree where they are over two tokens, and others where they are over an even
/// number.
const CODES: [&str; 5] = [
    "quantize:bits=8",
    "quantize:bits=4",
    "quantize:bits=4,group_size=64",
    "quantize:bits=4,group_size=128",
    "quantize:bits=8,group_size=128",
];

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let trial = |(profile, shared): (Profile, bool)| {
        let backend = backend.cloned();
        Trial::test(
            format!(
                "decoding::greedy_speculative_text_equals_plain_text_{}_{}",
                profile.name(),
                if shared { "shared" } else { "own" }
            ),
            move || {
                let folder = tempfile::tempdir()?;
                let mut pair = Pair::compile(
                    &backend.expect("not ignored"),
                    profile,
                    folder.path(),
                    shared,
                );
                pair.check_greedy(24)?;
                pair.check_processed(8)?;
                Ok(pair.check_seeds()?)
            },
        )
    };
    let chosen = |profile: Profile| {
        let backend = backend.cloned();
        Trial::test(
            format!("decoding::a_chosen_draft_is_lossless_{}", profile.name()),
            move || {
                let folder = tempfile::tempdir()?;
                Ok(
                    Pair::choose(&backend.expect("not ignored"), profile, folder.path())
                        .check_greedy(8)?,
                )
            },
        )
    };
    let compensated = |kind: &'static str| {
        let backend = backend.cloned();
        Trial::test(
            format!("decoding::a_draft_compensated_by_{kind}_is_lossless"),
            move || {
                let (backend, folder) = (backend.expect("not ignored"), tempfile::tempdir()?);
                let pass = format!("fit-prune:drop=6,compensate={kind}");
                let place = folder.path();
                let mut pair = Pair::compile_with(&[&pass], &backend, Profile::Ort, place, true);
                Ok(pair.check_greedy(8)?)
            },
        )
    };
    let of_golden = |(name, profile): (&'static str, Profile)| {
        let backend = backend.cloned();
        Trial::test(
            format!(
                "decoding::the_draft_of_{name}_is_lossless_{}",
                profile.name()
            ),
            move || Ok(check_draft(&backend.expect("not ignored"), name, profile)?),
        )
    };
    let in_pieces = |profile: Profile| {
        let backend = backend.cloned();
        Trial::test(
            format!("decoding::pieces_are_what_the_whole_is_{}", profile.name()),
            move || Ok(check_pieces(&backend.expect("not ignored"), profile)?),
        )
    };
    let goldens = all_decoders()
        .flat_map(|name| Profile::ALL.map(|profile| (name, profile)))
        .map(of_golden);
    let fixed = Profile::ALL
        .into_iter()
        .flat_map(|profile| [(profile, true), (profile, false)])
        .map(trial);
    fixed
        .chain(Profile::ALL.into_iter().map(chosen))
        .chain(Profile::ALL.into_iter().map(in_pieces))
        .chain(goldens)
        .chain(["scale", "lstsq"].map(compensated))
        .chain(of_codes(backend))
        .collect()
}

/// Of quantised targets.
fn of_codes(backend: Option<&Backend>) -> Vec<Trial> {
    let alone = |pass: &'static str| {
        let backend = backend.cloned();
        Trial::test(
            format!("decoding::a_target_of_{pass}_is_decoded_losslessly"),
            move || {
                let (backend, folder) = (backend.expect("not ignored"), tempfile::tempdir()?);
                let passes = [pass, "fit-prune:drop=4,samples=2,length=32"];
                let place = folder.path();
                let mut pair = Pair::compile_with(&passes, &backend, Profile::Ort, place, true);
                pair.check_greedy(24)?;
                Ok(check_pairs(&mut pair.target)?)
            },
        )
    };
    let in_company = |pass: &'static str| {
        let backend = backend.cloned();
        Trial::test(
            format!("decoding::texts_of_{pass}_are_in_company_what_they_are_alone"),
            move || {
                let (backend, folder) = (backend.expect("not ignored"), tempfile::tempdir()?);
                let place = folder.path();
                let bundle = Pair::bundle(&[pass], Profile::Ort, place);
                Ok(check_batch(&backend, &bundle, &prompts(), false)?)
            },
        )
    };
    let trials = CODES.map(alone).into_iter().chain(CODES.map(in_company));
    trials.collect()
}

/// Of lengths at which the last piece of three has one token, two and three.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |length: u32| (0..length).map(|i| (i * 7919 + length) % 512).collect();
    [4, 5, 6, 8, 14, 3].map(prompt).into()
}
