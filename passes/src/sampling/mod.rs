//! Sampling within a pass: what images are made of, the network as a sampler evaluates it, the way back
//! through a sampler, and how far images are from others.

mod distance;
mod guidance;
mod texts;
mod way_back;

pub(crate) use distance::{mean_logarithm, mean_square};
pub(crate) use guidance::{Feed, Guidance, Start};
pub(crate) use texts::{TextOptions, fingerprint};
pub(crate) use way_back::{WayBack, accumulate};
