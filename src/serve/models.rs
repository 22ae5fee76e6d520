//! The models of a server by their names, loaded one after the other while it answers already.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use dlc_runtime::methods::speculation::{Batch, DecodeOptions};
use dlc_runtime::{
    ChatTemplate, CrossEncoder, GenerationConfig, GrammarCompiler, SentenceEncoder, TextTokenizer,
};

use super::engine::{AtEnd, Engine};
use super::metrics::ModelMetrics;
use super::pictures::Paint;
use super::problem::Problem;
use super::readers::{Painter, Reader};

/// A decoder that is ready.
pub struct TextParts {
    /// The texts under way, none yet.
    pub batch: Batch,
    /// What is done with them when the server has stopped, before [`serve`](super::serve) returns.
    pub at_end: Option<AtEnd>,
    /// What requests need of the model.
    pub info: TextInfo,
}

impl std::fmt::Debug for TextParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextParts")
            .field("batch", &self.batch)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// What requests need of a model that continues texts.
#[derive(Debug)]
pub struct TextInfo {
    /// Its tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// Its chat template, or why it has none.
    pub template: Result<ChatTemplate, String>,
    /// How texts are continued where requests don't say it.
    pub options: DecodeOptions,
    /// What the model's `generation_config.json` says.
    pub config: GenerationConfig,
    /// The token that texts begin with.
    pub bos: Option<u32>,
    /// Tokens that a text and its prompt may have.
    pub context: usize,
    /// Tokens that the model writes.
    pub vocab: usize,
}

/// A model that is loaded.
#[derive(Debug)]
pub enum Parts {
    /// It continues texts.
    Text(Box<TextParts>),
    /// It makes vectors of texts.
    Vectors(Box<SentenceEncoder>),
    /// It says how well texts answer a query.
    Relevance(Box<CrossEncoder>),
    /// It makes pictures of texts.
    Pictures(Box<dyn Paint>),
}

/// Loads a model, or says why it can't be.
pub type Load = Box<dyn FnOnce() -> Result<Parts, String> + Send>;

/// A model that continues texts.
#[derive(Debug)]
pub(super) struct TextModel {
    pub engine: Engine,
    pub info: TextInfo,
    /// Made by the first request that asks for a form.
    grammars: OnceLock<Result<GrammarCompiler, Problem>>,
}

impl TextModel {
    fn start(
        parts: TextParts,
        most_waiting: usize,
        metrics: Arc<ModelMetrics>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            engine: Engine::start(parts.batch, parts.at_end, most_waiting, metrics)?,
            info: parts.info,
            grammars: OnceLock::new(),
        })
    }

    /// What makes grammars for its tokens.
    pub fn grammars(&self) -> Result<&GrammarCompiler, Problem> {
        let TextInfo {
            tokenizer,
            vocab,
            options,
            ..
        } = &self.info;
        let compiler = self.grammars.get_or_init(|| {
            GrammarCompiler::new(tokenizer, *vocab, &options.stop_tokens)
                .map_err(|error| Problem::of(&error))
        });
        compiler.as_ref().map_err(Clone::clone)
    }

    /// The tokens of a prompt; `special` adds what the tokenizer puts around a text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Problem> {
        let TextInfo {
            tokenizer,
            context,
            bos,
            ..
        } = &self.info;
        tokenizer
            .encode_prompt(text, special, *context, *bos)
            .map_err(|error| Problem::of(&error))
    }

    /// Tokens of a prompt, which must be the model's, with their text.
    pub fn shown(&self, tokens: Vec<u32>) -> Result<(Vec<u32>, String), Problem> {
        if tokens.is_empty() {
            let message = "`prompt` has no token: give a text, or the token that texts begin with";
            return Err(Problem::field("prompt", message));
        }
        if let Some(token) = tokens
            .iter()
            .find(|&&token| token as usize >= self.info.vocab)
        {
            let message = format!(
                "token {token} isn't among the {} of the model",
                self.info.vocab
            );
            return Err(Problem::field("prompt", message));
        }
        let text = self.info.tokenizer.decode(&tokens);
        Ok((tokens, text.map_err(|error| Problem::of(&error))?))
    }
}

/// A model by its name.
#[derive(Debug)]
pub(super) struct Model {
    pub name: String,
    pub created: u64,
    pub metrics: Arc<ModelMetrics>,
    loaded: OnceLock<Result<Loaded, String>>,
}

/// What a model does.
#[derive(Debug)]
enum Loaded {
    Text(Box<TextModel>),
    Vectors(Reader<SentenceEncoder>),
    Relevance(Reader<CrossEncoder>),
    Pictures(Reader<Painter>),
}

impl Loaded {
    fn start(parts: Parts, most_waiting: usize, metrics: Arc<ModelMetrics>) -> io::Result<Self> {
        Ok(match parts {
            Parts::Text(parts) => {
                Self::Text(Box::new(TextModel::start(*parts, most_waiting, metrics)?))
            }
            Parts::Vectors(model) => Self::Vectors(Reader::start(*model, most_waiting, metrics)?),
            Parts::Relevance(model) => {
                Self::Relevance(Reader::start(*model, most_waiting, metrics)?)
            }
            Parts::Pictures(model) => {
                Self::Pictures(Reader::start(Painter(model), most_waiting, metrics)?)
            }
        })
    }

    fn lives(&self) -> bool {
        match self {
            Self::Text(model) => model.engine.lives(),
            Self::Vectors(reader) => reader.lives(),
            Self::Relevance(reader) => reader.lives(),
            Self::Pictures(reader) => reader.lives(),
        }
    }

    /// What it does, and the route that it is asked by.
    fn purpose(&self) -> [&'static str; 2] {
        match self {
            Self::Text(_) => ["continues texts", "/v1/completions"],
            Self::Vectors(_) => ["makes vectors of texts", "/v1/embeddings"],
            Self::Relevance(_) => ["says how well texts answer a query", "/v1/rerank"],
            Self::Pictures(_) => ["makes pictures of texts", "/v1/images/generations"],
        }
    }
}

impl Model {
    fn new(name: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            name,
            created: now.map_or(0, |time| time.as_secs()),
            metrics: Arc::default(),
            loaded: OnceLock::new(),
        }
    }

    fn loaded(&self) -> Result<&Loaded, Problem> {
        let name = &self.name;
        match self.loaded.get() {
            Some(Ok(model)) if model.lives() => Ok(model),
            Some(Ok(_)) => Err(Problem::unavailable(format!(
                "model `{name}` has failed: start the server again"
            ))),
            Some(Err(problem)) => Err(Problem::unavailable(format!(
                "model `{name}` couldn't be loaded: {problem}"
            ))),
            None => Err(Problem::not_now(format!("model `{name}` is being loaded"))),
        }
    }

    /// Whether it can be asked.
    pub fn serves(&self) -> bool {
        self.loaded().is_ok()
    }

    /// The model as one that continues texts.
    pub fn text(&self) -> Result<&TextModel, Problem> {
        match self.loaded()? {
            Loaded::Text(model) => Ok(model),
            other => Err(self.other(other)),
        }
    }

    /// The model as one that makes vectors.
    pub fn vectors(&self) -> Result<&Reader<SentenceEncoder>, Problem> {
        match self.loaded()? {
            Loaded::Vectors(reader) => Ok(reader),
            other => Err(self.other(other)),
        }
    }

    /// The model as one that says how well texts answer a query.
    pub fn relevance(&self) -> Result<&Reader<CrossEncoder>, Problem> {
        match self.loaded()? {
            Loaded::Relevance(reader) => Ok(reader),
            other => Err(self.other(other)),
        }
    }

    /// The model as one that makes pictures.
    pub fn pictures(&self) -> Result<&Reader<Painter>, Problem> {
        match self.loaded()? {
            Loaded::Pictures(reader) => Ok(reader),
            other => Err(self.other(other)),
        }
    }

    /// It does something else than is asked for.
    fn other(&self, loaded: &Loaded) -> Problem {
        let [purpose, route] = loaded.purpose();
        Problem::request(format!("model `{}` {purpose}: ask {route}", self.name))
    }

    /// Ends what is under way.
    pub fn stop(&self) {
        if let Ok(Loaded::Text(model)) = self.loaded() {
            model.engine.stop();
        }
    }

    /// Ends what is under way, and waits for what is done at the end.
    pub fn end(&self) {
        if let Ok(Loaded::Text(model)) = self.loaded() {
            model.engine.end();
        }
    }

    pub fn is_settled(&self) -> bool {
        self.loaded.get().is_some()
    }

    /// Loads it; returns why that failed.
    pub fn load(&self, load: Load, most_waiting: usize) -> Result<(), String> {
        let no_thread = |error: io::Error| format!("no thread can be started: {error}");
        let metrics = Arc::clone(&self.metrics);
        let loaded =
            load().and_then(|parts| Loaded::start(parts, most_waiting, metrics).map_err(no_thread));
        let outcome = loaded.as_ref().map(|_| ()).map_err(Clone::clone);
        let _ = self.loaded.set(loaded);
        outcome
    }
}

/// All models.
#[derive(Debug)]
pub(super) struct Models {
    by_name: BTreeMap<String, Arc<Model>>,
}

impl Models {
    pub fn new(names: impl Iterator<Item = String>) -> Self {
        let models = names.map(|name| (name.clone(), Arc::new(Model::new(name))));
        Self {
            by_name: models.collect(),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.by_name.values()
    }

    /// The model that a request names.
    pub fn find(&self, name: &str) -> Result<&Arc<Model>, Problem> {
        self.by_name.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
            let shown: String = name.escape_debug().take(100).collect();
            let message = format!("there is no model `{shown}` here, but {}", names.join(", "));
            Problem::not_found(message, "model_not_found")
        })
    }
}
