//! Results for machines: an array at the end, or a line each as they are ready.

use std::io::{self, Write};

use dlc_errors::printable::escaped_json;
use serde_json::Value;

use super::failure::Result;
use super::output::Output;

/// How results are printed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct RecordArgs {
    /// Print the results as a JSON array
    #[arg(long)]
    json: bool,
    /// Print each result as a line of JSON when it is ready
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
}

impl RecordArgs {
    /// Whether people read the results.
    pub fn are_for_people(self) -> bool {
        !self.json && !self.jsonl
    }
}

/// Takes results as they are ready.
#[derive(Debug)]
pub(super) struct Records {
    args: RecordArgs,
    all: Vec<Value>,
}

impl Records {
    pub fn new(args: RecordArgs) -> Self {
        Self {
            args,
            all: Vec::new(),
        }
    }

    /// A result for people; left out where machines read.
    pub fn text(&self, text: &str) -> Result<()> {
        Output::new(!self.args.are_for_people()).result(text)
    }

    /// A result for machines; left out where people read.
    pub fn push(&mut self, value: Value) -> Result<()> {
        if self.args.jsonl {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{}", escaped_json(&value.to_string()))?;
            stdout.flush()?;
        } else if self.args.json {
            self.all.push(value);
        }
        Ok(())
    }

    /// Prints what is to be printed at the end.
    pub fn finish(self) -> Result<()> {
        Output::new(self.args.json).json(&self.all)
    }
}
