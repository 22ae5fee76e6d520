//! Runs a bundle: the backend, sessions over its graphs, lossless speculative decoding, encoders, diffusion models and their schedulers.
//!
//! Reads bundles through their manifest alone and knows nothing of importers or passes. Never prints, and never reads the
//! environment: callers hand over what they found in it. `ort` types don't leave this module.

mod answers;
mod backend;
mod bundle;
mod chat;
mod costs;
mod decoder;
mod diffusion;
mod encoder;
mod error;
mod measure;
mod sampler;
mod scheduler;
mod session;
mod special_tokens;
mod speculative;
mod text;
mod token_model;
mod weights;

pub use answers::{Choice, choices, cosine, sentence_vector};
pub use backend::{Backend, BackendKind, BackendSearch, Candidate, Origin, Provider, start};
pub use bundle::Bundle;
pub use chat::{ChatMessage, ChatTemplate};
pub use costs::{assumed_costs, cost_key};
pub use decoder::{DecoderOptions, DecoderSession};
pub use diffusion::{
    Classifier, Conditions, DiffusionSession, FloatTensor, SampleRequest, SamplerChoice, SamplerWishes, Samples, Statistics, choose_sampler,
    mean_psnr, noise, psnr, read_tensors,
};
pub use encoder::{EncoderSession, Rows};
pub use error::{Result, RuntimeError};
pub use measure::{Equality, PromptMeasurement, calibrate, calibration_prompt, compare, decode, latencies, measure, time_passes};
pub use sampler::{Distribution, Sampler, SamplingOptions};
pub use scheduler::{OutputLayout, SamplerState, SchedulerError, SchedulerKind, SchedulerProblem, parse_scheduler_config, sampling_plan};
pub use session::{HostData, HostTensor, Session, SessionOptions, check_mask};
pub use speculative::{DecodeOptions, Decoder, DraftLength, Generation, SourceStats, Stats, StopReason};
pub use text::{TextStream, TextTokenizer, TokenizedText};
pub use token_model::{Logits, TokenModel};
pub use weights::SharedWeights;
