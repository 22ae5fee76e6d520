//! Opens what decoding needs: bundle, tokenizer, target and draft.

use std::path::Path;

use anyhow::Result;

use super::backend::BackendArgs;
use crate::runtime::{Backend, Bundle, DecoderOptions, DecoderSession, RuntimeError, SharedWeights, TextTokenizer};

/// A bundle ready to decode.
#[derive(Debug)]
pub(super) struct Models {
    pub bundle: Bundle,
    pub backend: Backend,
    pub tokenizer: TextTokenizer,
    pub target: DecoderSession,
    pub draft: Option<DecoderSession>,
}

impl Models {
    pub fn open(path: &Path, backend: &BackendArgs, with_draft: bool) -> Result<Self> {
        let bundle = super::open::bundle(path)?;
        let tokenizer = bundle.side_file("tokenizer.json").ok_or_else(|| RuntimeError::Unsupported {
            what: path.display().to_string(),
            reason: "the bundle has no tokenizer.json, so it can't read or write text".into(),
            fix: "Put the model's tokenizer.json beside its config.json and compile it again".into(),
        })?;
        let tokenizer = TextTokenizer::load(&tokenizer)?;
        let options = DecoderOptions { session: backend.session(), capacity: None };
        let backend = backend.start()?;
        let weights = SharedWeights::open(&bundle, &backend)?;
        let target = DecoderSession::open(&backend, &bundle, "target", weights.as_ref(), &options)?;
        let has_draft = with_draft && bundle.manifest().graphs.iter().any(|g| g.name == "draft");
        let draft = has_draft.then(|| DecoderSession::open(&backend, &bundle, "draft", weights.as_ref(), &options)).transpose()?;
        if let Some(weights) = &weights {
            weights.release_pages();
        }
        Ok(Self { bundle, backend, tokenizer, target, draft })
    }
}
