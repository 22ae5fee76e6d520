//! auto-draft: what it chooses on machines of known costs, what it measures, and what it keeps of a
//! run that is stopped.

use std::cell::Cell;
use std::path::Path;

use dlc_ir::cost::cost;
use dlc_ir::{DType, Module, Operand, Task, verify};
use dlc_methods::speculation::{DraftCosts, StepCosts};
use dlc_passes::auto_draft::draft_costs;
use dlc_passes::{Machine, PassError, PassRun};

use super::fakes::{Given, Memory, Outside, Watcher, fact, run_with};
use super::model::{Model, log_probabilities, samples};

/// A machine whose steps cost a share of what their weights' bytes say, to a power.
pub(super) struct ByBytes {
    share: f64,
    power: f64,
    timed: Cell<usize>,
    file: Option<&'static str>,
}

impl ByBytes {
    pub(super) fn new(share: f64) -> Self {
        Self {
            share,
            power: 1.0,
            timed: Cell::new(0),
            file: None,
        }
    }
}

impl Machine for ByBytes {
    fn name(&self) -> Result<String, PassError> {
        Ok(format!("a machine of {}", self.share))
    }

    fn step_costs(&self, probes: &Module) -> Result<StepCosts, PassError> {
        self.timed.set(self.timed.get() + 1);
        let bytes: Vec<f64> = probes
            .graphs
            .iter()
            .map(|graph| cost(graph, &probes.weights).weight_bytes as f64)
            .collect();
        Ok(StepCosts {
            steps: bytes[1..]
                .iter()
                .map(|b| self.share * (b / bytes[0]).powf(self.power))
                .collect(),
            verify: vec![(1, 1.0), (16, 1.3)],
            spreads: vec![],
        })
    }

    fn read_costs(&self, file: &Path) -> Result<DraftCosts, PassError> {
        let fail = |problem: String| PassError::Costs {
            place: file.display().to_string(),
            problem,
        };
        serde_yaml::from_str(self.file.unwrap_or_default()).map_err(|e| fail(e.to_string()))
    }
}

fn choose_with(
    options: &str,
    module: &mut Module,
    machine: &ByBytes,
    progress: &dyn dlc_passes::Progress,
    cache: Option<&Memory>,
) -> Result<Vec<PassRun>, PassError> {
    let calibration = Given::new(samples());
    let outside = Outside {
        calibration: &calibration,
        machine: Some(machine),
        samplers: None,
        progress,
        cache,
        key: "",
        threads: 2,
    };
    run_with("auto-draft", options, module, &outside)
}

pub(super) fn choose(
    options: &str,
    module: &mut Module,
    machine: &ByBytes,
) -> Result<Vec<PassRun>, PassError> {
    choose_with(options, module, machine, &(), None)
}

/// A decoder of which the layers past the first do next to nothing.
pub(super) fn lazy() -> Module {
    let mut model = Model::decoder();
    for layer in [1, 2] {
        for matrix in ["o", "down"] {
            model
                .numbers(&format!("{layer}.{matrix}"))
                .iter_mut()
                .for_each(|x| *x *= 1e-3);
        }
    }
    model.module()
}

pub(super) const QUICK: &str = "samples: 4, candidates: 3";

#[test]
fn layers_that_do_nothing_are_left_out() {
    let mut module = lazy();
    let runs = choose(QUICK, &mut module, &ByBytes::new(1.0)).unwrap();
    let dropped: Vec<&str> = runs[0]
        .report
        .diff
        .as_ref()
        .unwrap()
        .removed
        .iter()
        .map(String::as_str)
        .collect();
    for block in [
        "layers.1.attn",
        "layers.1.mlp",
        "layers.2.attn",
        "layers.2.mlp",
    ] {
        assert!(dropped.contains(&block), "{block} is not among {dropped:?}");
    }
    let candidates = &runs[0].report.candidates;
    assert!(
        candidates
            .windows(2)
            .all(|pair| pair[0].speedup >= pair[1].speedup)
    );
    assert!(
        candidates[0].speedup > 1.2 && candidates[0].acceptance > 0.9,
        "{:?}",
        candidates[0]
    );
    assert!(candidates[0].draft_tokens > 0);
}

#[test]
fn where_no_draft_is_cheaper_there_is_none() {
    let mut module = lazy();
    let runs = choose(QUICK, &mut module, &ByBytes::new(4.0)).unwrap();
    assert!(module.graph("draft").is_none() && module.graphs.len() == 1);
    assert!(
        fact(&runs, "draft")
            .unwrap()
            .starts_with("none: no draft beats plain decoding"),
        "{:?}",
        fact(&runs, "draft")
    );
    assert!(
        runs[0]
            .report
            .candidates
            .iter()
            .all(|c| c.draft_tokens == 0),
        "{:?}",
        runs[0].report.candidates
    );
}

#[test]
fn drafts_stay_within_the_memory_that_is_allowed() {
    for (memory, dearest) in [(1.35, 1.35), (1.05, 1.05)] {
        let runs = choose(
            &format!("{QUICK}, memory: {memory}"),
            &mut lazy(),
            &ByBytes::new(1.0),
        )
        .unwrap();
        assert!(
            runs[0]
                .report
                .candidates
                .iter()
                .all(|c| c.memory <= dearest),
            "{:?}",
            runs[0].report.candidates
        );
    }
}

#[test]
fn acceptance_is_how_often_the_draft_says_what_the_target_says() {
    let options = format!("{QUICK}, calibration: texts.jsonl, memory: 2");
    let mut module = Model::decoder().module();
    let runs = choose(&options, &mut module, &ByBytes::new(0.3)).unwrap();
    let draft = module
        .graph("draft")
        .expect("a draft at a third of the cost pays");
    let held_back: Vec<Vec<u32>> = samples().into_iter().skip(1).step_by(2).collect();
    let likeliest = |graph, text: &[u32]| -> Vec<usize> {
        let rows = log_probabilities(graph, &module.weights, text);
        rows.iter()
            .map(|row| {
                (0..row.len())
                    .max_by(|a, b| row[*a].total_cmp(&row[*b]))
                    .unwrap()
            })
            .collect()
    };
    let pairs = held_back.iter().flat_map(|text| {
        likeliest(draft, text)
            .into_iter()
            .zip(likeliest(&module.graphs[0], text))
    });
    let (right, all) = pairs.fold((0.0, 0.0), |(right, all), (a, b)| {
        (right + f64::from(u8::from(a == b)), all + 1.0)
    });
    let measured = runs[0].report.candidates[0].acceptance;
    assert!(
        (measured - (right + 0.5) / (all + 1.0)).abs() < 1e-9,
        "{measured}, not {right} of {all}"
    );
}

/// What is stored under the key that begins so.
fn stored<T: serde::de::DeserializeOwned>(cache: &Memory, beginning: &str) -> T {
    let entries = cache.0.lock().unwrap();
    let text = entries
        .iter()
        .find(|(key, _)| key.starts_with(beginning))
        .map(|(_, text)| text)
        .unwrap();
    serde_json::from_slice(text).unwrap()
}

#[test]
fn the_target_writes_what_it_finds_likeliest_without_its_end() {
    let mut module = Model::decoder().module();
    let cache = Memory::default();
    module.model.eos_token_ids = vec![7];
    choose_with(
        &format!("{QUICK}, temperature: 0"),
        &mut module,
        &ByBytes::new(1.0),
        &(),
        Some(&cache),
    )
    .unwrap();
    let texts: Vec<Vec<u32>> = stored(&cache, "text");
    assert_eq!((texts.len(), texts[0].len()), (4, 16));
    for (at, token) in texts[0].iter().enumerate().skip(8) {
        let row = log_probabilities(&module.graphs[0], &module.weights, &texts[0][..at])
            .pop()
            .unwrap();
        let best = (0..row.len())
            .filter(|t| *t != 7)
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap();
        assert_eq!(*token as usize, best, "token {at}");
    }
}

#[test]
fn texts_go_by_their_seed() {
    let written = |options: &str| -> Vec<Vec<u32>> {
        let cache = Memory::default();
        choose_with(
            &format!("{QUICK}, {options}"),
            &mut lazy(),
            &ByBytes::new(1.0),
            &(),
            Some(&cache),
        )
        .unwrap();
        stored(&cache, "text")
    };
    assert_eq!(written("seed: 1"), written("seed: 1"));
    assert_ne!(written("seed: 1"), written("seed: 2"));
}

#[test]
fn a_target_in_f16_gets_a_draft_with_codes_in_f16() {
    let mut module = Model::edited(&[("f32[", "f16[")]).module();
    module.model.dtype = DType::F16;
    choose(QUICK, &mut module, &ByBytes::new(1.0)).unwrap();
    let draft = module.graph("draft").unwrap();
    assert_eq!(verify::verify(draft, &module.weights), []);
    let coded = draft.nodes().filter(|(_, node)| node.op.is_quantized());
    let scales: Vec<DType> = coded
        .filter_map(|(_, node)| match node.inputs.get(2) {
            Some(Operand::Weight(scales)) => Some(module.weights[*scales].dtype),
            _ => None,
        })
        .collect();
    assert!(!scales.is_empty() && scales.iter().all(|dtype| *dtype == DType::F16));
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_alike() {
    let (mut whole, progress) = (lazy(), Watcher::default());
    let expected = choose_with(QUICK, &mut whole, &ByBytes::new(1.0), &progress, None).unwrap();
    let updates = progress.updates.lock().unwrap().len();
    let whole_cache = Memory::default();
    choose_with(
        QUICK,
        &mut lazy(),
        &ByBytes::new(1.0),
        &(),
        Some(&whole_cache),
    )
    .unwrap();
    for patience in (1..updates).step_by(7) {
        let (cache, mut module) = (Memory::default(), lazy());
        let stopped = Watcher {
            patience: Some(patience),
            ..Watcher::default()
        };
        let error = choose_with(
            QUICK,
            &mut module,
            &ByBytes::new(1.0),
            &stopped,
            Some(&cache),
        )
        .unwrap_err();
        assert!(matches!(error, PassError::Interrupted), "{error}");
        let (mut module, rest) = (lazy(), Watcher::default());
        let runs =
            choose_with(QUICK, &mut module, &ByBytes::new(1.0), &rest, Some(&cache)).unwrap();
        assert_eq!(
            runs[0].report.candidates, expected[0].report.candidates,
            "after {patience} updates"
        );
        assert_eq!(module.graphs, whole.graphs, "after {patience} updates");
        // The samples of a link may be done again, or the drafts of one.
        let work = |progress: &Watcher, what: &str| {
            progress
                .updates
                .lock()
                .unwrap()
                .iter()
                .filter(|u| u.1 > 0 && u.0 == what)
                .count()
        };
        for (what, most) in [
            ("writing text with the target", 0),
            ("scoring by Fisher information", 2),
            ("weighing fewer bits", 0),
            ("measuring drafts", 6),
        ] {
            let again = work(&stopped, what) + work(&rest, what) - work(&progress, what);
            assert!(
                again <= most,
                "{what} after {patience} updates: {again} steps were done again"
            );
        }
        assert_eq!(
            *cache.0.lock().unwrap(),
            *whole_cache.0.lock().unwrap(),
            "after {patience} updates"
        );
    }
}

#[test]
fn nothing_is_computed_twice() {
    let (cache, machine) = (Memory::default(), ByBytes::new(1.0));
    choose_with(QUICK, &mut lazy(), &machine, &(), Some(&cache)).unwrap();
    let progress = Watcher::default();
    choose_with(QUICK, &mut lazy(), &machine, &progress, Some(&cache)).unwrap();
    assert_eq!(machine.timed.get(), 2, "parts once, candidates once");
    let told: Vec<String> = progress
        .updates
        .lock()
        .unwrap()
        .iter()
        .map(|(what, ..)| what.clone())
        .collect();
    assert!(told.iter().all(|what| what == "timing steps"), "{told:?}");
}

#[test]
fn parts_that_seem_to_cost_more_than_the_whole_are_costs_all_the_same() {
    for power in 1..200 {
        let machine = ByBytes {
            power: f64::from(power) / 10.0,
            ..ByBytes::new(1.0)
        };
        let costs = draft_costs(&lazy(), &machine).unwrap();
        assert!(costs.is_sound(), "{power}: {costs:?}");
    }
}

const COSTS: &str =
    "blocks: {attn: {whole: 0.1, int8: 0.05, int4: 0.04}, mlp: {whole: 0.1, int8: 0.05, int4: 0.04}}
head: {whole: 0.4, int8: 0.2, int4: 0.15}
fixed: 0.0
verify: [[1, 1.0], [8, 1.2]]";

#[test]
fn costs_of_another_machine_are_taken_from_a_file_and_nothing_is_timed() {
    let machine = ByBytes {
        file: Some(COSTS),
        ..ByBytes::new(1.0)
    };
    let runs = choose(
        &format!("{QUICK}, costs: there.yaml"),
        &mut lazy(),
        &machine,
    )
    .unwrap();
    assert_eq!(
        (machine.timed.get(), fact(&runs, "costs")),
        (0, Some("of there.yaml"))
    );
    let whole = runs[0]
        .report
        .candidates
        .iter()
        .find(|c| c.draft == "blocks 6 in 8 bits; head in 8 bits")
        .unwrap();
    assert!(
        (whole.cost - (6.0 * 0.05 + 0.2 * whole.head_tokens as f64 / 23.0)).abs() < 1e-9,
        "{whole:?}"
    );
}

#[test]
fn what_cant_be_chosen_from_is_refused() {
    let mut messages = Vec::new();
    for options in [
        "samples: 1",
        "length: 1",
        "candidates: 0",
        "temperature: -1",
        "memory: 0.9",
        "group_size: 7",
        "memroy: 2",
    ] {
        messages.push(
            choose(options, &mut lazy(), &ByBytes::new(1.0))
                .unwrap_err()
                .to_string(),
        );
    }
    let parallel = COSTS.replace("attn", "parallel").leak();
    let machine = ByBytes {
        file: Some(parallel),
        ..ByBytes::new(1.0)
    };
    messages.push(
        choose("costs: there.yaml", &mut lazy(), &machine)
            .unwrap_err()
            .to_string(),
    );
    let edits: [fn(&mut Module); 4] = [
        |module| module.model.task = Task::FillMask,
        |module| module.model.dtype = DType::Bf16,
        |module| {
            let mut draft = module.graphs[0].clone();
            draft.name = "draft".into();
            module.graphs.push(draft);
        },
        |module| module.graphs.clear(),
    ];
    for edit in edits {
        let mut module = lazy();
        edit(&mut module);
        messages.push(
            choose(QUICK, &mut module, &ByBytes::new(1.0))
                .unwrap_err()
                .to_string(),
        );
    }
    insta::assert_snapshot!(messages.join("\n"));
}
