//! Runs a bundle: the backend, sessions over its graphs, lossless speculative decoding, encoders,
//! diffusion models and their schedulers.
//!
//! Reads bundles through their manifest alone and knows nothing of importers or passes. Never
//! prints, and never reads the environment: callers hand over what they found in it. `ort` types
//! don't leave this module.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use dlc_runtime::methods::speculation::{DecodeOptions, Decoder};
//! use dlc_runtime::{BackendSearch, Bundle, DecoderOptions, DecoderSession, TextTokenizer, start};
//!
//! let bundle = Bundle::open(Path::new("my-llama-dlc"))?;
//! let backend = start(&BackendSearch::default())?;
//! let options = DecoderOptions::default();
//! let mut target = DecoderSession::open(&backend, &bundle, "target", None, &options)?;
//! let mut draft = DecoderSession::open(&backend, &bundle, "draft", None, &options)?;
//! draft.share_cache(&target);
//! let mut decoder = Decoder::new(&mut target, Some(&mut draft), DecodeOptions::default())?;
//! if let Some(tokenizer) = TextTokenizer::of_bundle(&bundle)? {
//!     let prompt = tokenizer.encode("In the beginning", true)?;
//!     let generation = decoder.generate(&prompt, &mut |_| ControlFlow::Continue(()))?;
//!     println!("{}", tokenizer.decode(&generation.tokens)?);
//! }
//! # Ok::<(), dlc_runtime::RuntimeError>(())
//! ```

#![warn(missing_docs)]

mod answers;
mod backend;
mod bundle;
mod chat;
mod costs;
mod decoder;
mod diffusion;
mod encoder;
mod error;
mod generation;
mod grammar;
mod measure;
mod prefixes;
mod relevance;
mod sentence;
mod session;
mod spans;
mod special_tokens;
mod stops;
mod text;
mod timing;
mod verification;
mod weights;

pub use answers::{Choice, choices, sentence_vector, similarity};
pub use backend::{
    Backend, BackendKind, BackendSearch, Candidate, Origin, Provider, disable_telemetry, start,
    telemetry_variable, unrunnable,
};
pub use bundle::Bundle;
pub use chat::{ChatMessage, ChatTemplate, Conversation};
pub use costs::{assumed_costs, cost_key};
pub use decoder::{DecoderOptions, DecoderSession};
pub use diffusion::{
    Conditions, DiffusionSession, EncodedPrompt, FloatTensor, ImageDecoder, ImageEncoder, Negative,
    PromptEncoder, PromptReader, PromptTokenizer, PromptTokens, SampleProgress, SampleRequest,
    SamplerChoice, SamplerWishes, Samples, TextState, TextStates, TextTokens, choose_sampler,
    read_tensors,
};
/// What decodes and samples: the loop, the samplers, the schedulers.
pub use dlc_methods as methods;
pub use encoder::{EncoderSession, Rows};
pub use error::{Result, RuntimeError};
pub use generation::{GenerationConfig, SamplingDefaults};
pub use grammar::{GrammarCompiler, GrammarSource, TextGrammar};
pub use measure::{
    Equality, PromptMeasurement, calibrate, calibration_prompt, compare, decode, latencies,
    measure, measure_after, time_passes,
};
pub use prefixes::PrefixFile;
pub use relevance::{CrossEncoder, QueryPair, Relevance};
pub use sentence::{SentenceEncoder, TextLimits, TextVector, sentence_of};
pub use session::{HostData, HostTensor, Session, SessionOptions};
pub use spans::{Answer, answers};
pub use stops::StopStrings;
pub use text::{TextStream, TextTokenizer, TokenizedPair, TokenizedText};
pub use timing::Timing;
pub use verification::{Fillers, Verification};
pub use weights::SharedWeights;
