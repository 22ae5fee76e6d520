//! What a manifest says of sampling, checked: sizes of images, and schedules whose graphs find what
//! they remember.

use std::collections::BTreeMap;

use dlc_bundle::{GraphRecord, Manifest, PortRecord};
use dlc_ir::schedule::{SAMPLER_INPUT, SAMPLER_OUTPUT, memory};
use dlc_ir::{Diffusion, Prompts, Sampling, Task};

use super::LARGEST;

/// The most evaluations of a schedule.
const MOST_EVALUATIONS: usize = 1 << 16;
/// The most text encoders, and tokens of a text.
const MOST_ENCODERS: usize = 8;
const LONGEST_TEXT: usize = 1 << 20;

/// All that is wrong with sizes and classes.
pub(super) fn model_problems(model: &Diffusion) -> Vec<String> {
    let mut problems = Vec::new();
    let sizes = [
        ("channel count", model.channels),
        ("height", model.height),
        ("width", model.width),
        ("channel count", model.out_channels),
    ];
    for (what, number) in sizes {
        if !(1..=LARGEST).contains(&number) {
            problems.push(format!("a {what} of {number} is absurd"));
        }
    }
    let numbers = model
        .channels
        .max(model.out_channels)
        .checked_mul(model.height)
        .and_then(|n| n.checked_mul(model.width));
    if problems.is_empty() && numbers.is_none_or(|n| n > LARGEST) {
        problems.push(format!(
            "images of {} x {} x {} numbers are absurd",
            model.channels, model.height, model.width
        ));
    }
    if model
        .size_step
        .is_some_and(|step| !(1..=LARGEST).contains(&step))
    {
        problems.push("a size step that no size is a multiple of".to_owned());
    }
    if let Some(classes) = model.classes
        && (!(1..=LARGEST).contains(&classes.count)
            || classes.unconditional.is_some_and(|id| id > LARGEST))
    {
        problems.push(format!("{} classes are absurd", classes.count));
    }
    problems
}

/// All that is wrong with how prompts are read.
pub(super) fn prompt_problems(prompts: &Prompts) -> Vec<String> {
    let count = prompts.encoders.len();
    let mut problems = Vec::new();
    if !(1..=MOST_ENCODERS).contains(&count) {
        problems.push(format!("{count} text encoders are absurd"));
    }
    let numbers = prompts.encoders.iter().flat_map(|encoder| {
        [
            ("vocabulary", encoder.vocab_size, LARGEST),
            ("text length", encoder.length, LONGEST_TEXT),
        ]
    });
    for (what, number, most) in numbers {
        if !(1..=most).contains(&number) {
            problems.push(format!("a {what} of {number} is absurd"));
        }
    }
    problems
}

/// What is wrong with the schedule: the first of each kind.
pub(super) fn schedule_problems(manifest: &Manifest) -> Vec<String> {
    let Some(sampling) = &manifest.sampling else {
        return vec![];
    };
    let checks = [
        check_task(manifest),
        check_numbers(sampling),
        sampling
            .schedule
            .computed()
            .map(|_| ())
            .map_err(|error| error.to_string()),
        check_unrolled(sampling, &manifest.graphs),
        check_evaluations(sampling, &manifest.graphs),
    ];
    checks
        .into_iter()
        .filter_map(Result::err)
        .map(|problem| format!("sampling: {problem}"))
        .collect()
}

fn check_task(manifest: &Manifest) -> Result<(), String> {
    let model = &manifest.model;
    let samples = model.task == Task::ImageGeneration && model.diffusion.is_some();
    if samples {
        Ok(())
    } else {
        Err(format!(
            "a {} for {} isn't sampled",
            model.family,
            model.task.name()
        ))
    }
}

fn check_numbers(sampling: &Sampling) -> Result<(), String> {
    let rows = sampling.schedule.steps.len();
    let evaluations = if sampling.unrolled.is_some() {
        rows
    } else {
        sampling.evaluations.len()
    };
    if !(1..=MOST_EVALUATIONS).contains(&evaluations)
        || !(1..=MOST_EVALUATIONS).contains(&sampling.steps)
    {
        return Err(format!(
            "{evaluations} evaluations for {} steps are absurd",
            sampling.steps
        ));
    }
    if rows != evaluations {
        return Err(format!(
            "the schedule has {rows} rows for {evaluations} evaluations"
        ));
    }
    let solver = sampling.solver.len();
    if solver > 0 && solver != rows {
        return Err(format!(
            "the schedule has {rows} rows for a solver of {solver} steps"
        ));
    }
    if !(sampling.guidance as f32).is_finite() || !(0.0..=1e3).contains(&sampling.macs) {
        return Err(format!(
            "guidance {} and a share of {} of the multiply-adds can't be",
            sampling.guidance, sampling.macs
        ));
    }
    Ok(())
}

/// The graph of an unrolled sampler is there, and is one.
fn check_unrolled(sampling: &Sampling, graphs: &[GraphRecord]) -> Result<(), String> {
    let Some(name) = &sampling.unrolled else {
        return Ok(());
    };
    let fail = |problem: &str| {
        Err(format!(
            "graph `{name}`, which is to be the whole sampler, {problem}"
        ))
    };
    let Some(graph) = graphs.iter().find(|graph| graph.name == *name) else {
        return fail("isn't there");
    };
    let has = |ports: &[PortRecord], name: &str| ports.iter().any(|port| port.name == name);
    if !has(&graph.inputs, SAMPLER_INPUT) || !has(&graph.outputs, SAMPLER_OUTPUT) {
        return fail(&format!(
            "doesn't take `{SAMPLER_INPUT}` and give `{SAMPLER_OUTPUT}`"
        ));
    }
    if sampling.evaluations.is_empty() {
        Ok(())
    } else {
        fail("stands beside evaluations of others")
    }
}

/// Every graph is there, and finds in memory what it takes from there.
fn check_evaluations(sampling: &Sampling, graphs: &[GraphRecord]) -> Result<(), String> {
    let graphs: BTreeMap<&str, Step<'_>> = graphs
        .iter()
        .map(|graph| (graph.name.as_str(), Step::read(graph)))
        .collect();
    // How many values of each block there are.
    let mut given: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, evaluation) in sampling.evaluations.iter().enumerate() {
        let name = &evaluation.graph;
        let fail = |problem: String| Err(format!("evaluation {index}, graph `{name}`: {problem}"));
        let Some(step) = graphs.get(name.as_str()) else {
            return fail("there is no such graph".to_owned());
        };
        let (weights, wanted) = (
            evaluation.forecast.len(),
            if step.forecasts { step.takes.len() } else { 0 },
        );
        if weights != wanted {
            return fail(format!(
                "its forecast has {weights} weights instead of {wanted}"
            ));
        }
        if let Some(weight) = evaluation
            .forecast
            .iter()
            .find(|weight| !(**weight as f32).is_finite())
        {
            return fail(format!("its forecast has the weight {weight}"));
        }
        for (block, age) in &step.takes {
            let there = given.get(block).copied().unwrap_or(0);
            if there <= *age {
                return fail(format!(
                    "it takes value {age} of `{block}`, of which {there} were given before"
                ));
            }
        }
        for block in &step.gives {
            *given.entry(block).or_default() += 1;
        }
    }
    Ok(())
}

/// What a graph has to do with memory.
struct Step<'m> {
    takes: Vec<(&'m str, usize)>,
    gives: Vec<&'m str>,
    forecasts: bool,
}

impl<'m> Step<'m> {
    fn read(graph: &'m GraphRecord) -> Self {
        Self {
            takes: graph
                .inputs
                .iter()
                .filter_map(|port| memory::parse_input(&port.name))
                .collect(),
            gives: graph
                .outputs
                .iter()
                .filter_map(|port| memory::parse_output(&port.name))
                .collect(),
            forecasts: graph
                .inputs
                .iter()
                .any(|port| port.name == memory::FORECAST),
        }
    }
}
