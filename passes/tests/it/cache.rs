//! Scores are computed once for the same module, data and scores.

use dlc_ir::Module;
use dlc_passes::ScoreCache;

use super::fakes::{Given, Memory, Outside, Watcher, run_with};
use super::model::{Model, samples};

/// Runs fit-prune with the cache; whether it scored. Drafts and tables don't depend on where scores
/// come from.
fn scores_anew(options: &str, samples: Vec<Vec<u32>>, key: &str, cache: &Memory) -> bool {
    let calibration = Given::new(samples);
    let progress = Watcher::default();
    let run = |cache: Option<&Memory>, progress: &Watcher| {
        let mut module: Module = Model::decoder().module();
        let outside = Outside {
            calibration: &calibration,
            machine: None,
            samplers: None,
            progress,
            cache,
            key,
            threads: 1,
        };
        let runs = run_with("fit-prune", options, &mut module, &outside).unwrap();
        let scored = !progress.updates.lock().unwrap().is_empty();
        assert_eq!(
            runs[0].report.note,
            Some(if scored {
                "scores: computed"
            } else {
                "scores: reused from the cache"
            })
        );
        (module.graphs, runs[0].report.scores.clone(), scored)
    };
    let (graphs, table, scored) = run(Some(cache), &progress);
    assert_eq!((graphs, table, true), run(None, &Watcher::default()));
    scored
}

#[test]
fn scores_are_reused_for_the_same_module_data_and_scores_only() {
    let cache = Memory::default();
    let mut last = samples();
    last[2][4] = 9;
    let cases = [
        ("drop: 1", samples(), "a", true),
        ("drop: 1", samples(), "a", false),
        // What is chosen from the scores, and where the samples come from, doesn't change them.
        ("drop: 2, protect_last: 1", samples(), "a", false),
        ("keep: 0.5, length: 64, samples: 100", samples(), "a", false),
        ("drop: 1, score: fit-elementwise", samples(), "a", true),
        ("drop: 1, score: fit+kl", samples(), "a", true),
        ("drop: 1, score: kl+fit", samples(), "a", true),
        ("drop: 1, granularity: branch", samples(), "a", true),
        ("drop: 1, samples: 2", samples(), "a", true),
        ("drop: 1, length: 4", samples(), "a", true),
        ("drop: 1", last, "a", true),
        ("drop: 1", samples(), "b", true),
        ("drop: 1, granularity: branch", samples(), "a", false),
    ];
    for (options, samples, key, expected) in cases {
        assert_eq!(
            scores_anew(options, samples, key, &cache),
            expected,
            "{options} {key}"
        );
    }
}

/// Makes something else of a stored table.
type Edit<'e> = &'e dyn Fn(&mut serde_json::Value);

#[test]
fn a_cache_entry_that_is_no_table_of_these_units_is_ignored() {
    let cache = Memory::default();
    assert!(scores_anew(
        "drop: 1, score: kl+cosine",
        samples(),
        "",
        &cache
    ));
    let key = cache.0.lock().unwrap().keys().next().unwrap().clone();
    let good = cache.get(&key).unwrap();
    let edits: [(&str, Edit<'_>); 10] = [
        ("no columns", &|t| t["columns"] = serde_json::json!([])),
        ("a column less", &|t| {
            drop(t["columns"].as_array_mut().unwrap().pop());
        }),
        ("columns swapped", &|t| {
            t["columns"].as_array_mut().unwrap().reverse();
        }),
        ("a value less", &|t| {
            drop(t["columns"][0]["values"].as_array_mut().unwrap().pop());
        }),
        ("a value that is none", &|t| {
            t["columns"][1]["values"][2] = serde_json::Value::Null;
        }),
        ("another unit", &|t| t["units"][1] = "layers.7".into()),
        ("a unit less", &|t| {
            drop(t["units"].as_array_mut().unwrap().pop());
        }),
        ("no loss", &|t| {
            drop(t.as_object_mut().unwrap().remove("loss"));
        }),
        ("loss is null", &|t| t["loss"] = serde_json::Value::Null),
        ("text", &|t| *t = "scores".into()),
    ];
    let mut texts: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("cut off", good[..good.len() / 2].to_owned()),
        ("huge", good.replace("0.", "1e999")),
    ];
    for (what, edit) in edits {
        let mut table: serde_json::Value = serde_json::from_str(&good).unwrap();
        edit(&mut table);
        texts.push((what, table.to_string()));
    }
    for (what, text) in texts {
        cache.put(&key, &text);
        assert!(
            scores_anew("drop: 1, score: kl+cosine", samples(), "", &cache),
            "{what}"
        );
        assert_eq!(
            cache.get(&key).unwrap(),
            good,
            "{what}: the entry is made anew"
        );
    }
    assert!(!scores_anew(
        "drop: 1, score: kl+cosine",
        samples(),
        "",
        &cache
    ));
}

#[test]
fn what_could_not_be_scored_is_not_stored() {
    let cache = Memory::default();
    let calibration = Given::new(samples());
    let mut model = Model::decoder();
    model.numbers("norm").fill(f32::NAN);
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: None,
        progress: &Watcher::default(),
        cache: Some(&cache),
        key: "",
        threads: 1,
    };
    run_with("fit-prune", "drop: 1", &mut model.module(), &outside).unwrap_err();
    assert!(cache.0.lock().unwrap().is_empty());
}
