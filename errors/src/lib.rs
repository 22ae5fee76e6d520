//! What the errors of all crates of dlc have in common: whose fault they are, and how text of
//! strangers stands in their messages.
//!
//! It is a crate of its own because every other crate needs it, and it needs none.

#![warn(missing_docs)]

mod fault;
pub mod printable;

pub use fault::{Fault, Faulty};
