//! The `dlc` command: one file per subcommand.
//!
//! Results go to stdout, everything for people to stderr. The only part of dlc that reads the
//! environment and prints.

mod backend;
mod bench;
mod cache;
mod compare;
mod compile;
mod completions;
mod convert;
mod demo;
mod destination;
mod diff;
mod diffusion;
mod doctor;
mod download;
mod drafting;
mod environment;
mod exit;
mod failure;
mod flags;
mod generation;
mod grammar;
mod hub;
mod input;
mod inspect;
mod library_folder;
mod memory;
mod merge;
mod models;
mod next_step;
mod open;
mod output;
mod passes;
mod phases;
mod progress;
mod prompts;
mod records;
mod room;
mod run;
mod sample;
mod score;
mod serve;
mod setup;
mod signals;
mod verify;
mod wheel;
mod write;

use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};
use dlc_files::guard::hush_contained_panics;

use self::flags::Given;
use self::phases::LogLevel;

/// Compiles a Hugging Face checkpoint into ONNX files that run faster, and checks that they still
/// compute the same.
#[derive(Debug, Parser)]
#[command(
    name = "dlc",
    version,
    max_term_width = 100,
    after_help = "Start with `dlc demo`."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// How much is said on stderr.
#[derive(Debug, clap::Args)]
struct Verbosity {
    /// Say what each phase took
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "quiet",
        help_heading = "Messages"
    )]
    verbose: bool,
    /// Say nothing but errors and results
    #[arg(short, long, global = true, help_heading = "Messages")]
    quiet: bool,
    /// What to say beside results, and all above it [default: info]
    #[arg(long, value_enum, global = true, value_name = "LEVEL", conflicts_with_all = ["verbose", "quiet"], help_heading = "Messages")]
    log_level: Option<LogLevel>,
}

impl Verbosity {
    fn level(&self) -> LogLevel {
        match (self.log_level, self.verbose, self.quiet) {
            (Some(level), ..) => level,
            (None, true, _) => LogLevel::Debug,
            (None, _, true) => LogLevel::Error,
            (None, ..) => LogLevel::Info,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Args),
    Convert(convert::Args),
    Merge(merge::Args),
    Score(score::Args),
    Run(run::Args),
    Sample(sample::Args),
    Serve(serve::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Compare(compare::Args),
    Verify(verify::Args),
    Passes(passes::Args),
    Doctor(doctor::Args),
    Setup(setup::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // While there is one thread.
    dlc_runtime::disable_telemetry();
    dlc_files::mapped::name_cut_files();
    signals::listen();
    let definition = command();
    let matches = definition
        .clone()
        .try_get_matches()
        .unwrap_or_else(|error| exit::usage(&error));
    let given = Given::new(&definition, &matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    phases::start(cli.verbosity.level(), environment::shows_progress());
    hush_contained_panics();
    // The panic's own message is on stderr by then.
    let outcome = std::panic::catch_unwind(|| run(&cli.command, &given));
    phases::pause();
    match outcome {
        Ok(Ok(code)) if code == exit::INTERRUPTED.into() => exit::interrupted(),
        Ok(Ok(code)) => code,
        Ok(Err(error)) => exit::report(&error),
        Err(_) => exit::bug(),
    }
}

fn run(command: &Command, given: &Given) -> failure::Result<ExitCode> {
    match command {
        Command::Compile(args) => compile::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Score(args) => score::run(args),
        Command::Run(args) => run::run(args, given),
        Command::Sample(args) => sample::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Bench(args) => bench::run(args, given),
        Command::Inspect(args) => inspect::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Passes(args) => passes::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Setup(args) => setup::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

/// The definition of the command line, for shell completions and for tests of its help.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
