//! Whose fault an error is: the command makes exit codes of it.

use std::error::Error;
use std::io;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user's input or usage is wrong.
    BadInput,
    /// The input is fine, but dlc can't do it.
    Unsupported,
    /// A model that was accepted failed as it ran, whatever was asked of it.
    Model,
    /// A bug in dlc.
    Bug,
    /// Nobody's: the user asked to stop.
    Interrupted,
}

/// An error that knows whose fault it is.
pub trait Faulty: Error {
    /// Whose fault the error is.
    fn fault(&self) -> Fault;
}

/// What the system refuses is a file or a device that the user named.
impl Faulty for io::Error {
    fn fault(&self) -> Fault {
        Fault::BadInput
    }
}
