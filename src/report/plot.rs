//! Bars as an SVG picture.

use std::fmt::Write;

/// Measured and predicted speedups by task, (name, measured, predicted), as a picture of bars over
/// the line of plain decoding.
pub fn speedup_plot(bars: &[(&str, f64, f64)]) -> String {
    const LEFT: f64 = 50.0;
    const TOP: f64 = 50.0;
    const HEIGHT: f64 = 220.0;
    const GROUP: f64 = 100.0;
    let width = LEFT + GROUP * bars.len() as f64 + 20.0;
    let sound = |x: f64| if x.is_finite() { x } else { 0.0 };
    let most = bars
        .iter()
        .flat_map(|bar| [bar.1, bar.2])
        .map(sound)
        .fold(1.0, f64::max)
        .ceil();
    let y = |speedup: f64| TOP + HEIGHT * (1.0 - speedup / most);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} 320\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width:.0}\" height=\"320\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">speedup over plain decoding: measured (dark), predicted (light)</text>\n"
    );
    for (at, (task, measured, predicted)) in bars.iter().enumerate() {
        let x = LEFT + GROUP * at as f64 + 15.0;
        for (offset, value, colour) in [
            (0.0, sound(*measured), "#2b6cb0"),
            (36.0, sound(*predicted), "#bcd4ec"),
        ] {
            let (left, top) = (x + offset, y(value));
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"34\" height=\"{:.1}\" fill=\"{colour}\"/>",
                y(0.0) - top
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.2}</text>",
                left + 17.0,
                top - 4.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x + 35.0,
            y(0.0) + 18.0,
            escaped(task)
        );
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{width:.0}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#c53030\" stroke-dasharray=\"5 4\"/>",
        y(1.0)
    );
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::speedup_plot;

    #[test]
    fn bars_stand_by_task_over_the_line_of_plain_decoding() {
        insta::assert_snapshot!(speedup_plot(&[
            ("code", 1.75, 1.8),
            ("<chat>", 0.98, f64::NAN)
        ]));
    }
}
