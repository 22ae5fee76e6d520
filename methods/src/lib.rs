//! The arithmetic of dlc's methods, apart from what runs the models.
//!
//! - [`speculation`]: what a draft should gain, how long it should guess, and the decoding loop
//!   itself, over any [`TokenModel`](speculation::TokenModel).
//! - [`divergence`]: how much two models differ on the same text; [`difference`]: in the vectors
//!   that they make.
//! - [`diffusion`]: schedulers as tables of numbers, the state of a sampler, guidance and noise.
//!
//! Passes and the runtime use the same code. It opens no file, runs no graph and never prints.

#![warn(missing_docs)]

pub mod difference;
pub mod diffusion;
pub mod divergence;
mod error;
pub mod speculation;

pub use error::{MethodError, Result};
