//! What a manifest says of the model, against the boundaries of its graphs: nothing is allocated by
//! a number that no graph bears out.

use dlc_bundle::{GraphRecord, Manifest, PortRecord, WeightRecord};
use dlc_ir::schedule::{SAMPLER_INPUT, SAMPLER_OUTPUT};
use dlc_ir::{Diffusion, Task};
use dlc_methods::diffusion::inputs;

/// Most graphs of a bundle: a sampler may have one for every step.
const MOST_GRAPHS: usize = 4096;
/// How the tables of classes end that image models look their class up in.
const CLASS_TABLES: [&str; 2] = [
    "class_embedding.weight",
    "class_embedder.embedding_table.weight",
];

/// All that doesn't fit.
pub(super) fn problems(manifest: &Manifest) -> Vec<String> {
    let mut problems = Vec::new();
    if manifest.graphs.len() > MOST_GRAPHS {
        return vec![format!("{} graphs are absurd", manifest.graphs.len())];
    }
    for graph in &manifest.graphs {
        let found = [
            caches(manifest, graph),
            answers(manifest, graph),
            images(manifest, graph),
        ];
        problems.extend(
            found
                .into_iter()
                .flatten()
                .map(|problem| format!("graph `{}`: {problem}", graph.name)),
        );
    }
    problems.extend(
        manifest
            .weights
            .iter()
            .filter_map(|weight| classes(manifest, weight)),
    );
    problems
}

/// The number on an axis of a port; None if it is symbolic or not there.
fn number(
    ports: &[PortRecord],
    name: &str,
    axis: impl Fn(&[String]) -> Option<&String>,
) -> Option<usize> {
    axis(&ports.iter().find(|port| port.name == name)?.shape)?
        .parse()
        .ok()
}

/// Says that `what` is `said` where the port has `found`, if it has a number there.
fn differs(what: &str, said: usize, found: Option<usize>, port: &str) -> Option<String> {
    found
        .filter(|found| *found != said)
        .map(|found| format!("a {what} of {said} doesn't fit `{port}`, which has {found}"))
}

fn caches(manifest: &Manifest, graph: &GraphRecord) -> Vec<String> {
    let model = &manifest.model;
    let mut problems = Vec::new();
    for cache in &graph.caches {
        let name = format!("cache {}", cache.slot);
        for (what, said, found) in [
            ("number of key/value heads", model.kv_heads, cache.heads),
            ("width of heads", model.head_dim, cache.head_dim),
        ] {
            problems.extend(differs(what, said, Some(found), &name));
        }
        let past = ["key", "value"].map(|part| {
            (
                &graph.inputs,
                format!("past_key_values.{}.{part}", cache.slot),
            )
        });
        let present =
            ["key", "value"].map(|part| (&graph.outputs, format!("present.{}.{part}", cache.slot)));
        for (ports, name) in past.into_iter().chain(present) {
            problems.extend(differs(
                "number of heads",
                cache.heads,
                number(ports, &name, |shape| shape.get(1)),
                &name,
            ));
            problems.extend(differs(
                "width of heads",
                cache.head_dim,
                number(ports, &name, |shape| shape.get(3)),
                &name,
            ));
        }
    }
    problems
}

fn answers(manifest: &Manifest, graph: &GraphRecord) -> Vec<String> {
    let model = &manifest.model;
    let width = number(&graph.outputs, "logits", <[std::string::String]>::last);
    let problem = match model.task {
        Task::TextGeneration | Task::FillMask => {
            differs("vocabulary", model.vocab_size, width, "logits")
        }
        Task::TextClassification | Task::TokenClassification if !model.labels.is_empty() => {
            differs("list of labels", model.labels.len(), width, "logits")
        }
        _ => None,
    };
    problem.into_iter().collect()
}

fn images(manifest: &Manifest, graph: &GraphRecord) -> Vec<String> {
    let Some(model) = &manifest.model.diffusion else {
        return vec![];
    };
    let sides = [("height", 2, model.height), ("width", 3, model.width)];
    let inputs = [inputs::HIDDEN_STATES, inputs::SAMPLE, SAMPLER_INPUT]
        .map(|name| (&graph.inputs, name, model.channels));
    let outputs = [
        (
            &graph.outputs,
            Task::ImageGeneration.output(),
            model.out_channels,
        ),
        (&graph.outputs, SAMPLER_OUTPUT, model.channels),
    ];
    let mut problems = Vec::new();
    let absurd = |divisor: &f32| !divisor.is_finite() || *divisor <= 0.0;
    if let Some(divisor) = graph.latents_divisor.filter(absurd) {
        problems.push(format!("latents can't be divided by {divisor}"));
    }
    // The encoder takes a picture, by whatever name.
    let of_sampler = graph.name != Diffusion::IMAGE_ENCODER;
    let ports = inputs.into_iter().chain(outputs).filter(|_| of_sampler);
    for (ports, name, channels) in ports {
        for (what, axis, said) in sides.into_iter().chain([("channel count", 1, channels)]) {
            problems.extend(differs(
                what,
                said,
                number(ports, name, |shape| shape.get(axis)),
                name,
            ));
        }
    }
    problems
}

/// Classes have a row each in the tables that they are looked up in.
fn classes(manifest: &Manifest, weight: &WeightRecord) -> Option<String> {
    let classes = manifest.model.diffusion.as_ref()?.classes?;
    let table =
        CLASS_TABLES.iter().any(|end| weight.name.ends_with(end)) && weight.shape.len() == 2;
    let wanted = classes
        .count
        .max(classes.unconditional.map_or(0, |id| id.saturating_add(1)));
    let rows = *weight.shape.first()?;
    (table && rows < wanted).then(|| {
        format!(
            "{} classes, and one for none, don't fit weight `{}` of {rows} rows",
            classes.count, weight.name
        )
    })
}
