//! What fit-prune leaves in the module.

use dlc_eval::run;
use dlc_ir::{Graph, Module, verify};

use super::fakes::{Given, Outside, fact, fit_prune, run_with};
use super::model::{CONTEXT, Model, feeds, samples};

/// Dropped units, cache inputs of the draft with the layers that they belong to.
struct Expected<'a> {
    dropped: &'a str,
    caches: &'a str,
}

fn caches(graph: &Graph) -> String {
    let inputs = graph.inputs().iter().filter_map(|i| {
        Some(format!(
            "{}={}",
            i.name.strip_prefix("past_key_values.")?,
            i.cache?.layer
        ))
    });
    let inputs: Vec<String> = inputs.collect();
    let outputs = graph.outputs().iter().filter_map(|o| {
        Some(format!(
            "{}={}",
            o.name.strip_prefix("present.")?,
            o.cache?.layer
        ))
    });
    assert_eq!(inputs, outputs.collect::<Vec<_>>());
    inputs.join(" ")
}

/// The target with every unit at `dropped` (names of layers or blocks) bypassed, and nothing else
/// done to it.
fn bypassed(target: &Graph, dropped: &str) -> Graph {
    let mut graph = target.clone();
    let blocks: Vec<_> = target
        .blocks()
        .filter(|(_, b)| {
            dropped
                .split(' ')
                .any(|d| b.name == d || b.name == format!("{d}.{}", b.kind.name()))
        })
        .collect();
    for (id, _) in blocks {
        graph.bypass(id).unwrap();
    }
    graph
}

fn check(model: &Model, options: &str, expected: &Expected<'_>) {
    let before = model.module();
    let mut module = before.clone();
    let runs = fit_prune(options, &mut module, samples()).unwrap();
    let names: Vec<&str> = runs.iter().map(|r| r.name).collect();
    assert_eq!(
        names,
        [
            "fit-prune",
            "remove-dead-nodes",
            "remove-unused",
            "renumber-caches"
        ],
        "{options}"
    );
    assert_eq!(fact(&runs, "dropped"), Some(expected.dropped), "{options}");

    let names: Vec<&str> = module.graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["target", "draft"], "{options}");
    let [target, draft] = [&module.graphs[0], &module.graphs[1]];
    assert_eq!(
        target.to_text(&module.weights),
        before.graphs[0].to_text(&before.weights),
        "{options}"
    );
    assert_eq!(verify::verify(draft, &module.weights), [], "{options}");
    assert_eq!(caches(draft), expected.caches, "{options}");

    let reference = bypassed(target, expected.dropped);
    let report = &runs[0].report;
    let table = report.scores.as_ref().unwrap();
    let dropped: Vec<&str> = table
        .units
        .iter()
        .zip(&table.dropped)
        .filter(|(_, d)| **d)
        .map(|(u, _)| u.as_str())
        .collect();
    assert_eq!(dropped.join(" "), expected.dropped, "{options}");
    let kept: Vec<&String> = draft.blocks().map(|(_, b)| &b.name).collect();
    let difference = report.diff.as_ref().unwrap();
    assert_eq!(
        kept,
        difference.kept.iter().collect::<Vec<_>>(),
        "{options}"
    );
    assert_eq!(
        difference.removed.len() + kept.len(),
        target.blocks().count(),
        "{options}"
    );
    check_outputs(&module, &reference);
}

/// The draft computes the logits of the target without the dropped units.
fn check_outputs(module: &Module, reference: &Graph) {
    let draft = &module.graphs[1];
    let logits = |graph: &Graph| {
        run(graph, &module.weights, &feeds(graph, &samples()[0])).unwrap()["logits"].clone()
    };
    assert_eq!(logits(draft), logits(reference));
}

const LAYERS: [&str; 3] = [
    "0.key=0 0.value=0 1.key=1 1.value=1",
    "0.key=0 0.value=0 1.key=2 1.value=2",
    "0.key=1 0.value=1 1.key=2 1.value=2",
];

/// A decoder in which the blocks named add much less to the residual than the others.
fn quiet(blocks: &[&str]) -> Model {
    let mut model = Model::decoder();
    for block in blocks {
        model.numbers(block).iter_mut().for_each(|x| *x *= 1e-3);
    }
    model
}

#[test]
fn drops_the_layers_of_lowest_score_with_their_caches() {
    for (layer, caches) in [(2, LAYERS[0]), (1, LAYERS[1]), (0, LAYERS[2])] {
        let model = quiet(&[&format!("{layer}.o"), &format!("{layer}.down")]);
        let dropped = format!("layers.{layer}");
        for score in ["fit-residual", "cosine", "kl", "kl+fit"] {
            check(
                &model,
                &format!("drop: 1, score: {score}"),
                &Expected {
                    dropped: &dropped,
                    caches,
                },
            );
        }
        check(
            &model,
            "score: cosine, keep: 0.5",
            &Expected {
                dropped: &dropped,
                caches,
            },
        );
    }
    let model = quiet(&["0.o", "0.down", "2.o", "2.down"]);
    check(
        &model,
        "drop: 2, score: kl",
        &Expected {
            dropped: "layers.0 layers.2",
            caches: "0.key=1 0.value=1",
        },
    );
    check(
        &model,
        "keep: 0.01, score: kl",
        &Expected {
            dropped: "layers.0 layers.2",
            caches: "0.key=1 0.value=1",
        },
    );
}

#[test]
fn granularity_branch_drops_attention_and_mlp_apart() {
    let all = "0.key=0 0.value=0 1.key=1 1.value=1 2.key=2 2.value=2";
    let options = "granularity: branch, drop: 2, score: kl";
    check(
        &quiet(&["0.down", "2.down"]),
        options,
        &Expected {
            dropped: "layers.0.mlp layers.2.mlp",
            caches: all,
        },
    );
    check(
        &quiet(&["0.o", "1.down"]),
        options,
        &Expected {
            dropped: "layers.0.attn layers.1.mlp",
            caches: LAYERS[2],
        },
    );
    check(
        &quiet(&["1.o", "1.down"]),
        options,
        &Expected {
            dropped: "layers.1.attn layers.1.mlp",
            caches: LAYERS[1],
        },
    );
}

#[test]
fn protected_layers_stay_whatever_their_score() {
    let model = quiet(&["0.o", "0.down", "2.o", "2.down"]);
    let middle = Expected {
        dropped: "layers.1",
        caches: LAYERS[1],
    };
    check(
        &model,
        "drop: 1, score: kl, protect_first: 1, protect_last: 1",
        &middle,
    );
    check(
        &quiet(&["0.o", "0.down"]),
        "drop: 1, score: cosine, protect_first: 1, protect_last: 1",
        &middle,
    );
    check(
        &quiet(&["0.o", "1.o"]),
        "granularity: branch, drop: 1, score: kl, protect_first: 1",
        &Expected {
            dropped: "layers.1.attn",
            caches: LAYERS[1],
        },
    );
}

#[test]
fn of_equal_scores_the_later_layer_goes() {
    let mut model = Model::decoder();
    for layer in 0..3 {
        for weight in ["o", "down"] {
            model.numbers(&format!("{layer}.{weight}")).fill(0.0);
        }
    }
    check(
        &model,
        "drop: 1, score: kl",
        &Expected {
            dropped: "layers.2",
            caches: LAYERS[0],
        },
    );
    check(
        &model,
        "drop: 2, score: fit-residual",
        &Expected {
            dropped: "layers.1 layers.2",
            caches: "0.key=0 0.value=0",
        },
    );
    check(
        &model,
        "granularity: branch, drop: 1, score: kl",
        &Expected {
            dropped: "layers.2.mlp",
            caches: "0.key=0 0.value=0 1.key=1 1.value=1 2.key=2 2.value=2",
        },
    );
}

#[test]
fn the_half_precision_draft_computes_what_its_blocks_say() {
    let half = Model::edited(&[
        ("f32[", "f16["),
        (
            "  output logits = %2",
            "  %3 = cast %2 : f32[batch, seq, 23]\n  output logits = %3",
        ),
    ]);
    check(
        &half,
        "drop: 1, score: kl, protect_first: 1, protect_last: 1",
        &Expected {
            dropped: "layers.1",
            caches: LAYERS[1],
        },
    );
}

#[test]
fn drop_decides_over_keep() {
    let model = quiet(&["1.o", "1.down"]);
    check(
        &model,
        "drop: 1, keep: 0.1, score: kl",
        &Expected {
            dropped: "layers.1",
            caches: LAYERS[1],
        },
    );
}

#[test]
fn samples_are_never_longer_than_the_context() {
    for (length, asked, told) in [
        (8, 8, None),
        (CONTEXT, CONTEXT, None),
        (4096, CONTEXT, Some("16 tokens, the model's context")),
    ] {
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
        let runs = run_with(
            "fit-prune",
            &format!("length: {length}, samples: 2, drop: 1"),
            &mut Model::decoder().module(),
            &outside,
        )
        .unwrap();
        assert_eq!(calibration.asked.get(), (2, asked));
        assert_eq!(fact(&runs, "sample length"), told);
    }
}
