//! Scoring of real checkpoints: against a backward through the whole model at once, and on the
//! built-in text.

use std::collections::BTreeMap;
use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::TextCalibration;
use dlc_eval::{Array, Segment, Values, Wanted, cross_entropy};
use dlc_ir::{DType, Dim, Graph, Module, Task, WeightId, verify};
use dlc_passes::{
    Calibration, PassContext, PassError, PassReport, ScoreTable, Sources, registry, run_passes,
};

use crate::common::fixture;
use crate::common::golden::{EncoderGolden, Golden, module, plain_decoders};

/// How far scores may be from those of the whole-model backward, relative to them. Measured: 5e-14
/// at most.
const TOLERANCE: f64 = 1e-6;

struct Given(Vec<Vec<u32>>);

impl Calibration for Given {
    fn samples(
        &self,
        _file: Option<&Path>,
        _samples: usize,
        _length: usize,
    ) -> Result<Vec<Vec<u32>>, PassError> {
        Ok(self.0.clone())
    }

    fn basic_tokens(&self) -> Result<Vec<u32>, PassError> {
        Ok(vec![])
    }
}

/// Runs fit-prune and the passes after it, with options as in YAML's flow form.
fn fit_prune(
    module: &mut Module,
    options: &str,
    calibration: &dyn Calibration,
    threads: usize,
) -> PassReport {
    let passes = registry::build(
        "fit-prune",
        &serde_yaml::from_str(&format!("{{{options}}}")).unwrap(),
        Sources {
            calibration,
            ..Sources::NONE
        },
    )
    .unwrap();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    let mut cx = PassContext {
        progress: &(),
        cache: None,
        module_key: String::new(),
        pool: &pool,
    };
    run_passes(module, &passes, &mut cx)
        .unwrap()
        .remove(0)
        .report
}

fn table(module: &Module, samples: &[Vec<u32>], granularity: &str, threads: usize) -> ScoreTable {
    let options = format!(
        "drop: 1, granularity: {granularity}, score: fit+fit-elementwise+fit-residual+trace"
    );
    fit_prune(
        &mut module.clone(),
        &options,
        &Given(samples.to_vec()),
        threads,
    )
    .scores
    .unwrap()
}

fn known(graph: &Graph, tokens: &[u32]) -> Values {
    let n = tokens.len();
    let array = |name: &str, dims: &[Dim]| match name {
        "input_ids" => Array::i64([1, n], tokens.iter().map(|t| i64::from(*t)).collect()),
        "attention_mask" => Array::i64([1, n], vec![1; n]),
        "position_ids" => Array::i64([1, n], (0..n as i64).collect()),
        "token_type_ids" => Array::i64([1, n], vec![0; n]),
        _ => Array::f32(
            [1, dims[1].known().unwrap(), 0, dims[3].known().unwrap()],
            vec![],
        ),
    };
    graph
        .inputs()
        .iter()
        .map(|i| {
            (
                i.value,
                array(&i.name, &graph.value(i.value).ty.shape.0).unwrap(),
            )
        })
        .collect()
}

/// Squared gradients of every weight by one backward over all nodes for each sample, mean over
/// samples.
fn whole_model(module: &Module, samples: &[Vec<u32>]) -> BTreeMap<WeightId, Vec<f64>> {
    let graph = module.graph("target").unwrap();
    let segment = Segment::new(
        graph,
        &module.weights,
        graph.nodes().map(|(id, _)| id).collect(),
    )
    .unwrap();
    let logits = graph.find_output("logits").unwrap().value;
    let wanted = Wanted {
        values: vec![],
        weights: segment.weights().to_vec(),
    };
    let mut sums: BTreeMap<WeightId, Vec<f64>> = BTreeMap::new();
    for tokens in samples {
        let trace = segment.trace(&known(graph, tokens)).unwrap();
        let found = trace.value(logits).unwrap();
        let (numbers, width) = (found.as_f32().unwrap(), *found.shape().last().unwrap());
        // An encoder's right answers are its own most likely ones.
        let own = |row: &[f32]| {
            (0..row.len())
                .max_by(|a, b| row[*a].total_cmp(&row[*b]))
                .unwrap() as u32
        };
        let targets = match module.model.task {
            Task::TextGeneration => tokens[1..].to_vec(),
            _ => numbers.chunks(width).map(own).collect(),
        };
        let scored = numbers[..targets.len() * width].to_vec();
        let seed = cross_entropy(
            &Array::f32([1, targets.len(), width], scored).unwrap(),
            &targets,
        )
        .unwrap()
        .1;
        let mut seed = seed.as_f32().unwrap().to_vec();
        seed.resize(numbers.len(), 0.0);
        let gradients = trace
            .vjp(
                &[(logits, Array::f32(found.shape(), seed).unwrap())],
                &wanted,
            )
            .unwrap();
        for (weight, gradient) in gradients.weights {
            let sum = sums
                .entry(weight)
                .or_insert_with(|| vec![0.0; gradient.elements()]);
            sum.iter_mut()
                .zip(gradient.as_f32().unwrap())
                .for_each(|(s, g)| *s += f64::from(*g).powi(2) / samples.len() as f64);
        }
    }
    sums
}

/// Ends of the names of matrices whose products are added to the residual.
const RESIDUAL: [&str; 8] = [
    "o_proj.weight",
    "down_proj.weight",
    "output.dense.weight",
    "out_lin.weight",
    "lin2.weight",
    "w2.weight",
    "attn.o.weight",
    "Wo.weight",
];

/// fit, fit-elementwise, fit-residual and trace (METHODS.md, section 1) of a weight.
fn formulas(module: &Module, weight: WeightId, squares: &[f64]) -> [f64; 4] {
    let weight = &module.weights[weight];
    let theta: Vec<f64> = weight
        .to_f32()
        .unwrap()
        .into_iter()
        .map(|x| f64::from(x).powi(2))
        .collect();
    let trace: f64 = squares.iter().sum();
    let fit = trace * theta.iter().sum::<f64>() / theta.len() as f64;
    let elementwise = squares.iter().zip(&theta).map(|(f, t)| f * t).sum();
    let residual = RESIDUAL.iter().any(|end| weight.name.ends_with(end));
    [fit, elementwise, if residual { fit } else { 0.0 }, trace]
}

/// Which unit a weight belongs to, by its name in the checkpoint. With `norm_after` the norm called
/// `post_attention_layernorm` is the attention's.
fn unit_of(name: &str, granularity: &str, norm_after: bool) -> Option<String> {
    let (_, rest) = ["layers.", "encoder.layer.", "transformer.layer."]
        .iter()
        .find_map(|start| name.split_once(start))?;
    let (layer, part) = rest.split_once('.')?;
    let attention = [
        "self_attn",
        "input_layernorm",
        "attention",
        "attn",
        "sa_layer_norm",
    ]
    .iter()
    .any(|start| part.starts_with(start))
        || norm_after && part.starts_with("post_attention_layernorm");
    Some(if granularity == "layer" {
        format!("layers.{layer}")
    } else {
        format!("layers.{layer}.{}", if attention { "attn" } else { "mlp" })
    })
}

fn check(name: &str, module: &Module, samples: &[Vec<u32>]) {
    let squares = whole_model(module, samples);
    let norm_after = module
        .weights
        .find("model.layers.0.post_feedforward_layernorm.weight")
        .is_some();
    for granularity in ["layer", "branch"] {
        let mut expected: BTreeMap<String, [f64; 4]> = BTreeMap::new();
        for (weight, squares) in &squares {
            if let Some(unit) = unit_of(&module.weights[*weight].name, granularity, norm_after) {
                let sums = expected.entry(unit).or_default();
                sums.iter_mut()
                    .zip(formulas(module, *weight, squares))
                    .for_each(|(sum, score)| *sum += score);
            }
        }
        let table = table(module, samples, granularity, 2);
        assert_eq!(table.units.len(), expected.len());
        for (i, unit) in table.units.iter().enumerate() {
            for (column, expected) in table.columns.iter().zip(expected[unit]) {
                let error = (column.values[i] - expected).abs() / expected;
                assert!(
                    error <= TOLERANCE,
                    "{name} {unit}: {} is {:e}, not {expected:e}",
                    column.name,
                    column.values[i]
                );
            }
        }
    }
}

fn sequences(golden: &Golden) -> Vec<Vec<u32>> {
    let all: Vec<u32> = golden.ids.iter().map(|id| *id as u32).collect();
    // Samples of different lengths.
    vec![all[..13].to_vec(), all[13..22].to_vec()]
}

fn tiny_llama() -> (Module, TextCalibration) {
    let checkpoint = Checkpoint::open(&fixture("tiny-llama")).unwrap();
    let module = import(
        &checkpoint,
        &ImportOptions {
            dtype: None,
            ..ImportOptions::default()
        },
    )
    .unwrap();
    let calibration = TextCalibration::new(
        Some(fixture("tiny-llama/tokenizer.json")),
        module.model.vocab_size,
    );
    (module, calibration)
}

#[test]
fn scores_are_those_of_a_backward_through_the_whole_model() {
    for name in plain_decoders() {
        let golden = Golden::read(name);
        let module = golden.module(DType::F32);
        let of_llamas_kind = "model.layers.0.self_attn.o_proj.weight";
        if module.weights.find(of_llamas_kind).is_some() {
            check(name, &module, &sequences(&golden));
        }
    }
    let golden = Golden::read("qwen2");
    check("qwen2", &golden.module(DType::F16), &sequences(&golden));
}

#[test]
fn scores_of_encoders_are_those_of_a_backward_through_the_whole_model() {
    for name in [
        "bert-classifier",
        "roberta-tokens",
        "bert",
        "distilbert",
        "xlm-roberta-tokens",
        "electra",
        "modernbert-classifier",
    ] {
        let ids = EncoderGolden::read(name).inputs["input_ids"]
            .as_i64()
            .unwrap()
            .iter()
            .map(|id| *id as u32)
            .collect::<Vec<_>>();
        check(
            name,
            &module(name, DType::F32),
            &[ids[..8].to_vec(), ids[8..14].to_vec()],
        );
    }
}

#[test]
fn scores_of_a_trained_model_are_those_of_a_backward_through_the_whole_model() {
    let (module, calibration) = tiny_llama();
    check(
        "tiny-llama",
        &module,
        &calibration.samples(None, 2, 32).unwrap(),
    );
}

#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let (module, calibration) = tiny_llama();
    let samples = calibration.samples(None, 2, 64).unwrap();
    assert_eq!(
        table(&module, &samples, "branch", 1),
        table(&module, &samples, "branch", 2)
    );
}

#[test]
fn the_draft_of_a_trained_model_lacks_what_matters_least() {
    let (module, calibration) = tiny_llama();
    for (options, dropped, caches) in [
        ("score: kl+fit, samples: 2, length: 48", 4, 8),
        (
            "score: fit, granularity: branch, drop: 6, samples: 2, length: 48",
            6,
            12,
        ),
    ] {
        let mut module = module.clone();
        let before = module.graphs[0].to_text(&module.weights);
        let report = fit_prune(&mut module, options, &calibration, 2);
        assert_eq!(
            module.graphs[0].to_text(&module.weights),
            before,
            "{options}"
        );
        let draft = module.graph("draft").unwrap();
        assert_eq!(verify::verify(draft, &module.weights), [], "{options}");
        let scores = report.scores.unwrap();
        let (mut gone, mut stays): (Vec<f64>, Vec<f64>) = (vec![], vec![]);
        scores.columns[0]
            .values
            .iter()
            .zip(&scores.dropped)
            .for_each(|(v, d)| if *d { gone.push(*v) } else { stays.push(*v) });
        assert_eq!(gone.len(), dropped, "{options}");
        assert!(
            gone.iter().all(|g| stays.iter().all(|s| g <= s)),
            "{options}: {scores:?}"
        );
        let layers: Vec<u32> = draft
            .inputs()
            .iter()
            .filter_map(|i| i.cache.map(|c| c.layer))
            .collect();
        assert!(
            layers.is_sorted() && layers.len() <= 2 * caches,
            "{options}: {layers:?}"
        );
        // Trained on much text, the model is far better than guessing among 2048 tokens (7.6 nats).
        assert!(scores.loss < 5.5, "{options}: {}", scores.loss);
    }
}
