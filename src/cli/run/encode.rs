//! `dlc run` with an encoder: classes, fillings of masks, or vectors of the texts given.

use std::process::ExitCode;

use dlc_ir::{ModelInfo, Pooling, Scores, Sentence, Task};
use dlc_runtime::{
    Bundle, Choice, Rows, TextLimits, TextTokenizer, TokenizedText, choices, sentence_of,
    sentence_vector, similarity,
};
use serde_json::{Value, json};

use super::Args;
use crate::cli::failure::{Context, Result, bail};
use crate::cli::input::Text;
use crate::cli::models::EncoderModel;
use crate::cli::output::note;
use crate::cli::records::Records;
use crate::report::Table;

/// What is said where a bundle can't read text.
pub(super) const NO_TOKENIZER: &str = "the bundle has no tokenizer.json, so it can't read text; compile it again with one beside config.json";
/// Numbers of a vector that are shown.
const SHOWN: usize = 6;
/// Most texts that are compared with each other.
const MOST_COMPARED: usize = 16;

pub(super) fn run(args: &Args, bundle: Bundle, texts: &[Text]) -> Result<ExitCode> {
    let mut records = Records::new(args.records);
    let sentence = sentence_of(&bundle)?;
    let prompt = prompt(args, &bundle, sentence.as_ref())?;
    let graph = if args.pruned { "pruned" } else { "target" };
    let mut model = EncoderModel::open(bundle, &args.backend, graph)?;
    let mut tokenizer = model.tokenizer.take().context(NO_TOKENIZER)?;
    if sentence.as_ref().is_some_and(|s| s.lower_case) {
        tokenizer.lower_case()?;
    }
    let context = model.session.context_length();
    let limits = TextLimits::new(sentence.as_ref(), context, args.truncate);
    let (tokenized, truncated) = tokenize(limits, &tokenizer, prompt.text(), texts)?;
    let rows = model.session.run(&tokenized)?;
    let prompt_tokens = limits.prompt_tokens(&tokenizer, prompt.text())?;
    let reader = Reader {
        args,
        tokenizer: &tokenizer,
        model: &model.bundle.manifest().model,
        sentence: sentence.unwrap_or_default(),
        prompt,
        prompt_tokens,
    };
    for (((text, tokens), rows), truncated) in
        texts.iter().zip(&tokenized).zip(&rows).zip(truncated)
    {
        let (shown, mut value) = reader
            .read(&text.content, tokens, rows)
            .with_context(|| text.place.clone())?;
        value["truncated"] = truncated.into();
        records.text(&shown)?;
        records.push(value)?;
    }
    if model.bundle.manifest().model.task == Task::FeatureExtraction
        && (2..=MOST_COMPARED).contains(&texts.len())
    {
        records.text(&reader.similarities(&rows))?;
    }
    records.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// What is put before every text.
#[derive(Debug, Default)]
struct Prompt {
    /// Its name and text, if there is one.
    named: Option<(String, String)>,
}

impl Prompt {
    fn text(&self) -> &str {
        self.named.as_ref().map_or("", |(_, text)| text)
    }
}

/// The prompt that is asked for, or that the checkpoint puts before texts by itself; an empty name
/// asks for none.
fn prompt(args: &Args, bundle: &Bundle, sentence: Option<&Sentence>) -> Result<Prompt> {
    let prompts = sentence.map(|s| &s.prompts);
    let named = |name: &str| {
        prompts.and_then(|all| all.get(name)).map(|text| Prompt {
            named: Some((name.to_owned(), text.clone())),
        })
    };
    match &args.prompt_name {
        None => Ok(sentence
            .and_then(|s| named(s.default_prompt.as_deref()?))
            .unwrap_or_default()),
        Some(none) if none.is_empty() => Ok(Prompt::default()),
        Some(name) => named(name).with_context(|| {
            let names: Vec<&str> = prompts
                .into_iter()
                .flatten()
                .map(|(name, _)| name.as_str())
                .collect();
            let there = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            format!(
                "{}: there is no prompt `{name}`; the checkpoint has {there}",
                bundle.folder().display()
            )
        }),
    }
}

/// The tokens of each text with the prompt before it, and whether it was cut.
fn tokenize(
    limits: TextLimits,
    tokenizer: &TextTokenizer,
    prompt: &str,
    texts: &[Text],
) -> Result<(Vec<TokenizedText>, Vec<bool>)> {
    let (mut tokenized, mut truncated) = (Vec::new(), Vec::new());
    for Text { content, place } in texts {
        let (tokens, n) = limits
            .tokenize(tokenizer, &format!("{prompt}{content}"))
            .with_context(|| place.clone())?;
        let most = limits.most;
        if n == 0 {
            bail!("{place} has no token, so there is nothing to read");
        }
        if limits.refuses(n) {
            bail!(
                "{place} has {n} tokens, and the model takes {most}; shorten it, or let --truncate cut it"
            );
        }
        if n > most {
            note(&format!("{place} is cut from {n} tokens to {most}"))?;
        }
        tokenized.push(tokens);
        truncated.push(n > most);
    }
    Ok((tokenized, truncated))
}

/// Makes sense of what the model says.
struct Reader<'a> {
    args: &'a Args,
    tokenizer: &'a TextTokenizer,
    model: &'a ModelInfo,
    sentence: Sentence,
    prompt: Prompt,
    /// Tokens of the prompt at the start of each text.
    prompt_tokens: usize,
}

impl Reader<'_> {
    /// What one text got, for people and for machines.
    fn read(&self, text: &str, tokens: &TokenizedText, rows: &Rows) -> Result<(String, Value)> {
        match self.model.task {
            Task::FillMask => self.fillings(text, tokens, rows),
            Task::TextClassification if self.model.scores == Scores::Numbers => {
                Ok(self.numbers(text, rows))
            }
            Task::TextClassification => {
                let classes = choices(
                    &rows.data,
                    self.args.top,
                    self.model.scores == Scores::AnyClasses,
                );
                let table = table("class", &classes, |i| self.label(i));
                Ok((
                    format!("{text}\n{table}"),
                    json!({"text": text, "classes": entries("label", &classes, |i| self.label(i))}),
                ))
            }
            Task::TokenClassification => Ok(self.tokens(text, tokens, rows)),
            Task::FeatureExtraction
            | Task::QuestionAnswering
            | Task::TextGeneration
            | Task::ImageGeneration => {
                let vector = self.vector(rows);
                let start: Vec<String> = vector
                    .iter()
                    .take(SHOWN)
                    .map(|x| format!("{x:.4}"))
                    .collect();
                let shown = format!(
                    "{text}\n  {} numbers, {}: {} ...\n",
                    vector.len(),
                    self.kind(),
                    start.join(" ")
                );
                let pooling = if let [one] = self.sentence.pooling.as_slice() {
                    json!(one)
                } else {
                    json!(self.sentence.pooling)
                };
                let prompt = self.prompt.named.as_ref().map(|(name, _)| name);
                let normalized = self.sentence.has_unit_length();
                Ok((
                    shown,
                    json!({"text": text, "prompt": prompt, "pooling": pooling, "normalized": normalized, "embedding": vector}),
                ))
            }
        }
    }

    fn vector(&self, rows: &Rows) -> Vec<f32> {
        sentence_vector(rows, &self.sentence, self.prompt_tokens)
    }

    /// What the vector of a text is, for people.
    fn kind(&self) -> String {
        let of = self.sentence.pooling.iter().map(|pooling| match pooling {
            Pooling::Mean => "mean of the tokens",
            Pooling::Cls => "of the first token",
            Pooling::LastToken => "of the last token",
            Pooling::Max => "maximum of the tokens",
            Pooling::MeanSqrtLenTokens => "sum of the tokens by the root of their number",
            Pooling::WeightedMean => "mean of the tokens by position",
            Pooling::Other(what) => what,
        });
        let of: Vec<&str> = of.collect();
        let prompt = self
            .prompt
            .named
            .as_ref()
            .filter(|(_, text)| !text.is_empty())
            .map_or(String::new(), |(name, _)| format!(", prompt {name}"));
        format!(
            "{}{}{prompt}",
            of.join(" and "),
            if self.sentence.has_unit_length() {
                ""
            } else {
                ", not scaled to length 1"
            }
        )
    }

    /// Scores that are no probabilities, in the order of the labels.
    fn numbers(&self, text: &str, rows: &Rows) -> (String, Value) {
        let mut table = Table::new(&["class", "score"]);
        let mut scores = Vec::new();
        for (index, score) in rows.data.iter().enumerate() {
            table.row([self.label(index), format!("{score:.4}")]);
            scores.push(json!({"label": self.label(index), "index": index, "score": score}));
        }
        (
            format!("{text}\n{table}"),
            json!({"text": text, "scores": scores}),
        )
    }

    /// How near the texts are to each other, as the checkpoint compares vectors.
    fn similarities(&self, rows: &[Rows]) -> String {
        let vectors: Vec<Vec<f32>> = rows.iter().map(|rows| self.vector(rows)).collect();
        let kind = self.sentence.similarity;
        let numbers: Vec<String> = (1..=rows.len()).map(|n| n.to_string()).collect();
        let headings: Vec<&str> = [kind.name()]
            .into_iter()
            .chain(numbers.iter().map(String::as_str))
            .collect();
        let mut table = Table::new(&headings);
        for (number, a) in numbers.iter().zip(&vectors) {
            table.row(
                [number.clone()].into_iter().chain(
                    vectors
                        .iter()
                        .map(|b| format!("{:.3}", similarity(kind, a, b))),
                ),
            );
        }
        format!("\n{table}")
    }

    fn label(&self, index: usize) -> String {
        self.model
            .labels
            .get(index)
            .cloned()
            .unwrap_or_else(|| format!("LABEL_{index}"))
    }

    fn word(&self, id: usize) -> String {
        self.tokenizer.decode(&[id as u32]).unwrap_or_default()
    }

    fn fillings(&self, text: &str, tokens: &TokenizedText, rows: &Rows) -> Result<(String, Value)> {
        const MASKS: [&str; 2] = ["[MASK]", "<mask>"];
        let Some((mask, id)) = MASKS
            .iter()
            .find_map(|mask| Some((mask, self.tokenizer.token_id(mask)?)))
        else {
            bail!(
                "the tokenizer has no mask ({}), so there is nothing to fill",
                MASKS.join(" or ")
            );
        };
        let at: Vec<usize> = (0..tokens.ids.len())
            .filter(|&i| tokens.ids[i] == id)
            .collect();
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
        for (i, row) in rows
            .each()
            .enumerate()
            .filter(|(i, _)| tokens.special.get(*i) == Some(&false))
        {
            let any = self.model.scores == Scores::AnyClasses;
            let Some(best) = choices(row, 1, any).pop() else {
                continue;
            };
            let (piece, label) = (&tokens.pieces[i], self.label(best.index));
            table.row([
                piece.clone(),
                label.clone(),
                format!("{:.1}%", 100.0 * best.probability),
            ]);
            values.push(json!({"token": piece, "label": label, "probability": best.probability}));
        }
        (
            format!("{text}\n{table}"),
            json!({"text": text, "tokens": values}),
        )
    }
}

fn table(heading: &str, choices: &[Choice], name: impl Fn(usize) -> String) -> String {
    let mut table = Table::new(&[heading, "probability"]);
    for choice in choices {
        table.row([
            name(choice.index),
            format!("{:.1}%", 100.0 * choice.probability),
        ]);
    }
    table.to_string()
}

fn entries(key: &str, choices: &[Choice], name: impl Fn(usize) -> String) -> Vec<Value> {
    choices
        .iter()
        .map(|c| json!({key: name(c.index), "index": c.index, "probability": c.probability}))
        .collect()
}
