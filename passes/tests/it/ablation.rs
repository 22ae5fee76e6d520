//! The scores without gradients, against direct computation on whole graphs.

use std::collections::BTreeMap;

use dlc_eval::{Segment, Values};
use dlc_ir::{Granularity, Graph, Module, ValueId};
use dlc_passes::fit_prune::{Unit, units};

use super::fakes::{fit_prune, table};
use super::model::{Model, assert_close, feeds, log_probabilities, loss, samples};

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// KL(full || without the unit) over all tokens of all samples; the unit is taken out with the IR's
/// own edit.
fn kl(module: &Module, unit: &Unit) -> f64 {
    let full = &module.graphs[0];
    let mut pruned = full.clone();
    for block in &unit.blocks {
        pruned.bypass(*block).unwrap();
    }
    let rows = samples().into_iter().flat_map(|s| {
        let (p, q) = (
            log_probabilities(full, &module.weights, &s),
            log_probabilities(&pruned, &module.weights, &s),
        );
        p.into_iter().zip(q).collect::<Vec<_>>()
    });
    mean(rows.map(|(p, q)| {
        p.iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>()
    }))
}

/// 1 - cosine between the unit's first input and last output, over all tokens of all samples.
fn one_minus_cosine(module: &Module, unit: &Unit) -> f64 {
    let graph = &module.graphs[0];
    let [input, output] = [
        graph.block(unit.blocks[0]).input,
        graph.block(unit.blocks[unit.blocks.len() - 1]).output,
    ];
    let all = Segment::new(
        graph,
        &module.weights,
        graph.nodes().map(|(id, _)| id).collect(),
    )
    .unwrap();
    let residuals = |tokens: &[u32]| -> BTreeMap<ValueId, Vec<f64>> {
        let fed = feeds(graph, tokens);
        let known: Values = graph
            .inputs()
            .iter()
            .map(|i| (i.value, fed[&i.name].clone()))
            .collect();
        let values = all.forward(&known, &[input, output]).unwrap();
        values
            .into_iter()
            .map(|(id, array)| {
                (
                    id,
                    array
                        .into_f32()
                        .unwrap()
                        .into_iter()
                        .map(f64::from)
                        .collect(),
                )
            })
            .collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    mean(samples().iter().flat_map(|s| {
        let residuals = residuals(s);
        let rows = residuals[&input]
            .chunks(12)
            .zip(residuals[&output].chunks(12));
        rows.map(|(a, b)| 1.0 - dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()))
            .collect::<Vec<_>>()
    }))
}

/// 1 - cosine between the last residuals of the whole model and of the one without the unit, over
/// all tokens of all samples.
fn one_minus_similarity(module: &Module, unit: &Unit) -> f64 {
    let full = &module.graphs[0];
    let last = |graph: &Graph| graph.blocks().next_back().map(|(_, block)| block.output);
    let mut pruned = full.clone();
    // What reads the last block's output reads its input where it is bypassed.
    let mut output = last(full).unwrap();
    for block in unit.blocks.iter().rev() {
        if output == full.block(*block).output {
            output = full.block(*block).input;
        }
        pruned.bypass(*block).unwrap();
    }
    let rows = |graph: &Graph, value: ValueId, tokens: &[u32]| -> Vec<Vec<f64>> {
        let nodes = graph.nodes().map(|(id, _)| id).collect();
        let all = Segment::new(graph, &module.weights, nodes).unwrap();
        let fed = feeds(graph, tokens);
        let inputs = graph.inputs().iter();
        let known: Values = inputs.map(|i| (i.value, fed[&i.name].clone())).collect();
        let made = all.forward(&known, &[value]).unwrap().remove(&value);
        let numbers = made.unwrap().into_f32().unwrap();
        let wide = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
        numbers.chunks(12).map(wide).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    mean(samples().iter().flat_map(|s| {
        let pairs = rows(full, last(full).unwrap(), s)
            .into_iter()
            .zip(rows(&pruned, output, s));
        pairs
            .map(|(a, b)| 1.0 - dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt())
            .collect::<Vec<_>>()
    }))
}

fn check(name: &str, module: &Module) {
    for (option, granularity) in [
        ("layer", Granularity::Layer),
        ("branch", Granularity::Branch),
    ] {
        let table = table(
            &format!("granularity: {option}, score: kl+cosine+similarity"),
            module,
        );
        for (i, unit) in units(&module.graphs[0], granularity).iter().enumerate() {
            let what = format!("{name} {}", unit.name);
            assert_close(
                &format!("kl of {what}"),
                table.columns[0].values[i],
                kl(module, unit),
                1e-9,
            );
            assert_close(
                &format!("cosine of {what}"),
                table.columns[1].values[i],
                one_minus_cosine(module, unit),
                1e-9,
            );
            assert_close(
                &format!("similarity of {what}"),
                table.columns[2].values[i],
                one_minus_similarity(module, unit),
                1e-9,
            );
        }
        assert_close(
            name,
            table.loss,
            mean(
                samples()
                    .iter()
                    .map(|s| loss(&module.graphs[0], &module.weights, s)),
            ),
            1e-9,
        );
    }
}

#[test]
fn kl_and_cosine_are_those_of_direct_computation() {
    check("decoder", &Model::decoder().module());
    let between = Model::edited(&[
        (
            "  block layers.0.mlp (mlp layer=0) from %layers.0.attn.10 {",
            "  %9 = silu %layers.0.attn.10 : f32[batch, seq, 12]\n  block layers.0.mlp (mlp layer=0) from %9 {",
        ),
        ("rms_norm %layers.0.attn.10", "rms_norm %9"),
        ("add %layers.0.attn.10", "add %9"),
    ]);
    let module = between.module();
    let table = table("score: kl, granularity: branch", &module);
    for (i, unit) in units(&module.graphs[0], Granularity::Branch)
        .iter()
        .enumerate()
    {
        assert_close(
            &format!("kl of {} with a node between blocks", unit.name),
            table.columns[0].values[i],
            kl(&module, unit),
            1e-9,
        );
    }
}

#[test]
fn a_block_that_changes_nothing_scores_nothing() {
    let mut model = Model::decoder();
    model.numbers("1.down").fill(0.0);
    let table = table(
        "granularity: branch, score: kl+cosine+fit-residual",
        &model.module(),
    );
    for column in &table.columns {
        assert!(
            column.values[3].abs() < 1e-15,
            "{} is {}",
            column.name,
            column.values[3]
        );
    }
    let runs = fit_prune(
        "granularity: branch, drop: 1, score: kl",
        &mut model.module(),
        samples(),
    )
    .unwrap();
    assert_eq!(
        runs[0].report.scores.as_ref().unwrap().dropped,
        [false, false, false, true, false, false]
    );
}

#[test]
fn an_embedding_of_zeros_has_a_cosine() {
    let mut model = Model::decoder();
    model.numbers("embed")[7 * 12..8 * 12].fill(0.0);
    let table = table("granularity: branch, score: cosine", &model.module());
    assert!(
        table.columns[0]
            .values
            .iter()
            .all(|v| (0.0..=2.0).contains(v)),
        "{table:?}"
    );
}
