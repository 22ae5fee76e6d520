//! What is counted and timed, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dlc_runtime::methods::speculation::{BatchStats, Stats};

/// Upper ends of the classes of times, in seconds.
const TIMES: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 180.0,
    600.0,
];
/// What names begin with.
const PREFIX: &str = "dlc";

/// A histogram of times.
#[derive(Debug, Default)]
pub(super) struct Times {
    classes: [AtomicU64; TIMES.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Times {
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(class) = TIMES.iter().position(|end| seconds <= *end) {
            self.classes[class].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, model: &str) {
        let mut sum = 0;
        for (class, end) in self.classes.iter().zip(TIMES) {
            sum += class.load(Ordering::Relaxed);
            let _ = writeln!(
                text,
                "{name}_bucket{{model=\"{model}\",le=\"{end}\"}} {sum}"
            );
        }
        let count = self.count.load(Ordering::Relaxed);
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{name}_bucket{{model=\"{model}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(text, "{name}_sum{{model=\"{model}\"}} {seconds}");
        let _ = writeln!(text, "{name}_count{{model=\"{model}\"}} {count}");
    }
}

/// What is counted of a model.
#[derive(Debug, Default)]
pub(super) struct ModelMetrics {
    /// Requests that wait for a slot, and those that have one.
    pub waiting: AtomicU64,
    pub running: AtomicU64,
    pub cached_tokens: AtomicU64,
    counts: Mutex<Counts>,
    pub first_token: Times,
    pub between_tokens: Times,
    pub whole: Times,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    batch: BatchStats,
    texts: u64,
    abandoned: u64,
    failed: u64,
    tokens: usize,
    ties: usize,
    rounds: usize,
    judged: usize,
    accepted: usize,
}

/// A histogram of a model's.
type Part = fn(&ModelMetrics) -> &Times;

/// How a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Abandoned,
    Failed,
}

impl ModelMetrics {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn passes(&self, batch: BatchStats) {
        self.counts().batch = batch;
    }

    pub fn ended(&self, outcome: Outcome, stats: Option<&Stats>) {
        let mut counts = self.counts();
        match outcome {
            Outcome::Done => counts.texts += 1,
            Outcome::Abandoned => counts.abandoned += 1,
            Outcome::Failed => counts.failed += 1,
        }
        if let Some(stats) = stats {
            counts.tokens += stats.tokens;
            counts.ties += stats.ties;
            counts.rounds += stats.rounds;
            counts.judged += stats.tested();
            counts.accepted += stats.accepted();
        }
    }

    /// Names, what they count, and the values: counters end in `_total`, others are gauges.
    fn values(&self) -> Vec<(&'static str, &'static str, u64)> {
        let counts = *self.counts();
        let batch = counts.batch;
        let gauge = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let count = |n: usize| n as u64;
        vec![
            (
                "requests_waiting",
                "Texts that wait for their turn",
                gauge(&self.waiting),
            ),
            ("requests_running", "Texts under way", gauge(&self.running)),
            (
                "cache_tokens",
                "Tokens whose keys and values are held",
                gauge(&self.cached_tokens),
            ),
            ("texts_total", "Texts that came to their end", counts.texts),
            (
                "texts_abandoned_total",
                "Texts whose reader went away",
                counts.abandoned,
            ),
            ("texts_failed_total", "Texts that failed", counts.failed),
            (
                "prompt_tokens_read_total",
                "Tokens of prompts that were read",
                count(batch.read),
            ),
            (
                "prompt_tokens_reused_total",
                "Tokens of prompts that were held already",
                count(batch.reused),
            ),
            (
                "generated_tokens_total",
                "Tokens of texts that ended",
                count(counts.tokens),
            ),
            (
                "ties_total",
                "Tokens of theirs that rounding chose between two of nearly equal logits",
                count(counts.ties),
            ),
            (
                "text_passes_total",
                "Passes of the target that they took part in",
                count(counts.rounds),
            ),
            (
                "guessed_tokens_judged_total",
                "Guessed tokens that were judged",
                count(counts.judged),
            ),
            (
                "guessed_tokens_accepted_total",
                "Guessed tokens that were accepted",
                count(counts.accepted),
            ),
            (
                "batch_passes_total",
                "Passes that wrote a token of each of several texts",
                count(batch.steps),
            ),
            (
                "batch_tokens_total",
                "Tokens that they wrote",
                count(batch.step_tokens),
            ),
            (
                "single_passes_total",
                "Rounds of a single text",
                count(batch.rounds),
            ),
        ]
    }
}

/// Answers by route and status.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Metrics {
    pub fn answered(&self, route: &str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((route.to_owned(), status)).or_default() += 1;
    }

    /// The whole as text.
    pub fn render(&self, models: &[(&str, &ModelMetrics)]) -> String {
        let mut text = String::new();
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(
            text,
            "# HELP {PREFIX}_answers_total Answers by route and status\n# TYPE {PREFIX}_answers_total counter"
        );
        for ((route, status), n) in &*answers {
            let _ = writeln!(
                text,
                "{PREFIX}_answers_total{{route=\"{route}\",status=\"{status}\"}} {n}"
            );
        }
        let escaped = |name: &str| name.replace('\\', "\\\\").replace('"', "\\\"");
        let all: Vec<_> = models
            .iter()
            .map(|(name, metrics)| (escaped(name), metrics.values(), *metrics))
            .collect();
        let names = all.first().map(|(_, values, _)| values.clone());
        for (at, (name, help, _)) in names.unwrap_or_default().into_iter().enumerate() {
            let is_counter = name.ends_with("_total");
            let kind = if is_counter { "counter" } else { "gauge" };
            let _ = writeln!(
                text,
                "# HELP {PREFIX}_{name} {help}\n# TYPE {PREFIX}_{name} {kind}"
            );
            for (model, values, _) in &all {
                let _ = writeln!(
                    text,
                    "{PREFIX}_{name}{{model=\"{model}\"}} {}",
                    values[at].2
                );
            }
        }
        let histograms: [(&str, &str, Part); 3] = [
            (
                "first_token_seconds",
                "From a request to its first token",
                |m| &m.first_token,
            ),
            (
                "between_tokens_seconds",
                "Between tokens of a text that are written one after the other",
                |m| &m.between_tokens,
            ),
            (
                "text_seconds",
                "From a request to the end of its text",
                |m| &m.whole,
            ),
        ];
        for (name, help, part) in histograms {
            let name = format!("{PREFIX}_{name}");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
            for (model, _, metrics) in &all {
                part(metrics).write(&mut text, &name, model);
            }
        }
        text
    }
}
