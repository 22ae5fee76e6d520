//! The passes on a small decoder in text form. What needs a real checkpoint is tested in the root
//! package.
#![allow(missing_docs, clippy::unwrap_used)]

mod ablation;
mod cache;
mod choosing;
mod choosing_for_codes;
mod clean_up;
mod compensating;
mod draft;
mod fakes;
mod fitting_solvers;
mod learning;
mod merging;
mod model;
mod options;
mod progress;
mod quantizing;
mod quantizing_by_text;
mod quantizing_targets;
mod rejections;
mod scores;
mod sharding;
mod skipping;
mod trimming;
