//! Scores as bars.

use std::fmt::Write;

use dlc_passes::ScoreTable;

/// Cells of the longest bar.
const WIDTH: f64 = 32.0;

/// One line for each unit: whether it was dropped, a bar for the deciding score on a logarithmic
/// scale (scores span orders of magnitude), and the numbers.
pub fn score_chart(scores: &ScoreTable) -> String {
    let Some(first) = scores.columns.first() else {
        return String::new();
    };
    let positive = || first.values.iter().copied().filter(|v| *v > 0.0);
    let (low, high) = (
        positive().fold(f64::INFINITY, f64::min),
        positive().fold(0.0, f64::max),
    );
    let bar = |value: f64| {
        let share = if value <= 0.0 || high <= low {
            1.0
        } else {
            (value / low).ln() / (high / low).ln()
        };
        "█".repeat((1.0 + share * (WIDTH - 1.0)).round() as usize)
    };
    let name_width = scores
        .units
        .iter()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .max(5);
    let mut text = format!("  {:<name_width$}       {:<32}", "", "log scale");
    for column in &scores.columns {
        let _ = write!(text, "  {:>15}", column.name);
    }
    text = text.trim_end().to_owned() + "\n";
    for (i, unit) in scores.units.iter().enumerate() {
        let mark = if scores.dropped.get(i) == Some(&true) {
            "drop"
        } else {
            "    "
        };
        let _ = write!(
            text,
            "  {unit:<name_width$} {mark}  {:<32}",
            bar(first.values[i])
        );
        for column in &scores.columns {
            let _ = write!(text, "  {:>15.4e}", column.values[i]);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use dlc_passes::{ScoreColumn, ScoreTable};

    use super::score_chart;

    #[test]
    fn bars_grow_with_the_logarithm_of_the_score() {
        let table = ScoreTable {
            units: vec!["layers.0".into(), "layers.1".into(), "layers.10".into()],
            columns: vec![
                ScoreColumn {
                    name: "fit".into(),
                    values: vec![1e-2, 1.0, 1e-4],
                },
                ScoreColumn {
                    name: "kl".into(),
                    values: vec![0.5, 0.25, 0.0],
                },
            ],
            dropped: vec![false, false, true],
            loss: 3.0,
        };
        insta::assert_snapshot!(score_chart(&table));
    }
}
