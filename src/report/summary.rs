//! Summaries of modules, bundles, ONNX files, passes and checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use dlc_bundle::Manifest;
use dlc_ir::cost::{Sizes, TEXT_TOKENS, cost, graph_macs, macs_per_image, quantized_matrices};
use dlc_ir::{
    Diffusion, Graph, GroupFormat, Module, Op, Operand, Sampling, SolverStep, WeightTable,
};
use dlc_onnx::OnnxSummary;
use dlc_passes::{DraftCandidate, PassRun, WeightChange};

use super::chart::score_chart;
use super::heatmap::heat_map;
use super::table::Table;
use crate::pipeline::{Check, Deviation};

/// What a module is: family, graphs, parameters, and caches or what one step costs.
pub fn module_summary(module: &Module) -> String {
    let model = &module.model;
    let Some(diffusion) = &model.diffusion else {
        return text_summary(module);
    };
    let mut text = format!(
        "{} model, {}: {}\n\n",
        model.family,
        model.dtype,
        sample(diffusion)
    );
    let mut table = Table::new(&["graph", "blocks", "nodes", "parameters", "MACs/image"]);
    for graph in &module.graphs {
        let macs =
            macs(module, graph).map_or_else(|| "beyond measure".to_owned(), |n| n.to_string());
        let counts = [
            graph.blocks().count() as u64,
            graph.nodes().count() as u64,
            cost(graph, &module.weights).parameters,
        ];
        table.row(
            [graph.name.clone()]
                .into_iter()
                .chain(counts.iter().map(u64::to_string))
                .chain([macs]),
        );
    }
    let _ = write!(text, "{table}");
    text
}

/// Multiply-adds of a graph for one image; of a text encoder for one text.
fn macs(module: &Module, graph: &Graph) -> Option<u64> {
    let prompts = module.model.prompts.iter();
    let mut encoders = prompts.flat_map(|prompts| &prompts.encoders);
    if let Some(encoder) = encoders.find(|encoder| encoder.graph == graph.name) {
        let sizes = [("batch", 1), ("seq", encoder.length as u64)];
        let sizes = sizes.map(|(symbol, size)| (symbol.to_owned(), size));
        return graph_macs(graph, &module.weights, &Sizes::from(sizes));
    }
    macs_per_image(graph, &module.weights, module.model.diffusion.as_ref())
}

/// What a diffusion model makes, and of what.
fn sample(diffusion: &Diffusion) -> String {
    let Diffusion {
        channels,
        height,
        width,
        size_step,
        out_channels,
        classes,
        text_width,
    } = diffusion;
    let mut text = format!("images of {channels} x {height} x {width} -> {out_channels} channels");
    match size_step {
        None => {}
        Some(1) => text.push_str(", or any other height and width"),
        Some(step) => {
            let _ = write!(text, ", or other heights and widths that {step} divides");
        }
    }
    if let Some(classes) = classes {
        let _ = write!(text, ", {} classes", classes.count);
    }
    if let Some(width) = text_width {
        let _ = write!(
            text,
            ", text {width} wide (counted with {TEXT_TOKENS} tokens)"
        );
    }
    text
}

fn text_summary(module: &Module) -> String {
    let model = &module.model;
    let mut text = format!(
        "{} model, {}: {} heads ({} key/value) of {}, hidden {}, vocabulary {}, context {}\n\n",
        model.family,
        model.dtype,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.hidden_size,
        model.vocab_size,
        model.context_length
    );
    let mut table = Table::new(&[
        "graph",
        "blocks",
        "nodes",
        "parameters",
        "FLOPs/token",
        "cache bytes/token",
    ]);
    for graph in &module.graphs {
        let cost = cost(graph, &module.weights);
        let counts = [
            graph.blocks().count() as u64,
            graph.nodes().count() as u64,
            cost.parameters,
            cost.flops_per_token,
            cost.cache_bytes_per_token,
        ];
        table.row(std::iter::once(graph.name.clone()).chain(counts.iter().map(u64::to_string)));
    }
    let _ = write!(text, "{table}");
    for graph in &module.graphs {
        text.push_str(&savings(graph, &module.weights));
    }
    text
}

/// What makes a graph cheaper than its parameters say: quantised matrices by their format, and
/// tokens that it can't propose.
fn savings(graph: &Graph, weights: &WeightTable) -> String {
    let mut text = String::new();
    let mut formats: BTreeMap<GroupFormat, [u64; 3]> = BTreeMap::new();
    // A table that is the head as well is read by two nodes.
    let matrices: BTreeMap<_, _> = quantized_matrices(graph, weights)
        .map(|matrix| (matrix.codes, matrix))
        .collect();
    for matrix in matrices.values() {
        let sums = formats.entry(matrix.format).or_default();
        *sums = [
            sums[0] + 1,
            sums[1] + matrix.elements,
            sums[2] + matrix.bytes,
        ];
    }
    for (format, [matrices, elements, bytes]) in formats {
        let (bits, block) = (format.bits, format.group_size);
        let _ = writeln!(
            text,
            "{}: {matrices} matrices in {bits} bits, blocks of {block}: {elements} numbers in {bytes} bytes",
            graph.name
        );
    }
    for (_, node) in graph.nodes().filter(|(_, n)| n.op == Op::GatherColumns) {
        if let [Operand::Value(x), Operand::Weight(columns)] = node.inputs[..]
            && let Some(kept) = graph.value(x).ty.shape.last()
        {
            let _ = writeln!(
                text,
                "{}: proposes {kept} of {} tokens",
                graph.name,
                weights[columns].elements()
            );
        }
    }
    text
}

/// What a bundle is: source, profile, graphs, files.
pub fn bundle_summary(manifest: &Manifest) -> String {
    let mut text = format!(
        "bundle of {} ({}), profile {}, {}, written by dlc {}\n\n",
        manifest.source.name,
        manifest.model.family,
        manifest.profile.name(),
        manifest.model.dtype,
        manifest.dlc
    );
    let mut graphs = Table::new(&[
        "graph",
        "file",
        "parameters",
        "caches",
        "layers of the checkpoint",
    ]);
    for graph in &manifest.graphs {
        let layers: Vec<String> = graph.caches.iter().map(|c| c.layer.to_string()).collect();
        graphs.row([
            graph.name.clone(),
            graph.file.clone(),
            graph.parameters.to_string(),
            graph.caches.len().to_string(),
            layers.join(" "),
        ]);
    }
    let _ = writeln!(text, "{graphs}");
    let mut files = Table::new(&["file", "bytes", "sha256"]);
    for (name, file) in &manifest.files {
        files.row([
            name.clone(),
            file.bytes.to_string(),
            file.sha256.chars().take(16).collect(),
        ]);
    }
    let _ = write!(text, "{files}");
    if let Some(sampling) = &manifest.sampling {
        let _ = write!(text, "\n{}", sampling_summary(sampling));
    }
    if !manifest.passes.is_empty() {
        let names: Vec<&str> = manifest.passes.iter().map(|p| p.name.as_str()).collect();
        let _ = writeln!(text, "\npasses: {}", names.join(" > "));
    }
    text
}

/// How a pruned bundle is sampled: the sampler, what it saves, and what is computed when.
fn sampling_summary(sampling: &Sampling) -> String {
    let graphs: BTreeSet<&str> = sampling
        .evaluations
        .iter()
        .map(|e| e.graph.as_str())
        .collect();
    let graphs = sampling.unrolled.as_ref().map_or_else(
        || format!("of {} graphs", graphs.len()),
        |graph| format!("in the one graph `{graph}`"),
    );
    let (evaluations, share) = (sampling.schedule.steps.len(), 100.0 * sampling.macs);
    let by = if sampling.solver.is_empty() {
        format!("by {} in {} steps", sampling.scheduler, sampling.steps)
    } else {
        format!(
            "by a solver fitted for {} steps of {}",
            sampling.steps, sampling.scheduler
        )
    };
    let when = if is_whole_solver(sampling) {
        solver_table(&sampling.solver)
    } else {
        format!(
            "{}{}",
            solver_table(&sampling.solver),
            heat_map(&sampling.schedule)
        )
    };
    format!(
        "sampled {by}, guidance {}: {evaluations} evaluations {graphs}, {share:.1}% of the whole model's multiply-adds\n\n{when}",
        sampling.guidance
    )
}

/// What an ONNX file is: producer, operators, boundary.
pub fn onnx_summary(summary: &OnnxSummary) -> String {
    let opsets: Vec<String> = summary
        .opsets
        .iter()
        .map(|(domain, version)| format!("{} {version}", domain_name(domain)))
        .collect();
    let mut text = format!(
        "ONNX file by {}, IR version {}, operator sets: {}\n\n",
        summary.producer,
        summary.ir_version,
        opsets.join(", ")
    );
    let mut operators = Table::new(&["operator", "nodes"]);
    for (operator, count) in summary.operators() {
        operators.row([operator.to_owned(), count.to_string()]);
    }
    let _ = writeln!(text, "{operators}");
    let mut ports = Table::new(&["boundary", "name", "type"]);
    for (side, list) in [("input", &summary.inputs), ("output", &summary.outputs)] {
        for port in list {
            ports.row([side.to_owned(), port.name.clone(), port.ty.clone()]);
        }
    }
    let _ = write!(text, "{ports}");
    text
}

fn domain_name(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// What a pass did: facts, scores as a chart, and what changed.
pub fn pass_summary(run: &PassRun) -> String {
    let facts = run.report.facts.iter().map(|(k, v)| format!("{k}: {v}"));
    let facts: Vec<String> = facts.chain(run.report.note.map(str::to_owned)).collect();
    let mut text = format!("{}: {}\n", run.name, facts.join("; "));
    if let Some(scores) = &run.report.scores {
        let _ = write!(text, "\n{}", score_chart(scores));
    }
    if !run.report.candidates.is_empty() {
        let _ = write!(text, "\n{}", candidates_table(&run.report.candidates));
    }
    if !run.report.changes.is_empty() {
        let _ = write!(text, "\n{}", changes_table(&run.report.changes));
    }
    if let Some(diff) = &run.report.diff {
        let _ = write!(text, "\n{}", diff.summary());
    }
    text
}

/// Whether a solver evaluates the whole network, so that there is nothing to say of its blocks.
fn is_whole_solver(sampling: &Sampling) -> bool {
    let mut rows = sampling.schedule.steps.iter();
    !sampling.solver.is_empty() && rows.all(|row| row.bytes().all(|cell| cell == b'#'))
}

/// When a solver evaluates the network, and what it sums.
fn solver_table(solver: &[SolverStep]) -> String {
    if solver.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["step", "latents", "outputs, the last first"]);
    for step in solver {
        let outputs: Vec<String> = step.outputs.iter().map(|c| format!("{c:.4}")).collect();
        table.row([
            step.at.to_string(),
            format!("{:.4}", step.latents),
            outputs.join(" "),
        ]);
    }
    format!("{table}\n")
}

/// A share, or a dash for one of nothing.
pub fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{:.2}%", 100.0 * share)
    } else {
        "-".into()
    }
}

/// The drafts that were measured, the best first.
fn candidates_table(candidates: &[DraftCandidate]) -> Table {
    let mut table = Table::new(&[
        "draft",
        "head tokens",
        "memory",
        "step",
        "spread",
        "accepted",
        "expected",
        "at a time",
        "predicted speedup",
    ]);
    for candidate in candidates {
        table.row([
            candidate.draft.clone(),
            candidate.head_tokens.to_string(),
            format!("{:.2}x", candidate.memory),
            format!("{:.2}", candidate.cost),
            candidate
                .spread
                .map_or_else(|| "-".into(), |spread| format!("{:.0}%", 100.0 * spread)),
            percent(candidate.acceptance),
            percent(candidate.predicted_acceptance),
            candidate.draft_tokens.to_string(),
            format!("{:.2}x", candidate.speedup),
        ]);
    }
    table
}

/// The largest changes, by share of the weight's norm.
fn changes_table(changes: &[WeightChange]) -> String {
    const SHOWN: usize = 12;
    let mut largest: Vec<&WeightChange> = changes.iter().collect();
    largest.sort_by(|a, b| b.relative.total_cmp(&a.relative));
    let mut table = Table::new(&[
        "weight",
        "norm of the change",
        "share of its norm",
        "entries at rest",
    ]);
    for change in largest.iter().take(SHOWN) {
        let frozen = change
            .frozen
            .map_or_else(String::new, |f| format!("{:.1}%", 100.0 * f));
        table.row([
            change.weight.clone(),
            format!("{:.4}", change.norm),
            percent(change.relative),
            frozen,
        ]);
    }
    let rest = changes.len().saturating_sub(SHOWN);
    if rest > 0 {
        format!("{table}  and {rest} smaller ones; all are in dlc.yaml\n")
    } else {
        table.to_string()
    }
}

/// One line for each check: what was run, the largest error, where, and the verdict.
pub fn checks_table(checks: &[Check]) -> Table {
    let mut table = Table::new(&[
        "graph",
        "input",
        "largest error",
        "allowed",
        "where",
        "verdict",
    ]);
    for check in checks {
        let Deviation {
            error,
            allowed,
            place,
        } = &check.outcome;
        let verdict = if check.passed() { "ok" } else { "FAILED" };
        table.row([
            check.graph.clone(),
            check.case.name().into(),
            format!("{error:.1e}"),
            format!("{allowed:.1e}"),
            place.clone(),
            verdict.into(),
        ]);
    }
    table
}
