//! Decoding on ONNX Runtime, profile `ort`: what is left is the `ort` crate's.

use dlc_bundle::Profile;
use dlc_methods::speculation::{DecodeOptions, DraftLength, TokenModel};
use dlc_runtime::Backend;
use libtest_mimic::Trial;

use crate::common::decoding::Pair;
use crate::counting::{allocations_of_index, rounds};

/// The most that a pass over a graph with so many caches allocates, all of it for the `ort` crate:
///
/// - 1, the list of inputs, which `Session::run_with_options` takes over;
/// - 1, the header of the mask's tensor, which is as long as the text: all other tensors are kept;
/// - 1 each, inside the run: names and pointers of the inputs, pointers of the outputs, and both as
///   C has them, and the values that come out;
/// - names and values of the outputs, collected one by one into lists that double from 4 on.
fn allowed(caches: usize) -> usize {
    let outputs = caches + 1;
    let doublings = (outputs.next_power_of_two() / 4).ilog2() as usize;
    2 + 7 + 2 * doublings
}

fn check(pair: &mut Pair, options: &DecodeOptions, drafted: bool) {
    let prompt = pair.prompts(1).remove(0);
    let draft = drafted.then_some(&mut pair.draft as &mut dyn TokenModel);
    let found = rounds(&mut pair.target, draft, &prompt, options);
    let of_target = found.allocations.len() * allowed(24);
    let of_draft = found.stats.draft.drafted * allowed(16);
    let of_index = options
        .lookup
        .map_or(0, |_| allocations_of_index(&prompt, &found.text));
    let all: usize = found.allocations.iter().sum();
    assert!(all <= of_target + of_draft + of_index, "{all}: {found:?}");
}

pub fn trials(backend: Option<&Backend>) -> Vec<Trial> {
    let kinds = [
        ("plain", None, false),
        ("with_a_draft", None, true),
        ("with_both", Some(2), true),
    ];
    let trial = |(kind, lookup, drafted): (&'static str, Option<usize>, bool)| {
        let backend = backend.cloned();
        let title = format!("sessions::passes_{kind}_allocate_what_the_ort_crate_does");
        Trial::test(title, move || {
            let (backend, folder) = (backend.expect("not ignored"), tempfile::tempdir()?);
            let mut pair = Pair::compile(&backend, Profile::Ort, folder.path(), true);
            let options = DecodeOptions {
                max_tokens: 64,
                draft_length: DraftLength::Fixed(3),
                lookup,
                ..DecodeOptions::default()
            };
            check(&mut pair, &options, drafted);
            Ok(())
        })
    };
    kinds.into_iter().map(trial).collect()
}
