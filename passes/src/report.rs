//! Reports: what a pass did, as data. The command prints them, the manifest keeps them.

use dlc_ir::SkipSchedule;
use dlc_ir::diff::GraphDiff;
use serde::{Deserialize, Serialize};

/// What a pass did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PassReport {
    /// Facts in order, name and value.
    pub facts: Vec<(String, String)>,
    /// How the result came about, where that isn't part of it: never stored, so that bundles don't
    /// depend on it.
    #[serde(skip)]
    pub note: Option<&'static str>,
    /// Scores, for passes that score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<ScoreTable>,
    /// Drafts that were measured, for passes that choose one; the best, which became the draft
    /// unless it proposes nothing, first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<DraftCandidate>,
    /// Weights that got other values, for passes that change some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<WeightChange>,
    /// What is computed when, for passes that skip blocks; the manifest keeps it with the sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<SkipSchedule>,
    /// What changed between two graphs, for passes that change or add one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<GraphDiff>,
}

impl PassReport {
    /// Adds a fact.
    #[allow(clippy::needless_pass_by_value, reason = "facts are made on the spot")]
    pub fn fact(&mut self, name: &str, value: impl ToString) {
        self.facts.push((name.to_owned(), value.to_string()));
    }

    /// Whether the pass did something that a user asked for, rather than clean up.
    pub fn is_worth_showing(&self) -> bool {
        self.scores.is_some()
            || self.diff.is_some()
            || self.schedule.is_some()
            || !self.changes.is_empty()
            || !self.candidates.is_empty()
    }

    /// The report as the manifest keeps it: facts and scores; diffs can be made again from the
    /// bundle.
    pub fn to_value(&self) -> serde_json::Value {
        let mut map: serde_json::Map<String, serde_json::Value> = self
            .facts
            .iter()
            .map(|(k, v)| (k.clone(), v.clone().into()))
            .collect();
        if let Some(scores) = &self.scores {
            map.insert(
                "scores".into(),
                serde_json::to_value(scores).unwrap_or_default(),
            );
        }
        if !self.candidates.is_empty() {
            map.insert(
                "candidates".into(),
                serde_json::to_value(&self.candidates).unwrap_or_default(),
            );
        }
        if !self.changes.is_empty() {
            map.insert(
                "changes".into(),
                serde_json::to_value(&self.changes).unwrap_or_default(),
            );
        }
        map.into()
    }
}

/// A draft that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DraftCandidate {
    /// What it is made of.
    pub draft: String,
    /// Tokens that its head scores.
    pub head_tokens: usize,
    /// Bytes of target and draft together, in those of the target.
    pub memory: f64,
    /// Cost of a step, in target steps.
    pub cost: f64,
    /// How far the timings of the step lay apart: the middle half of them, as a share of their
    /// median; none if it wasn't timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// Acceptance that its scores promised.
    pub predicted_acceptance: f64,
    /// Acceptance on the texts that were held back.
    pub acceptance: f64,
    /// The best number of tokens to propose at a time; 0 decodes plainly.
    pub draft_tokens: usize,
    /// Predicted speed over plain decoding, without prompt lookup, at the measured acceptance.
    pub speedup: f64,
}

/// How much a weight changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightChange {
    /// The weight.
    pub weight: String,
    /// Euclidean norm of its change.
    pub norm: f64,
    /// The same as a share of the norm that it had; infinite, in JSON null, if that was 0.
    pub relative: f64,
    /// Dual LoRA: share of the entries that relu keeps from moving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<f64>,
}

/// Scores of layers or blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreTable {
    /// What was scored, in the order of the graph.
    pub units: Vec<String>,
    /// One column for each score; the first one decided.
    pub columns: Vec<ScoreColumn>,
    /// Which units were dropped.
    pub dropped: Vec<bool>,
    /// Mean next-token cross-entropy of the calibration samples, in nats.
    pub loss: f64,
}

impl ScoreTable {
    /// Whether the table has one finite number for each of these units and scores; a stored table
    /// may be anything.
    pub(crate) fn fits<'a>(
        &self,
        units: impl Iterator<Item = &'a str>,
        scores: impl Iterator<Item = &'a str>,
    ) -> bool {
        let full = |column: &ScoreColumn| {
            column.values.len() == self.units.len() && column.values.iter().all(|v| v.is_finite())
        };
        self.loss.is_finite()
            && self.columns.iter().all(full)
            && self.units.iter().map(String::as_str).eq(units)
            && self.columns.iter().map(|c| c.name.as_str()).eq(scores)
    }
}

/// One kind of score for every unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreColumn {
    /// The score's name.
    pub name: String,
    /// Its values, larger for more important units.
    pub values: Vec<f64>,
}
