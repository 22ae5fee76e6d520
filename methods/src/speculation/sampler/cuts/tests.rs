//! The cuts against transformers' warpers (`generation/logits_process.py`, 5.24), written again on
//! full rows of scores as it stands there.

use proptest::prelude::*;

use super::super::{Sampler, SamplingOptions};

const CUT: f64 = f64::NEG_INFINITY;

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(CUT, f64::max);
    let shares: Vec<f64> = scores.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.into_iter().map(|x| x / sum).collect()
}

fn entropy(p: &[f64]) -> f64 {
    -p.iter()
        .filter(|p| **p > 0.0)
        .map(|p| p * p.ln())
        .sum::<f64>()
}

/// Ids by falling score.
fn order(scores: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..scores.len()).collect();
    ids.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    ids
}

fn remove(scores: &mut [f64], removed: impl Fn(usize) -> bool) {
    (0..scores.len())
        .filter(|&id| removed(id))
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|id| scores[id] = CUT);
}

/// The warpers of `_get_logits_processor`, in its order, with `min_tokens_to_keep` = 1.
fn transformers(logits: &[f32], o: &SamplingOptions) -> Vec<f64> {
    let mut scores: Vec<f64> = logits
        .iter()
        .map(|x| f64::from(*x) / f64::from(o.temperature))
        .collect();
    if let Some(top_h) = o.top_h {
        let top: Vec<usize> = order(&scores).into_iter().take(100).collect();
        let p = softmax(&top.iter().map(|&id| scores[id]).collect::<Vec<_>>());
        let tau = entropy(&p) * f64::from(top_h);
        let mut sum = 0.0;
        let mut kept = vec![top[0]];
        for (i, &id) in top.iter().enumerate() {
            sum -= if p[i] > 0.0 { p[i] * p[i].ln() } else { 0.0 };
            if sum <= tau {
                kept.push(id);
            }
        }
        remove(&mut scores, |id| !kept.contains(&id));
    }
    if o.top_k > 0 {
        let last = scores[order(&scores)[o.top_k.min(scores.len()) - 1]];
        let before = scores.clone();
        remove(&mut scores, |id| before[id] < last);
    }
    if o.top_p < 1.0 {
        let (p, mut sum) = (softmax(&scores), 0.0);
        let ids: Vec<usize> = order(&scores).into_iter().rev().collect();
        let last = *ids.last().unwrap();
        let mut gone = Vec::new();
        for id in ids {
            sum += p[id];
            if sum <= 1.0 - f64::from(o.top_p) && id != last {
                gone.push(id);
            }
        }
        remove(&mut scores, |id| gone.contains(&id));
    }
    if o.min_p > 0.0 {
        let p = softmax(&scores);
        let top = p.iter().copied().fold(0.0, f64::max);
        remove(&mut scores, |id| p[id] < f64::from(o.min_p) * top);
    }
    if o.typical_p < 1.0 {
        let p = softmax(&scores);
        let shifted: Vec<f64> = p
            .iter()
            .map(|p| (-p.ln() - entropy(&softmax(&scores))).abs())
            .collect();
        let mut ids: Vec<usize> = (0..scores.len()).collect();
        ids.sort_by(|&a, &b| shifted[a].total_cmp(&shifted[b]));
        let mut sum = 0.0;
        let below = ids.iter().filter(|&&id| {
            sum += p[id];
            sum < f64::from(o.typical_p)
        });
        let last = below.count().min(ids.len() - 1);
        remove(&mut scores, |id| {
            shifted[id] > shifted[ids[last]] && id != ids[0]
        });
    }
    for (cutoff, eta) in [(o.epsilon_cutoff, false), (o.eta_cutoff, true)] {
        if cutoff > 0.0 {
            let p = softmax(&scores);
            let cutoff = f64::from(cutoff);
            let least = if eta {
                cutoff.min(cutoff.sqrt() * (-entropy(&p)).exp())
            } else {
                cutoff
            };
            let top = scores.iter().copied().fold(CUT, f64::max);
            let before = scores.clone();
            remove(&mut scores, |id| p[id] < least && before[id] < top);
        }
    }
    softmax(&scores)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn distributions_are_those_of_transformers(
        logits in prop::collection::vec(-4.0f32..4.0, 2..40),
        temperature in 0.3f32..2.0,
        top_h in prop::option::of(0.1f32..0.95),
        top_k in prop_oneof![Just(0usize), 1usize..20],
        top_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
        min_p in prop_oneof![Just(0.0f32), 0.01f32..0.9],
        typical_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
        epsilon_cutoff in prop_oneof![Just(0.0f32), 0.001f32..0.3],
        eta_cutoff in prop_oneof![Just(0.0f32), 0.001f32..0.3],
    ) {
        let options = SamplingOptions { temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, seed: 0 };
        let expected = transformers(&logits, &options);
        let found = Sampler::new(options).unwrap().distribution(&logits, 0).unwrap();
        let near = |(id, p): (usize, &f64)| (found.probability(id as u32) - p).abs() < 1e-5;
        prop_assert!(expected.iter().enumerate().all(near), "{:?} is not {:?}", found, expected);
    }
}
