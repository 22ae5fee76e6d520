//! Matrices that are quantised in the files they come from: codes, and a scale and a zero point for
//! each group of columns. What files lay out in their own ways is read as entries, or as the parts
//! that `quantized_linear` takes; no code is changed.

use std::fmt;
use std::sync::Arc;

use super::{Expr, QuantizedPart};
use crate::op::GroupFormat;

/// Columns of a row that are read at a time.
const PIECE: usize = 2048;

/// The columns that share a scale and a zero point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// So many after each other; above 0. The last group of a row may be shorter.
    Runs(usize),
    /// The group of each column by itself (act-order).
    Table {
        /// The group of each column.
        of: Arc<[u32]>,
        /// How many groups there are: more than any of the numbers.
        count: usize,
    },
}

impl Groups {
    /// The group of a column.
    pub fn of(&self, column: usize) -> usize {
        match self {
            Self::Runs(size) => column / size,
            Self::Table { of, .. } => of.get(column).map_or(0, |group| *group as usize),
        }
    }

    /// The groups of a row of `columns`.
    pub fn count(&self, columns: usize) -> usize {
        match self {
            Self::Runs(size) => columns.div_ceil(*size),
            Self::Table { count, .. } => *count,
        }
    }
}

/// A matrix of codes of at most 8 bits as a file holds it: an entry is `(code - zero_point) * scale`
/// of its group. Rows, columns and groups that are asked for are there.
pub trait Coded: fmt::Debug + Send + Sync {
    /// What people call the format.
    fn name(&self) -> &'static str;

    /// Rows and columns; none is 0.
    fn shape(&self) -> [usize; 2];

    /// Bits of a code: 1 to 8. Zero points have no more.
    fn bits(&self) -> usize;

    /// Which columns share a scale.
    fn groups(&self) -> &Groups;

    /// The codes of a row from `column` on.
    fn codes(&self, row: usize, column: usize, out: &mut [u8]);

    /// The zero points of a row from `group` on.
    fn zero_points(&self, row: usize, group: usize, out: &mut [u8]);

    /// The scales of a row from `group` on.
    fn scales(&self, row: usize, group: usize, out: &mut [f32]);
}

impl dyn Coded {
    /// The layout in which `quantized_linear` has these very codes: fewer bits in codes of 4, long
    /// groups in several short ones of equal scale. None for groups that aren't runs or have no
    /// such part.
    pub fn group_format(&self) -> Option<GroupFormat> {
        /// Longer groups than this, not all runtimes take.
        const LONGEST: usize = 128;
        let Groups::Runs(size) = *self.groups() else {
            return None;
        };
        let bits = match self.bits() {
            ..=4 => 4,
            5..=8 => 8,
            _ => return None,
        };
        // A single group of a row may end anywhere.
        let columns = self.shape()[1];
        let size = if size >= columns {
            columns.next_power_of_two().max(16)
        } else {
            size
        };
        let group_size = LONGEST.min(1 << size.trailing_zeros());
        let format = GroupFormat { bits, group_size };
        format.is_known().then_some(format)
    }

    /// Whether every zero point is the default one of `format`.
    pub fn is_symmetric(&self, format: GroupFormat) -> bool {
        let [rows, columns] = self.shape();
        let mut zero_points = vec![0; self.groups().count(columns)];
        (0..rows).all(|row| {
            self.zero_points(row, 0, &mut zero_points);
            zero_points
                .iter()
                .all(|zero| *zero == format.default_zero_point())
        })
    }

    /// Elements of a row: entries, or those of a part in `format`.
    pub(super) fn row_elements(&self, part: CodedPart) -> usize {
        let columns = self.shape()[1];
        match part {
            CodedPart::Entries => columns,
            CodedPart::Part(format, part) => format.row_elements(part, columns),
        }
    }

    /// Elements `from ..`; `out` stays as it is where the range passes the end.
    pub(super) fn read(&self, part: CodedPart, from: usize, out: &mut [f32]) {
        let (rows, width) = (self.shape()[0], self.row_elements(part));
        let mut at = 0;
        while at < out.len() && (from + at) / width < rows {
            let (row, first) = ((from + at) / width, (from + at) % width);
            let end = out.len().min(at + (width - first).min(PIECE));
            let piece = &mut out[at..end];
            match part {
                CodedPart::Entries => self.entries(row, first, piece),
                CodedPart::Part(format, QuantizedPart::Codes) => {
                    self.packed_codes(format, row, first, piece);
                }
                CodedPart::Part(format, QuantizedPart::Scales) => {
                    self.scales_in(format, row, first, piece);
                }
                CodedPart::Part(format, QuantizedPart::ZeroPoints) => {
                    self.packed_zero_points(format, row, first, piece);
                }
            }
            at = end;
        }
    }

    fn entries(&self, row: usize, column: usize, out: &mut [f32]) {
        let groups = self.groups();
        let range = match groups {
            Groups::Runs(size) => column / size..(column + out.len() - 1) / size + 1,
            Groups::Table { count, .. } => 0..*count,
        };
        let mut scales = vec![0.0; range.len()];
        let mut zero_points = vec![0; range.len()];
        let mut codes = vec![0; out.len()];
        self.scales(row, range.start, &mut scales);
        self.zero_points(row, range.start, &mut zero_points);
        self.codes(row, column, &mut codes);
        let entry = |code: u8, group: usize| {
            (f32::from(code) - f32::from(zero_points[group])) * scales[group]
        };
        match groups {
            Groups::Runs(size) => {
                let mut at = 0;
                for (group, end) in range.clone().map(|group| (group + 1) * size).enumerate() {
                    let end = out.len().min(end - column);
                    for (x, code) in out[at..end].iter_mut().zip(&codes[at..end]) {
                        *x = entry(*code, group);
                    }
                    at = end;
                }
            }
            Groups::Table { .. } => {
                for (column, (x, code)) in (column..).zip(out.iter_mut().zip(codes)) {
                    *x = entry(code, groups.of(column));
                }
            }
        }
    }

    /// Bytes of codes; a code past the end of the row is the zero point of its group.
    fn packed_codes(&self, format: GroupFormat, row: usize, byte: usize, out: &mut [f32]) {
        let (columns, per) = (self.shape()[1], format.codes_in_byte());
        let column = byte * per;
        let mut codes = vec![0; out.len() * per];
        let held = codes.len().min(columns.saturating_sub(column));
        self.codes(row, column, &mut codes[..held]);
        if held < codes.len() {
            let mut last = [0];
            self.zero_points(row, self.groups().of(columns - 1), &mut last);
            codes[held..].fill(last[0]);
        }
        pack(format, &codes, out);
    }

    fn scales_in(&self, format: GroupFormat, row: usize, group: usize, out: &mut [f32]) {
        for (group, scale) in (group..).zip(out) {
            let group = self.groups().of(group * format.group_size);
            self.scales(row, group, std::slice::from_mut(scale));
        }
    }

    fn packed_zero_points(&self, format: GroupFormat, row: usize, byte: usize, out: &mut [f32]) {
        let (columns, per) = (self.shape()[1], format.codes_in_byte());
        let mut zero_points = vec![0; out.len() * per];
        for (group, zero_point) in (byte * per..).zip(&mut zero_points) {
            let column = group * format.group_size;
            if column < columns {
                let group = self.groups().of(column);
                self.zero_points(row, group, std::slice::from_mut(zero_point));
            }
        }
        pack(format, &zero_points, out);
    }
}

/// Packed codes as elements.
fn pack(format: GroupFormat, codes: &[u8], out: &mut [f32]) {
    let mut bytes = vec![0; out.len()];
    format.pack(codes, &mut bytes);
    out.iter_mut()
        .zip(bytes)
        .for_each(|(element, byte)| *element = f32::from(byte));
}

/// What is read of a [`Coded`] matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodedPart {
    /// Its entries.
    Entries,
    /// A part in its `group_format`.
    Part(GroupFormat, QuantizedPart),
}

impl Expr {
    /// What people call the packed format that elements come from, if any does.
    pub fn packed_as(&self) -> Option<&'static str> {
        match self {
            Self::Coded { matrix, .. } => Some(matrix.name()),
            Self::Packed { packing, .. } => Some(packing.name),
            Self::Mapped { .. } => None,
            Self::Join(parts) => parts.iter().find_map(|part| part.packed_as()),
            Self::Add(a, b)
            | Self::Mul(a, b)
            | Self::MatMul {
                left: a, right: b, ..
            }
            | Self::ReplaceRows {
                input: a,
                values: b,
                ..
            } => a.packed_as().or_else(|| b.packed_as()),
            Self::Cast { input, .. }
            | Self::Scale(input, _)
            | Self::Offset(input, _)
            | Self::Slice { input, .. }
            | Self::Repeat { input, .. }
            | Self::Transpose { input, .. }
            | Self::Relu(input)
            | Self::Sign(input)
            | Self::ScaleRows { input, .. }
            | Self::NormalizeRows { input, .. }
            | Self::ScaleColumns { input, .. }
            | Self::Rows { input, .. }
            | Self::Quantize { input, .. } => input.packed_as(),
        }
    }
}
