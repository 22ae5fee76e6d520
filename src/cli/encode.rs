//! `dlc run` with an encoder: classes, fillings of masks, or vectors of the texts given.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dlc_ir::Task;
use serde_json::{Value, json};

use super::models::EncoderModel;
use super::output::{Output, note};
use super::prompts;
use super::run::Args;
use crate::report::Table;
use crate::runtime::{Bundle, Choice, Rows, TextTokenizer, TokenizedText, choices, cosine, sentence_vector};

/// Numbers of a vector that are shown.
const SHOWN: usize = 6;

pub(super) fn run(args: &Args, bundle: Bundle) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let texts = match &args.texts {
        Some(file) => prompts::read(file)?,
        None => args.text.clone(),
    };
    if texts.is_empty() {
        let (task, family) = (bundle.manifest().model.task.name(), &bundle.manifest().model.family);
        bail!("the bundle is a {family} for {task}: give it --text TEXT or --texts FILE");
    }
    let graph = if args.pruned { "pruned" } else { "target" };
    let mut model = EncoderModel::open(bundle, &args.backend, graph)?;
    let tokenizer =
        model.tokenizer.take().context("the bundle has no tokenizer.json, so it can't read text; compile it again with one beside config.json")?;
    let tokenized = tokenize(args, &tokenizer, &model, &texts)?;
    let rows = model.session.run(&tokenized)?;
    let reader = Reader { args, tokenizer: &tokenizer, labels: &model.bundle.manifest().model.labels, several: several_classes(&model.bundle) };
    let mut results = Vec::new();
    for ((text, tokens), rows) in texts.iter().zip(&tokenized).zip(&rows) {
        let (shown, value) = reader.read(model.bundle.manifest().model.task, text, tokens, rows)?;
        output.result(&shown)?;
        results.push(value);
    }
    if model.bundle.manifest().model.task == Task::FeatureExtraction && texts.len() > 1 {
        output.result(&similarities(&rows))?;
    }
    output.json(&results)?;
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

/// Whether several classes may be true at once, as the model's configuration says.
fn several_classes(bundle: &Bundle) -> bool {
    let config = bundle.side_file("config.json").and_then(|path| std::fs::read(path).ok());
    let config: Option<Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.is_some_and(|c| c["problem_type"] == "multi_label_classification")
}

/// Makes sense of what the model says.
struct Reader<'a> {
    args: &'a Args,
    tokenizer: &'a TextTokenizer,
    labels: &'a [String],
    several: bool,
}

impl Reader<'_> {
    /// What one text got, for people and for machines.
    fn read(&self, task: Task, text: &str, tokens: &TokenizedText, rows: &Rows) -> Result<(String, Value)> {
        match task {
            Task::FillMask => self.fillings(text, tokens, rows),
            Task::TextClassification => {
                let classes = choices(&rows.data, self.args.top, self.several);
                let table = table("class", &classes, |i| self.label(i));
                Ok((format!("{text}\n{table}"), json!({"text": text, "classes": entries("label", &classes, |i| self.label(i))})))
            }
            Task::TokenClassification => Ok(self.tokens(text, tokens, rows)),
            Task::FeatureExtraction | Task::TextGeneration | Task::ImageGeneration => {
                let vector = sentence_vector(rows.each());
                let start: Vec<String> = vector.iter().take(SHOWN).map(|x| format!("{x:.4}")).collect();
                let shown = format!("{text}\n  {} numbers: {} ...\n", vector.len(), start.join(" "));
                Ok((shown, json!({"text": text, "embedding": vector})))
            }
        }
    }

    fn label(&self, index: usize) -> String {
        self.labels.get(index).cloned().unwrap_or_else(|| format!("LABEL_{index}"))
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
            let Some(best) = choices(row, 1, self.several).pop() else { continue };
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

/// How near the texts are to each other: cosines of their vectors.
fn similarities(rows: &[Rows]) -> String {
    let vectors: Vec<Vec<f32>> = rows.iter().map(|rows| sentence_vector(rows.each())).collect();
    let numbers: Vec<String> = (1..=rows.len()).map(|n| n.to_string()).collect();
    let headings: Vec<&str> = ["cosine"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let mut table = Table::new(&headings);
    for (number, a) in numbers.iter().zip(&vectors) {
        table.row([number.clone()].into_iter().chain(vectors.iter().map(|b| format!("{:.3}", cosine(a, b)))));
    }
    format!("\n{table}")
}
