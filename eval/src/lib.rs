//! Runs dlc graphs on candle: forward, and vector-Jacobian products. The oracle of the tests and
//! the engine of scoring.
//!
//! Slow and obvious on purpose: every op is written out in primitive tensor operations. [`run`]
//! evaluates a whole graph by its boundary names and holds one node's weights at a time;
//! [`Segment`] evaluates some nodes of a graph, with their weights loaded once, for many inputs,
//! and differentiates them.
//!
//! **Precision.** Whatever float type a graph has, everything is computed in `f32` from the
//! weights' stored values. A `cast` between float types is the identity: activations are not
//! rounded, so that a half-precision graph is judged against its exact meaning.
//!
//! **Threads.** Nothing here starts a thread or a pool; matrix products are split over the rayon
//! pool that the caller has installed. With a pool of one thread everything runs on it. Results
//! don't depend on what ran before them.
//!
//! This crate never reads files, never prints, never changes a graph, and lets no candle type out.

#![warn(missing_docs)]

mod array;
mod attention;
mod error;
mod execute;
mod experts;
mod image;
mod loss;
mod ops;
mod peaks;
mod product;
mod pullback;
mod quantized;
mod rows;
mod run;
mod segment;
mod symbols;
mod trace;

pub use array::{Array, ArrayData, Values};
pub use error::EvalError;
pub use loss::cross_entropy;
pub use peaks::Peaks;
pub use product::{Transposed, product};
pub use run::{run, run_noting_peaks};
pub use segment::Segment;
pub use trace::{Gradients, Trace, Wanted};
