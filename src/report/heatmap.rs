//! Skip schedules as maps: what is computed when.

use std::fmt::Write;

use dlc_ir::SkipSchedule;

/// Columns up to which steps stand side by side, as one reads them.
const WIDEST: usize = 120;
const COMPUTED: char = '█';
const REUSED: char = '·';
/// Steps or units between two numbers of the scale.
const TICK: usize = 10;

/// One cell for each unit and step, with how often each unit is computed: steps from left to right
/// and units down, or the other way round if that is too wide and the other isn't. A schedule that
/// doesn't fit its units is said to be broken.
pub fn heat_map(schedule: &SkipSchedule) -> String {
    let computed = match schedule.computed() {
        Ok(computed) => computed,
        Err(error) => return format!("  the schedule is broken: {error}\n"),
    };
    let (units, steps) = (schedule.units.len(), computed.len());
    let cells = units * steps;
    let on = computed.iter().flatten().filter(|on| **on).count();
    let share = 100.0 * on as f64 / cells.max(1) as f64;
    let (across, down) = (name_width(schedule) + steps, units);
    let map = if across <= WIDEST || across <= down {
        steps_across(schedule, &computed)
    } else {
        steps_down(schedule, &computed)
    };
    let reuse = schedule.reuse.name();
    format!(
        "{map}\n  {COMPUTED} computed  {REUSED} reused ({reuse}): {on} of {cells} units are computed ({share:.0}%)\n"
    )
}

fn steps_across(schedule: &SkipSchedule, computed: &[Vec<bool>]) -> String {
    let (width, steps) = (name_width(schedule), computed.len());
    let mut text = format!("  {:<width$}  {}\n", "step", scale(steps));
    for (unit, name) in schedule.units.iter().enumerate() {
        let column = || computed.iter().map(move |row| row.get(unit) == Some(&true));
        let _ = writeln!(
            text,
            "  {name:<width$}  {}  {:>3}/{steps}",
            row(column()),
            column().filter(|on| *on).count()
        );
    }
    text
}

fn steps_down(schedule: &SkipSchedule, computed: &[Vec<bool>]) -> String {
    let units = schedule.units.len();
    let mut text = format!(
        "  units: {}\n\n  unit  {}\n",
        schedule.units.join(" "),
        scale(units)
    );
    for (step, cells) in computed.iter().enumerate() {
        let _ = writeln!(
            text,
            "  {step:>4}  {}  {:>3}/{units}",
            row(cells.iter().copied()),
            cells.iter().filter(|on| **on).count()
        );
    }
    text
}

fn row(cells: impl Iterator<Item = bool>) -> String {
    cells.map(|on| if on { COMPUTED } else { REUSED }).collect()
}

/// `0         10        20`: numbers over cells, as far as they fit.
fn scale(cells: usize) -> String {
    let numbers = (0..cells).step_by(TICK).map(|n| format!("{n:<TICK$}"));
    numbers
        .collect::<String>()
        .trim_end()
        .chars()
        .take(cells.max(1))
        .collect()
}

fn name_width(schedule: &SkipSchedule) -> usize {
    schedule
        .units
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0)
        .max(4)
}

#[cfg(test)]
mod tests {
    use dlc_ir::{Granularity, Reuse, SkipSchedule};

    use super::heat_map;

    fn schedule(units: usize, steps: usize) -> SkipSchedule {
        let names = (0..units)
            .map(|unit| {
                format!(
                    "layers.{}.{}",
                    unit / 2,
                    if unit % 2 == 0 { "attn" } else { "mlp" }
                )
            })
            .collect();
        let computed: Vec<Vec<bool>> = (0..steps)
            .map(|step| {
                (0..units)
                    .map(|unit| step == 0 || (step + unit) % (unit + 2) == 0)
                    .collect()
            })
            .collect();
        SkipSchedule::new(Granularity::Branch, Reuse::Linear, names, &computed)
    }

    #[test]
    fn steps_stand_side_by_side() {
        insta::assert_snapshot!(heat_map(&schedule(6, 23)));
    }

    #[test]
    fn many_steps_stand_below_each_other() {
        insta::assert_snapshot!(
            heat_map(&schedule(4, 130))
                .lines()
                .take(6)
                .collect::<Vec<_>>()
                .join("\n")
        );
    }

    #[test]
    fn a_broken_schedule_is_said_to_be_one() {
        let mut broken = schedule(2, 2);
        broken.steps[1] = "#".into();
        assert!(heat_map(&broken).contains("step 1 has 1 cells"));
        broken.steps.clear();
        assert!(heat_map(&broken).contains("0 of 0 units"));
    }
}
