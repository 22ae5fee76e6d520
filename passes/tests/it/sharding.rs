//! Samples that are scored in shards: together they say what one run says.

use dlc_ir::Module;
use dlc_passes::sums::{FisherSums, ScoreRequest, Shard, ShardScores};
use dlc_passes::{
    Pass, PassContext, PassError, PassReport, ScoreCache, ScoreParts, Sources, registry, run_pass,
    score_shard,
};

use super::fakes::{Given, Memory, Watcher};
use super::model::{Model, samples};

/// Sums, and what they are of.
struct Parts(ScoreRequest, FisherSums);

impl ScoreParts for Parts {
    fn sums(&self, request: &ScoreRequest) -> Result<FisherSums, PassError> {
        assert_eq!(*request, self.0);
        Ok(self.1.clone())
    }
}

/// Lets `work` have a pass and what it runs in.
fn with<T>(
    (name, options): (&str, &str),
    parts: Option<&Parts>,
    progress: &Watcher,
    cache: Option<&Memory>,
    work: impl FnOnce(&dyn Pass, &mut PassContext<'_>) -> T,
) -> T {
    let calibration = Given::new(samples());
    let sources = Sources {
        calibration: &calibration,
        scores: parts.map(|parts| parts as &dyn ScoreParts),
        ..Sources::NONE
    };
    let options = serde_yaml::from_str(&format!("{{{options}}}")).unwrap();
    let passes = registry::build(name, &options, sources).unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    let mut cx = PassContext {
        progress,
        cache: cache.map(|cache| cache as &dyn ScoreCache),
        module_key: "key".into(),
        pool: &pool,
    };
    work(&*passes[0], &mut cx)
}

fn shard(pass: (&str, &str), module: &Module, shard: Shard) -> Result<ShardScores, PassError> {
    with(pass, None, &Watcher::default(), None, |pass, cx| {
        score_shard(module, pass, shard, cx)
    })
}

/// The sums of so many shards.
fn merged(pass: (&str, &str), module: &Module, count: usize) -> Parts {
    let parts: Vec<ShardScores> = (1..=count)
        .map(|number| shard(pass, module, Shard::new(number, count).unwrap()).unwrap())
        .collect();
    let mut sums = FisherSums::zero(&parts[0].request.layout);
    for part in parts.iter().rev() {
        assert_eq!(part.request, parts[0].request);
        sums.merge(&part.sums);
    }
    Parts(parts[0].request.clone(), sums)
}

fn pruned(options: &str, parts: Option<&Parts>, watcher: &Watcher) -> (Module, PassReport) {
    let mut module = Model::decoder().module();
    let run = with(("fit-prune", options), parts, watcher, None, |pass, cx| {
        run_pass(&mut module, pass, cx)
    });
    (module, run.unwrap().report)
}

#[test]
fn shards_give_the_scores_and_the_draft_of_one_run() {
    let module = Model::decoder().module();
    for options in [
        "drop: 1",
        "drop: 2, granularity: branch, score: fit+fit-elementwise+fit-residual+trace+kl",
    ] {
        let (expected, whole) = pruned(options, None, &Watcher::default());
        for count in 1..=samples().len() {
            let parts = merged(("fit-prune", options), &module, count);
            assert_eq!(parts.1.samples, samples().len());
            let watcher = Watcher::default();
            let (made, report) = pruned(options, Some(&parts), &watcher);
            assert_eq!(report.scores, whole.scores, "{options}, {count} shards");
            assert_eq!(made.graphs, expected.graphs, "{options}, {count} shards");
            assert_eq!(report.note, Some("scores: computed in shards"));
            let steps = watcher.updates.lock().unwrap();
            assert!(steps.iter().all(|(step, ..)| !step.contains("Fisher")));
        }
    }
}

#[test]
fn auto_draft_scores_the_head_and_half_of_its_texts() {
    let module = Model::decoder().module();
    let pass = ("auto-draft", "samples: 4, calibration: given.txt");
    let whole = merged(pass, &module, 1);
    assert_eq!(
        whole.0.samples,
        [samples()[0].clone(), samples()[2].clone()]
    );
    assert!(whole.0.layout.keys().any(|name| name.starts_with("head/")));
    let parts = merged(pass, &module, 2);
    assert_eq!(parts.0, whole.0);
    for (name, sums) in &whole.1.entries {
        let values = |sums: &[dlc_passes::sums::Sum]| -> Vec<f64> {
            sums.iter().map(|sum| sum.value()).collect()
        };
        assert_eq!(values(&parts.1.entries[name]), values(sums), "{name}");
    }
}

#[test]
fn a_shard_that_was_stopped_goes_on_where_it_was() {
    let module = Model::decoder().module();
    let pass = ("fit-prune", "drop: 1");
    let whole = shard(pass, &module, Shard::WHOLE).unwrap();
    let cache = Memory::default();
    let run = |patience: Option<usize>| {
        let watcher = Watcher {
            patience,
            ..Watcher::default()
        };
        let scores = with(pass, None, &watcher, Some(&cache), |pass, cx| {
            score_shard(&module, pass, Shard::WHOLE, cx)
        });
        (scores, watcher.updates.into_inner().unwrap().len())
    };
    let (stopped, _) = run(Some(20));
    assert!(matches!(stopped, Err(PassError::Interrupted)));
    assert!(!cache.0.lock().unwrap().is_empty());
    let (scores, steps) = run(None);
    assert_eq!(scores.unwrap(), whole);
    let (_, all) = run(None);
    assert!(steps < all, "{steps} of {all}");
    assert!(cache.0.lock().unwrap().is_empty());
}

#[test]
fn what_no_shard_can_be_scored_of_is_refused() {
    let module = Model::decoder().module();
    let refused = |pass: (&str, &str), number: usize, count: usize, expected: &str| {
        let error = shard(pass, &module, Shard::new(number, count).unwrap()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(("fit-prune", "drop: 1"), 1, 4, "3 samples, too few for 4");
    refused(("fit-prune", "drop: 9"), 1, 1, "drop=2 or less");
    refused(("quantize", ""), 1, 1, "scores nothing by Fisher");
    let mut model = Model::decoder();
    model.numbers("1.o")[0] = f32::NAN;
    let error = shard(("fit-prune", "drop: 1"), &model.module(), Shard::WHOLE).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}
