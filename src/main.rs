//! The `dlc` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    dlc::cli::main()
}
