//! Opens what decoding needs: bundle, tokenizer, target and draft; and what encoding needs.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use dlc_ir::Task;
use dlc_runtime::{
    Backend, Bundle, DecoderOptions, DecoderSession, EncoderSession, RuntimeError, SharedWeights,
    TextTokenizer, Verification,
};

use super::backend::BackendArgs;
use super::failure::{Result, bail};
use super::output::note;
use super::phases;

/// Where a draft keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DraftCache {
    Shared,
    Own,
}

/// How a bundle is to be decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    /// Where the draft keeps keys and values; None leaves it alone.
    pub cache: Option<DraftCache>,
    /// Whether guesses are asked for, even where they don't pay.
    pub guesses: bool,
    /// Texts at once.
    pub sequences: usize,
}

/// A bundle ready to decode.
#[derive(Debug)]
pub(super) struct Models {
    pub bundle: Bundle,
    pub backend: Backend,
    pub tokenizer: TextTokenizer,
    pub target: DecoderSession,
    pub draft: Option<DecoderSession>,
    /// Why nothing is guessed, and how it is all the same, if that is so.
    pub guesses_nothing: Option<&'static str>,
}

impl Wishes {
    /// Why nothing is to be guessed at, if that is so.
    fn guesses_nothing(self, verification: Verification) -> Option<&'static str> {
        let rounds_otherwise = verification != Verification::Alike;
        match verification {
            _ if rounds_otherwise && self.sequences > 1 => Some(
                "several texts at once of a quantised target stay what each is alone only without guesses; --max-concurrent 1 guesses",
            ),
            Verification::InPairs { pays: false, .. } if !self.guesses => Some(
                "checking several tokens of a quantised target takes this processor as long as writing them; --draft-tokens N guesses all the same",
            ),
            Verification::Differs if !self.guesses => Some(
                "checking several tokens of this quantised target rounds otherwise than writing them; --draft-tokens N guesses all the same, compiling with --profile ort checks exactly",
            ),
            Verification::Alike | Verification::InPairs { .. } | Verification::Differs => None,
        }
    }
}

impl Models {
    /// With a draft if the bundle has one, it is wished for and the target can verify it.
    pub fn open(path: &Path, backend: &BackendArgs, wishes: Wishes) -> Result<Self> {
        Self::of(super::open::text_bundle(path)?, backend, wishes)
    }

    /// As [`Self::open`], of a bundle that is open already.
    pub fn of(bundle: Bundle, backend: &BackendArgs, wishes: Wishes) -> Result<Self> {
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
        let provider = options.session.provider;
        let verification = Verification::of(bundle.manifest(), "target", provider);
        let guesses_nothing = wishes.guesses_nothing(verification);
        let fillers = verification.fillers(wishes.sequences);
        let backend = backend.start()?;
        let weights = SharedWeights::open(&bundle, &backend)?;
        let of_target = DecoderOptions {
            sequences: wishes.sequences,
            fillers: fillers.filter(|_| guesses_nothing.is_none() || wishes.sequences > 1),
            ..options.clone()
        };
        let target =
            DecoderSession::open(&backend, &bundle, "target", weights.as_ref(), &of_target)?;
        let cache = wishes.cache.filter(|_| guesses_nothing.is_none());
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
            guesses_nothing,
        })
    }

    /// Says of a draft that is left alone why.
    pub fn note_draft(&self) -> Result<()> {
        match self.guesses_nothing {
            Some(reason) if self.bundle.graph("draft").is_ok() => {
                Ok(note(&format!("the draft is left alone: {reason}"))?)
            }
            _ => Ok(()),
        }
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
