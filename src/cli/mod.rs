//! The `dlc` command: one file per subcommand.
//!
//! Results go to stdout, everything for people to stderr. The only part of dlc that reads the environment and prints.

mod backend;
mod bench;
mod bench_calibrate;
mod bench_decoder;
mod bench_diffusion;
mod bench_encoder;
mod compile;
mod completions;
mod demo;
mod diff;
mod diffusion;
mod doctor;
mod drafting;
mod encode;
mod environment;
mod exit;
mod inspect;
mod memory;
mod merge;
mod models;
mod open;
mod output;
mod passes;
mod progress;
mod prompts;
mod run;
mod sample;
mod signals;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Compiles a Hugging Face checkpoint into ONNX files that run faster, and proves that they still say the same.
#[derive(Debug, Parser)]
#[command(name = "dlc", version, max_term_width = 100, after_help = "Start with `dlc demo`.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Args),
    Merge(merge::Args),
    Run(run::Args),
    Sample(sample::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Verify(verify::Args),
    Passes(passes::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Completions(completions::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    crate::mapped::name_cut_files();
    signals::listen();
    let cli = Cli::parse();
    // The panic's own message is on stderr by then.
    match std::panic::catch_unwind(|| run(&cli.command)) {
        Ok(Ok(code)) if code == exit::INTERRUPTED.into() => exit::interrupted(),
        Ok(Ok(code)) => code,
        Ok(Err(error)) => exit::report(&error),
        Err(_) => exit::bug(),
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Compile(args) => compile::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Run(args) => run::run(args),
        Command::Sample(args) => sample::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Passes(args) => passes::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

/// The definition of the command line, for shell completions and for tests of its help.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
