//! What a command fails with: its message, the causes, and whose fault it is.

use std::error::Error;
use std::io;

use dlc_errors::{Fault, Faulty};

/// Result of anything in a command.
pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The end of a command that can't go on.
#[derive(Debug)]
pub(super) struct Failure {
    pub fault: Fault,
    /// Whether nobody reads any more what is printed, which is no failure.
    pub pipe_closed: bool,
    /// The message, and its causes.
    chain: Vec<String>,
}

impl Failure {
    /// With this message.
    pub fn of(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            pipe_closed: false,
            chain: vec![message.into()],
        }
    }

    /// What the user asked for doesn't work.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of(Fault::BadInput, message)
    }

    /// An error that nothing a user does should lead to.
    pub fn bug(error: impl Error) -> Self {
        Self::of(Fault::Bug, error.to_string())
    }

    /// With a message above the error's own.
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.chain.insert(0, what.into());
        self
    }

    /// The message and its causes; a cause that a message above it quotes isn't said twice.
    pub fn message(&self) -> String {
        self.chain
            .iter()
            .fold(String::new(), |text, cause| match text {
                text if text.is_empty() => cause.clone(),
                text if text.contains(cause.as_str()) => text,
                text => format!("{text}: {cause}"),
            })
    }
}

impl<E: Faulty + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let fault = error.fault();
        let mut failure = Self {
            fault,
            pipe_closed: false,
            chain: vec![],
        };
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(error) = next {
            failure.pipe_closed |= error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
            failure.chain.push(error.to_string());
            next = error.source();
        }
        failure
    }
}

/// Says what a command was about when something failed or was missing.
pub(super) trait Context<T> {
    /// With a message above the error's own.
    fn context(self, what: impl Into<String>) -> Result<T>;
    /// As [`context`](Self::context), with a message that is only made when it is needed.
    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.with_context(|| what)
    }

    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.ok_or_else(|| Failure::usage(what))
    }

    fn with_context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.ok_or_else(|| Failure::usage(what()))
    }
}

/// Ends a command with a message about what the user asked for.
macro_rules! bail {
    ($message:literal $($values:tt)*) => {
        return Err($crate::cli::failure::Failure::usage(format!($message $($values)*)))
    };
    ($message:expr) => {
        return Err($crate::cli::failure::Failure::usage($message))
    };
}
pub(super) use bail;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once_and_closed_pipes_are_known() {
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        let failure = Err::<(), _>(pipe).context("stdout").unwrap_err();
        assert!(failure.pipe_closed && failure.message() == "stdout: broken pipe");
        let error = Err::<(), _>(Failure::usage("b")).context("a b c");
        assert_eq!(error.unwrap_err().message(), "a b c");
        assert_eq!(None::<()>.context("gone").unwrap_err().message(), "gone");
    }
}
