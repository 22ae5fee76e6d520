//! `dlc serve`.

mod kept;
mod painter;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlc_errors::Fault;
use dlc_files::read_document;
use dlc_ir::Task;
use dlc_runtime::methods::speculation::{Batch, BatchOptions, DecodeOptions, TokenModel};
use dlc_runtime::{
    Bundle, ChatTemplate, CrossEncoder, GenerationConfig, PrefixFile, Provider, SentenceEncoder,
};

use self::kept::Kept;
use self::painter::Painter;
use super::backend::BackendArgs;
use super::diffusion::DiffusionModel;
use super::drafting::{DraftingArgs, costs_by_now};
use super::exit::INTERRUPTED;
use super::failure::{Failure, Result, bail};
use super::models::{Models, Wishes};
use super::output::{note, warn};
use super::{phases, signals};
use crate::serve::{AtEnd, Keys, Limits, Load, Parts, ServeOptions, TextInfo, TextParts, serve};

/// The largest file of keys that is read.
const KEYS_CAP: u64 = 1 << 20;
/// Time that is left after the grace to write down why answers are broken off.
const AFTER_GRACE: Duration = Duration::from_secs(2);
/// Time to write down what is kept.
const KEEPING: Duration = Duration::from_mins(1);

/// Answer requests over HTTP, as OpenAI's API does
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  dlc serve out/
  dlc serve small=out-small/ large=out-large/ --port 9000 --max-concurrent 4
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"out\", \"prompt\": \"In the beginning\", \"max_tokens\": 32}'")]
pub(super) struct Args {
    /// Bundles, which are called as their folders are, or NAME=BUNDLE
    #[arg(required = true, value_name = "[NAME=]BUNDLE")]
    bundles: Vec<String>,
    /// Address to listen on; 0.0.0.0 for all networks
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Texts under way at once, of each bundle
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    max_concurrent: u16,
    /// Requests that wait for their turn, of each bundle; further ones get 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_queue: u16,
    /// Tokens that a request may ask for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: u32,
    /// Most pixels of a picture whose size is asked for: memory grows with their square
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    max_pixels: u32,
    /// Bytes that a request may have
    #[arg(long, value_name = "N", default_value_t = 4 << 20)]
    max_request_bytes: u32,
    /// Seconds that an answer may take
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout: u32,
    /// Seconds that answers under way have left after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 10)]
    grace: u32,
    /// File of API keys, one a line; without it everybody may ask
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Tokens of a prompt that are read at a time while other texts wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    prompt_piece: u16,
    /// Folder that keeps what is held of texts when the server stops: the next one with the same
    /// bundle doesn't read it again
    #[arg(long, value_name = "DIR")]
    save_cache: Option<PathBuf>,
    /// Leave the model's `generation_config.json` alone
    #[arg(long)]
    no_generation_config: bool,
    /// Leave drafts alone
    #[arg(long)]
    no_draft: bool,
    #[command(flatten)]
    drafting: DraftingArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let bundles = names(&args.bundles)?;
    if let Some(folder) = &args.save_cache {
        if args.backend.session().provider != Provider::Cpu {
            bail!("--save-cache keeps what is held on the CPU alone; leave it or --provider out");
        }
        PrefixFile::make_folder(folder)?;
    }
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).map_err(|error| {
        Failure::usage(format!(
            "can't listen on {address}: {error}; choose another address with --host and --port"
        ))
    })?;
    let keys = match &args.api_key_file {
        Some(file) => keys(file)?,
        None => Keys::default(),
    };
    if !args.host.is_loopback() && keys.is_empty() {
        warn(&format!(
            "everybody who reaches {} may ask: --api-key-file FILE demands a key",
            args.host
        ))?;
    }
    let grace = Duration::from_secs(args.grace.into());
    let keeping = args.save_cache.as_ref().map_or(Duration::ZERO, |_| KEEPING);
    signals::give_time(grace + AFTER_GRACE + keeping);
    let stop = signals::interruption();
    signals::converses(true);
    let fault = Arc::new(Mutex::new(Fault::BadInput));
    let models = bundles
        .into_iter()
        .map(|(name, path)| {
            let (args, fault) = (args.clone(), Arc::clone(&fault));
            let failed = move |error: Failure| {
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = error.fault;
                error.message()
            };
            let of_name = name.clone();
            let load: Load = Box::new(move || args.load(&of_name, &path).map_err(failed));
            (name, load)
        })
        .collect();
    let options = ServeOptions {
        limits: Limits {
            max_tokens: args.max_tokens as usize,
            max_pixels: args.max_pixels as usize,
            max_request_bytes: args.max_request_bytes as usize,
            timeout: Duration::from_secs(args.timeout.into()),
        },
        keys,
        max_queue: args.max_queue.into(),
        grace,
    };
    let address = listener.local_addr()?;
    note(&format!("listening on http://{address}"))?;
    let serves = serve(listener, models, options, &stop, Box::new(tell))?;
    if serves {
        note("stopped")?;
        Ok(INTERRUPTED.into())
    } else {
        let fault = *fault.lock().unwrap_or_else(PoisonError::into_inner);
        Err(Failure::of(fault, "none of the bundles can be served"))
    }
}

fn tell(name: &str, outcome: Result<(), &str>) {
    phases::pause();
    // Without a reader of stderr the server goes on.
    let _ = match outcome {
        Ok(()) => note(&format!("model `{name}` is ready")),
        Err(problem) => warn(&format!("model `{name}` can't be served: {problem}")),
    };
}

/// Names and paths of bundles. A name is given, or that of the folder.
fn names(bundles: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let mut all: Vec<(String, PathBuf)> = Vec::with_capacity(bundles.len());
    for given in bundles {
        let (name, path) = match given.split_once('=') {
            Some((name, path)) if !Path::new(given).exists() => {
                (name.to_owned(), PathBuf::from(path))
            }
            _ => {
                let path = PathBuf::from(given);
                let whole = std::path::absolute(&path)?;
                let name = whole.file_name().unwrap_or_default();
                (name.to_string_lossy().into_owned(), path)
            }
        };
        if name.chars().any(char::is_control) {
            bail!(
                "the name of `{}` has a control character; give it another with NAME=BUNDLE",
                given.escape_debug()
            );
        }
        if name.is_empty() {
            bail!(
                "`{given}` has no name; give it one with NAME={}",
                path.display()
            );
        }
        if all.iter().any(|(other, _)| *other == name) {
            bail!(
                "two bundles are called `{name}`; name one of them with NAME={}",
                path.display()
            );
        }
        all.push((name, path));
    }
    Ok(all)
}

fn keys(file: &Path) -> Result<Keys> {
    let keys = Keys::parse(&read_document(file, KEYS_CAP)?);
    if keys.is_empty() {
        bail!("{}: the file has no key; write one a line", file.display());
    }
    Ok(keys)
}

impl Args {
    fn load(&self, name: &str, bundle: &Path) -> Result<Parts> {
        let bundle = super::open::bundle(bundle)?;
        match bundle.manifest().model.task {
            Task::TextGeneration => self.load_decoder(name, bundle),
            Task::FeatureExtraction => {
                let backend = self.backend.start()?;
                let encoder = SentenceEncoder::open(&backend, &bundle, &self.backend.session())?;
                Ok(Parts::Vectors(Box::new(encoder)))
            }
            Task::ImageGeneration => {
                let model = DiffusionModel::open(bundle, &self.backend)?;
                Ok(Parts::Pictures(Box::new(Painter::open(model)?)))
            }
            Task::TextClassification if CrossEncoder::is(&bundle) => {
                let backend = self.backend.start()?;
                let encoder = CrossEncoder::open(&backend, &bundle, &self.backend.session())?;
                Ok(Parts::Relevance(Box::new(encoder)))
            }
            task => Err(Failure::of(
                Fault::Unsupported,
                format!(
                    "the bundle is a {} for {}, and `dlc serve` continues texts, makes vectors of them, says how well they answer a query, and makes pictures",
                    bundle.manifest().model.family,
                    task.name()
                ),
            )),
        }
    }

    fn load_decoder(&self, name: &str, bundle: Bundle) -> Result<Parts> {
        let config = if self.no_generation_config {
            GenerationConfig::default()
        } else {
            GenerationConfig::of_bundle(&bundle)?
        };
        let template = ChatTemplate::of_bundle(&bundle).map_err(|error| error.to_string());
        // Where a GPU computes, one sequence is held.
        let slots = match self.backend.session().provider {
            Provider::Cpu => self.max_concurrent.into(),
            Provider::Cuda(_) => 1,
        };
        let wishes = Wishes {
            sequences: slots,
            ..self.drafting.wishes(!self.no_draft)
        };
        let mut models = Models::of(bundle, &self.backend, wishes)?;
        models.note_draft()?;
        let costs = costs_by_now(&mut models, self.backend.session().threads)?;
        let options = DecodeOptions {
            stop_tokens: models.bundle.manifest().model.eos_token_ids.clone(),
            ..DecodeOptions::default()
        };
        let options = self.drafting.apply(options, &models, costs.clone());
        let model = &models.bundle.manifest().model;
        let (bos, vocab) = (model.bos_token_id, model.vocab_size);
        let context = models.target.context_length();
        let draft = models.draft;
        let draft = draft.map(|draft| Box::new(draft) as Box<dyn TokenModel + Send>);
        let shared = BatchOptions {
            piece: self.prompt_piece.into(),
            costs,
        };
        let mut batch = Batch::new(Box::new(models.target), draft, shared)?;
        let folder = self.save_cache.as_deref();
        let kept = folder.map(|folder| Kept::new(folder, name, &models.bundle));
        let kept = kept.transpose()?;
        if let Some(kept) = &kept {
            kept.take_over(&mut batch);
        }
        Ok(Parts::Text(Box::new(TextParts {
            batch,
            at_end: kept.map(|kept| Box::new(move |batch: &mut _| kept.save(batch)) as AtEnd),
            info: TextInfo {
                tokenizer: Arc::new(models.tokenizer),
                template,
                options,
                config,
                bos,
                context,
                vocab,
            },
        })))
    }
}
