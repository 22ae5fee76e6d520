//! Opens what decoding needs: bundle, tokenizer, target and draft; and what encoding needs.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use dlc_ir::Task;
use dlc_runtime::{
    Backend, Bundle, DecoderOptions, DecoderSession, EncoderSession, RuntimeError, SharedWeights,
    TextTokenizer,
};

use super::backend::BackendArgs;
use super::failure::{Result, bail};
use super::phases;

/// Where a draft keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DraftCache {
    Shared,
    Own,
}

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
    /// With a draft if the bundle has one and `cache` says where its cache is.
    pub fn open(path: &Path, backend: &BackendArgs, cache: Option<DraftCache>) -> Result<Self> {
        Self::of(super::open::text_bundle(path)?, backend, cache)
    }

    /// As [`Self::open`], of a bundle that is open already.
    pub fn of(bundle: Bundle, backend: &BackendArgs, cache: Option<DraftCache>) -> Result<Self> {
        Self::of_several(bundle, backend, cache, 1)
    }

    /// As [`Self::of`], with a target that holds so many sequences.
    pub fn of_several(
        bundle: Bundle,
        backend: &BackendArgs,
        cache: Option<DraftCache>,
        sequences: usize,
    ) -> Result<Self> {
        if bundle.manifest().model.task != Task::TextGeneration {
            let (task, family) = (
                bundle.manifest().model.task.name(),
                &bundle.manifest().model.family,
            );
            bail!(
                "the bundle is a {family} for {task}, which continues no text: give it --text TEXT or --texts FILE"
            );
        }
        let tokenizer =
            TextTokenizer::of_bundle(&bundle)?.ok_or_else(|| RuntimeError::Unsupported {
                what: bundle.folder().display().to_string(),
                reason: "the bundle has no tokenizer.json, so it can't read or write text".into(),
                fix: "Put the model's tokenizer.json beside its config.json and compile it again"
                    .into(),
            })?;
        phases::begin("loading the tokenizer");
        phases::begin("loading the model");
        let options = DecoderOptions {
            session: backend.session(),
            ..DecoderOptions::default()
        };
        let backend = backend.start()?;
        let weights = SharedWeights::open(&bundle, &backend)?;
        let several = DecoderOptions {
            sequences,
            ..options.clone()
        };
        let target = DecoderSession::open(&backend, &bundle, "target", weights.as_ref(), &several)?;
        let has_draft =
            cache.is_some() && bundle.manifest().graphs.iter().any(|g| g.name == "draft");
        let mut draft = has_draft
            .then(|| DecoderSession::open(&backend, &bundle, "draft", weights.as_ref(), &options))
            .transpose()?;
        if let Some(weights) = &weights {
            weights.release_pages();
        }
        if let Some(draft) = &mut draft
            && cache == Some(DraftCache::Shared)
        {
            draft.share_cache(&target);
        }
        Ok(Self {
            bundle,
            backend,
            tokenizer,
            target,
            draft,
        })
    }
}

/// A graph of an encoder's bundle, ready to read texts.
#[derive(Debug)]
pub(super) struct EncoderModel {
    pub bundle: Bundle,
    pub backend: Backend,
    /// Where the bundle has one: goldens don't.
    pub tokenizer: Option<TextTokenizer>,
    pub session: EncoderSession,
    weights: Option<Arc<SharedWeights>>,
}

impl EncoderModel {
    pub fn open(bundle: Bundle, backend: &BackendArgs, graph: &str) -> Result<Self> {
        let tokenizer = TextTokenizer::of_bundle(&bundle)?;
        phases::begin("loading the model");
        let options = backend.session();
        let backend = backend.start()?;
        let weights = SharedWeights::open(&bundle, &backend)?;
        let session = EncoderSession::open(&backend, &bundle, graph, weights.as_ref(), &options)?;
        Ok(Self {
            bundle,
            backend,
            tokenizer,
            session,
            weights,
        })
    }

    /// Another graph of the same bundle, on the same weights.
    pub fn another(&self, backend: &BackendArgs, graph: &str) -> Result<EncoderSession> {
        Ok(EncoderSession::open(
            &self.backend,
            &self.bundle,
            graph,
            self.weights.as_ref(),
            &backend.session(),
        )?)
    }
}
