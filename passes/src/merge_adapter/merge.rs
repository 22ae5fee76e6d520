//! The change of one weight, and the merged expression that it makes.

use std::sync::Arc;

use dlc_ir::{Expr, WeightId};

/// The change of one weight: other values, something added, or both in this order.
#[derive(Debug)]
pub(super) struct Merge {
    pub weight: WeightId,
    /// What takes the weight's place.
    pub replacement: Option<Arc<Expr>>,
    /// How much of the replacement is taken, the rest being the weight as it was.
    pub strength: f32,
    /// Rows that are replaced, increasing, by those of a matrix of so many columns.
    pub rows_replaced: Option<(Arc<[u32]>, Arc<Expr>, usize)>,
    /// What is added to the weight.
    pub delta: Option<Arc<Expr>>,
    /// Dual LoRA: whether relu keeps entries of `delta` at 0.
    pub rests: bool,
    /// DoRA: the norms that the rows of the sum are brought to, and how long rows are.
    pub rows: Option<(Arc<Expr>, usize)>,
}

impl Merge {
    /// No change yet.
    pub fn of(weight: WeightId) -> Self {
        Self {
            weight,
            replacement: None,
            strength: 1.0,
            rows_replaced: None,
            delta: None,
            rests: false,
            rows: None,
        }
    }

    /// Whether the merged weight is just the sum of the weight and `delta`.
    pub fn is_sum(&self) -> bool {
        self.rows.is_none() && self.replacement.is_none() && self.rows_replaced.is_none()
    }

    /// Whether rows are brought to other norms.
    pub fn scales_rows(&self) -> bool {
        self.rows.is_some()
    }

    /// The merged weight.
    pub fn apply(&self, base: Expr) -> Expr {
        let scaled = |e: Arc<Expr>, factor: f32| Arc::new(Expr::Scale(e, factor));
        let mut merged = match &self.replacement {
            None => base,
            Some(new) if (self.strength - 1.0).abs() < f32::EPSILON => (**new).clone(),
            Some(new) => Expr::Add(
                scaled(Arc::new(base), 1.0 - self.strength),
                scaled(Arc::clone(new), self.strength),
            ),
        };
        if let Some((rows, values, columns)) = &self.rows_replaced {
            let (rows, columns) = (Arc::clone(rows), *columns);
            let values = if (self.strength - 1.0).abs() < f32::EPSILON {
                Arc::clone(values)
            } else {
                let old = Arc::new(Expr::Rows {
                    input: Arc::new(merged.clone()),
                    columns,
                    rows: Arc::clone(&rows),
                });
                Arc::new(Expr::Add(
                    scaled(old, 1.0 - self.strength),
                    scaled(Arc::clone(values), self.strength),
                ))
            };
            merged = Expr::ReplaceRows {
                input: Arc::new(merged),
                columns,
                rows,
                values,
            };
        }
        if let Some(delta) = &self.delta {
            merged = Expr::Add(Arc::new(merged), Arc::clone(delta));
        }
        match &self.rows {
            None => merged,
            Some((magnitude, columns)) => Expr::ScaleRows {
                input: Arc::new(merged),
                magnitude: Arc::clone(magnitude),
                columns: *columns,
            },
        }
    }
}
