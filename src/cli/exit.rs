//! Exit codes, and how errors look.

use std::borrow::Cow;
use std::io::{self, Write};
use std::process::ExitCode;

use dlc_errors::Fault;
use dlc_errors::printable::{cut, escaped};
use dlc_files::temporary;

use super::failure::Failure;
use super::signals;

/// A check failed: `verify`, `compare --max-kl`, `diff --exit-code`, `bench` with unequal output.
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
pub(super) fn report(failure: &Failure) -> ExitCode {
    if failure.pipe_closed {
        return ExitCode::SUCCESS;
    }
    let code = match failure.fault {
        Fault::Interrupted => return interrupted(),
        Fault::Unsupported => UNSUPPORTED,
        Fault::BadInput | Fault::Model => BAD_INPUT,
        Fault::Bug => BUG,
    };
    let _ = writeln!(
        io::stderr(),
        "error: {}",
        escaped(&cut(&failure.message(), LONGEST_MESSAGE))
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
