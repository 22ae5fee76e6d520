//! The reader and what it makes of files.
#![allow(clippy::unwrap_used)]

mod builder;
mod hostile;
mod models;
mod packings;
