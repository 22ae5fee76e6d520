//! `dlc run` with an encoder that finds the answers to a question in texts.

use std::process::ExitCode;

use dlc_runtime::{Answer, Bundle, TextTokenizer, TokenizedPair, answers};
use serde_json::{Value, json};

use super::Args;
use crate::cli::failure::{Context, Result, bail};
use crate::cli::input::Text;
use crate::cli::models::EncoderModel;
use crate::cli::output::note;
use crate::cli::records::Records;
use crate::report::Table;

pub(super) fn run(args: &Args, bundle: Bundle, texts: &[Text]) -> Result<ExitCode> {
    let Some(question) = &args.question else {
        bail!("the model finds answers to a question; give it --question TEXT");
    };
    let mut records = Records::new(args.records);
    let graph = if args.pruned { "pruned" } else { "target" };
    let mut model = EncoderModel::open(bundle, &args.backend, graph)?;
    let tokenizer = model
        .tokenizer
        .take()
        .context(super::encode::NO_TOKENIZER)?;
    let most = model.session.context_length();
    let mut pairs = Vec::new();
    for text in texts {
        pairs.push(pair(args, &tokenizer, question, text, most)?);
    }
    let tokens: Vec<_> = pairs.iter().map(|pair| pair.tokens.clone()).collect();
    let rows = model.session.run(&tokens)?;
    for ((text, pair), rows) in texts.iter().zip(&pairs).zip(&rows) {
        let content = &text.content;
        let found = answers(rows, pair, content, args.top);
        let mut table = Table::new(&["answer", "probability"]);
        for answer in &found {
            let words = content.get(answer.place.clone()).unwrap_or_default();
            let probability = format!("{:.1}%", 100.0 * answer.probability);
            table.row([words.to_owned(), probability]);
        }
        records.text(&format!("{content}\n{table}"))?;
        let found: Vec<Value> = found.iter().map(|a| value(content, a)).collect();
        let truncated = pair.whole > most;
        records.push(
            json!({"text": content, "question": question, "answers": found, "truncated": truncated}),
        )?;
    }
    records.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// The tokens of the question and a text, which is cut if that is asked for.
fn pair(
    args: &Args,
    tokenizer: &TextTokenizer,
    question: &str,
    Text { content, place }: &Text,
    most: usize,
) -> Result<TokenizedPair> {
    let pair = tokenizer
        .analyse_pair(question, content, most)
        .with_context(|| place.clone())?;
    let n = pair.whole;
    if n > most && !args.truncate {
        bail!(
            "{place} and the question have {n} tokens, and the model takes {most}; shorten it, or let --truncate cut it"
        );
    }
    if pair.places.iter().all(Option::is_none) {
        bail!("{place} has no token beside the question, so there is nothing to read");
    }
    if n > most {
        note(&format!(
            "{place} is cut: with the question it has {n} tokens, and the model takes {most}"
        ))?;
    }
    Ok(pair)
}

/// An answer for machines; its place in characters.
fn value(text: &str, answer: &Answer) -> Value {
    let characters = |end: usize| text.get(..end).map_or(0, |part| part.chars().count());
    let (start, end) = (answer.place.start, answer.place.end);
    json!({
        "answer": text.get(start..end).unwrap_or_default(), "start": characters(start), "end": characters(end),
        "probability": answer.probability,
    })
}
