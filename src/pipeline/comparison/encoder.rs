//! Encoders: classes, words and places as distributions, what is no choice as vectors.

use std::collections::BTreeMap;

use dlc_eval::Array;
use dlc_ir::{Scores, Task};
use dlc_methods::difference::Difference;
use dlc_methods::divergence::{Divergence, Position};
use dlc_passes::Progress;
use dlc_runtime::{
    EncoderSession, Rows, RuntimeError, SharedWeights, TokenizedText, sentence_vector,
};

use super::{Comparison, Outcome, Reading, Runner, Side, step, tokens};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feeds::Feeds;

pub(super) fn compare(
    reference: &Side<'_>,
    other: &Side<'_>,
    reading: &Reading,
    progress: &dyn Progress,
) -> Result<Comparison, PipelineError> {
    let texts = tokens::texts(reference, other, reading)?;
    progress.phase("loading the models");
    let (mut a, mut b) = (Reader::open(reference)?, Reader::open(other)?);
    progress.phase("reading texts");
    let mut outcome = if chooses(reference) {
        Outcome::Distributions(Divergence::default())
    } else {
        Outcome::Vectors(Difference::default())
    };
    for (done, text) in texts.iter().enumerate() {
        step(progress, "texts", done, texts.len())?;
        let rows = [a.read(text)?, b.read(text)?];
        add(&mut outcome, reference, &rows).map_err(RuntimeError::from)?;
    }
    Ok(Comparison {
        inputs: texts.iter().map(|text| text.ids.len()).sum(),
        outcome,
    })
}

/// Whether answers are distributions.
fn chooses(side: &Side<'_>) -> bool {
    match side.module.model.task {
        Task::FillMask | Task::QuestionAnswering => true,
        Task::TextClassification | Task::TokenClassification => {
            side.module.model.scores == Scores::OneClass
        }
        Task::TextGeneration | Task::FeatureExtraction | Task::ImageGeneration => false,
    }
}

/// Adds what both say of one text.
fn add(
    outcome: &mut Outcome,
    side: &Side<'_>,
    [a, b]: &[Rows; 2],
) -> Result<(), dlc_methods::MethodError> {
    let model = &side.module.model;
    match outcome {
        Outcome::Distributions(divergence) => {
            for (at, (x, y)) in choices(model.task, a)
                .iter()
                .zip(&choices(model.task, b))
                .enumerate()
            {
                divergence.extend([Position::of(x, y, None, at)?]);
            }
            Ok(())
        }
        Outcome::Vectors(difference) | Outcome::Predictions(difference)
            if model.task == Task::FeatureExtraction =>
        {
            let sentence = model.sentence.clone().unwrap_or_default();
            let [a, b] = [a, b].map(|rows| sentence_vector(rows, &sentence, 0));
            difference.add(&a, &b)
        }
        Outcome::Vectors(difference) | Outcome::Predictions(difference) => a
            .each()
            .zip(b.each())
            .try_for_each(|(x, y)| difference.add(x, y)),
    }
}

/// The logits of each choice: of an answer, those of all places to begin at and to end at.
fn choices(task: Task, rows: &Rows) -> Vec<Vec<f32>> {
    if task == Task::QuestionAnswering {
        let column = |at: usize| rows.each().map(|row| row[at]).collect();
        return (0..rows.width).map(column).collect();
    }
    rows.each().map(<[f32]>::to_vec).collect()
}

/// An encoder.
enum Reader<'m> {
    Session(Box<EncoderSession>),
    Evaluator(&'m Side<'m>),
}

impl<'m> Reader<'m> {
    fn open(side: &'m Side<'m>) -> Result<Self, PipelineError> {
        let Some(Runner {
            bundle,
            backend,
            session,
        }) = side.bundle
        else {
            return Ok(Self::Evaluator(side));
        };
        let weights = SharedWeights::open(bundle, backend)?;
        let name = &side.graph.name;
        let session = EncoderSession::open(backend, bundle, name, weights.as_ref(), session)?;
        Ok(Self::Session(Box::new(session)))
    }

    fn read(&mut self, text: &TokenizedText) -> Result<Rows, PipelineError> {
        match self {
            Self::Session(session) => {
                let rows = session.run(std::slice::from_ref(text))?;
                Ok(rows.into_iter().next().unwrap_or(NO_ROWS))
            }
            Self::Evaluator(side) => {
                let ids: Vec<i64> = text.ids.iter().map(|t| i64::from(*t)).collect();
                let mut feeds = Feeds::prefix(side.graph, 1, ids.len(), &ids);
                feeds.segments = text.types.iter().map(|t| i64::from(*t)).collect();
                let arrays = feeds.arrays(side.graph)?;
                let made = dlc_eval::run(side.graph, &side.module.weights, &arrays)?;
                Ok(rows(side.module.model.task, made))
            }
        }
    }
}

const NO_ROWS: Rows = Rows {
    width: 1,
    data: vec![],
};

/// The outputs that answer, entry by entry.
fn rows(task: Task, mut made: BTreeMap<String, Array>) -> Rows {
    let outputs = task.outputs().iter().filter_map(|name| made.remove(*name));
    let outputs: Vec<Array> = outputs.collect();
    if let [only] = &outputs[..] {
        return Rows {
            width: only.shape().last().copied().unwrap_or(1),
            data: only.as_f32().unwrap_or_default().to_vec(),
        };
    }
    let numbers: Vec<&[f32]> = outputs.iter().filter_map(Array::as_f32).collect();
    let length = numbers.iter().map(|list| list.len()).min().unwrap_or(0);
    Rows {
        width: numbers.len().max(1),
        data: (0..length)
            .flat_map(|i| numbers.iter().map(move |list| list[i]))
            .collect(),
    }
}
