//! What the command is doing now: a bar on a terminal, a line now and then elsewhere; and what each
//! phase took.
//!
//! A command that ends within [`PATIENCE`] shows nothing. Nothing is shown while a text is written
//! or a person types, see [`pause`].

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::memory;

/// How long a command may be silent.
const PATIENCE: Duration = Duration::from_millis(500);
/// From one line to the next, where stderr is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a phase runs before what is left of it is estimated.
const ESTIMATE_AFTER: Duration = Duration::from_secs(2);

/// What is said beside the results: errors alone, warnings too, notes and progress too, and what
/// each phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Bar,
    Lines,
    Nowhere,
}

/// What a finished phase took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PhaseCost {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// The most physical memory that the process held meanwhile, mapped files included; unknown
    /// where the system doesn't say so.
    pub peak_memory: Option<u64>,
}

/// A phase under way, and how far its present step is.
#[derive(Debug)]
struct Phase {
    name: String,
    started: Instant,
    step: String,
    step_started: Instant,
    done: u64,
    total: u64,
}

#[derive(Debug)]
struct State {
    level: LogLevel,
    place: Place,
    /// Since when something has been under way without a word.
    silent_since: Option<Instant>,
    shown: bool,
    phase: Option<Phase>,
    costs: Vec<PhaseCost>,
}

static STATE: Mutex<State> = Mutex::new(State {
    level: LogLevel::Info,
    place: Place::Nowhere,
    silent_since: None,
    shown: false,
    phase: None,
    costs: Vec::new(),
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bar() -> &'static ProgressBar {
    static BAR: OnceLock<ProgressBar> = OnceLock::new();
    BAR.get_or_init(|| ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()))
}

/// Begins to watch, for a command that says so much. `wanted` is false where the environment wants
/// no progress.
pub(super) fn start(level: LogLevel, wanted: bool) {
    let place = match io::stderr().is_terminal() {
        _ if !wanted || level < LogLevel::Info => Place::Nowhere,
        true => Place::Bar,
        false => Place::Lines,
    };
    {
        let mut state = state();
        (state.level, state.place) = (level, place);
    }
    if place != Place::Nowhere {
        thread::spawn(|| {
            loop {
                thread::sleep(PATIENCE / 5);
                state().tick();
            }
        });
    }
}

/// Whether what is worth `level` is said.
pub(super) fn says(level: LogLevel) -> bool {
    level <= state().level
}

/// The next phase of the work begins, and the one before ends.
pub(super) fn begin(name: &str) {
    let mut state = state();
    state.end();
    memory::reset_peak();
    let now = Instant::now();
    state.silent_since.get_or_insert(now);
    state.phase = Some(Phase {
        name: name.to_owned(),
        started: now,
        step: String::new(),
        step_started: now,
        done: 0,
        total: 0,
    });
    state.draw();
}

/// `done` of `total` of the phase's present `step` are done.
pub(super) fn step(step: &str, done: u64, total: u64) {
    let mut state = state();
    let now = Instant::now();
    let phase = state.phase.get_or_insert_with(|| Phase {
        name: step.to_owned(),
        started: now,
        step: String::new(),
        step_started: now,
        done,
        total,
    });
    if phase.step != step {
        (phase.step, phase.step_started) = (step.to_owned(), now);
    }
    (phase.done, phase.total) = (done, total);
    state.silent_since.get_or_insert(now);
    state.draw();
}

/// Nothing is under way that a person waits for: the work is done, or what it makes is seen.
pub(super) fn pause() {
    let mut state = state();
    state.end();
    (state.silent_since, state.shown) = (None, false);
    bar().finish_and_clear();
    bar().set_draw_target(ProgressDrawTarget::hidden());
}

/// What the phases so far took.
pub(super) fn costs() -> Vec<PhaseCost> {
    state().costs.clone()
}

/// Runs `print` while no bar is in its way.
pub(super) fn beside_bar<T>(print: impl FnOnce() -> T) -> T {
    bar().suspend(print)
}

impl State {
    fn end(&mut self) {
        let Some(phase) = self.phase.take() else {
            return;
        };
        let cost = PhaseCost {
            name: phase.name,
            seconds: phase.started.elapsed().as_secs_f64(),
            peak_memory: memory::peak(),
        };
        if self.level >= LogLevel::Debug {
            let memory = cost.peak_memory.map_or_else(String::new, |bytes| {
                format!(", {:.0} MB of memory at most", bytes as f64 / 1e6)
            });
            say(&format!("{}: {:.2} s{memory}", cost.name, cost.seconds));
        }
        self.costs.push(cost);
    }

    /// Shows what hasn't been shown for too long.
    fn tick(&mut self) {
        let Some(since) = self.silent_since else {
            return;
        };
        let patience = if self.shown && self.place == Place::Lines {
            INTERVAL
        } else {
            PATIENCE
        };
        if since.elapsed() < patience || self.phase.is_none() {
            return;
        }
        match self.place {
            Place::Lines => {
                let line = self.phase.as_ref().map(Phase::line).unwrap_or_default();
                say(&line);
                self.silent_since = Some(Instant::now());
            }
            Place::Bar if !self.shown => {
                self.shown = true;
                bar().reset();
                self.draw();
                bar().set_draw_target(ProgressDrawTarget::stderr());
                bar().enable_steady_tick(PATIENCE / 5);
            }
            Place::Bar | Place::Nowhere => {}
        }
        self.shown = true;
    }

    fn draw(&self) {
        let Some(phase) = self
            .phase
            .as_ref()
            .filter(|_| self.shown && self.place == Place::Bar)
        else {
            return;
        };
        bar().set_style(style(phase));
        bar().set_length(phase.total);
        bar().set_position(phase.done);
        let text = phase.text();
        if bar().message() != text {
            bar().set_message(text);
        }
    }
}

fn say(line: &str) {
    let _ = beside_bar(|| writeln!(io::stderr(), "{line}"));
}

impl Phase {
    fn text(&self) -> String {
        match self.step.as_str() {
            "" => self.name.clone(),
            step if step == self.name => self.name.clone(),
            step => format!("{}: {step}", self.name),
        }
    }

    /// Seconds that are left of the step, once it is known.
    fn seconds_left(&self) -> Option<f64> {
        let elapsed = self.step_started.elapsed();
        let known = elapsed >= ESTIMATE_AFTER && self.done > 0 && self.total > self.done;
        known.then(|| elapsed.as_secs_f64() * (self.total - self.done) as f64 / self.done as f64)
    }

    fn line(&self) -> String {
        let mut line = self.text();
        if self.total > 1 {
            line += &format!(" {}/{}", self.done, self.total);
        }
        line + &self.seconds_left().map_or_else(String::new, |left| {
            format!(", about {} left", duration(left))
        })
    }
}

/// A bar where there is a count, else a spinner.
fn style(phase: &Phase) -> ProgressStyle {
    let template = if phase.total > 1 {
        "  {msg:40} {bar:28} {pos}/{len}{left}"
    } else {
        "  {spinner} {msg} {elapsed}"
    };
    let left = phase
        .seconds_left()
        .map_or_else(String::new, |left| format!("  {} left", duration(left)));
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key(
        "left",
        move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&left);
        },
    )
}

/// Seconds as people say them: `8 s`, `3 min`, `2 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 99.5 * 60.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(age: Duration, done: u64, total: u64) -> Phase {
        let started = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        Phase {
            name: "fit-prune".into(),
            started,
            step: "scoring layers".into(),
            step_started: started,
            done,
            total,
        }
    }

    #[test]
    fn a_line_says_phase_step_and_how_far_it_is() {
        assert_eq!(
            phase(Duration::ZERO, 3, 12).line(),
            "fit-prune: scoring layers 3/12"
        );
        assert_eq!(
            phase(Duration::ZERO, 0, 1).line(),
            "fit-prune: scoring layers"
        );
    }

    #[test]
    fn what_is_left_is_said_once_it_can_be_told() {
        let minute = Duration::from_mins(1);
        assert_eq!(
            phase(minute, 3, 12).line(),
            "fit-prune: scoring layers 3/12, about 3 min left"
        );
        for silent in [
            phase(Duration::from_millis(1900), 3, 12),
            phase(minute, 0, 12),
            phase(minute, 12, 12),
        ] {
            assert_eq!(silent.seconds_left(), None, "{silent:?}");
        }
    }
}
