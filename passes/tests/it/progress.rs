//! Progress is told step by step, and a wish to stop is heard at every step.

use dlc_passes::PassError;

use super::fakes::{Given, Memory, Outside, Watcher, run_with};
use super::model::{Model, samples};

/// What was done, how many steps of how many.
type Update = (String, usize, usize);

fn run(
    options: &str,
    patience: Option<usize>,
    cache: &Memory,
) -> (Result<(), PassError>, Vec<Update>) {
    let (calibration, progress) = (
        Given::new(samples()),
        Watcher {
            patience,
            ..Watcher::default()
        },
    );
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: None,
        progress: &progress,
        cache: Some(cache),
        key: "",
        threads: 1,
    };
    let result = run_with(
        "fit-prune",
        options,
        &mut Model::decoder().module(),
        &outside,
    )
    .map(drop);
    (result, progress.updates.into_inner().unwrap())
}

#[test]
fn progress_runs_from_nothing_to_everything_without_gaps() {
    // 3 samples through 8 links: embedding, 6 blocks, head; backwards through the 6 blocks once
    // more.
    for (options, expected) in [
        ("score: fit", vec![42]),
        ("score: cosine", vec![24]),
        ("score: kl", vec![24]),
        ("score: kl+trace", vec![42, 24]),
    ] {
        let (result, updates) = run(options, None, &Memory::default());
        result.unwrap();
        let told: Vec<(usize, usize)> = updates
            .iter()
            .map(|(_, done, total)| (*done, *total))
            .collect();
        let all: Vec<(usize, usize)> = expected
            .iter()
            .flat_map(|total| (0..=*total).map(|done| (done, *total)))
            .collect();
        assert_eq!(told, all, "{options}");
    }
}

/// Steps that were really done.
fn work(updates: &[Update]) -> usize {
    updates.iter().filter(|(_, done, _)| *done > 0).count()
}

#[test]
fn an_interruption_ends_scoring_at_the_next_step_and_the_next_run_goes_on_from_there() {
    const SAMPLES: usize = 3;
    for options in [
        "score: fit",
        "score: cosine",
        "score: kl",
        "score: kl+trace",
        "score: kl, granularity: branch",
        "score: cosine+fit-elementwise",
    ] {
        let whole = Memory::default();
        let (_, updates) = run(options, None, &whole);
        let all = work(&updates);
        for patience in 1..=updates.len() {
            let cache = Memory::default();
            let (result, stopped) = run(options, Some(patience), &cache);
            assert!(
                matches!(result, Err(PassError::Interrupted)),
                "{options} after {patience} steps"
            );
            assert_eq!(stopped.len(), patience, "{options}");
            let (result, rest) = run(options, None, &cache);
            result.unwrap();
            let again = work(&stopped) + work(&rest) - all;
            assert!(
                again <= SAMPLES,
                "{options} after {patience} steps: {again} steps were done again"
            );
            // Of all that was kept, the scores are left, and they are the same.
            assert_eq!(
                *cache.0.lock().unwrap(),
                *whole.0.lock().unwrap(),
                "{options} after {patience} steps"
            );
            assert_eq!(whole.0.lock().unwrap().len(), 1, "{options}");
        }
    }
}

#[test]
fn a_run_that_is_stopped_again_and_again_ends_with_the_same_scores() {
    for options in ["score: fit", "score: kl+trace"] {
        let (whole, cache) = (Memory::default(), Memory::default());
        run(options, None, &whole).0.unwrap();
        let mut stops = 0;
        while run(options, Some(8), &cache).0.is_err() {
            stops += 1;
            assert!(stops < 60, "{options}: comes no further");
        }
        assert!(stops > 3, "{options}");
        assert_eq!(
            *cache.0.lock().unwrap(),
            *whole.0.lock().unwrap(),
            "{options}"
        );
    }
}

#[test]
fn what_is_kept_may_be_anything() {
    let (whole, cache) = (Memory::default(), Memory::default());
    let updates = run("score: kl+trace", None, &whole).1.len();
    let _ = run("score: kl+trace", Some(updates / 2), &cache);
    for garbage in [&b"{}"[..], b"[1]", b"", &[0xff; 40]] {
        let keys: Vec<String> = cache.0.lock().unwrap().keys().cloned().collect();
        for key in keys {
            let spoilt = Memory(std::sync::Mutex::new(cache.0.lock().unwrap().clone()));
            spoilt
                .0
                .lock()
                .unwrap()
                .insert(key.clone(), garbage.to_vec());
            run("score: kl+trace", None, &spoilt).0.unwrap();
            let scores = |memory: &Memory| {
                memory
                    .0
                    .lock()
                    .unwrap()
                    .iter()
                    .find(|(key, _)| key.starts_with("fit-prune 2 "))
                    .unwrap()
                    .1
                    .clone()
            };
            assert_eq!(scores(&spoilt), scores(&whole), "{key}");
        }
    }
}
