//! A matrix whose codes were found by looking at what it is multiplied with.

use std::fmt;

use dlc_ir::{Coded, GroupFormat, Groups};

/// Codes, scales and zero points in memory.
pub(super) struct HeldMatrix {
    method: &'static str,
    format: GroupFormat,
    shape: [usize; 2],
    groups: Groups,
    /// Packed, rows filled up to whole groups.
    codes: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
}

/// Scale and zero point of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GroupFit {
    pub scale: f32,
    pub zero_point: u8,
}

impl GroupFit {
    /// The code nearest to `weight`, of two the even one.
    pub fn code(self, weight: f32, largest: u8) -> u8 {
        let scaled = weight * self.inverse() + f32::from(self.zero_point);
        scaled.round_ties_even().clamp(0.0, f32::from(largest)) as u8
    }

    /// What a code stands for.
    pub fn entry(self, code: u8) -> f32 {
        (f32::from(code) - f32::from(self.zero_point)) * self.scale
    }

    fn inverse(self) -> f32 {
        let inverse = 1.0 / self.scale;
        if inverse.is_finite() { inverse } else { 0.0 }
    }
}

impl HeldMatrix {
    /// A matrix without rows yet.
    pub fn new(method: &'static str, format: GroupFormat, columns: usize) -> Self {
        Self {
            method,
            format,
            shape: [0, columns],
            groups: Groups::Runs(format.group_size),
            codes: Vec::new(),
            scales: Vec::new(),
            zero_points: Vec::new(),
        }
    }

    /// Adds a row: a code for each column, a fit for each group.
    pub fn push(&mut self, codes: &[u8], fits: &[GroupFit]) {
        for (codes, fit) in codes.chunks(self.format.group_size).zip(fits) {
            let mut whole = vec![fit.zero_point; self.format.group_size];
            whole[..codes.len()].copy_from_slice(codes);
            let mut bytes = vec![0; self.format.code_bytes()];
            self.format.pack(&whole, &mut bytes);
            self.codes.extend(bytes);
            self.scales.push(fit.scale);
            self.zero_points.push(fit.zero_point);
        }
        self.shape[0] += 1;
    }

    fn row_groups(&self) -> usize {
        self.format.groups(self.shape[1])
    }
}

impl fmt::Debug for HeldMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldMatrix")
            .field("method", &self.method)
            .field("format", &self.format)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl Coded for HeldMatrix {
    fn name(&self) -> &'static str {
        self.method
    }

    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bits(&self) -> usize {
        self.format.bits
    }

    fn groups(&self) -> &Groups {
        &self.groups
    }

    fn codes(&self, row: usize, column: usize, out: &mut [u8]) {
        let (size, bytes) = (self.format.group_size, self.format.code_bytes());
        let mut group = vec![0; size];
        let mut at = 0;
        while at < out.len() {
            let (index, first) = ((column + at) / size, (column + at) % size);
            let start = (row * self.row_groups() + index) * bytes;
            self.format
                .unpack(&self.codes[start..start + bytes], &mut group);
            let count = (size - first).min(out.len() - at);
            out[at..at + count].copy_from_slice(&group[first..first + count]);
            at += count;
        }
    }

    fn zero_points(&self, row: usize, group: usize, out: &mut [u8]) {
        let start = row * self.row_groups() + group;
        out.copy_from_slice(&self.zero_points[start..start + out.len()]);
    }

    fn scales(&self, row: usize, group: usize, out: &mut [f32]) {
        let start = row * self.row_groups() + group;
        out.copy_from_slice(&self.scales[start..start + out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dlc_ir::{CodedPart, Expr};

    use super::*;

    #[test]
    fn rows_are_read_as_they_were_added() {
        let format = GroupFormat {
            bits: 4,
            group_size: 32,
        };
        let mut matrix = HeldMatrix::new("gptq", format, 40);
        let fits = [(0.5, 8), (-0.25, 3)].map(|(scale, zero_point)| GroupFit { scale, zero_point });
        let rows: Vec<Vec<u8>> = (0..3usize)
            .map(|row| {
                (0..40)
                    .map(|column| ((7 * column + row) % 16) as u8)
                    .collect()
            })
            .collect();
        for codes in &rows {
            matrix.push(codes, &fits);
        }
        let mut codes = vec![0; 30];
        matrix.codes(2, 5, &mut codes);
        assert_eq!(codes, rows[2][5..35]);
        let entries = Expr::Coded {
            matrix: Arc::new(matrix),
            part: CodedPart::Entries,
        };
        let mut read = vec![0.0; 40];
        entries.read_f32(40, &mut read);
        let by_hand: Vec<f32> = (0..40).map(|c| fits[c / 32].entry(rows[1][c])).collect();
        assert_eq!(read, by_hand);
    }
}
