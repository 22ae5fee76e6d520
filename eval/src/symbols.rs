//! What the symbols of a graph's shapes stand for in one evaluation.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::{Dim, Shape, ValueType};

use crate::array::Array;

/// The numbers after `batch`, `seq`, `past`, and after sums whose parts aren't known.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    single: BTreeMap<Arc<str>, usize>,
    sums: BTreeMap<Dim, usize>,
}

/// An axis that doesn't fit: which array it belongs to, and what is wrong.
pub(crate) type Misfit = (usize, String);

impl Symbols {
    /// Finds the one number for each symbol that makes every array fit its type.
    pub(crate) fn solve(arrays: &[(&ValueType, &Array)]) -> Result<Self, Misfit> {
        let mut axes = Vec::new();
        for (at, (ty, array)) in arrays.iter().enumerate() {
            if !array.is(ty.dtype) || array.shape().len() != ty.shape.rank() {
                return Err((
                    at,
                    format!("is {}{:?}, not {ty}", array.kind(), array.shape()),
                ));
            }
            axes.extend(ty.shape.0.iter().zip(array.shape()).enumerate().map(
                |(number, (dim, &size))| Axis {
                    at,
                    number,
                    dim,
                    size,
                },
            ));
        }
        let mut symbols = Self::default();
        loop {
            let before = axes.len();
            let mut open = Vec::new();
            for axis in axes {
                if !symbols.place(&axis)? {
                    open.push(axis);
                }
            }
            if open.len() == before {
                return symbols.place_sums(&open).map(|()| symbols);
            }
            axes = open;
        }
    }

    /// Checks or learns one axis; false if more than one of its symbols is unknown.
    fn place(&mut self, axis: &Axis<'_>) -> Result<bool, Misfit> {
        let unknown: Vec<&Arc<str>> = axis
            .dim
            .symbols()
            .iter()
            .filter(|s| !self.single.contains_key(*s))
            .collect();
        let Some(symbol) = unknown.first() else {
            return self
                .value(axis.dim)
                .filter(|n| *n == axis.size)
                .map(|_| true)
                .ok_or_else(|| axis.misfit(self.value(axis.dim)));
        };
        if unknown.iter().any(|s| s != symbol) {
            return Ok(false);
        }
        let known = axis
            .dim
            .symbols()
            .iter()
            .filter_map(|s| self.single.get(s))
            .try_fold(axis.dim.constant(), |n, s| n.checked_add(*s));
        let rest = known
            .and_then(|known| axis.size.checked_sub(known))
            .filter(|rest| rest % unknown.len() == 0);
        let rest = rest.ok_or_else(|| axis.misfit(None))?;
        self.single.insert(Arc::clone(symbol), rest / unknown.len());
        Ok(true)
    }

    fn place_sums(&mut self, open: &[Axis<'_>]) -> Result<(), Misfit> {
        for axis in open {
            let known = *self.sums.entry(axis.dim.clone()).or_insert(axis.size);
            if known != axis.size {
                return Err(axis.misfit(Some(known)));
            }
        }
        Ok(())
    }

    /// The number that `dim` stands for, if its symbols are known.
    pub(crate) fn value(&self, dim: &Dim) -> Option<usize> {
        let mut numbers = dim.symbols().iter().map(|s| self.single.get(s));
        let sum = numbers.try_fold(dim.constant(), |n, s| n.checked_add(*s?));
        sum.or_else(|| self.sums.get(dim).copied())
    }

    /// The numbers that `shape` stands for.
    pub(crate) fn shape(&self, shape: &Shape) -> Result<Vec<usize>, String> {
        shape
            .0
            .iter()
            .map(|d| {
                self.value(d)
                    .ok_or_else(|| format!("no input says how long `{d}` of {shape} is"))
            })
            .collect()
    }
}

struct Axis<'a> {
    at: usize,
    number: usize,
    dim: &'a Dim,
    size: usize,
}

impl Axis<'_> {
    fn misfit(&self, known: Option<usize>) -> Misfit {
        let Self {
            at,
            number,
            dim,
            size,
        } = self;
        let problem = match known {
            Some(known) if dim.symbols().is_empty() => {
                format!("axis {number} is {size} long, not {known}")
            }
            Some(known) => {
                format!("axis {number} is {size} long, but `{dim}` is {known} by the other inputs")
            }
            None => format!("axis {number} is {size} long, which can't be `{dim}`"),
        };
        (*at, problem)
    }
}
