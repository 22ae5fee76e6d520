//! Progress is told step by step, and a wish to stop is heard at every step.

use dlc_passes::PassError;

use super::fakes::{Given, Memory, Outside, Watcher, run_with};
use super::model::{Model, samples};

/// What was done, how many steps of how many.
type Update = (String, usize, usize);

fn run(options: &str, patience: Option<usize>, cache: &Memory) -> (Result<(), PassError>, Vec<Update>) {
    let (calibration, progress) = (Given::new(samples()), Watcher { patience, ..Watcher::default() });
    let outside = Outside { calibration: &calibration, machine: None, samplers: None, progress: &progress, cache: Some(cache), key: "", threads: 1 };
    let result = run_with("fit-prune", options, &mut Model::decoder().module(), &outside).map(drop);
    (result, progress.updates.into_inner().unwrap())
}

#[test]
fn progress_runs_from_nothing_to_everything_without_gaps() {
    // 3 samples through 8 links: embedding, 6 blocks, head; backwards through the 6 blocks once more.
    for (options, expected) in [("score: fit", vec![42]), ("score: cosine", vec![24]), ("score: kl", vec![24]), ("score: kl+trace", vec![42, 24])] {
        let (result, updates) = run(options, None, &Memory::default());
        result.unwrap();
        let told: Vec<(usize, usize)> = updates.iter().map(|(_, done, total)| (*done, *total)).collect();
        let all: Vec<(usize, usize)> = expected.iter().flat_map(|total| (0..=*total).map(|done| (done, *total))).collect();
        assert_eq!(told, all, "{options}");
    }
}

#[test]
fn an_interruption_ends_scoring_at_the_next_step() {
    for options in ["score: fit", "score: cosine", "score: kl", "score: kl+trace"] {
        let steps = run(options, None, &Memory::default()).1.len();
        for patience in 1..=steps {
            let cache = Memory::default();
            let (result, updates) = run(options, Some(patience), &cache);
            assert!(matches!(result, Err(PassError::Interrupted)), "{options} after {patience} steps");
            assert_eq!(updates.len(), patience, "{options}");
            assert!(cache.0.borrow().is_empty(), "{options}");
        }
    }
}
