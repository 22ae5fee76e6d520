//! `dlc run` with an encoder: classes, fillings of masks, or vectors of the texts given.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dlc_exporters::manifest::ModelRecord;
use dlc_ir::{Pooling, Scores, Task};
use serde_json::{Value, json};

use super::models::EncoderModel;
use super::output::note;
use super::records::Records;
use super::run::Args;
use crate::report::Table;
use crate::runtime::{Bundle, Choice, Rows, RuntimeError, TextTokenizer, TokenizedText, choices, cosine, sentence_vector};

/// Numbers of a vector that are shown.
const SHOWN: usize = 6;
/// Most texts that are compared with each other.
const MOST_COMPARED: usize = 16;

pub(super) fn run(args: &Args, bundle: Bundle, texts: &[String]) -> Result<ExitCode> {
    let mut records = Records::new(args.records);
    if texts.is_empty() {
        let (task, family) = (bundle.manifest().model.task.name(), &bundle.manifest().model.family);
        bail!("the bundle is a {family} for {task}, which continues no text: give it --text TEXT or --texts FILE");
    }
    if let Some(Pooling::Other(pooling)) = &bundle.manifest().model.pooling {
        return Err(RuntimeError::Unsupported {
            what: bundle.folder().display().to_string(),
            reason: format!("the checkpoint makes the vector of a text by {pooling}; dlc knows the mean of the tokens and the first one"),
            fix: "Pool the outputs of model.onnx yourself".into(),
        }
        .into());
    }
    let graph = if args.pruned { "pruned" } else { "target" };
    let mut model = EncoderModel::open(bundle, &args.backend, graph)?;
    let tokenizer =
        model.tokenizer.take().context("the bundle has no tokenizer.json, so it can't read text; compile it again with one beside config.json")?;
    let tokenized = tokenize(args, &tokenizer, &model, texts)?;
    let rows = model.session.run(&tokenized)?;
    let reader = Reader { args, tokenizer: &tokenizer, model: &model.bundle.manifest().model };
    for ((text, tokens), rows) in texts.iter().zip(&tokenized).zip(&rows) {
        let (shown, value) = reader.read(text, tokens, rows)?;
        records.text(&shown)?;
        records.push(value)?;
    }
    if model.bundle.manifest().model.task == Task::FeatureExtraction && (2..=MOST_COMPARED).contains(&texts.len()) {
        records.text(&reader.similarities(&rows))?;
    }
    records.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn tokenize(args: &Args, tokenizer: &TextTokenizer, model: &EncoderModel, texts: &[String]) -> Result<Vec<TokenizedText>> {
    let most = model.session.context_length();
    let mut tokenized = Vec::new();
    for (number, text) in (1..).zip(texts) {
        let mut tokens = tokenizer.analyse(text)?;
        let n = tokens.ids.len();
        if n > most && !args.truncate {
            bail!("text {number} has {n} tokens, and the model takes {most}; shorten it, or let --truncate cut it");
        }
        if n > most {
            note(&format!("text {number} is cut from {n} tokens to {most}"))?;
        }
        tokens.truncate(most);
        tokenized.push(tokens);
    }
    Ok(tokenized)
}

/// Makes sense of what the model says.
struct Reader<'a> {
    args: &'a Args,
    tokenizer: &'a TextTokenizer,
    model: &'a ModelRecord,
}

impl Reader<'_> {
    /// What one text got, for people and for machines.
    fn read(&self, text: &str, tokens: &TokenizedText, rows: &Rows) -> Result<(String, Value)> {
        match self.model.task {
            Task::FillMask => self.fillings(text, tokens, rows),
            Task::TextClassification if self.model.scores == Scores::Numbers => Ok(self.numbers(text, rows)),
            Task::TextClassification => {
                let classes = choices(&rows.data, self.args.top, self.model.scores == Scores::AnyClasses);
                let table = table("class", &classes, |i| self.label(i));
                Ok((format!("{text}\n{table}"), json!({"text": text, "classes": entries("label", &classes, |i| self.label(i))})))
            }
            Task::TokenClassification => Ok(self.tokens(text, tokens, rows)),
            Task::FeatureExtraction | Task::TextGeneration | Task::ImageGeneration => {
                let pooling = self.pooling();
                let vector = sentence_vector(rows.each(), pooling);
                let start: Vec<String> = vector.iter().take(SHOWN).map(|x| format!("{x:.4}")).collect();
                let of = if *pooling == Pooling::Cls { "of the first token" } else { "mean of the tokens" };
                let shown = format!("{text}\n  {} numbers, {of}: {} ...\n", vector.len(), start.join(" "));
                Ok((shown, json!({"text": text, "pooling": pooling, "embedding": vector})))
            }
        }
    }

    fn pooling(&self) -> &Pooling {
        self.model.pooling.as_ref().unwrap_or(&Pooling::Mean)
    }

    /// Scores that are no probabilities, in the order of the labels.
    fn numbers(&self, text: &str, rows: &Rows) -> (String, Value) {
        let mut table = Table::new(&["class", "score"]);
        let mut scores = Vec::new();
        for (index, score) in rows.data.iter().enumerate() {
            table.row([self.label(index), format!("{score:.4}")]);
            scores.push(json!({"label": self.label(index), "index": index, "score": score}));
        }
        (format!("{text}\n{table}"), json!({"text": text, "scores": scores}))
    }

    /// How near the texts are to each other: cosines of their vectors.
    fn similarities(&self, rows: &[Rows]) -> String {
        let vectors: Vec<Vec<f32>> = rows.iter().map(|rows| sentence_vector(rows.each(), self.pooling())).collect();
        let numbers: Vec<String> = (1..=rows.len()).map(|n| n.to_string()).collect();
        let headings: Vec<&str> = ["cosine"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
        let mut table = Table::new(&headings);
        for (number, a) in numbers.iter().zip(&vectors) {
            table.row([number.clone()].into_iter().chain(vectors.iter().map(|b| format!("{:.3}", cosine(a, b)))));
        }
        format!("\n{table}")
    }

    fn label(&self, index: usize) -> String {
        self.model.labels.get(index).cloned().unwrap_or_else(|| format!("LABEL_{index}"))
    }

    fn word(&self, id: usize) -> String {
        self.tokenizer.decode(&[id as u32]).unwrap_or_default()
    }

    fn fillings(&self, text: &str, tokens: &TokenizedText, rows: &Rows) -> Result<(String, Value)> {
        const MASKS: [&str; 2] = ["[MASK]", "<mask>"];
        let Some((mask, id)) = MASKS.iter().find_map(|mask| Some((mask, self.tokenizer.token_id(mask)?))) else {
            bail!("the tokenizer has no mask ({}), so there is nothing to fill", MASKS.join(" or "));
        };
        let at: Vec<usize> = (0..tokens.ids.len()).filter(|&i| tokens.ids[i] == id).collect();
        if at.is_empty() {
            bail!("`{text}` has no {mask}; write it where the model is to find a word");
        }
        let (mut shown, mut masks) = (format!("{text}\n"), Vec::new());
        for position in at {
            let row = rows.each().nth(position).unwrap_or_default();
            let fillings = choices(row, self.args.top, false);
            shown += &table("word", &fillings, |i| self.word(i));
            masks.push(json!({"position": position, "fillings": entries("word", &fillings, |i| self.word(i))}));
        }
        Ok((shown, json!({"text": text, "masks": masks})))
    }

    fn tokens(&self, text: &str, tokens: &TokenizedText, rows: &Rows) -> (String, Value) {
        let mut table = Table::new(&["token", "class", "probability"]);
        let mut values = Vec::new();
        for (i, row) in rows.each().enumerate().filter(|(i, _)| tokens.special.get(*i) == Some(&false)) {
            let Some(best) = choices(row, 1, false).pop() else { continue };
            let (piece, label) = (&tokens.pieces[i], self.label(best.index));
            table.row([piece.clone(), label.clone(), format!("{:.1}%", 100.0 * best.probability)]);
            values.push(json!({"token": piece, "label": label, "probability": best.probability}));
        }
        (format!("{text}\n{table}"), json!({"text": text, "tokens": values}))
    }
}

fn table(heading: &str, choices: &[Choice], name: impl Fn(usize) -> String) -> String {
    let mut table = Table::new(&[heading, "probability"]);
    for choice in choices {
        table.row([name(choice.index), format!("{:.1}%", 100.0 * choice.probability)]);
    }
    table.to_string()
}

fn entries(key: &str, choices: &[Choice], name: impl Fn(usize) -> String) -> Vec<Value> {
    choices.iter().map(|c| json!({key: name(c.index), "index": c.index, "probability": c.probability})).collect()
}
