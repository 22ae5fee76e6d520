//! The reader and what it makes of files.

mod builder;
mod hostile;
mod models;
mod packings;
