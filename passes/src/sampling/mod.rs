//! Sampling within a pass: what images are made of, the network as a sampler evaluates it, and the way
//! back through a sampler.

mod guidance;
mod texts;
mod way_back;

pub(crate) use guidance::{Feed, Guidance, Start};
pub(crate) use texts::{TextOptions, fingerprint};
pub(crate) use way_back::{WayBack, accumulate};
