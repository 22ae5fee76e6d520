//! Which flags were given, and which of them have no effect on a bundle.
//!
//! One table says of each flag of `dlc run` and `dlc bench` when it has one; a test holds it
//! against the definition of the commands.

use std::collections::BTreeSet;

use clap::ArgMatches;
use clap::parser::ValueSource;
use dlc_ir::{ModelInfo, Scores, Task};
use dlc_runtime::Bundle;

use super::failure::{Result, bail};

/// When some flags have an effect.
struct Row {
    flags: &'static [&'static str],
    /// What they are for.
    purpose: &'static str,
    applies: fn(&Facts<'_>) -> bool,
    way_out: &'static str,
}

/// What decides which flags have an effect.
struct Facts<'a> {
    model: &'a ModelInfo,
    /// Whether a draft proposes tokens.
    drafts: bool,
    /// Whether tokens are proposed that followed the same ones before.
    looks_up: bool,
    /// Whether there is a pruned encoder.
    pruned: bool,
    /// Whether there is a text encoder for the prompts of images.
    reads_prompts: bool,
}

const LEAVE_OUT: &str = "leave it out";
const DECODERS: &str = "models that continue texts";
const ENCODERS: &str = "encoders";
const DIFFUSION: &str = "models that make images";

/// Flags of `dlc run`.
const RUN: &[Row] = &[
    Row {
        flags: &["prompt", "prompt-file", "prompts", "chat"],
        purpose: DECODERS,
        applies: |facts| facts.continues(),
        way_out: "give it --text TEXT or --texts FILE",
    },
    Row {
        flags: &["text", "texts"],
        purpose: ENCODERS,
        applies: |facts| facts.encodes(),
        way_out: "give it --prompt TEXT, --prompts FILE or --chat",
    },
    Row {
        flags: &[
            "system",
            "stop",
            "no-echo",
            "max-tokens",
            "sample",
            "temperature",
            "top-k",
            "top-p",
            "min-p",
            "seed",
            "repetition-penalty",
            "presence-penalty",
            "frequency-penalty",
            "no-repeat-ngram",
            "min-tokens",
            "logit-bias",
            "suppress-tokens",
            "logprobs",
            "json-schema",
            "json-object",
            "regex",
            "grammar",
            "no-generation-config",
            "no-draft",
            "lookup",
            "no-lookup",
            "lookup-history",
            "draft-tokens",
            "draft-confidence",
            "draft-cache",
        ],
        purpose: DECODERS,
        applies: |facts| facts.continues(),
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &["truncate", "pruned", "prompt-name", "top"],
        purpose: ENCODERS,
        applies: |facts| facts.encodes(),
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &["question"],
        purpose: "encoders that find answers in texts",
        applies: |facts| facts.model.task == Task::QuestionAnswering,
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &["top"],
        purpose: "models that choose among classes, words or answers",
        applies: |facts| facts.chooses(),
        way_out: LEAVE_OUT,
    },
    DRAFT,
    PROPOSALS,
];

/// Flags of `dlc bench`.
const BENCH: &[Row] = &[
    Row {
        flags: &["prompts"],
        purpose: "models that read texts",
        applies: |facts| !facts.samples() || facts.reads_prompts,
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &["prompts"],
        purpose: "comparing a pruned encoder with the whole one, and of texts on models that continue them",
        applies: |facts| !facts.encodes() || facts.pruned,
        way_out: "leave it out, or compile with --pass fit-prune",
    },
    Row {
        flags: &[
            "max-tokens",
            "no-generation-config",
            "lookup",
            "no-lookup",
            "lookup-history",
            "draft-tokens",
            "draft-confidence",
            "draft-cache",
            "suite",
            "calibrate",
            "plot",
        ],
        purpose: DECODERS,
        applies: |facts| facts.continues(),
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &["lengths"],
        purpose: ENCODERS,
        applies: |facts| facts.encodes(),
        way_out: LEAVE_OUT,
    },
    Row {
        flags: &[
            "count",
            "classifier",
            "statistics",
            "memory-of",
            "steps",
            "scheduler",
            "guidance",
            "seed",
            "batch",
            "embeddings",
        ],
        purpose: DIFFUSION,
        applies: |facts| facts.samples(),
        way_out: LEAVE_OUT,
    },
    DRAFT,
    PROPOSALS,
];

const DRAFT: Row = Row {
    flags: &["draft-cache", "draft-confidence"],
    purpose: "drafts, and none is used here",
    applies: |facts| facts.drafts,
    way_out: "leave it out, or use a bundle with a draft",
};
const PROPOSALS: Row = Row {
    flags: &["draft-tokens"],
    purpose: "proposed tokens, and neither a draft nor prompt lookup proposes any here",
    applies: |facts| facts.drafts || facts.looks_up,
    way_out: LEAVE_OUT,
};

impl Facts<'_> {
    fn continues(&self) -> bool {
        self.model.task == Task::TextGeneration
    }

    fn samples(&self) -> bool {
        self.model.task == Task::ImageGeneration
    }

    fn encodes(&self) -> bool {
        !self.continues() && !self.samples()
    }

    /// Whether several answers have an order.
    fn chooses(&self) -> bool {
        match self.model.task {
            Task::FillMask | Task::QuestionAnswering => true,
            Task::TextClassification => self.model.scores != Scores::Numbers,
            _ => false,
        }
    }
}

/// The flags that stand on the command line, by their long names.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeSet<String>);

impl Given {
    /// The flags of the subcommand.
    pub fn new(command: &clap::Command, matches: &ArgMatches) -> Self {
        let Some((name, matches)) = matches.subcommand() else {
            return Self::default();
        };
        let arguments = command
            .find_subcommand(name)
            .into_iter()
            .flat_map(clap::Command::get_arguments);
        let given = arguments.filter(|arg| {
            matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        Self(
            given
                .filter_map(clap::Arg::get_long)
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Refuses flags of `dlc run` without effect on this bundle.
    pub fn check_run(&self, bundle: &Bundle) -> Result<()> {
        self.check(bundle, RUN)
    }

    /// Refuses flags of `dlc bench` without effect on this bundle.
    pub fn check_bench(&self, bundle: &Bundle) -> Result<()> {
        self.check(bundle, BENCH)
    }

    fn check(&self, bundle: &Bundle, rows: &[Row]) -> Result<()> {
        let has = |flag: &str| self.0.contains(flag);
        let model = &bundle.manifest().model;
        let facts = Facts {
            model,
            drafts: bundle.graph("draft").is_ok() && !has("no-draft"),
            looks_up: !has("no-lookup"),
            pruned: bundle.graph("pruned").is_ok(),
            reads_prompts: model.prompts.is_some(),
        };
        for row in rows.iter().filter(|row| !(row.applies)(&facts)) {
            let Some(flag) = row.flags.iter().find(|flag| has(flag)) else {
                continue;
            };
            bail!(
                "--{flag} is for {}, and has no effect on a {} for {}: {}",
                row.purpose,
                model.family,
                model.task.name(),
                row.way_out
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags that have an effect on every bundle.
    const COMMON: &[&str] = &[
        "backend", "ort-lib", "provider", "device", "threads", "json", "jsonl", "repeats",
    ];

    #[test]
    fn the_tables_know_every_flag_and_no_other() {
        let command = crate::cli::command();
        for (name, rows) in [("run", RUN), ("bench", BENCH)] {
            let known: BTreeSet<&str> = rows
                .iter()
                .flat_map(|row| row.flags)
                .chain(COMMON)
                .copied()
                .collect();
            let flags: BTreeSet<&str> = command
                .find_subcommand(name)
                .into_iter()
                .flat_map(clap::Command::get_arguments)
                .filter_map(clap::Arg::get_long)
                .collect();
            let unknown: Vec<_> = flags.difference(&known).collect();
            assert!(unknown.is_empty(), "{name}: {unknown:?} stand in no row");
            let gone: Vec<_> = rows
                .iter()
                .flat_map(|row| row.flags)
                .filter(|flag| !flags.contains(*flag))
                .collect();
            assert!(gone.is_empty(), "{name}: there is no {gone:?}");
        }
    }
}
