//! Several weights as one tensor of the weight file.

use dlc_bundle::StackRecord;
use dlc_ir::{DType, IrError, WeightId, WeightTable};

/// Weights of one shape as one tensor: runs of weights one after the other, in each of which the
/// rows of its weights take turns. Rows are along the first axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    pub name: String,
    pub dtype: DType,
    /// How graphs see it; holds as many elements as the weights.
    pub shape: Vec<usize>,
    /// Each of equally many weights.
    pub runs: Vec<Vec<WeightId>>,
    /// The shape of each weight.
    pub each: Vec<usize>,
}

impl Stack {
    /// What the manifest says of it.
    pub fn record(&self, weights: &WeightTable) -> StackRecord {
        let name = |id: &WeightId| weights[*id].name.clone();
        StackRecord {
            weights: self.runs.iter().flatten().map(name).collect(),
            shape: self.each.clone(),
            turns: self.turns(),
        }
    }

    /// How many weights a run has.
    fn turns(&self) -> usize {
        self.runs.first().map_or(1, Vec::len)
    }

    /// Little-endian bytes of the elements from `from` on, as many as fit into `out`.
    pub fn write_bytes(
        &self,
        weights: &WeightTable,
        mut from: usize,
        mut out: &mut [u8],
    ) -> Result<(), IrError> {
        let (size, turns) = (self.dtype.size(), self.turns());
        let elements: usize = self.each.iter().product();
        // What stands together: a row, or a weight that is a run by itself.
        let pieces = if turns == 1 {
            1
        } else {
            self.each.first().copied().unwrap_or(1)
        };
        let (piece, pieces_of_run) = (elements / pieces, pieces * turns);
        while !out.is_empty() {
            let (at, start) = (from / piece, from % piece);
            let (run, at) = (at / pieces_of_run, at % pieces_of_run);
            let (turn, part) = (at % turns, at / turns);
            let bytes = ((piece - start) * size).min(out.len());
            let (now, rest) = out.split_at_mut(bytes);
            weights[self.runs[run][turn]].write_bytes(part * piece + start, now)?;
            from += bytes / size;
            out = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dlc_ir::Expr;

    use super::*;

    fn table() -> (WeightTable, Vec<WeightId>) {
        let mut weights = WeightTable::default();
        let mut add = |n: u8| {
            let numbers: Vec<u8> = (0..6).map(|i| 10 * n + i).collect();
            let name = format!("w{n}");
            let data = Expr::constant(numbers, DType::U8);
            weights.add(&name, &[3, 2], data).expect("fits")
        };
        let ids = (0..4).map(&mut add).collect();
        (weights, ids)
    }

    /// All of it, and read from every element on in parts of every length.
    fn bytes(weights: &WeightTable, runs: Vec<Vec<WeightId>>) -> Vec<u8> {
        let stack = Stack {
            name: "all".into(),
            dtype: DType::U8,
            shape: vec![24],
            runs,
            each: vec![3, 2],
        };
        let mut whole = vec![0; 24];
        stack.write_bytes(weights, 0, &mut whole).expect("is there");
        for from in 0..24 {
            for len in 1..=24 - from {
                let mut part = vec![0; len];
                stack
                    .write_bytes(weights, from, &mut part)
                    .expect("is there");
                assert_eq!(part, whole[from..from + len]);
            }
        }
        whole
    }

    #[test]
    fn runs_follow_each_other_and_rows_of_a_run_take_turns() {
        let (weights, ids) = table();
        let alone = ids.iter().map(|id| vec![*id]).collect();
        assert_eq!(
            bytes(&weights, alone),
            [
                0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33,
                34, 35
            ]
        );
        let pairs = ids.chunks(2).map(<[WeightId]>::to_vec).collect();
        assert_eq!(
            bytes(&weights, pairs),
            [
                0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15, 20, 21, 30, 31, 22, 23, 32, 33, 24, 25,
                34, 35
            ]
        );
        assert_eq!(
            bytes(&weights, vec![ids]),
            [
                0, 1, 10, 11, 20, 21, 30, 31, 2, 3, 12, 13, 22, 23, 32, 33, 4, 5, 14, 15, 24, 25,
                34, 35
            ]
        );
    }
}
