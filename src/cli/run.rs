//! `dlc run`.

use std::io::{self, BufRead, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Result, bail};
use dlc_ir::Task;
use serde_json::{Value, json};

use super::backend::{BackendArgs, describe};
use super::drafting::{DraftingArgs, measured_costs};
use super::exit::INTERRUPTED;
use super::models::Models;
use super::output::{Output, note};
use super::signals::{interruption, set_idle};
use super::{encode, open, prompts};
use crate::runtime::{
    ChatMessage, ChatTemplate, DecodeOptions, Decoder, Generation, SamplingOptions, SourceStats, StopReason, TextTokenizer, TokenModel, assumed_costs,
};

/// Continue a prompt, or chat, with a bundle, speculatively if it has a draft; or let an encoder read texts
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dlc run out/ --prompt \"In the beginning\"
  dlc run out/ --chat
  dlc run classifier/ --text \"What a day!\"
  dlc run out/ --prompts prompts.txt --json > texts.json")]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// Text to continue; with --chat, what to say
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// File of prompts, one a line, or .jsonl with `prompt`
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Text for an encoder: classes, fillings of its [MASK], or its vector, as the model's head means; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt", "prompts", "chat"])]
    pub(super) text: Vec<String>,
    /// File of texts for an encoder, one a line, or .jsonl with `text`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "prompt", "prompts", "chat"])]
    pub(super) texts: Option<PathBuf>,
    /// Classes or fillings to show, the likeliest first
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = top)]
    pub(super) top: usize,
    /// Cut texts that are longer than the encoder takes
    #[arg(long)]
    pub(super) truncate: bool,
    /// Run the pruned encoder that fit-prune made
    #[arg(long)]
    pub(super) pruned: bool,
    /// Use the model's chat template; without --prompt, talk
    #[arg(long)]
    chat: bool,
    /// What the system says first, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Randomness; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the most likely tokens that make up this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave the draft alone
    #[arg(long)]
    no_draft: bool,
    #[command(flatten)]
    drafting: DraftingArgs,
    #[command(flatten)]
    pub(super) backend: BackendArgs,
    /// Print the results as a JSON array
    #[arg(long)]
    pub(super) json: bool,
}

fn top(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|k| *k > 0).ok_or_else(|| "it must be a number, 1 or more".into())
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let output = Output::new(args.json);
    let reads = !args.text.is_empty() || args.texts.is_some();
    if args.prompt.is_none() && args.prompts.is_none() && !args.chat && !reads {
        bail!("there is nothing to continue or to read; give --prompt TEXT, --prompts FILE or --chat, and to an encoder --text TEXT or --texts FILE");
    }
    if reads {
        let bundle = open::text_bundle(&args.bundle)?;
        if bundle.manifest().model.task == Task::TextGeneration {
            bail!("the bundle continues texts: give it --prompt TEXT, --prompts FILE or --chat");
        }
        return encode::run(args, bundle);
    }
    let prompts = match (&args.prompts, &args.prompt) {
        (Some(file), _) => prompts::read(file)?,
        (None, Some(prompt)) => vec![prompt.clone()],
        (None, None) => vec![],
    };
    let mut models = Models::open(&args.bundle, &args.backend, (!args.no_draft).then(|| args.drafting.cache()))?;
    let template = args.chat.then(|| ChatTemplate::load(models.bundle.folder())).transpose()?;
    if prompts.is_empty() {
        return converse(args, &mut models, template.as_ref(), output);
    }
    let tokenizer = models.tokenizer.clone();
    let mut results: Vec<Value> = Vec::new();
    for prompt in &prompts {
        let text = match &template {
            Some(template) => template.render(&opening(args, prompt), true, SystemTime::now())?,
            None => prompt.clone(),
        };
        let tokens = tokenizer.encode(&text, template.is_none())?;
        let (text, generation) = write(args, &mut decoder(args, &mut models)?, &tokenizer, if args.chat { "" } else { prompt }, &tokens)?;
        output.result(&format!("\n{}", if prompts.len() > 1 { "\n" } else { "" }))?;
        report(args, &generation)?;
        results.push(result(prompt, &tokens, &text, &generation));
        if generation.stop == StopReason::Cancelled {
            output.json(&results)?;
            return Ok(INTERRUPTED.into());
        }
    }
    output.json(&results)?;
    Ok(ExitCode::SUCCESS)
}

fn opening(args: &Args, prompt: &str) -> Vec<ChatMessage> {
    let system = args.system.iter().map(|text| ChatMessage::new("system", text));
    system.chain([ChatMessage::new("user", prompt)]).collect()
}

/// Reads lines from stdin until its end, and answers each.
fn converse(args: &Args, models: &mut Models, template: Option<&ChatTemplate>, output: Output) -> Result<ExitCode> {
    let Some(template) = template else { return Ok(ExitCode::SUCCESS) };
    note("say something; Ctrl-D ends")?;
    let mut messages: Vec<ChatMessage> = args.system.iter().map(|text| ChatMessage::new("system", text)).collect();
    let mut turns: Vec<Value> = Vec::new();
    // One decoder for the whole conversation: what its caches hold of earlier turns isn't read again.
    let tokenizer = models.tokenizer.clone();
    let mut decoder = decoder(args, models)?;
    set_idle(true);
    for line in io::stdin().lock().lines() {
        let line = line?;
        set_idle(false);
        messages.push(ChatMessage::new("user", &line));
        let tokens = tokenizer.encode(&template.render(&messages, true, SystemTime::now())?, false)?;
        let (text, generation) = write(args, &mut decoder, &tokenizer, "", &tokens)?;
        output.result("\n")?;
        turns.push(result(&line, &tokens, &text, &generation));
        messages.push(ChatMessage::new("assistant", text));
        if generation.stop == StopReason::Cancelled {
            output.json(&turns)?;
            return Ok(INTERRUPTED.into());
        }
        set_idle(true);
    }
    output.json(&turns)?;
    Ok(ExitCode::SUCCESS)
}

/// The decoding loop over the bundle's models, with empty caches.
fn decoder<'m>(args: &Args, models: &'m mut Models) -> Result<Decoder<'m>> {
    let options = DecodeOptions {
        max_tokens: args.max_tokens,
        stop_tokens: models.bundle.manifest().model.eos_token_ids.clone(),
        sampling: SamplingOptions { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed },
        cancel: Some(interruption()),
        ..DecodeOptions::default()
    };
    let costs = measured_costs(&models.bundle, &describe(&models.backend), args.backend.session().threads);
    let options = args.drafting.apply(options, &models.bundle, costs.unwrap_or_else(|| assumed_costs(models.bundle.manifest())));
    let draft = models.draft.as_mut().map(|d| d as &mut dyn TokenModel);
    Ok(Decoder::new(&mut models.target, draft, options)?)
}

/// Continues `tokens`, showing `before` and then text as it comes, unless JSON is asked for.
fn write(args: &Args, decoder: &mut Decoder<'_>, tokenizer: &TextTokenizer, before: &str, tokens: &[u32]) -> Result<(String, Generation)> {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    // Shown with the first tokens, so that nothing is if the options or the prompt are refused.
    let mut before = Some(before);
    let mut failure = None;
    let generation = decoder.generate(tokens, &mut |new| {
        let shown = stream.push(new).map_err(anyhow::Error::from).and_then(|piece| {
            text.push_str(&piece);
            if args.json { Ok(()) } else { show(before.take().unwrap_or_default()).and_then(|()| show(&piece)) }
        });
        match shown {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = stream.finish()?;
    if !args.json {
        show(before.unwrap_or_default())?;
        show(&rest)?;
    }
    Ok((text + &rest, generation))
}

fn show(piece: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(piece.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

fn report(args: &Args, generation: &Generation) -> Result<()> {
    let stats = &generation.stats;
    let mut line = format!("{} tokens, {:.1} tokens/s", stats.tokens, stats.tokens_per_second());
    for (source, counts) in [("draft", stats.draft), ("looked-up", stats.lookup)] {
        if counts.drafted > 0 {
            line += &format!(", {:.0}% of {} judged {source} tokens accepted", 100.0 * counts.acceptance(), counts.tested);
        }
    }
    if stats.drafted() > 0 {
        line += &format!(", {:.2} tokens a round", stats.tokens_per_round());
    }
    if args.json { Ok(()) } else { note(&line) }
}

fn result(prompt: &str, prompt_tokens: &[u32], text: &str, generation: &Generation) -> Value {
    let stats = &generation.stats;
    let stop = match generation.stop {
        StopReason::StopToken(token) => format!("stop token {token}"),
        StopReason::MaxTokens => "max tokens".into(),
        StopReason::ContextFull => "context full".into(),
        StopReason::Caller | StopReason::Cancelled => "interrupted".into(),
    };
    json!({
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "tokens": generation.tokens,
        "text": text,
        "stop": stop,
        "stats": {
            "rounds": stats.rounds, "drafted": stats.drafted(), "accepted": stats.accepted(), "acceptance": stats.acceptance(),
            "draft": sourced(&stats.draft), "lookup": sourced(&stats.lookup),
            "tokens_per_round": stats.tokens_per_round(), "tokens_per_second": stats.tokens_per_second(),
        },
    })
}

/// The counts of one source of proposals.
pub(super) fn sourced(counts: &SourceStats) -> Value {
    json!({
        "rounds": counts.rounds, "drafted": counts.drafted, "tested": counts.tested, "accepted": counts.accepted, "runner_up": counts.runner_up,
    })
}
