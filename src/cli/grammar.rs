//! Flags that say what form a text has.

use std::path::PathBuf;
use std::sync::Arc;

use dlc_files::read_document;
use dlc_runtime::methods::speculation::{DecodeOptions, Grammar};
use dlc_runtime::{GrammarCompiler, GrammarSource, TextTokenizer};

use super::failure::{Failure, Result};

/// The largest schema or grammar that is read.
const FILE_CAP: u64 = 1 << 20;

/// What form a text has.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub(super) struct GrammarArgs {
    /// Write JSON of the schema in this file
    #[arg(long, value_name = "FILE", help_heading = "Choosing tokens")]
    json_schema: Option<PathBuf>,
    /// Write a JSON object
    #[arg(long, help_heading = "Choosing tokens")]
    json_object: bool,
    /// Write what this regular expression matches
    #[arg(long, value_name = "REGEX", help_heading = "Choosing tokens")]
    regex: Option<String>,
    /// Write what the grammar in this file allows, in Lark's notation
    #[arg(long, value_name = "FILE", help_heading = "Choosing tokens")]
    grammar: Option<PathBuf>,
}

impl GrammarArgs {
    /// Puts the grammar into `options`, whose stop tokens end texts.
    pub fn apply(
        &self,
        options: &mut DecodeOptions,
        tokenizer: &TextTokenizer,
        vocab: usize,
    ) -> Result<()> {
        if let Some(source) = self.source()? {
            let compiler = GrammarCompiler::new(tokenizer, vocab, &options.stop_tokens)?;
            let grammar: Arc<dyn Grammar> = Arc::new(compiler.compile(&source)?);
            options.grammar = Some(grammar);
        }
        Ok(())
    }

    fn source(&self) -> Result<Option<GrammarSource>> {
        if let Some(file) = &self.json_schema {
            let schema = serde_json::from_str(&read_document(file, FILE_CAP)?);
            let schema = schema.map_err(|error| {
                Failure::usage(format!("{}: isn't JSON: {error}", file.display()))
            })?;
            return Ok(Some(GrammarSource::JsonSchema(schema)));
        }
        if let Some(file) = &self.grammar {
            return Ok(Some(GrammarSource::Lark(read_document(file, FILE_CAP)?)));
        }
        let regex = self.regex.clone().map(GrammarSource::Regex);
        Ok(regex.or(self.json_object.then_some(GrammarSource::JsonObject)))
    }
}
