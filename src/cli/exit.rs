//! Exit codes, and how errors look.

use std::borrow::Cow;
use std::io::{self, Write};
use std::process::ExitCode;

use dlc_exporters::{ExportError, temporary};
use dlc_ir::{Fault, IrError};
use dlc_passes::PassError;

use super::signals;
use crate::pipeline::PipelineError;
use crate::printable::{cut, escaped};
use crate::runtime::RuntimeError;

/// A check failed: `verify`, `diff --exit-code`, `bench` with unequal output.
pub(super) const CHECK_FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;
const UNSUPPORTED: u8 = 3;
const BUG: u8 = 70;
/// What commands return that were asked to stop; [`interrupted`] makes of it what shells show for
/// the signal that came.
pub(super) const INTERRUPTED: u8 = 130;

/// Characters of an error that are printed: what files say in it may have any length.
const LONGEST_MESSAGE: usize = 4000;
/// Says what a command that was asked to stop left behind, and returns its exit code.
pub(super) fn interrupted() -> ExitCode {
    signals::say_farewell(&temporary::remaining());
    signals::exit_code().into()
}

/// Prints the error and returns its exit code. A closed pipe is no error.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|e| {
        e.downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }) {
        return ExitCode::SUCCESS;
    }
    let code = code(error);
    if code == INTERRUPTED {
        return interrupted();
    }
    let _ = writeln!(
        io::stderr(),
        "error: {}",
        escaped(&cut(&message(error), LONGEST_MESSAGE))
    );
    if code == BUG { bug() } else { code.into() }
}

/// Says what was wrong with the command line, or the help or version that was asked for, and ends.
/// Arguments that would steer the terminal are printed escaped.
pub(super) fn usage(error: &clap::Error) -> ! {
    let text = error.render().to_string();
    if let Cow::Owned(escaped) = escaped(&text) {
        let _ = writeln!(io::stderr(), "{}", escaped.trim_end());
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Asks for a report, and returns the exit code of a bug.
pub(super) fn bug() -> ExitCode {
    let _ = writeln!(
        io::stderr(),
        "This is a bug in dlc. Please report it with the command that led here."
    );
    BUG.into()
}

/// The error and its causes; a cause that a message above it quotes isn't said twice.
fn message(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| match text {
            text if text.is_empty() => cause,
            text if text.contains(&cause) => text,
            text => format!("{text}: {cause}"),
        })
}

fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(is_interruption) {
        return INTERRUPTED;
    }
    let fault = error.chain().find_map(|e| {
        (e.downcast_ref::<PipelineError>().map(PipelineError::fault))
            .or_else(|| e.downcast_ref::<RuntimeError>().map(RuntimeError::fault))
            .or_else(|| e.downcast_ref::<PassError>().map(PassError::fault))
            .or_else(|| e.downcast_ref::<ExportError>().map(ExportError::fault))
            .or_else(|| e.downcast_ref::<IrError>().map(IrError::fault))
    });
    match fault {
        Some(Fault::Unsupported) => UNSUPPORTED,
        Some(Fault::Bug) => BUG,
        Some(Fault::BadInput) | None => BAD_INPUT,
    }
}

/// Whether it is the user's wish to stop that ended the work.
fn is_interruption(error: &(dyn std::error::Error + 'static)) -> bool {
    (error.downcast_ref().map(PipelineError::is_interruption))
        .or_else(|| error.downcast_ref().map(PassError::is_interruption))
        .or_else(|| error.downcast_ref().map(ExportError::is_interruption))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_was_stopped_ends_alike_whichever_part_says_so() {
        let stopped = [
            anyhow::Error::from(PassError::Interrupted),
            ExportError::Cancelled.into(),
            PipelineError::from(PassError::Interrupted).into(),
            PipelineError::from(ExportError::Cancelled).into(),
        ];
        for error in stopped {
            assert_eq!(code(&error), INTERRUPTED, "{error:?}");
            assert_eq!(code(&error.context("timing drafts")), INTERRUPTED);
        }
        let other = anyhow::Error::from(ExportError::Exists("out".into()));
        assert_eq!(code(&other), BAD_INPUT);
    }
}
