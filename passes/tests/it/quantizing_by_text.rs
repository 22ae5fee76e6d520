//! What quantize-draft does by running text through the draft, and matrices in f16.

use dlc_errors::{Fault, Faulty};
use dlc_ir::cost::cost;
use dlc_ir::{DType, Graph, Module, Operand, WeightTable, verify};
use dlc_passes::{PassRun, Sources, registry, rehearse_passes};

use super::fakes::{Given, Outside, fact, run_all, run_with};
use super::model::{EXPERTS, Model, feeds, samples};
use super::quantizing_targets::bits;

const PRUNE: (&str, &str) = (
    "fit-prune",
    "drop: 1, score: kl, protect_first: 1, protect_last: 1",
);
const HALF: (&str, &str) = ("f32[", "f16[");

fn logits(module: &Module, graph: &str) -> Vec<f32> {
    let graph = module.graph(graph).unwrap();
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let made = dlc_eval::run(graph, &module.weights, &feeds(graph, &tokens)).unwrap();
    made["logits"].as_f32().unwrap().to_vec()
}

/// The decoder without its middle layer as draft, and what a pass then does to it.
fn quantized(options: &str) -> (Module, Vec<PassRun>) {
    let mut module = Model::decoder().module();
    run_all(&[PRUNE], &mut module).unwrap();
    let runs = run_all(&[("quantize-draft", options)], &mut module).unwrap();
    let draft = module.graph("draft").unwrap();
    assert_eq!(verify::verify(draft, &module.weights), [], "{options}");
    (module, runs)
}

/// The draft gets the codes that `quantize` finds for a model that is the draft, on the same text.
#[test]
fn the_draft_is_calibrated_on_its_own_activations() {
    for method in ["imatrix", "gptq"] {
        let options = format!("bits: 4, symmetric: true, method: {method}, calibration: text");
        let (module, _) = quantized(&options);
        let mut alone = Model::decoder().module();
        run_all(&[PRUNE], &mut alone).unwrap();
        alone.graphs.retain(|graph| graph.name == "draft");
        alone.graphs[0].name = "target".into();
        let embedded = format!("{options}, embedding: none");
        run_all(&[("quantize", &embedded)], &mut alone).unwrap();
        assert_eq!(
            logits(&module, "draft"),
            logits(&alone, "target"),
            "{method}"
        );
        // The codes of the target's activations are others.
        let mut shared = Model::decoder().module();
        run_all(&[PRUNE, ("quantize", &embedded)], &mut shared).unwrap();
        assert_ne!(
            logits(&module, "draft"),
            logits(&shared, "draft"),
            "{method}"
        );
    }
}

#[test]
fn text_is_read_where_it_is_asked_for_and_draft_and_target_are_compared_there() {
    let cases = [
        ("", "hqq", false),
        ("bits: 8", "hqq", false),
        ("method: rtn, samples: 2, seed: 3", "rtn", false),
        ("calibration: text", "gptq", true),
        ("calibration: text, method: hqq", "hqq", true),
        ("method: imatrix", "imatrix", true),
        ("bits: mixed, budget: 15", "gptq", true),
        ("bits: mixed, budget: 15, method: rtn", "rtn", true),
    ];
    for (options, method, reads) in cases {
        let mut module = Model::decoder().module();
        run_all(&[PRUNE], &mut module).unwrap();
        let calibration = Given::new(samples());
        let outside = Outside {
            calibration: &calibration,
            machine: None,
            samplers: None,
            progress: &(),
            cache: None,
            key: "",
            threads: 1,
        };
        let runs = run_with("quantize-draft", options, &mut module, &outside).unwrap();
        assert_eq!(fact(&runs, "method"), Some(method), "{options}");
        assert_eq!(calibration.asked.get() != (0, 0), reads, "{options}");
        assert_eq!(fact(&runs, "top-1 agreement").is_some(), reads, "{options}");
    }
}

#[test]
fn bits_of_a_draft_are_mixed_within_a_budget() {
    for budget in ["15", "0.01nats", "0.0065MB"] {
        let (module, runs) = quantized(&format!("bits: mixed, budget: {budget}"));
        let bytes = cost(module.graph("draft").unwrap(), &module.weights).weight_bytes;
        assert!(!budget.ends_with("MB") || bytes <= 6500, "{bytes}");
        let of = |graph| bits(module.graph(graph).unwrap());
        assert_eq!(of("draft").len(), 15, "{budget}");
        assert_eq!(of("target"), [0; 0], "{budget}");
        assert!(fact(&runs, "bits").is_some(), "{budget}");
    }
}

#[test]
fn a_trimmed_draft_is_calibrated_too() {
    let mut module = Model::decoder().module();
    let passes = [
        PRUNE,
        ("trim-head", "tokens: 12"),
        ("quantize-draft", "method: gptq, calibration: text"),
    ];
    run_all(&passes, &mut module).unwrap();
    let draft = module.graph("draft").unwrap();
    assert_eq!(verify::verify(draft, &module.weights), []);
    assert_eq!(bits(draft).len(), 15);
}

/// Scales have the element type of the model, and codes were found for them as they are stored:
/// storing them rounds nothing.
fn check_scales(graph: &Graph, weights: &WeightTable) {
    let coded: Vec<_> = graph
        .nodes()
        .filter(|(_, node)| node.op.is_quantized())
        .collect();
    assert!(!coded.is_empty());
    for (_, node) in coded {
        let Operand::Weight(scales) = node.inputs[2] else {
            panic!("scales are weights")
        };
        let scales = &weights[scales];
        assert_eq!(scales.dtype, DType::F16, "{}", scales.name);
        let mut found = vec![0.0; scales.elements()];
        scales.unrounded().unwrap().read_f32(0, &mut found);
        assert_eq!(scales.to_f32().unwrap(), found, "{}", scales.name);
    }
}

#[test]
fn matrices_in_f16_get_scales_in_f16() {
    let experts = [EXPERTS[0], EXPERTS[1], HALF];
    // Experts of this model aren't whole groups wide.
    let models = [(&[HALF][..], ""), (&experts, ", blocks: layers.0")];
    for (edits, blocks) in models {
        let before = Model::edited(edits).module();
        let whole = logits(&before, "target");
        let largest = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
        let methods = ["rtn", "hqq", "imatrix", "gptq"].into_iter();
        let methods = methods.flat_map(|method| [(method, 4, 0.9), (method, 8, 0.06)]);
        for (method, bits, most) in methods {
            for pass in ["quantize", "quantize-draft"] {
                let mut module = before.clone();
                let options = format!("bits: {bits}, method: {method}, calibration: text{blocks}");
                run_all(&[(pass, &options)], &mut module).unwrap();
                let graph = module.graphs.last().unwrap();
                assert_eq!(verify::verify(graph, &module.weights), [], "{options}");
                check_scales(graph, &module.weights);
                let made = logits(&module, &graph.name);
                let error = made.iter().zip(&whole).map(|(a, b)| (a - b).abs());
                let error = error.fold(0.0, f32::max) / largest;
                assert!(error > 0.0 && error < most, "{pass} {options}: {error}");
            }
        }
    }
}

#[test]
fn f16_is_refused_where_no_operator_multiplies_it_with_codes() {
    let mut half = Model::edited(&[HALF]).module();
    half.model.dtype = DType::F16;
    let experts = Model::edited(&[EXPERTS[0], EXPERTS[1], HALF]).module();
    let cases = [
        ("quantize", &half, false, "--profile ort"),
        ("quantize-draft", &half, false, "--profile ort"),
        ("auto-draft", &half, false, "--profile ort"),
        // Rows of 8 and 12 aren't whole groups of 32.
        ("quantize", &experts, true, "--dtype f32"),
        ("quantize-draft", &experts, true, "--dtype f32"),
    ];
    for (pass, module, multiplies_f16_codes, way) in cases {
        let sources = Sources {
            multiplies_f16_codes,
            ..Sources::NONE
        };
        let passes = registry::build(pass, &serde_yaml::Mapping::new(), sources).unwrap();
        let error = rehearse_passes(module, &passes).unwrap_err();
        assert_eq!(error.fault(), Fault::Unsupported);
        let said = error.to_string();
        assert!(said.contains("f16") && said.contains(way), "{said}");
    }
}
