//! What makes up for dropped layers: against direct computation on whole graphs.

use dlc_eval::{Segment, Values};
use dlc_ir::{Graph, Module, Op, ValueId, WeightTable, verify};

use super::fakes::{fact, fit_prune};
use super::model::{CONTEXT, Model, VOCAB, assert_close, feeds};

/// Enough text for a fit; the last quarter is held back.
fn texts() -> Vec<Vec<u32>> {
    let token = |i: usize| (i * i * 7 + i / 3 + 5 * (i % 11)) as u32 % VOCAB as u32;
    (0..32)
        .map(|text| (0..CONTEXT).map(|at| token(text * CONTEXT + at)).collect())
        .collect()
}

const FITTED: usize = 24;

/// A value of the graph, in rows of 12, for all these texts.
fn rows(graph: &Graph, weights: &WeightTable, value: ValueId, texts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let all = graph.nodes().map(|(id, _)| id).collect();
    let segment = Segment::new(graph, weights, all).unwrap();
    let of = |tokens: &Vec<u32>| {
        let fed = feeds(graph, tokens);
        let inputs = graph.inputs().iter();
        let known: Values = inputs.map(|i| (i.value, fed[&i.name].clone())).collect();
        let mut made = segment.forward(&known, &[value]).unwrap();
        let numbers = made.remove(&value).unwrap().into_f32().unwrap();
        numbers
            .chunks(12)
            .map(|row| row.iter().map(|&x| f64::from(x)).collect())
            .collect::<Vec<Vec<f64>>>()
    };
    texts.iter().flat_map(of).collect()
}

/// What a block of this name makes, or reads.
fn of_block(graph: &Graph, name: &str, output: bool) -> ValueId {
    let (_, block) = graph.blocks().find(|(_, b)| b.name == name).unwrap();
    if output { block.output } else { block.input }
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn squares(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(x, y)| (x - y).powi(2)).sum()
}

/// The module after the pass, with layer 1 dropped.
fn pruned(compensate: &str) -> (Module, String) {
    let mut model = Model::decoder();
    for block in ["1.o", "1.down"] {
        model.numbers(block).iter_mut().for_each(|x| *x *= 0.3);
    }
    let mut module = model.module();
    let before = module.graphs[0].to_text(&module.weights);
    let options = format!(
        "drop: 1, protect_first: 1, protect_last: 1, samples: 32, compensate: {compensate}"
    );
    let runs = fit_prune(&options, &mut module, texts()).unwrap();
    assert_eq!(fact(&runs, "dropped"), Some("layers.1"));
    assert_eq!(module.graphs[0].to_text(&module.weights), before);
    let draft = &module.graphs[1];
    assert_eq!(verify::verify(draft, &module.weights), []);
    let caches = draft
        .inputs()
        .iter()
        .filter_map(|i| i.cache)
        .map(|c| c.layer);
    assert_eq!(caches.collect::<Vec<_>>(), [0, 0, 2, 2]);
    let note = fact(&runs, "compensated").unwrap_or_default().to_owned();
    assert_eq!(fact(&runs, "agreement").is_some(), compensate != "none");
    (module, note)
}

#[test]
fn a_scaled_residual_is_as_long_as_it_was() {
    let (module, note) = pruned("scale");
    let [target, draft] = [&module.graphs[0], &module.graphs[1]];
    let fitted = &texts()[..FITTED];
    let [before, after] =
        [("layers.1.attn", false), ("layers.1.mlp", true)].map(|(name, output)| {
            rows(
                target,
                &module.weights,
                of_block(target, name, output),
                fitted,
            )
        });
    let ratios = after.iter().zip(&before).map(|(a, b)| norm(a) / norm(b));
    let expected = ratios.sum::<f64>() / before.len() as f64;
    let found: Vec<f32> = draft
        .nodes()
        .filter_map(|(_, node)| match node.op {
            Op::Scale { factor } => Some(factor),
            _ => None,
        })
        .collect();
    assert_eq!(found.len(), 1);
    assert_close("the factor", f64::from(found[0]), expected, 1e-6);
    assert_eq!(
        note,
        format!("layers.1.attn to layers.1.mlp: times {:.4}", found[0])
    );
    let names: Vec<&str> = draft.blocks().map(|(_, b)| b.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "layers.0.attn",
            "layers.0.mlp",
            "layers.1.mlp",
            "layers.2.attn",
            "layers.2.mlp"
        ]
    );
}

#[test]
fn a_fitted_matrix_writes_some_of_what_is_missing_on_other_texts_too() {
    let (module, note) = pruned("lstsq");
    let [target, draft] = [&module.graphs[0], &module.graphs[1]];
    let goal = of_block(target, "layers.1.mlp", true);
    let plain = of_block(target, "layers.0.mlp", true);
    let made = of_block(draft, "layers.0.mlp", true);
    for texts in [&texts()[..FITTED], &texts()[FITTED..]] {
        let goal = rows(target, &module.weights, goal, texts);
        let missing = squares(&rows(target, &module.weights, plain, texts), &goal);
        let left = squares(&rows(draft, &module.weights, made, texts), &goal);
        assert!(left < 0.9 * missing, "{left} of {missing}");
        if texts.len() < FITTED {
            let percent = 100.0 * (1.0 - left / missing);
            let expected =
                format!("layers.1.attn to layers.1.mlp: {percent:.0}% of what is missing");
            assert!(note.starts_with(&expected), "{note}, not {expected}");
        }
    }
    let own: Vec<&str> = draft
        .weights()
        .difference(&target.weights())
        .map(|id| module.weights[*id].name.as_str())
        .collect();
    assert_eq!(own, ["0.down.compensated"]);
}

#[test]
fn nothing_is_made_up_for_where_nothing_is_asked() {
    let (module, note) = pruned("none");
    assert_eq!(note, "");
    let [target, draft] = [&module.graphs[0], &module.graphs[1]];
    assert!(draft.weights().is_subset(&target.weights()));
}

#[test]
fn a_fit_needs_text_to_be_judged_by() {
    let mut module = Model::decoder().module();
    let one = vec![vec![1, 2, 3]];
    let error = fit_prune("drop: 1, compensate: lstsq", &mut module, one).unwrap_err();
    assert!(
        error.to_string().contains("needs 2 samples or more"),
        "{error}"
    );
}
