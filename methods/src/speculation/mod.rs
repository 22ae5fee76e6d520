//! Speculative decoding: costs and expected gain, token sampling, and the decoding loops, of one text
//! and of many at once.

mod batch;
mod constraint;
mod costs;
mod decoder;
mod processors;
mod rotation;
mod sampler;
mod suffix;
mod token_model;

pub use batch::{Batch, BatchModel, BatchOptions, BatchStats, Prefix, Progress, TextId};
pub use constraint::{Constraint, Grammar};
pub use costs::{
    ByFormat, CostTable, DraftCosts, StepCosts, are_pass_costs, best_gamma, expected_tokens,
    predicted_speedup,
};
pub use decoder::{
    Continuation, DecodeOptions, Decoder, DraftLength, Generation, Models, SourceStats, Stats,
    StopReason,
};
pub use processors::{LogitsProcessors, RowMemory};
pub use rotation::{KeyRotations, LengthRotation};
pub(crate) use sampler::argmax;
pub use sampler::{Distribution, Sampler, SamplingOptions, TIE, TokenLogprobs};
pub use suffix::{Guess, SuffixIndex};
pub use token_model::{Logits, Reading, TokenModel};
