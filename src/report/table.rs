//! Columns of text.

use std::fmt;

use dlc_errors::printable::cut;
use unicode_width::UnicodeWidthStr;

/// Characters of a cell that are printed.
const LONGEST: usize = 400;

/// Rows of cells, printed in columns as wide as their widest cell. Columns whose cells all look
/// like numbers are set to the right.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row. Long cells are cut, and each takes one line.
    pub fn row<T: ToString>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(
            cells
                .into_iter()
                .map(|c| cut(&c.to_string(), LONGEST).replace(['\n', '\r', '\t'], " "))
                .collect(),
        );
    }
}

/// A range, for a cell: `1.90-2.02`.
pub fn ranged([least, most]: [f64; 2], digits: usize) -> String {
    format!("{least:.digits$}-{most:.digits$}")
}

/// `12`, `-29.8%`, `9.5e-6` and the dash that stands for no number, but not `0 1 2`.
fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && !cell.contains(' ')
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| {
            self.rows
                .iter()
                .map(move |row| row.get(column).map_or("", String::as_str))
        };
        let widths: Vec<usize> = (0..columns)
            .map(|c| cells(c).map(UnicodeWidthStr::width).max().unwrap_or(0))
            .collect();
        let right: Vec<bool> = (0..columns)
            .map(|c| cells(c).skip(1).all(is_number))
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, &width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                // Formatting pads by characters, of which some are two cells wide.
                let padding = " ".repeat(width - cell.width());
                line += &if right[column] {
                    format!("  {padding}{cell}")
                } else {
                    format!("  {cell}{padding}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_any_length_are_printed_on_one_line_and_cut() {
        let mut table = Table::new(&["name", "number"]);
        table.row([&"x".repeat(1 << 17), "1"]);
        table.row(["two\nlines", "2"]);
        let text = table.to_string();
        assert_eq!(
            text.lines().map(UnicodeWidthStr::width).collect::<Vec<_>>(),
            [LONGEST + 13; 3]
        );
        assert!(
            text.contains("xxx...  ") && text.contains("two lines  "),
            "{text}"
        );
    }

    #[test]
    fn wide_characters_take_two_cells() {
        let mut table = Table::new(&["name", "number"]);
        table.row(["世界", "1"]);
        table.row(["abcd", "2"]);
        assert_eq!(
            table.to_string(),
            "  name  number\n  世界       1\n  abcd       2\n"
        );
    }
}
