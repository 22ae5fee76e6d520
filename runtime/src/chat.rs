//! Chat templates: a conversation to the text that the model was trained on.
//!
//! The template is Jinja, as Hugging Face keeps it beside a checkpoint, and untrusted: its source,
//! its steps, and what it makes are limited, it runs on a stack of its own, and it reaches no file
//! and no clock. Never tokenizes.

mod environment;
mod functions;
mod json;
mod lexer;
mod limits;
mod methods;
mod source;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dlc_files::guard::contain_within;
use dlc_files::read_document;
use environment::environment;
use minijinja::ErrorKind;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::special_tokens::{CONFIG_FILE, named, read_files, read_object};
use super::{Bundle, Result, RuntimeError};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const DEFAULT_TEMPLATE: &str = "additional_chat_templates/default.jinja";
/// Where templates for other uses lie.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// Most of them that are named.
const MOST_NAMED: usize = 8;
/// Where processors of pictures and text keep theirs.
const PROCESSOR_FILE: &str = "chat_template.json";
/// The largest template that is read.
const FILE_CAP: u64 = 4 << 20;
/// The largest text that a template may make.
const OUTPUT_CAP: usize = 16 << 20;
/// How long reading a template, and rendering a chat, may take.
const LONGEST: Duration = Duration::from_secs(2);
/// The stack that templates are read and rendered on; expressions of the most tokens that one may
/// have need a tenth.
const STACK: usize = 256 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// What a template makes a text of, as transformers' `apply_chat_template` takes it.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and what else a template reads of a turn.
    pub messages: Vec<Value>,
    /// Functions that the model may call, as JSON schemas.
    pub tools: Vec<Value>,
    /// Variables of the template beside these, such as `enable_thinking`.
    pub settings: Map<String, Value>,
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// Where it stands.
    path: PathBuf,
    /// Prepared for the engine.
    source: String,
    /// The special tokens by the names that templates know.
    tokens: BTreeMap<String, String>,
    /// What the files say that isn't heeded.
    unheeded: Vec<String>,
}

impl ChatTemplate {
    /// Reads the template of a bundle: `chat_template.jinja`, the one in `tokenizer_config.json`,
    /// or `chat_template.json`.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] if there is none; [`RuntimeError::File`] for a file that can't
    /// be read, and for a template that can't.
    pub fn of_bundle(bundle: &Bundle) -> Result<Self> {
        Self::read(bundle.folder(), |name| bundle.side_file(name))
    }

    /// Reads the template of a checkpoint, as [`Self::of_bundle`].
    ///
    /// # Errors
    /// As [`Self::of_bundle`].
    pub fn load(folder: &Path) -> Result<Self> {
        Self::read(folder, |name| {
            Some(folder.join(name)).filter(|path| path.is_file())
        })
    }

    /// `find` gives the files that are there.
    fn read(folder: &Path, find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let files = read_files(&find)?;
        let (path, source) = if let Some(path) =
            find(TEMPLATE_FILE).or_else(|| find(DEFAULT_TEMPLATE))
        {
            let text = read_document(&path, FILE_CAP)?;
            (path, text)
        } else if let Some(source) = template_of(&files.config) {
            (folder.join(CONFIG_FILE), source)
        } else {
            let processor =
                find(PROCESSOR_FILE).map_or_else(|| Ok(Map::new()), |path| read_object(&path))?;
            let source = template_of(&processor).ok_or_else(|| {
                let reason = "the model has no chat template, so it isn't made for conversations";
                RuntimeError::unsupported(
                    folder.display().to_string(),
                    reason,
                    "Use `--prompt TEXT` instead",
                )
            })?;
            (folder.join(PROCESSOR_FILE), source)
        };
        let tokens = named(&files, &find);
        let source = source::prepare(&source)
            .map_err(|problem| RuntimeError::file(&path, format!("the chat template {problem}")))?;
        let template = Self {
            path,
            source,
            tokens,
            unheeded: unheeded(folder, &files.config),
        };
        let source = template.source.clone();
        template.on_its_own_stack("can't be read", move || {
            environment(&source, UNIX_EPOCH).map(drop)
        })?;
        Ok(template)
    }

    /// A sentence for templates that aren't heeded.
    pub fn unheeded(&self) -> &[String] {
        &self.unheeded
    }

    /// The text of a conversation. `reply` adds the beginning of the assistant's next turn; `now`
    /// is the time that templates may put into the system's turn (UTC).
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a template that refuses the conversation, fails, or takes too
    /// long or too much room.
    pub fn render(&self, messages: &[ChatMessage], reply: bool, now: SystemTime) -> Result<String> {
        let turn = |turn: &ChatMessage| json!({"role": turn.role, "content": turn.content});
        let conversation = Conversation {
            messages: messages.iter().map(turn).collect(),
            ..Conversation::default()
        };
        self.render_conversation(&conversation, reply, now)
    }

    /// The text of a conversation with whatever else templates may ask for, as [`Self::render`].
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
        reply: bool,
        now: SystemTime,
    ) -> Result<String> {
        let (source, context) = (self.source.clone(), self.context(conversation, reply));
        let text = self.on_its_own_stack("refuses this conversation", move || {
            let mut text = Capped(Vec::new());
            let environment = environment(&source, now)?;
            environment
                .get_template("chat")?
                .render_captured_to(context, &mut text)?;
            Ok(text.0)
        })?;
        String::from_utf8(text)
            .map_err(|_| RuntimeError::Bug("a chat template made text that isn't UTF-8".to_owned()))
    }

    /// Whether the template has this text in it.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// What transformers passes: what isn't there is none, and every special token has its name.
    fn context(&self, conversation: &Conversation, reply: bool) -> minijinja::Value {
        let none = minijinja::Value::from(());
        let list = |list: &[Value]| minijinja::Value::from(Serde(list));
        let tools = match conversation.tools.as_slice() {
            [] => none.clone(),
            tools => list(tools),
        };
        let fixed = [
            ("messages", list(&conversation.messages)),
            ("tools", tools),
            ("documents", none),
            ("add_generation_prompt", reply.into()),
        ];
        let tokens = self
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), minijinja::Value::from(token.as_str())));
        let settings = conversation
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), minijinja::Value::from(Serde(value))));
        minijinja::Value::from_pairs(settings.chain(tokens).chain(fixed))
    }

    /// Does `work` with the engine in a thread whose stack is large enough for whatever passed
    /// [`source::prepare`], and for no longer than a chat may take.
    fn on_its_own_stack<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        let described = move || work().map_err(|error| format!("{what}: {}", describe(&error)));
        let outcome = contain_within("the template engine", LONGEST, STACK, described);
        outcome.map_err(|problem| {
            RuntimeError::file(&self.path, format!("the chat template {problem}"))
        })
    }
}

/// `chat_template` is a text, or a list or an object of named ones of which `default` is meant for
/// conversations.
fn template_of(config: &Map<String, Value>) -> Option<String> {
    let source = match config.get("chat_template")? {
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .map(|entry| &entry["template"])?,
        Value::Object(named) => named.get("default")?,
        source => source,
    };
    source.as_str().map(str::to_owned)
}

/// Names the templates beside the one for conversations.
fn unheeded(folder: &Path, config: &Map<String, Value>) -> Vec<String> {
    let mut names: Vec<String> = match config.get("chat_template") {
        Some(Value::Array(named)) => named
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .map(str::to_owned)
            .collect(),
        Some(Value::Object(named)) => named.keys().cloned().collect(),
        _ => vec![],
    };
    let more = std::fs::read_dir(folder.join(TEMPLATE_FOLDER))
        .into_iter()
        .flatten()
        .flatten();
    names.extend(more.filter_map(|entry| {
        entry
            .file_name()
            .to_str()?
            .strip_suffix(".jinja")
            .map(str::to_owned)
    }));
    names.retain(|name| name != "default");
    names.sort();
    names.dedup();
    let named: Vec<String> = names
        .iter()
        .take(MOST_NAMED)
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    if named.is_empty() {
        vec![]
    } else {
        vec![format!(
            "the chat templates {} aren't heeded: the default one is taken",
            named.join(", ")
        )]
    }
}

/// The innermost reason: templates' own `raise_exception` reads best alone.
fn describe(error: &minijinja::Error) -> String {
    let line = error
        .line()
        .map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps, or makes too much text".to_owned(),
        kind => error
            .detail()
            .map_or_else(|| kind.to_string(), str::to_owned),
    };
    format!("{detail}{line}")
}

/// Output of a template, refused when it grows too long.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_CAP {
            return Err(io::Error::other("the text of the template is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
