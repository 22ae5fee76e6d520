//! `dlc run`.

mod chat;
mod encode;
mod question;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use dlc_ir::Task;
use dlc_methods::speculation::{DecodeOptions, Decoder, SuffixIndex, TokenModel};
use dlc_runtime::{ChatMessage, ChatTemplate};

use super::backend::BackendArgs;
use super::drafting::{DraftingArgs, HISTORY, costs};
use super::exit::INTERRUPTED;
use super::failure::{Result, bail};
use super::flags::Given;
use super::generation::{GenerationArgs, Rules};
use super::grammar::GrammarArgs;
use super::input::Text;
use super::models::Models;
use super::output::note;
use super::records::{RecordArgs, Records};
use super::signals::interruption;
use super::write::{Ending, Writer, show_reading};
use super::{input, open, prompts};

/// Continue texts, chat, or let an encoder read texts
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a text on the command line, stdin is read if it is no terminal.

Examples:
  dlc run out/ --prompt \"In the beginning\"
  dlc run out/ --chat
  dlc run classifier/ --text \"What a day!\"
  dlc run reader/ --question \"Who wrote it?\" --texts pages.txt
  dlc run out/ --prompts prompts.txt --jsonl > texts.jsonl
  git diff | dlc run out/ --stop END --no-echo"
)]
pub(super) struct Args {
    /// The bundle
    bundle: PathBuf,
    /// Text to continue, or - for stdin; with --chat, what to say
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts", "prompt_file"])]
    prompt: Option<String>,
    /// File whose text is continued, or - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    prompt_file: Option<PathBuf>,
    /// File of prompts, one a line, or .jsonl with `prompt`; - for stdin
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Text for an encoder to read; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt", "prompt_file", "prompts", "chat"])]
    text: Vec<String>,
    /// File of texts for an encoder, like --prompts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "prompt", "prompt_file", "prompts", "chat"])]
    texts: Option<PathBuf>,
    /// Question to an encoder that finds answers in the texts
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with_all = ["prompt", "prompt_file", "prompts", "chat"])]
    question: Option<String>,
    /// Classes, fillings or answers to show, the likeliest first
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = top)]
    top: usize,
    /// Put this prompt of the checkpoint's before each text of --text, instead of its default one;
    /// '' for none
    #[arg(long, value_name = "NAME", conflicts_with_all = ["prompt", "prompts", "chat"])]
    prompt_name: Option<String>,
    /// Cut texts that are longer than the encoder takes; those of Sentence Transformers are cut
    /// anyway, where it cuts them
    #[arg(long)]
    truncate: bool,
    /// Run the pruned encoder that fit-prune made
    #[arg(long)]
    pruned: bool,
    /// Use the model's chat template; without a prompt, talk
    #[arg(long)]
    chat: bool,
    /// What the system says first, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Text before which the answer ends; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Print what is written, without the prompt before it
    #[arg(long)]
    no_echo: bool,
    /// With --json or --jsonl: tell each token's log probability, and those of the K likeliest in its
    /// place; before temperature and penalties
    #[arg(long, value_name = "K")]
    logprobs: Option<usize>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    grammar: GrammarArgs,
    /// Leave the draft alone
    #[arg(long)]
    no_draft: bool,
    #[command(flatten)]
    drafting: DraftingArgs,
    /// Look up in the prompts before and their texts too
    #[arg(long, requires = "prompts", conflicts_with = "no_lookup")]
    lookup_history: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    records: RecordArgs,
}

fn top(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|k| *k > 0)
        .ok_or_else(|| "it must be a number, 1 or more".into())
}

pub(super) fn run(args: &Args, given: &Given) -> Result<ExitCode> {
    let has_prompt = args.prompt.is_some() || args.prompt_file.is_some() || args.prompts.is_some();
    let has_text = !args.text.is_empty() || args.texts.is_some();
    let reads_stdin = !has_prompt && !has_text && !args.chat;
    let nothing = "there is nothing to continue or to read; give --prompt TEXT, --prompt-file FILE, --prompts FILE or --chat, to an encoder --text TEXT \
                   or --texts FILE, or text on stdin";
    if reads_stdin && !input::is_piped() {
        bail!(nothing);
    }
    let bundle = open::text_bundle(&args.bundle)?;
    given.check_run(&bundle)?;
    let continues = bundle.manifest().model.task == Task::TextGeneration;
    let piped = if reads_stdin {
        Some(input::text("-".as_ref())?)
    } else {
        None
    };
    if piped
        .as_ref()
        .is_some_and(|text| text.content.trim().is_empty())
    {
        bail!(nothing);
    }
    if bundle.manifest().model.task == Task::QuestionAnswering {
        return question::run(args, bundle, &texts(args, piped)?);
    }
    if !continues {
        return encode::run(args, bundle, &texts(args, piped)?);
    }
    let prompts = match (&args.prompt, &args.prompt_file, &args.prompts) {
        (Some(prompt), ..) => vec![input::given(prompt, "--prompt".into())?],
        (_, Some(file), _) => vec![input::text(file)?],
        (.., Some(file)) => prompts::read(file)?,
        _ => piped.into_iter().collect(),
    };
    let mut rules = args.generation.rules(&bundle)?;
    rules.stop_strings.extend(args.stop.iter().cloned());
    if args.logprobs.is_some() && args.records.are_for_people() {
        bail!("--logprobs has an effect with --json or --jsonl alone; add one of them");
    }
    rules.options.logprobs = args.logprobs;
    let mut models = Models::of(bundle, &args.backend, args.drafting.wishes(!args.no_draft))?;
    let vocab = models.target.vocab_size();
    args.grammar
        .apply(&mut rules.options, &models.tokenizer, vocab)?;
    let template = args
        .chat
        .then(|| ChatTemplate::of_bundle(&models.bundle))
        .transpose()?;
    if let Some(text) = &rules.note {
        note(text)?;
    }
    models.note_draft()?;
    match template {
        Some(template) if prompts.is_empty() => {
            let options = options(args, &models, &rules);
            chat::converse(
                &mut models,
                &template,
                options,
                &rules.stop_strings,
                args.system.as_deref(),
                args.records,
            )
        }
        template => continue_all(args, &mut models, template.as_ref(), &rules, &prompts),
    }
}

/// What an encoder reads.
fn texts(args: &Args, piped: Option<Text>) -> Result<Vec<Text>> {
    match &args.texts {
        Some(file) => prompts::read(file),
        None => (1..)
            .zip(&args.text)
            .map(|(number, text)| input::given(text, format!("text {number}")))
            .chain(piped.map(Ok))
            .collect(),
    }
}

fn continue_all(
    args: &Args,
    models: &mut Models,
    template: Option<&ChatTemplate>,
    rules: &Rules,
    prompts: &[Text],
) -> Result<ExitCode> {
    let tokenizer = models.tokenizer.clone();
    let mut records = Records::new(args.records);
    let writer = Writer {
        tokenizer: &tokenizer,
        stops: &rules.stop_strings,
        shows: args.records.are_for_people(),
    };
    let mut history = SuffixIndex::new(if args.lookup_history { HISTORY } else { 0 });
    for Text { content, place } in prompts {
        let prompt = content.as_str();
        let options = options(args, models, rules);
        let echo = if args.chat || args.no_echo {
            ""
        } else {
            prompt
        };
        let written = tokens_of(args, models, template, prompt).and_then(|tokens| {
            let mut decoder = decoder(models, options)?.remembering(std::mem::take(&mut history));
            let written = writer.write(&mut decoder, echo, &tokens)?;
            history = decoder.into_history();
            Ok((written, tokens))
        });
        let (written, tokens) = match written {
            Ok(both) => both,
            // What is done is printed all the same.
            Err(error) => return records.finish().and(Err(error.context(place.clone()))),
        };
        records.text(&format!("\n{}", if prompts.len() > 1 { "\n" } else { "" }))?;
        if writer.shows {
            note(&written.summary())?;
        }
        records.push(written.json(prompt, &tokens))?;
        if written.ending == Ending::Interrupted {
            return records.finish().map(|()| INTERRUPTED.into());
        }
    }
    records.finish().map(|()| ExitCode::SUCCESS)
}

/// The tokens of a prompt as the model reads it.
fn tokens_of(
    args: &Args,
    models: &Models,
    template: Option<&ChatTemplate>,
    prompt: &str,
) -> Result<Vec<u32>> {
    let Some(template) = template else {
        let model = &models.bundle.manifest().model;
        let (context, bos) = (models.target.context_length(), model.bos_token_id);
        return Ok(models.tokenizer.encode_prompt(prompt, true, context, bos)?);
    };
    let text = template.render(&opening(args, prompt), true, SystemTime::now())?;
    Ok(models
        .tokenizer
        .encode_within(&text, false, models.target.context_length())?)
}

fn opening(args: &Args, prompt: &str) -> Vec<ChatMessage> {
    let system = args
        .system
        .iter()
        .map(|text| ChatMessage::new("system", text));
    system.chain([ChatMessage::new("user", prompt)]).collect()
}

/// What flags, the bundle and this machine say.
fn options(args: &Args, models: &Models, rules: &Rules) -> DecodeOptions {
    let options = DecodeOptions {
        cancel: Some(interruption()),
        on_prompt: Some(show_reading),
        ..rules.options.clone()
    };
    args.drafting.apply(
        options,
        models,
        costs(models, args.backend.session().threads),
    )
}

/// The decoding loop over the bundle's models, with empty caches.
pub(super) fn decoder(models: &mut Models, options: DecodeOptions) -> Result<Decoder<'_>> {
    let draft = models.draft.as_mut().map(|d| d as &mut dyn TokenModel);
    Ok(Decoder::new(&mut models.target, draft, options)?)
}
