//! Chat templates: a conversation to the text that the model was trained on.
//!
//! The template is Jinja, as Hugging Face keeps it beside a checkpoint, and untrusted: steps, output and file sizes are capped, and it
//! reaches no file and no clock. Never tokenizes.

mod functions;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde::Serialize;
use serde_json::Value;

use super::bundle::read_capped;
use super::{Bundle, Result, RuntimeError};

const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The largest configuration or template that is read: those with many added tokens have a few hundred KB.
const FILE_CAP: u64 = 32 << 20;
/// The largest text that a template may make.
const OUTPUT_CAP: usize = 16 << 20;
/// Steps of the template engine; a long conversation takes some ten thousand.
const FUEL: u64 = 20_000_000;

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
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Reads the template of a bundle: `chat_template.jinja`, or the one in `tokenizer_config.json`.
    pub fn of_bundle(bundle: &Bundle) -> Result<Self> {
        Self::read(bundle.folder(), |name| bundle.side_file(name))
    }

    /// Reads the template of a checkpoint, as [`Self::of_bundle`].
    pub fn load(folder: &Path) -> Result<Self> {
        Self::read(folder, |name| Some(folder.join(name)).filter(|path| path.is_file()))
    }

    /// `find` gives the files that are there.
    fn read(folder: &Path, find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let config: Value = if let Some(path) = find(CONFIG_FILE) {
            serde_json::from_slice(&read_capped(&path, FILE_CAP)?).map_err(|error| RuntimeError::file(&path, format!("isn't JSON: {error}")))?
        } else {
            Value::Null
        };
        let source = if let Some(file) = find(TEMPLATE_FILE) {
            Some(String::from_utf8(read_capped(&file, FILE_CAP)?).map_err(|_| RuntimeError::file(&file, "isn't UTF-8 text"))?)
        } else {
            template_of(&config)
        };
        let source = source.ok_or_else(|| {
            RuntimeError::unsupported(
                folder.display().to_string(),
                "the model has no chat template, so it isn't made for conversations",
                "Use `--prompt TEXT` instead",
            )
        })?;
        let token = |name: &str| match &config[name] {
            Value::String(token) => token.clone(),
            other => other["content"].as_str().unwrap_or_default().to_owned(),
        };
        let template = Self { source, bos_token: token("bos_token"), eos_token: token("eos_token") };
        template.environment().map_err(|error| RuntimeError::file(folder, format!("the chat template can't be read: {}", describe(&error))))?;
        Ok(template)
    }

    /// The text of a conversation. `reply` adds the beginning of the assistant's next turn; `now` is the time that templates may put
    /// into the system's turn (UTC).
    pub fn render(&self, messages: &[ChatMessage], reply: bool, now: SystemTime) -> Result<String> {
        let mut text = Capped(Vec::new());
        let turns: Vec<_> =
            messages.iter().map(|turn| minijinja::Value::from_pairs([("role", turn.role.as_str()), ("content", turn.content.as_str())])).collect();
        let rendered = self.environment().and_then(|mut environment| {
            environment.add_function("strftime_now", move |format: &str| functions::strftime(format, now));
            let context = context! {
                messages => turns,
                add_generation_prompt => reply,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            };
            environment.get_template("chat")?.render_captured_to(context, &mut text).map(drop)
        });
        rendered.map_err(|error| RuntimeError::Input(format!("the chat template refuses this conversation: {}", describe(&error))))?;
        String::from_utf8(text.0).map_err(|_| RuntimeError::Bug("a chat template made text that isn't UTF-8".to_owned()))
    }

    /// Set up as Hugging Face's `apply_chat_template` does it.
    fn environment(&self) -> Result<Environment<'_>, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_filter("tojson", functions::tojson);
        environment.add_template("chat", &self.source)?;
        Ok(environment)
    }
}

/// `chat_template` is a text, or a list of named ones of which `default` is meant for conversations.
fn template_of(config: &Value) -> Option<String> {
    let source = match &config["chat_template"] {
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default").map(|entry| &entry["template"])?,
        source => source,
    };
    source.as_str().map(str::to_owned)
}

/// The innermost reason: templates' own `raise_exception` reads best alone.
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
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
