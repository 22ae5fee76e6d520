//! What quantize leaves in the module, what it says was lost, and what it refuses.

use dlc_eval::run;
use dlc_ir::{Graph, Module, Op, Task, WeightTable, verify};
use dlc_passes::PassRun;

use super::fakes::{fact, report_text, run_all};
use super::model::{EXPERTS, Model, feeds};

fn quantized(options: &str, edits: &[(&str, &str)]) -> (Module, Vec<PassRun>) {
    let mut module = Model::edited(edits).module();
    let runs = run_all(&[("quantize", options)], &mut module).unwrap();
    for graph in &module.graphs {
        assert_eq!(verify::verify(graph, &module.weights), [], "{options}");
    }
    (module, runs)
}

fn logits(graph: &Graph, weights: &WeightTable) -> Vec<f32> {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let made = run(graph, weights, &feeds(graph, &tokens)).unwrap();
    made["logits"].as_f32().unwrap().to_vec()
}

/// Bits of the codes of each product.
pub(super) fn bits(graph: &Graph) -> Vec<usize> {
    let of = |op: &Op| match op {
        Op::QuantizedLinear(format) => Some(format.bits),
        _ => None,
    };
    graph.nodes().filter_map(|(_, node)| of(&node.op)).collect()
}

#[test]
fn the_target_itself_is_quantised_and_what_is_lost_is_said() {
    let (module, runs) = quantized("bits: 4, method: rtn", &[]);
    let names: Vec<&str> = module.graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["target"]);
    insta::assert_snapshot!("quantised_target_report", report_text(&runs[0].report));
}

#[test]
fn every_method_gives_codes_that_stand_near_the_matrices() {
    let before = Model::decoder().module();
    let whole = logits(&before.graphs[0], &before.weights);
    for method in ["rtn", "hqq", "imatrix", "gptq"] {
        for (bits, most) in [(4, 0.9), (8, 0.06)] {
            for symmetric in [true, false] {
                let options = format!("bits: {bits}, method: {method}, symmetric: {symmetric}");
                let (module, _) = quantized(&options, &[]);
                let made = logits(&module.graphs[0], &module.weights);
                let largest = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
                let error = made.iter().zip(&whole).map(|(a, b)| (a - b).abs());
                let error = error.fold(0.0, f32::max) / largest;
                assert!(error > 0.0 && error < most, "{options}: {error}");
            }
        }
    }
}

#[test]
fn a_draft_shares_the_codes_of_its_target() {
    let mut module = Model::decoder().module();
    run_all(
        &[
            ("fit-prune", "drop: 1, score: kl"),
            ("quantize", "method: gptq"),
        ],
        &mut module,
    )
    .unwrap();
    let [target, draft] = ["target", "draft"].map(|name| module.graph(name).unwrap().weights());
    assert!(draft.is_subset(&target));
    assert_eq!(bits(module.graph("draft").unwrap()).len(), 15);
    // A draft of fewer bits keeps them.
    let mut module = Model::decoder().module();
    let passes = [("quantize-draft", "bits: 4"), ("quantize", "bits: 8")];
    run_all(&passes, &mut module).unwrap();
    let of = |name| bits(module.graph(name).unwrap());
    assert!(of("draft").iter().all(|bits| *bits == 4));
    assert!(of("target").iter().all(|bits| *bits == 8) && of("target").len() == 22);
}

#[test]
fn experts_are_quantised_by_rule_whatever_the_method() {
    let (module, _) = quantized("bits: 4, method: gptq", &EXPERTS);
    let experts = module.graphs[0]
        .nodes()
        .find_map(|(_, node)| match node.op {
            Op::Experts(experts) => experts.format,
            _ => None,
        });
    assert_eq!(experts.map(|format| format.bits), Some(4));
}

#[test]
fn mixed_bits_stay_within_their_budget() {
    for (budget, some) in [("15", true), ("100", false)] {
        let (module, runs) = quantized(&format!("bits: mixed, budget: {budget}"), &[]);
        let found = bits(&module.graphs[0]);
        assert!(found.contains(&8));
        assert_eq!(found.contains(&4), some, "{budget}");
        assert!(fact(&runs, "bits").is_some());
    }
    let bytes = |module: &Module| {
        let used = module.graphs[0].weights();
        used.iter()
            .map(|id| module.weights[*id].bytes())
            .sum::<usize>() as f64
    };
    let all = bytes(&quantized("bits: 8", &[]).0);
    let megabytes = 0.9 * all / 1e6;
    let (module, _) = quantized(&format!("bits: mixed, budget: {megabytes}MB"), &[]);
    assert!(bytes(&module) <= 0.9 * all);
    let (_, runs) = quantized("bits: mixed, budget: 0.002nats, method: rtn", &[]);
    let said = fact(&runs, "KL divergence").unwrap();
    let mean: f64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(mean <= 0.002, "{said}");
}

#[test]
fn what_can_not_be_done_is_refused_with_a_way_out() {
    let mut headless = Model::decoder().module();
    headless.model.task = Task::QuestionAnswering;
    let cases = [
        (Model::decoder().module(), "bits: mixed, budget: 3"),
        (Model::decoder().module(), "bits: mixed, budget: 0.001MB"),
        (Model::decoder().module(), "bits: mixed, budget: 1e-9nats"),
        (Model::decoder().module(), "bits: mixed, budget: many"),
        (Model::decoder().module(), "bits: 3"),
        (Model::decoder().module(), "group_size: 48"),
        (Model::decoder().module(), "blocks: layers.9"),
        (Model::edited(&[("f32[", "bf16[")]).module(), ""),
        (headless, "bits: mixed"),
    ];
    let mut said = Vec::new();
    for (mut module, options) in cases {
        let error = run_all(&[("quantize", options)], &mut module).unwrap_err();
        said.push(format!("{options}\n  {error}"));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for method in ["rtn", "hqq"] {
        let mut model = Model::decoder();
        model.numbers("1.up")[5] = f32::NAN;
        let mut module = model.module();
        let options = format!("method: {method}, compare: false");
        let error = run_all(&[("quantize", &options)], &mut module).unwrap_err();
        assert!(error.to_string().contains("1.up"), "{error}");
    }
}
