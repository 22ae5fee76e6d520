//! Results for machines: an array at the end, or a line each as they are ready.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use dlc_errors::printable::escaped_json;
use serde_json::Value;

use super::failure::Result;
use super::output::Output;
use super::signals;

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
    /// Of the array; also for whoever ends this process before it is done.
    all: Arc<Mutex<Vec<Value>>>,
}

impl Records {
    pub fn new(args: RecordArgs) -> Self {
        Self {
            args,
            all: Arc::default(),
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
            self.collect(value);
        }
        Ok(())
    }

    fn collect(&mut self, value: Value) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(value);
        if let [_first] = all.as_slice() {
            let all = Arc::clone(&self.all);
            signals::print_at_end(move || {
                let all = all.lock().unwrap_or_else(PoisonError::into_inner);
                Output::new(true).json(&*all)
            });
        }
    }

    /// Prints what is to be printed at the end.
    pub fn finish(self) -> Result<()> {
        if !signals::settle()? {
            Output::new(self.args.json).json(&[(); 0])?;
        }
        Ok(())
    }
}
