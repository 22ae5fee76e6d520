//! Attention and rotary embedding against loops that follow the definition, in double precision.
//! Tolerance 1e-5.

mod common;

use std::collections::BTreeMap;

use common::{Case, Noise, assert_close, numbers};
use dlc_eval::{Array, run};
use dlc_ir::{Attention, BucketedBias, Op, Rope, RopeScaling};

/// Name, sizes, window and mask of a case.
type Mask = (&'static str, [usize; 6], Option<usize>, &'static [i64]);

struct Sizes {
    batch: usize,
    seq: usize,
    past: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

fn feeds(s: &Sizes, mask: &[i64]) -> BTreeMap<String, Array> {
    let mut noise = Noise::new(5);
    let mut float =
        |shape: &[usize]| Array::f32(shape, noise.numbers(shape.iter().product())).expect("fits");
    let cache = [s.batch, s.kv_heads, s.past, s.head_dim];
    let arrays = [
        ("q", float(&[s.batch, s.seq, s.heads * s.head_dim])),
        ("k", float(&[s.batch, s.seq, s.kv_heads * s.head_dim])),
        ("v", float(&[s.batch, s.seq, s.kv_heads * s.head_dim])),
        (
            "mask",
            Array::i64([s.batch, s.past + s.seq], mask.to_vec()).expect("fits"),
        ),
        ("past_key", float(&cache)),
        ("past_value", float(&cache)),
    ];
    arrays
        .into_iter()
        .map(|(name, array)| (name.to_owned(), array))
        .collect()
}

fn graph(s: &Sizes) -> String {
    let Sizes {
        heads,
        kv_heads,
        head_dim: d,
        ..
    } = *s;
    let window = s.window.map(|w| format!(" window={w}")).unwrap_or_default();
    let (q, kv) = (heads * d, kv_heads * d);
    format!(
        "graph attention {{
  input q: f32[batch, seq, {q}]
  input k: f32[batch, seq, {kv}]
  input v: f32[batch, seq, {kv}]
  input mask: i64[batch, past+seq]
  input past_key: f32[batch, {kv_heads}, past, {d}]
  input past_value: f32[batch, {kv_heads}, past, {d}]
  %0, %1, %2 = attention %q, %k, %v, %mask, %past_key, %past_value heads={heads} kv_heads={kv_heads} scale=0.6{window} \
         : f32[batch, seq, {q}], f32[batch, {kv_heads}, past+seq, {d}], f32[batch, {kv_heads}, past+seq, {d}]
  output y = %0
  output present_key = %1
  output present_value = %2
}}"
    )
}

/// The output row of query `i` of head `h`, or nothing where it sees no key.
fn naive(
    s: &Sizes,
    feeds: &BTreeMap<String, Array>,
    mask: &[i64],
    (b, h, i): (usize, usize, usize),
) -> Option<Vec<f32>> {
    let (total, d, kv) = (s.past + s.seq, s.head_dim, h / (s.heads / s.kv_heads));
    let row = |new: &str, past: &str, j: usize| -> Vec<f64> {
        let (data, start) = if j < s.past {
            (
                numbers(&feeds[past]),
                ((b * s.kv_heads + kv) * s.past + j) * d,
            )
        } else {
            (
                numbers(&feeds[new]),
                ((b * s.seq + j - s.past) * s.kv_heads + kv) * d,
            )
        };
        data[start..start + d]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    };
    let q = &numbers(&feeds["q"])[((b * s.seq + i) * s.heads + h) * d..][..d];
    let mask = &mask[b * total..][..total];
    let count = |j: usize| mask[..=j].iter().sum::<i64>();
    let sees = |j: &usize| {
        mask[*j] == 1
            && *j <= s.past + i
            && s.window
                .is_none_or(|w| count(s.past + i) - count(*j) < w as i64)
    };
    let seen: Vec<usize> = (0..total).filter(sees).collect();
    let e: Vec<f64> = seen
        .iter()
        .map(|j| {
            (f64::from(0.6f32)
                * row("k", "past_key", *j)
                    .iter()
                    .zip(q)
                    .map(|(k, q)| k * f64::from(*q))
                    .sum::<f64>())
            .exp()
        })
        .collect();
    let sum: f64 = e.iter().sum();
    let mut out = vec![0f64; d];
    for (j, e) in seen.iter().zip(&e) {
        out.iter_mut()
            .zip(row("v", "past_value", *j))
            .for_each(|(o, v)| *o += e / sum * v);
    }
    (!seen.is_empty()).then(|| out.iter().map(|x| *x as f32).collect())
}

#[test]
fn attention_is_what_its_definition_says() {
    let (n, w) = (None, Some(3));
    let cases: &[Mask] = &[
        ("causal", [1, 4, 0, 2, 2, 4], n, &[1, 1, 1, 1]),
        ("one token on a past", [1, 1, 3, 2, 2, 2], n, &[1, 1, 1, 1]),
        (
            "several tokens on a past, grouped heads",
            [2, 3, 2, 6, 2, 4],
            n,
            &[1; 10],
        ),
        ("multi-query", [1, 3, 1, 4, 1, 2], n, &[1; 4]),
        (
            "left padding",
            [2, 4, 0, 4, 2, 2],
            n,
            &[0, 0, 1, 1, 1, 1, 1, 1],
        ),
        (
            "left padding in the past",
            [2, 2, 3, 4, 2, 2],
            n,
            &[0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
        ("window", [1, 6, 0, 2, 1, 4], w, &[1; 6]),
        ("window of one", [1, 4, 2, 2, 1, 4], Some(1), &[1; 6]),
        ("window over a past", [1, 2, 5, 2, 1, 4], w, &[1; 7]),
        (
            "window over holes",
            [2, 4, 3, 4, 2, 2],
            w,
            &[1, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1],
        ),
    ];
    for (name, [batch, seq, past, heads, kv_heads, head_dim], window, mask) in cases {
        let s = Sizes {
            batch: *batch,
            seq: *seq,
            past: *past,
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            window: *window,
        };
        let case = Case::parse(&graph(&s));
        let feeds = feeds(&s, mask);
        let outputs = run(&case.graph, &case.weights(), &feeds).expect("runs");
        let y = numbers(&outputs["y"]);
        assert!(y.iter().all(|x| x.is_finite()), "{name}");
        for b in 0..s.batch {
            for i in 0..s.seq {
                for h in 0..s.heads {
                    if let Some(row) = naive(&s, &feeds, mask, (b, h, i)) {
                        let at = ((b * s.seq + i) * s.heads + h) * s.head_dim;
                        assert_close(
                            &format!("{name}: batch {b} query {i} head {h}"),
                            &y[at..at + s.head_dim],
                            &row,
                            1e-5,
                        );
                    }
                }
            }
        }
        assert_eq!(
            outputs["present_key"].shape(),
            [s.batch, s.kv_heads, s.past + s.seq, s.head_dim]
        );
        let last =
            &numbers(&outputs["present_value"])[(s.past + s.seq - 1) * s.head_dim..][..s.head_dim];
        assert_eq!(
            last,
            &numbers(&feeds["v"])[(s.seq - 1) * s.kv_heads * s.head_dim..][..s.head_dim],
            "{name}"
        );
    }
}

/// Scores are dot products and the table's numbers, over the keys near enough whose mask is 1.
#[test]
fn a_window_in_both_directions_with_a_bias_is_what_its_definition_says() {
    const BUCKETS: BucketedBias = BucketedBias {
        buckets: 8,
        until: 4,
    };
    let (seq, width) = (7, 2);
    let case = Case::parse(
        "graph both {
  input x: f32[batch, seq, 2]
  input mask: i64[batch, seq]
  %0 = bucketed_bias %x, @table buckets=8 until=4 : f32[1, 1, seq, seq]
  %1 = attention %x, %x, %x, %mask, %0 heads=1 kv_heads=1 scale=0.5 window=3 causal=false : f32[batch, seq, 2]
  output y = %1
}
weight @table: f32[8, 1]",
    );
    let mask = vec![1, 1, 0, 1, 1, 1, 1];
    let x = Noise::new(5).numbers(seq * width);
    let feeds = BTreeMap::from([
        (
            "x".to_owned(),
            Array::f32([1, seq, width], x.clone()).expect("fits"),
        ),
        (
            "mask".to_owned(),
            Array::i64([1, seq], mask.clone()).expect("fits"),
        ),
    ]);
    let table = case.data.values().next().expect("one weight");
    let outputs = run(&case.graph, &case.weights(), &feeds).expect("runs");
    for i in 0..seq {
        let seen = (0..seq).filter(|j| mask[*j] == 1 && i.abs_diff(*j) < 3);
        let score = |j: usize| {
            let dot: f32 = (0..width)
                .map(|c| x[i * width + c] * x[j * width + c])
                .sum();
            0.5 * dot + table[BUCKETS.bucket(i as i64 - j as i64)]
        };
        let shares: Vec<(usize, f32)> = seen.map(|j| (j, score(j).exp())).collect();
        let total: f32 = shares.iter().map(|(_, share)| share).sum();
        let row: Vec<f32> = (0..width)
            .map(|c| {
                shares
                    .iter()
                    .map(|(j, e)| e / total * x[j * width + c])
                    .sum()
            })
            .collect();
        let found = &numbers(&outputs["y"])[i * width..][..width];
        assert_close(&format!("query {i}"), found, &row, 1e-5);
    }
}

#[test]
fn rope_rotates_the_halves_of_each_head() {
    let case = Case::parse(
        "graph rope {
  input x: f32[batch, seq, 12]
  input positions: i64[batch, seq]
  %0 = rope %x, %positions heads=2 theta=500.0 scaling=linear factor=4.0 : f32[batch, seq, 12]
  output y = %0
}",
    );
    let x = Noise::new(1).numbers(24);
    let positions = [3i64, 250];
    let feeds = BTreeMap::from([
        (
            "x".to_owned(),
            Array::f32([1, 2, 12], x.clone()).expect("fits"),
        ),
        (
            "positions".to_owned(),
            Array::i64([1, 2], positions.to_vec()).expect("fits"),
        ),
    ]);
    let frequencies = Rope {
        heads: 2,
        rotary_dim: None,
        theta: 500.0,
        scaling: RopeScaling::Linear { factor: 4.0 },
    }
    .frequencies(6);
    let mut expected = vec![0f32; 24];
    for (head, start) in (0..24).step_by(6).enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let angle = f64::from(positions[head / 2] as f32 * f);
            let (a, b) = (f64::from(x[start + i]), f64::from(x[start + i + 3]));
            expected[start + i] = (a * angle.cos() - b * angle.sin()) as f32;
            expected[start + i + 3] = (b * angle.cos() + a * angle.sin()) as f32;
        }
    }
    let outputs = run(&case.graph, &case.weights(), &feeds).expect("runs");
    assert_close("rope", numbers(&outputs["y"]), &expected, 1e-5);
}

#[test]
fn the_cases_mean_the_ops_that_the_loops_follow() {
    let case = Case::load("attention_window");
    let op = case.graph.nodes().map(|(_, n)| n.op.clone()).next();
    assert_eq!(
        op,
        Some(Op::Attention(Attention {
            heads: 4,
            kv_heads: 2,
            scale: 0.7,
            window: Some(2),
            softcap: None,
            causal: true
        }))
    );
}

/// As transformers writes it: the base times
/// `(factor * length / trained - (factor - 1)) ^ (dim / (dim - 2))`.
#[test]
fn a_dynamic_base_grows_with_the_length() {
    let rope = Rope {
        heads: 2,
        rotary_dim: None,
        theta: 10_000.0,
        scaling: RopeScaling::Dynamic {
            factor: 2.0,
            original: 64,
        },
    };
    for length in [1, 64, 65, 100, 640] {
        let grown = 2.0 * f64::from(length.max(64)) / 64.0 - 1.0;
        let base = 10_000.0 * grown.powf(8.0 / 6.0);
        for (i, found) in rope
            .frequencies_at(8, length as usize)
            .into_iter()
            .enumerate()
        {
            let expected = base.powf(-2.0 * i as f64 / 8.0);
            assert!(
                (f64::from(found) - expected).abs() <= 1e-6 * expected,
                "{length}, {i}: {found}, not {expected}"
            );
        }
    }
}
