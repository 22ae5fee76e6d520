//! Every range of every expression equals the same range of the whole, computed plainly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::{Blob, Expr, Packing, QuantizedPart, Quantizer, Refinement};
use crate::op::GroupFormat;
use crate::types::DType;

fn leaf(numbers: &[f32], dtype: DType) -> Arc<Expr> {
    let mut bytes = vec![0; numbers.len() * dtype.size()];
    crate::codec::encode(dtype, numbers, &mut bytes);
    let length = bytes.len();
    Arc::new(Expr::Mapped {
        blob: Blob::new(Arc::new(bytes), 0..length).expect("in range"),
        dtype,
    })
}

/// Two bytes a block, and their sum.
static PAIRS: Packing = Packing {
    name: "pairs",
    elements: 3,
    bytes: 2,
    unpack: |bytes, out| {
        let [a, b] = [bytes[0], bytes[1]].map(f32::from);
        out.copy_from_slice(&[a, b, a + b]);
    },
};

fn whole(expr: &Expr) -> Vec<f32> {
    let mut out = vec![f32::NAN; expr.elements()];
    expr.read_f32(0, &mut out);
    out
}

fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
    (0..rows * columns)
        .map(|i| ((i * 37 + seed * 101) % 19) as f32 / 8.0 - 1.0)
        .collect()
}

/// W + 0.5 relu(B A) o sign(D C), in `f64`.
fn dual_by_hand(
    w: &[f32],
    [a, b, c, d]: [&[f32]; 4],
    (rows, rank, columns): (usize, usize, usize),
) -> Vec<f32> {
    let product = |left: &[f32], right: &[f32], i: usize, j: usize| -> f64 {
        (0..rank)
            .map(|k| f64::from(left[i * rank + k]) * f64::from(right[k * columns + j]))
            .sum()
    };
    let entries = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
    let entry = |(i, j)| {
        let sign = if product(d, c, i, j) > 0.0 { 1.0 } else { -1.0 };
        (f64::from(w[i * columns + j]) + 0.5 * product(b, a, i, j).max(0.0) * sign) as f32
    };
    entries.map(entry).collect()
}

proptest! {
    #[test]
    fn a_dual_lora_merge_is_exact_in_every_range(rows in 1..9usize, rank in 1..4usize, columns in 1..9usize, from in 0..80usize, len in 0..80usize) {
        let [w, a, b, c, d] = [matrix(rows, columns, 1), matrix(rank, columns, 2), matrix(rows, rank, 3), matrix(rank, columns, 4), matrix(rows, rank, 5)];
        let product = |left: &[f32], right: &[f32]| {
            Arc::new(Expr::MatMul { left: leaf(left, DType::F16), right: leaf(right, DType::F32), inner: rank, columns })
        };
        let change = Expr::Mul(Arc::new(Expr::Relu(product(&b, &a))), Arc::new(Expr::Sign(product(&d, &c))));
        let merged = Expr::Add(leaf(&w, DType::F32), Arc::new(Expr::Scale(Arc::new(change), 0.5)));
        prop_assert_eq!(merged.elements(), rows * columns);
        let all = whole(&merged);
        for (x, y) in all.iter().zip(dual_by_hand(&w, [&a, &b, &c, &d], (rows, rank, columns))) {
            prop_assert!((x - y).abs() < 1e-5, "{x} is not {y}");
        }
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; len.min(all.len() - from)];
        merged.read_f32(from, &mut part);
        prop_assert_eq!(&part, &all[from..from + part.len()]);
        let half = merged.cast(DType::F16);
        let mut bytes = vec![0u8; part.len() * 2];
        half.write_bytes(from, &mut bytes);
        let rounded: Vec<u16> = part.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
        prop_assert_eq!(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>(), rounded);
    }

    #[test]
    fn packed_blocks_are_read_from_any_element_to_any(blocks in 0..5usize, from in 0..20usize, len in 0..20usize) {
        let bytes: Vec<u8> = (0..2 * blocks as u8).collect();
        let length = bytes.len();
        let blob = Blob::new(Arc::new(bytes), 0..length).expect("in range");
        let packed = Expr::Packed { blob, packing: &PAIRS };
        let all: Vec<f32> = (0..blocks).flat_map(|b| [2 * b, 2 * b + 1, 4 * b + 1].map(|x| x as f32)).collect();
        prop_assert_eq!(whole(&packed), all.clone());
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; len.min(all.len() - from)];
        packed.read_f32(from, &mut part);
        prop_assert_eq!(&part, &all[from..from + part.len()]);
    }

    #[test]
    fn repeated_elements_stand_in_every_range(n in 1..5usize, each in 1..4usize, times in 1..4usize, from in 0..50usize, len in 0..50usize) {
        let input = matrix(1, n, 3);
        let repeated = Expr::Repeat { input: leaf(&input, DType::F32), each, times };
        let row = input.iter().flat_map(|x| vec![*x; each]).collect::<Vec<_>>();
        let all = row.repeat(times);
        prop_assert_eq!(whole(&repeated), all.clone());
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; len.min(all.len() - from)];
        repeated.read_f32(from, &mut part);
        prop_assert_eq!(&part, &all[from..from + part.len()]);
    }

    #[test]
    fn joined_expressions_stand_after_each_other(lengths in prop::collection::vec(0..5usize, 0..4), from in 0..20usize, len in 0..20usize) {
        let parts: Vec<Vec<f32>> = lengths.iter().enumerate().map(|(i, n)| matrix(1, *n, i)).collect();
        let joined = Expr::Join(parts.iter().map(|part| leaf(part, DType::F32)).collect());
        let all = parts.concat();
        prop_assert_eq!(whole(&joined), all.clone());
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; len.min(all.len() - from)];
        joined.read_f32(from, &mut part);
        prop_assert_eq!(&part, &all[from..from + part.len()]);
    }

    #[test]
    fn normalized_rows_have_mean_0_and_variance_1(rows in 1..6usize, columns in 2..9usize, from in 0..50usize) {
        let input: Vec<f32> = matrix(rows, columns, 7).iter().enumerate().map(|(i, x)| x + i as f32).collect();
        let normalized = Expr::NormalizeRows { input: leaf(&input, DType::F32), columns, eps: 0.25 };
        let all = whole(&normalized);
        for (row, input) in all.chunks(columns).zip(input.chunks(columns)) {
            let mean = |of: &[f32]| of.iter().sum::<f32>() / columns as f32;
            let variance = |of: &[f32]| mean(&of.iter().map(|x| (x - mean(of)).powi(2)).collect::<Vec<_>>());
            let wanted = variance(input) / (variance(input) + 0.25);
            prop_assert!(mean(row).abs() < 1e-5 && (variance(row) - wanted).abs() < 1e-5, "{row:?}");
        }
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; all.len() - from];
        normalized.read_f32(from, &mut part);
        prop_assert_eq!(&part[..], &all[from..]);
    }

    #[test]
    fn scaled_rows_have_the_norms_asked_for(rows in 1..6usize, columns in 1..9usize, from in 0..50usize) {
        let input: Vec<f32> = matrix(rows, columns, 7).iter().map(|x| x + 2.0).collect();
        let norms: Vec<f32> = (0..rows).map(|i| i as f32 + 0.5).collect();
        let scaled = Expr::ScaleRows { input: leaf(&input, DType::F32), magnitude: leaf(&norms, DType::F32), columns };
        let all = whole(&scaled);
        for (row, wanted) in all.chunks(columns).zip(&norms) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            prop_assert!((norm - wanted).abs() < 1e-5 * wanted.max(1.0));
        }
        let from = from.min(all.len());
        let mut part = vec![f32::NAN; all.len() - from];
        scaled.read_f32(from, &mut part);
        prop_assert_eq!(&part, &all[from..]);
    }
}

#[test]
fn no_elements_can_be_read_anywhere() {
    for step in 0..12 {
        let expr = cooked(&[step], 2, 3);
        for from in 0..=6 {
            expr.read_f32(from, &mut []);
            (*expr).clone().transposed(3).read_f32(from, &mut []);
        }
    }
}

#[test]
fn the_sign_of_zero_is_minus_one() {
    assert_eq!(
        whole(&Expr::Sign(leaf(&[0.0, -0.0, 1e-30, -1e-30], DType::F32))),
        [-1.0, -1.0, 1.0, -1.0]
    );
}

#[test]
fn equal_expressions_have_equal_keys_and_others_do_not() {
    let (a, b) = (leaf(&[1.0, 2.0], DType::F32), leaf(&[1.0, 2.0], DType::F32));
    let scale = |x: &Arc<Expr>, by| Expr::Scale(Arc::clone(x), by).key();
    assert_eq!(scale(&a, 2.0), scale(&a, 2.0));
    assert_ne!(scale(&a, 2.0), scale(&a, 3.0));
    assert_ne!(scale(&a, 2.0), scale(&b, 2.0));
    assert_ne!(Expr::Relu(Arc::clone(&a)).key(), Expr::Sign(a).key());
}

/// A matrix of `rows` and `columns` to which each byte of `recipe` has done something.
fn cooked(recipe: &[u8], rows: usize, columns: usize) -> Arc<Expr> {
    let square = || leaf(&matrix(columns, columns, 3), DType::Bf16);
    let mut matrix_now = leaf(&matrix(rows, columns, 1), DType::F16);
    for (i, step) in recipe.iter().enumerate() {
        let other = leaf(&matrix(rows, columns, i + 2), DType::F32);
        let flipped = Arc::new(Expr::Transpose {
            input: leaf(&matrix(columns, rows, i + 2), DType::F32),
            columns: rows,
        });
        let magnitude = leaf(&matrix(rows, 1, i), DType::F32);
        let input = matrix_now;
        matrix_now = Arc::new(match step % 12 {
            0 => Expr::Cast {
                input,
                dtype: DType::F16,
            },
            1 => Expr::Add(input, other),
            2 => Expr::Mul(input, flipped),
            3 => Expr::Scale(input, 0.7),
            4 => Expr::Offset(input, -0.3),
            5 => Expr::Relu(input),
            6 => Expr::Sign(input),
            7 => Expr::MatMul {
                left: input,
                right: square(),
                inner: columns,
                columns,
            },
            8 => Expr::ScaleRows {
                input,
                magnitude,
                columns,
            },
            9 => Expr::ScaleColumns {
                input,
                magnitude: leaf(&matrix(columns, 1, i), DType::F32),
                columns,
                factors: Arc::new(OnceLock::new()),
            },
            10 => Expr::Add(flipped, input),
            _ => (*input).clone().slice(0, rows * columns),
        });
    }
    matrix_now
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers
        .iter()
        .map(|x| {
            if x.is_nan() {
                f32::NAN.to_bits()
            } else {
                x.to_bits()
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn a_transposed_expression_reads_as_what_it_was_with_rows_and_columns_exchanged(
        recipe in proptest::collection::vec(any::<u8>(), 0..6), rows in 1..7usize, columns in 1..7usize, from in 0..50usize, len in 0..50usize,
    ) {
        let plain = cooked(&recipe, rows, columns);
        let numbers = whole(&plain);
        let expected: Vec<f32> = (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| numbers[i * columns + j]).collect();
        let transposed = (*plain).clone().transposed(columns);
        prop_assert_eq!(bits(&whole(&transposed)), bits(&expected));
        let from = from.min(expected.len());
        let mut part = vec![f32::NAN; len.min(expected.len() - from)];
        transposed.read_f32(from, &mut part);
        prop_assert_eq!(bits(&part), bits(&expected[from..from + part.len()]));
        prop_assert_eq!(bits(&whole(&transposed.transposed(rows))), bits(&numbers));
    }
}

/// Bytes that count how often somebody looks at them.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.1.fetch_add(1, Ordering::Relaxed);
        &self.0
    }
}

#[test]
fn writing_a_merged_weight_that_is_stored_transposed_reads_each_file_a_few_times() {
    let reads = Arc::new(AtomicUsize::new(0));
    let stored = |rows: usize, columns: usize| {
        let bytes = matrix(rows, columns, 1)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let blob = Blob::new(
            Arc::new(Counted(bytes, Arc::clone(&reads))),
            0..rows * columns * 4,
        )
        .expect("in range");
        Arc::new(Expr::Mapped {
            blob,
            dtype: DType::F32,
        })
    };
    for scaled in [false, true] {
        for (out, inner, rank) in [(300, 200, 8), (1200, 800, 8), (1200, 800, 40)] {
            let change = Expr::MatMul {
                left: stored(out, rank),
                right: stored(rank, inner),
                inner: rank,
                columns: inner,
            };
            let base = Arc::new((*stored(inner, out)).clone().transposed(out));
            let mut merged = Expr::Add(base, Arc::new(Expr::Scale(Arc::new(change), 0.5)));
            if scaled {
                merged = Expr::ScaleRows {
                    input: Arc::new(merged),
                    magnitude: stored(out, 1),
                    columns: inner,
                };
            }
            let written = merged.transposed(inner);
            reads.store(0, Ordering::Relaxed);
            let mut bytes = vec![0u8; out * inner * 4];
            written.write_bytes(0, &mut bytes);
            let tiles = (out * inner).div_ceil(super::ROWS_TILE);
            // In each tile a row of the base, its columns' factors by rank, and the other factor in
            // groups.
            let most =
                (1 + usize::from(scaled)) * (tiles + 1) * (10 + rank + out * rank.div_ceil(16));
            let found = reads.load(Ordering::Relaxed);
            assert!(
                found <= most,
                "{found} reads of {out} x {inner} at rank {rank}, {most} expected at most"
            );
        }
    }
}

/// Codes, scales and zero points of a matrix, and what they stand for, by hand.
fn dequantized(matrix: &Arc<Expr>, columns: usize, quantizer: Quantizer) -> Vec<f32> {
    let format = quantizer.format;
    let part = |part| {
        whole(&Expr::Quantize {
            input: Arc::clone(matrix),
            columns,
            quantizer,
            part,
        })
    };
    let [codes, scales, zeros] = [
        QuantizedPart::Codes,
        QuantizedPart::Scales,
        QuantizedPart::ZeroPoints,
    ]
    .map(part);
    let (groups, zero_bytes) = (format.groups(columns), format.zero_point_bytes(columns));
    let nibble = |bytes: &[f32], at: usize| match format.bits {
        4 => (bytes[at / 2] as u32 >> (4 * (at % 2)) & 15) as f32,
        _ => bytes[at],
    };
    let entry = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let group = column / format.group_size;
        let code = nibble(&codes[row * groups * format.code_bytes()..], column);
        let zero = nibble(&zeros[row * zero_bytes..], group);
        (code - zero) * scales[row * groups + group]
    };
    (0..matrix.elements()).map(entry).collect()
}

fn quantizer() -> impl Strategy<Value = Quantizer> {
    let format = (
        prop_oneof![Just(4), Just(8)],
        prop_oneof![Just(16), Just(32)],
    )
        .prop_map(|(bits, group_size)| GroupFormat { bits, group_size });
    let refinement = prop_oneof![Just(Refinement::None), Just(Refinement::Hqq)];
    (format, any::<bool>(), refinement).prop_map(|(format, symmetric, refinement)| Quantizer {
        format,
        symmetric,
        refinement,
    })
}

proptest! {
    #[test]
    fn quantised_entries_are_near_and_refined_ones_no_further(
        rows in 1..4usize, columns in 1..80usize, quantizer in quantizer(), numbers in prop::collection::vec(-3f32..3.0, 320),
    ) {
        let numbers = &numbers[..rows * columns];
        let matrix = leaf(numbers, DType::F32);
        let error = |refinement| {
            let made = dequantized(&matrix, columns, Quantizer { refinement, ..quantizer });
            made.iter().zip(numbers).map(|(x, y)| (x - y).powi(2)).sum::<f32>()
        };
        // The extreme code of a symmetric block leaves its opposite a step away, the others half of
        // one.
        let span = if quantizer.symmetric { 3.0 / f32::from(quantizer.format.default_zero_point()) } else { 4.0 / f32::from(quantizer.format.largest_code()) };
        for (x, y) in dequantized(&matrix, columns, Quantizer { refinement: Refinement::None, ..quantizer }).iter().zip(numbers) {
            prop_assert!((x - y).abs() <= span * 1.01, "{x} is not near {y}");
        }
        let (nearest, refined) = (error(Refinement::None), error(Refinement::Hqq));
        prop_assert!(refined <= nearest * 1.0001, "{refined} after {nearest}");
        let said: f64 = numbers.chunks(columns).flat_map(|row| row.chunks(quantizer.format.group_size)).map(|b| quantizer.squared_error(b, DType::F32).0).sum();
        prop_assert!((said - f64::from(error(quantizer.refinement))).abs() <= 1e-3 * said + 1e-9);
    }

    #[test]
    fn quantised_parts_and_chosen_rows_read_alike_in_every_range(
        rows in 1..4usize, columns in 1..80usize, quantizer in quantizer(), from in 0..200usize, len in 0..200usize, chosen in prop::collection::vec(0..3u32, 0..5),
    ) {
        let chosen: Vec<u32> = chosen.into_iter().map(|row| row % rows as u32).collect();
        let matrix = Arc::new(Expr::Rows { input: leaf(&matrix(rows, columns, 3), DType::F16), columns, rows: chosen.clone().into() });
        prop_assert_eq!(matrix.elements(), chosen.len() * columns);
        for part in [QuantizedPart::Codes, QuantizedPart::Scales, QuantizedPart::ZeroPoints] {
            let expr = Expr::Quantize { input: Arc::clone(&matrix), columns, quantizer, part };
            let all = whole(&expr);
            let from = from.min(all.len());
            let mut range = vec![f32::NAN; len.min(all.len() - from)];
            expr.read_f32(from, &mut range);
            prop_assert_eq!(&range, &all[from..from + range.len()]);
            // Rows may as well be chosen afterwards.
            let plain = Expr::Quantize { input: leaf(&self::matrix(rows, columns, 3), DType::F16), columns, quantizer, part };
            let width = plain.elements() / rows;
            let later = Expr::Rows { input: Arc::new(plain), columns: width, rows: chosen.clone().into() };
            prop_assert_eq!(whole(&later), all);
        }
    }
}

#[test]
fn replaced_rows_read_alike_in_every_range() {
    let (base, other) = (matrix(5, 3, 1), matrix(2, 3, 2));
    let expr = Expr::ReplaceRows {
        input: leaf(&base, DType::F32),
        columns: 3,
        rows: [1, 4].into(),
        values: leaf(&other, DType::F32),
    };
    let expected: Vec<f32> = [&base[..3], &other[..3], &base[6..12], &other[3..]].concat();
    assert_eq!(whole(&expr), expected);
    for from in 0..15 {
        for len in 0..=15 - from {
            let mut range = vec![f32::NAN; len];
            expr.read_f32(from, &mut range);
            assert_eq!(range, expected[from..from + len]);
        }
    }
}

#[test]
fn groups_without_a_finite_scale_are_zeros() {
    for numbers in [[0.0; 16], [1e-45; 16]] {
        for symmetric in [true, false] {
            for refinement in [Refinement::None, Refinement::Hqq] {
                let quantizer = Quantizer {
                    format: GroupFormat {
                        bits: 4,
                        group_size: 16,
                    },
                    symmetric,
                    refinement,
                };
                for x in dequantized(&leaf(&numbers, DType::F32), 16, quantizer) {
                    assert!(x.abs() < 1e-40, "{quantizer:?}: {x}");
                }
            }
        }
    }
}
