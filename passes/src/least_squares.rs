//! Least squares with a ridge, in double precision: the map from rows to rows that is nearest, and
//! none larger than what it explains.

use rayon::prelude::*;

/// Rows of equal length, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    pub columns: usize,
    pub data: Vec<f64>,
}

impl Matrix {
    /// No rows yet.
    pub fn new(columns: usize) -> Self {
        Self {
            columns: columns.max(1),
            data: vec![],
        }
    }

    /// A square one of zeros.
    pub fn zeros(size: usize) -> Self {
        Self {
            columns: size.max(1),
            data: vec![0.0; size * size],
        }
    }

    /// Adds another of its shape.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.data.iter_mut().zip(&other.data);
        pairs.for_each(|(x, y)| *x += y);
    }

    pub fn push(&mut self, numbers: &[f32]) {
        self.data.extend(numbers.iter().map(|&x| f64::from(x)));
    }

    pub fn rows(&self) -> usize {
        self.data.len() / self.columns
    }

    fn row(&self, at: usize) -> &[f64] {
        &self.data[at * self.columns..(at + 1) * self.columns]
    }

    pub fn squares(&self) -> f64 {
        self.data.iter().map(|x| x * x).sum()
    }

    fn transposed(&self) -> Self {
        let (rows, columns) = (self.rows(), self.columns);
        Self {
            columns: rows.max(1),
            data: (0..columns)
                .flat_map(|c| (0..rows).map(move |r| self.data[r * columns + c]))
                .collect(),
        }
    }

    /// `self x other'`: every row of `self` with every row of `other`.
    pub fn times_transposed(&self, other: &Self) -> Self {
        let (rows, width) = (self.rows(), other.rows());
        let row = |at: usize| {
            (0..width)
                .map(|other_at| dot(self.row(at), other.row(other_at)))
                .collect::<Vec<_>>()
        };
        Self {
            columns: width.max(1),
            data: (0..rows).into_par_iter().flat_map_iter(row).collect(),
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Sums of inner products over problems that are to have one solution: of terms with each other, and
/// with the goal.
#[derive(Debug, Clone)]
pub(crate) struct NormalEquations {
    gram: Matrix,
    right: Vec<f64>,
}

impl NormalEquations {
    /// Of so many terms, without a problem yet.
    pub fn new(terms: usize) -> Self {
        Self {
            gram: Matrix::zeros(terms),
            right: vec![0.0; terms],
        }
    }

    /// Adds a problem: a row for each term, and one row, the goal.
    pub fn add(&mut self, terms: &Matrix, goal: &Matrix) {
        self.gram.add(&terms.times_transposed(terms));
        let products = terms.times_transposed(goal).data;
        let sums = self.right.iter_mut().zip(products);
        sums.for_each(|(sum, x)| *sum += x);
    }

    /// [`weights_near`] of these sums.
    pub fn weights_near(&self, near: &[f64], ridge: f64) -> Option<Vec<f64>> {
        weights_near(near, self.gram.clone(), &self.right, ridge)
    }
}

/// The weights that minimise the squares of what is left, of inner products: `gram` of the terms with
/// each other, `right` of the terms with the goal. They are held at `near` by a ridge of so many mean
/// squares of the terms. None where rounding leaves no solution.
pub(crate) fn weights_near(
    near: &[f64],
    mut gram: Matrix,
    right: &[f64],
    ridge: f64,
) -> Option<Vec<f64>> {
    let order = near.len();
    let trace: f64 = (0..order).map(|i| gram.row(i)[i]).sum();
    let mut rest: Vec<f64> = (0..order)
        .map(|i| right[i] - dot(gram.row(i), near))
        .collect();
    for i in 0..order {
        gram.data[i * order + i] += ridge * trace / order as f64;
    }
    factorise(&mut gram)?;
    substitute(&gram, &mut rest);
    Some(near.iter().zip(rest).map(|(near, by)| near + by).collect())
}

/// Rows that are to become others by one map.
pub(crate) struct Problem {
    transposed: Matrix,
    /// The system's matrix without its ridge: of inner products of the rows or, where these are
    /// more than their length, of the columns.
    gram: Matrix,
    /// A row for each column of the goals.
    right: Matrix,
    by_rows: bool,
}

impl Problem {
    /// From `inputs [n, in]` to `goals [n, out]`.
    pub fn new(inputs: &Matrix, goals: &Matrix) -> Self {
        let (transposed, goals) = (inputs.transposed(), goals.transposed());
        let by_rows = inputs.rows() <= inputs.columns;
        let (gram, right) = if by_rows {
            (inputs.times_transposed(inputs), goals)
        } else {
            (
                transposed.times_transposed(&transposed),
                goals.times_transposed(&transposed),
            )
        };
        Self {
            transposed,
            gram,
            right,
            by_rows,
        }
    }

    /// The map `[out, in]` that minimises the squares of `inputs map' - goals`, plus its own squares
    /// times `ridge` mean squares of the system's matrix. None where rounding leaves no solution.
    pub fn solve(&self, ridge: f64) -> Option<Matrix> {
        let order = self.gram.rows();
        let mut factor = self.gram.clone();
        let trace: f64 = (0..order).map(|i| factor.data[i * order + i]).sum();
        for i in 0..order {
            factor.data[i * order + i] += ridge * trace / order as f64;
        }
        factorise(&mut factor)?;
        let mut found = self.right.clone();
        found
            .data
            .par_chunks_mut(order.max(1))
            .for_each(|right| substitute(&factor, right));
        Some(if self.by_rows {
            found.times_transposed(&self.transposed)
        } else {
            found
        })
    }
}

/// Cholesky's factor `L` of `L L'`, in the lower triangle of the matrix (Golub and Van Loan, *Matrix
/// Computations*, section 4.2). None for a matrix that isn't positive definite.
fn factorise(matrix: &mut Matrix) -> Option<()> {
    let n = matrix.columns;
    for j in 0..n {
        let (above, below) = matrix.data.split_at_mut((j + 1) * n);
        let pivot_row = &mut above[j * n..];
        let pivot = pivot_row[j] - dot(&pivot_row[..j], &pivot_row[..j]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let pivot = pivot.sqrt();
        pivot_row[j] = pivot;
        let pivot_row = &*pivot_row;
        below.par_chunks_mut(n).for_each(|row| {
            row[j] = (row[j] - dot(&row[..j], &pivot_row[..j])) / pivot;
        });
    }
    Some(())
}

/// Solves `L L' x = right` in place.
fn substitute(factor: &Matrix, right: &mut [f64]) {
    let n = right.len();
    for i in 0..n {
        let row = factor.row(i);
        right[i] = (right[i] - dot(&row[..i], &right[..i])) / row[i];
    }
    for i in (0..n).rev() {
        let x = right[i] / factor.row(i)[i];
        right[i] = x;
        let row = &factor.row(i)[..i];
        right[..i]
            .iter_mut()
            .zip(row)
            .for_each(|(rest, factor)| *rest -= x * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut matrix = Matrix::new(columns);
        matrix.push(&dlc_methods::diffusion::noise(seed, rows * columns));
        matrix
    }

    /// The gradient of what is minimised: `(inputs map' - goals)' inputs + lambda map`.
    fn gradient(inputs: &Matrix, goals: &Matrix, map: &Matrix, lambda: f64) -> f64 {
        let mut missing = inputs.times_transposed(map);
        for (x, y) in missing.data.iter_mut().zip(&goals.data) {
            *x -= y;
        }
        let pulled = missing.transposed().times_transposed(&inputs.transposed());
        let entries = pulled.data.iter().zip(&map.data);
        entries
            .map(|(p, m)| (p + lambda * m).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn solutions_are_where_the_gradient_is_0_for_few_rows_and_for_many() {
        for (rows, columns) in [(5, 9), (9, 5), (6, 6)] {
            let (inputs, goals) = (noise(rows, columns, 1), noise(rows, 3, 2));
            let map = Problem::new(&inputs, &goals).solve(0.1).unwrap();
            assert_eq!((map.rows(), map.columns), (3, columns));
            let lambda = 0.1 * inputs.squares() / rows.min(columns) as f64;
            let steepest = gradient(&inputs, &goals, &map, lambda);
            assert!(steepest < 1e-9, "{rows} x {columns}: {steepest}");
        }
    }

    #[test]
    fn weights_are_those_of_the_goal_or_near_where_they_are_held() {
        let terms = noise(3, 40, 5);
        let wanted = [0.5, -2.0, 1.25];
        let gram = terms.times_transposed(&terms);
        let right: Vec<f64> = (0..3).map(|i| dot(gram.row(i), &wanted)).collect();
        let near = [1.0, 1.0, 1.0];
        for (ridge, goal) in [(0.0, wanted), (1e12, near)] {
            let found = weights_near(&near, gram.clone(), &right, ridge).unwrap();
            for (found, goal) in found.iter().zip(goal) {
                assert!((found - goal).abs() < 1e-9, "{found}, not {goal}");
            }
        }
        let none = Matrix {
            columns: 3,
            data: vec![0.0; 9],
        };
        assert!(weights_near(&near, none, &[0.0; 3], 0.0).is_none());
    }

    #[test]
    fn a_map_that_there_is_is_found() {
        let (inputs, map) = (noise(40, 6, 3), noise(4, 6, 4));
        let goals = inputs.times_transposed(&map);
        let found = Problem::new(&inputs, &goals).solve(1e-12).unwrap();
        let furthest = found.data.iter().zip(&map.data);
        assert!(furthest.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-8);
    }

    #[test]
    fn what_has_no_solution_is_not_made_up() {
        let (nothing, broken) = (noise(3, 4, 1), [f32::NAN; 12]);
        let mut zeros = Matrix::new(4);
        zeros.push(&[0.0; 12]);
        assert!(Problem::new(&zeros, &nothing).solve(0.1).is_none());
        let mut inputs = Matrix::new(4);
        inputs.push(&broken);
        assert!(Problem::new(&inputs, &nothing).solve(0.1).is_none());
    }
}
