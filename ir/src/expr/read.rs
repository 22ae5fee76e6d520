//! How ranges of computed expressions are read.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Expr;

/// Elements that are computed at a time where rows are read: each factor's row is read once a tile.
pub(super) const ROWS_TILE: usize = 1 << 16;

pub(super) fn apply(input: &Expr, from: usize, out: &mut [f32], f: impl Fn(f32) -> f32) {
    input.read_f32(from, out);
    for x in out {
        *x = f(*x);
    }
}

pub(super) fn combine(
    a: &Expr,
    b: &Expr,
    from: usize,
    out: &mut [f32],
    f: impl Fn(f32, f32) -> f32,
) {
    let mut other = vec![0.0; out.len()];
    a.read_f32(from, out);
    b.read_f32(from, &mut other);
    out.iter_mut().zip(&other).for_each(|(x, y)| *x = f(*x, *y));
}

/// The parts of the rows of a matrix of `columns` columns that a range covers: row, first column,
/// and where the part lies in the range.
fn rows_of(
    from: usize,
    len: usize,
    columns: usize,
) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (row, column) = ((from + at) / columns, (from + at) % columns);
        let part = at..len.min(at + columns - column);
        at = part.end;
        (!part.is_empty()).then_some((row, column, part))
    })
}

/// A range of a product: every row of `right` is read once, as far as the range goes, and added to
/// all rows of the range.
pub(super) fn multiply(
    left: &Expr,
    right: &Expr,
    (inner, columns): (usize, usize),
    from: usize,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    out.fill(0.0);
    let first = from / columns;
    let rows = (from + out.len()).div_ceil(columns) - first;
    let (start, width) = if rows == 1 {
        (from % columns, out.len())
    } else {
        (0, columns)
    };
    let mut factors = vec![0.0; rows * inner];
    left.read_f32(first * inner, &mut factors);
    // A transposed matrix gives several whole rows for the reads of one.
    let group = if matches!(right, Expr::Transpose { .. }) && rows > 1 {
        TRANSPOSED_ROWS.min(inner)
    } else {
        1
    };
    let mut right_rows = vec![0.0; group * width];
    for k in (0..inner).step_by(group) {
        let right_rows = &mut right_rows[..group.min(inner - k) * width];
        right.read_f32(k * columns + start, right_rows);
        for (k, right_row) in (k..).zip(right_rows.chunks_exact(width)) {
            for (row, column, part) in rows_of(from, out.len(), columns) {
                let factor = factors[(row - first) * inner + k];
                let addends = &right_row[column - start..][..part.len()];
                out[part]
                    .iter_mut()
                    .zip(addends)
                    .for_each(|(x, y)| *x += factor * y);
            }
        }
    }
}

/// Rows of a transposed factor that are read at a time.
const TRANSPOSED_ROWS: usize = 16;

/// A range of a transposed matrix: of every row of `input` that the range needs, the columns that
/// it needs are read once.
pub(super) fn transpose(input: &Expr, columns: usize, from: usize, out: &mut [f32]) {
    let rows = input.elements() / columns;
    if rows == 0 {
        return;
    }
    let (first, end) = (from / rows, (from + out.len()).div_ceil(rows));
    let needed = if end - first <= 1 {
        from % rows..from % rows + out.len()
    } else {
        0..rows
    };
    let mut piece = vec![0.0; end - first];
    for row in needed {
        input.read_f32(row * columns + first, &mut piece);
        for (column, x) in piece.iter().enumerate() {
            // Wraps for the entries before the range.
            if let Some(entry) = out.get_mut(((first + column) * rows + row).wrapping_sub(from)) {
                *entry = *x;
            }
        }
    }
}

/// A range of repeated elements; only those that the range needs are read.
pub(super) fn repeat(input: &Expr, each: usize, from: usize, out: &mut [f32]) {
    let all = input.elements();
    if all == 0 || out.is_empty() {
        return;
    }
    let (first, last) = (from / each, (from + out.len() - 1) / each);
    let start = if last - first < all { first % all } else { 0 };
    let mut elements = vec![0.0; all.min(last - first + 1)];
    let fits = elements.len().min(all - start);
    input.read_f32(start, &mut elements[..fits]);
    input.read_f32(0, &mut elements[fits..]);
    for (i, x) in out.iter_mut().enumerate() {
        let element = (from + i) / each % all;
        *x = elements[(element + all - start) % all];
    }
}

/// A range of expressions after each other.
pub(super) fn join(parts: &[Arc<Expr>], mut from: usize, mut out: &mut [f32]) {
    for part in parts {
        let length = part.elements();
        if from >= length {
            from -= length;
            continue;
        }
        let (here, rest) = out.split_at_mut(out.len().min(length - from));
        part.read_f32(from, here);
        (out, from) = (rest, 0);
        if out.is_empty() {
            return;
        }
    }
}

/// A range of a choice of rows; rows that follow each other in the matrix are read as one.
pub(super) fn select_rows(
    input: &Expr,
    columns: usize,
    rows: &[u32],
    from: usize,
    out: &mut [f32],
) {
    let mut at = 0;
    while at < out.len() {
        let (row, column) = ((from + at) / columns, (from + at) % columns);
        let Some((&first, rest)) = rows.get(row..).and_then(<[u32]>::split_first) else {
            return;
        };
        let run = 1 + rest
            .iter()
            .zip(first + 1..)
            .take_while(|(row, next)| **row == *next)
            .count();
        let end = out.len().min(at + run * columns - column);
        input.read_f32(first as usize * columns + column, &mut out[at..end]);
        at = end;
    }
}

/// A range of a matrix, some of whose rows are others.
pub(super) fn replace_rows(
    input: &Expr,
    (rows, values): (&[u32], &Expr),
    columns: usize,
    from: usize,
    out: &mut [f32],
) {
    input.read_f32(from, out);
    for (row, column, part) in rows_of(from, out.len(), columns) {
        if let Some(at) = u32::try_from(row)
            .ok()
            .and_then(|row| rows.binary_search(&row).ok())
        {
            values.read_f32(at * columns + column, &mut out[part]);
        }
    }
}

pub(super) fn scale_rows(
    input: &Expr,
    magnitude: &Expr,
    columns: usize,
    from: usize,
    out: &mut [f32],
) {
    let first = from / columns;
    let rows = (from + out.len()).div_ceil(columns) - first;
    let mut whole = vec![0.0; rows * columns];
    input.read_f32(first * columns, &mut whole);
    let mut magnitudes = vec![0.0; rows];
    magnitude.read_f32(first, &mut magnitudes);
    for (row, column, part) in rows_of(from, out.len(), columns) {
        let entries = &whole[(row - first) * columns..][..columns];
        let norm = entries
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt() as f32;
        let factor = magnitudes[row - first] / norm;
        let entries = &entries[column..column + part.len()];
        out[part]
            .iter_mut()
            .zip(entries)
            .for_each(|(x, y)| *x = factor * y);
    }
}

/// A range of a matrix whose rows get the mean 0 and the variance 1.
pub(super) fn normalize_rows(input: &Expr, columns: usize, eps: f32, from: usize, out: &mut [f32]) {
    let mut entries = vec![0.0; columns];
    for (row, column, part) in rows_of(from, out.len(), columns) {
        input.read_f32(row * columns, &mut entries);
        let mean = |of: &dyn Fn(f64) -> f64| {
            entries.iter().map(|&x| of(f64::from(x))).sum::<f64>() / columns as f64
        };
        let middle = mean(&|x| x);
        let deviation = (mean(&|x| (x - middle).powi(2)) + f64::from(eps)).sqrt();
        let entries = &entries[column..column + part.len()];
        out[part]
            .iter_mut()
            .zip(entries)
            .for_each(|(x, &y)| *x = ((f64::from(y) - middle) / deviation) as f32);
    }
}

pub(super) fn scale_columns(
    input: &Expr,
    magnitude: &Expr,
    (columns, factors): (usize, &OnceLock<Vec<f32>>),
    from: usize,
    out: &mut [f32],
) {
    let factors = factors.get_or_init(|| column_factors(input, magnitude, columns));
    input.read_f32(from, out);
    for (_, column, part) in rows_of(from, out.len(), columns) {
        let factors = factors[column..].iter();
        out[part]
            .iter_mut()
            .zip(factors)
            .for_each(|(x, factor)| *x *= factor);
    }
}

/// What brings each column of `input` to its norm, `input` being read once.
fn column_factors(input: &Expr, magnitude: &Expr, columns: usize) -> Vec<f32> {
    let mut squares = vec![0f64; columns];
    let mut rows = vec![0.0; (ROWS_TILE / columns).max(1) * columns];
    for from in (0..input.elements()).step_by(rows.len()) {
        let rows =
            &mut rows[..(input.elements() - from).min((ROWS_TILE / columns).max(1) * columns)];
        input.read_f32(from, rows);
        for row in rows.chunks(columns) {
            squares
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
        }
    }
    let mut factors = vec![0.0; columns];
    magnitude.read_f32(0, &mut factors);
    factors
        .iter_mut()
        .zip(squares)
        .for_each(|(factor, square)| *factor /= square.sqrt() as f32);
    factors
}
