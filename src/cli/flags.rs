//! Which flags were given, and which of them have no effect on a bundle's model.

use std::collections::BTreeSet;

use clap::ArgMatches;
use clap::parser::ValueSource;
use dlc_ir::{ModelInfo, Task};

use super::failure::{Result, bail};

/// Flags of `dlc run` for models that continue texts.
const RUN_DECODER: &[&str] = &[
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
    "no-repeat-ngram",
    "min-tokens",
    "no-generation-config",
    "no-draft",
    "draft-tokens",
    "lookup",
    "no-lookup",
    "draft-confidence",
    "draft-cache",
];
/// Flags of `dlc run` for encoders.
const RUN_ENCODER: &[&str] = &["top", "truncate", "pruned"];
/// Flags of `dlc bench` for models that continue texts.
const BENCH_DECODER: &[&str] = &[
    "max-tokens",
    "no-generation-config",
    "draft-tokens",
    "lookup",
    "no-lookup",
    "draft-confidence",
    "draft-cache",
    "suite",
    "calibrate",
    "plot",
];
/// Flags of `dlc bench` for encoders.
const BENCH_ENCODER: &[&str] = &["lengths"];
/// Flags of `dlc bench` for diffusion models.
const BENCH_DIFFUSION: &[&str] = &[
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
];

/// The flags that stand on the command line, by their long names.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeSet<String>);

/// What a model is, as far as flags are concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Decoder,
    Encoder,
    Diffusion,
}

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

    /// Refuses flags of `dlc run` that are for other models than this.
    pub fn check_run(&self, model: &ModelInfo) -> Result<()> {
        self.check(
            model,
            &[(Kind::Decoder, RUN_DECODER), (Kind::Encoder, RUN_ENCODER)],
        )
    }

    /// Refuses flags of `dlc bench` that are for other models than this.
    pub fn check_bench(&self, model: &ModelInfo) -> Result<()> {
        self.check(
            model,
            &[
                (Kind::Decoder, BENCH_DECODER),
                (Kind::Encoder, BENCH_ENCODER),
                (Kind::Diffusion, BENCH_DIFFUSION),
            ],
        )
    }

    fn check(&self, model: &ModelInfo, flags: &[(Kind, &[&str])]) -> Result<()> {
        let kind = match model.task {
            Task::TextGeneration => Kind::Decoder,
            Task::ImageGeneration => Kind::Diffusion,
            _ => Kind::Encoder,
        };
        for (other, names) in flags.iter().filter(|(other, _)| *other != kind) {
            let Some(flag) = names.iter().find(|name| self.0.contains(**name)) else {
                continue;
            };
            let family = &model.family;
            bail!(
                "--{flag} is for {}, and has no effect on a {family} for {}; leave it out",
                other.describe(),
                model.task.name()
            );
        }
        Ok(())
    }
}

impl Kind {
    fn describe(self) -> &'static str {
        match self {
            Self::Decoder => "models that continue texts",
            Self::Encoder => "encoders",
            Self::Diffusion => "models that make images",
        }
    }
}
