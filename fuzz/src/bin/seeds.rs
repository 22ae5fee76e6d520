//! Writes the seeds of a target into a folder: `seeds TARGET FOLDER`.
#![allow(clippy::print_stderr)]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, folder] = arguments.as_slice() else {
        eprintln!("usage: seeds TARGET FOLDER");
        return ExitCode::from(2);
    };
    let write = |(i, seed): (usize, Vec<u8>)| std::fs::write(Path::new(folder).join(format!("seed-{i}")), seed);
    match dlc_fuzz::seeds(target).into_iter().enumerate().try_for_each(write) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{folder}: {error}");
            ExitCode::from(2)
        }
    }
}
