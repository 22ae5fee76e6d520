//! A decoder graph as a [`TokenModel`]: one sequence, its key/value caches, and forgetting without
//! copying.
//!
//! How caches are kept follows from the manifest: [`in_place`] or [`concat`]. Never samples, and
//! never knows whether it is the target or the draft.

mod buffers;
mod concat;
mod feeds;
mod in_place;
mod ports;
mod saved;
mod values;

use std::sync::Arc;

use dlc_bundle::CacheLayout;
use dlc_methods::MethodError;
use dlc_methods::speculation::{BatchModel, KeyRotations, Logits, Reading, TokenModel};

use self::concat::ConcatCache;
use self::in_place::InPlaceCache;
use self::ports::{Asked, Ports};
use super::{
    Backend, Bundle, Fillers, Provider, Result, RuntimeError, Session, SessionOptions,
    SharedWeights,
};

/// How a decoder is loaded.
#[derive(Debug, Clone, Default)]
pub struct DecoderOptions {
    /// How its session is loaded.
    pub session: SessionOptions,
    /// Tokens to allocate caches for at the start, where caches have a capacity (those kept in
    /// place); it doubles as needed.
    pub capacity: Option<usize>,
    /// Sequences that are held at once, where several are ([`BatchModel`]); 0 is one.
    pub sequences: usize,
    /// Passes that read another token after theirs; the context is shorter by that token.
    pub fillers: Option<Fillers>,
}

/// What is read after other tokens for company.
const FILLER: u32 = 0;

/// A loaded decoder graph and the caches of one sequence, or of several of which one is read and
/// written at a time.
#[derive(Debug)]
pub struct DecoderSession {
    session: Session,
    ports: Ports,
    vocab: usize,
    context: usize,
    fillers: Option<Fillers>,
    /// Of each sequence.
    rotations: Vec<KeyRotations>,
    current: usize,
    /// Tokens of a pass with what is read after them.
    filled: Vec<u32>,
    cache: Cache,
}

#[derive(Debug)]
enum Cache {
    InPlace(InPlaceCache),
    Concat(ConcatCache),
}

impl DecoderSession {
    /// Loads the graph `name`.
    ///
    /// # Errors
    /// [`RuntimeError::Port`](crate::RuntimeError::Port) for a boundary that isn't a decoder's;
    /// else as [`Session::load`].
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        name: &str,
        weights: Option<&Arc<SharedWeights>>,
        options: &DecoderOptions,
    ) -> Result<Self> {
        let model = &bundle.manifest().model;
        let ports = Ports::read(bundle.graph(name)?, model.vocab_size)?;
        let session = Session::load(backend, bundle, name, weights, &options.session)?;
        let in_place = bundle.manifest().caches == CacheLayout::InPlace;
        let fillers = options.fillers.filter(|_| in_place);
        let context = model
            .context_length
            .saturating_sub(usize::from(fillers.is_some()));
        let vocab = model.vocab_size;
        let sequences = options.sequences.max(1);
        if sequences > 1 && options.session.provider != Provider::Cpu {
            return Err(RuntimeError::unsupported(
                format!("graph `{name}`"),
                "several sequences at once are held on the CPU alone",
                "Hold one at a time",
            ));
        }
        let cache = match bundle.manifest().caches {
            CacheLayout::InPlace => Cache::InPlace(InPlaceCache::new(
                &ports.caches,
                sequences,
                options.capacity,
                model.context_length,
            )),
            CacheLayout::Appended => Cache::Concat(ConcatCache::new(sequences)),
        };
        let rotation = || KeyRotations::new(ports.rotates_by_length, ports.prompt_length);
        let rotations = (0..sequences).map(|_| rotation()).collect();
        Ok(Self {
            current: 0,
            filled: Vec::new(),
            session,
            ports,
            vocab,
            context,
            fillers,
            rotations,
            cache,
        })
    }

    /// Reads the cache of `target` from now on instead of one of its own: keys and values of
    /// decided tokens are then the target's, and its own stand after them until the target's next
    /// pass. False, and nothing changes, where its layers aren't the target's.
    ///
    /// So a draft needs no pass over the prompt and no second cache (Zhang et al., *Draft &
    /// Verify*, 2023). What it says of the text changes a little, since after the first dropped
    /// block its own keys would differ; what is decided doesn't.
    pub fn share_cache(&mut self, target: &Self) -> bool {
        let Some(slots) = self.ports.among(&target.ports.caches) else {
            return false;
        };
        match (&mut self.cache, &target.cache) {
            (Cache::InPlace(cache), Cache::InPlace(other)) => cache.share(other, slots),
            (Cache::Concat(cache), Cache::Concat(other)) => cache.share(other, slots),
            _ => return false,
        }
        true
    }

    /// Whether the model says of a token what it says whatever the length of the text.
    fn rotates_alike(&self) -> bool {
        self.ports.rotates_by_length.is_none()
    }

    /// Refuses tokens that the model doesn't have, and so many that they don't fit.
    fn check(&self, tokens: &[u32], total: usize) -> Result<(), MethodError> {
        if total > self.context {
            return Err(MethodError::Input(format!(
                "{total} tokens don't fit the context of {}: shorten the text",
                self.context
            )));
        }
        match tokens.iter().find(|&&token| token as usize >= self.vocab) {
            Some(token) => Err(MethodError::Input(format!(
                "token {token} is outside the vocabulary of {}: use this model's tokenizer",
                self.vocab
            ))),
            None => Ok(()),
        }
    }

    /// Tokens that a pass over so many reads after them.
    fn fillers_after(&self, tokens: usize, want: usize) -> usize {
        match self.fillers {
            Some(fillers) if !fillers.prompts_alone || want == 0 => {
                usize::from(if fillers.evenly {
                    tokens % 2 == 1
                } else {
                    tokens == 1
                })
            }
            _ => 0,
        }
    }

    fn shares_cache(&self) -> bool {
        match &self.cache {
            Cache::InPlace(cache) => cache.shares(),
            Cache::Concat(cache) => cache.shares(),
        }
    }
}

impl TokenModel for DecoderSession {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn len(&self) -> usize {
        match &self.cache {
            Cache::InPlace(cache) => cache.len(),
            Cache::Concat(cache) => cache.len(),
        }
    }

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>, MethodError> {
        if tokens.is_empty() || want > tokens.len() {
            return Err(MethodError::Bug(format!(
                "logits of {want} of {} tokens were asked for",
                tokens.len()
            )));
        }
        self.check(tokens, self.len() + tokens.len())?;
        let fillers = self.fillers_after(tokens.len(), want);
        let asked = Asked {
            want,
            fillers,
            evenly: self.fillers.is_some_and(|fillers| fillers.evenly),
            length: self.rotations[self.current].expected(),
        };
        let held = self.len();
        self.rotations[self.current].read(held, held + tokens.len());
        if fillers > 0 {
            self.filled.clear();
            self.filled.extend_from_slice(tokens);
            self.filled.resize(tokens.len() + fillers, FILLER);
        }
        let tokens = if fillers > 0 { &self.filled } else { tokens };
        match &mut self.cache {
            Cache::InPlace(cache) => cache.extend(&mut self.session, &self.ports, tokens, asked),
            Cache::Concat(cache) => cache.extend(&mut self.session, &self.ports, tokens, asked),
        }
        .map_err(MethodError::model)
    }

    fn expect(&mut self, len: usize, piece: usize) -> Reading {
        let (alike, reading) = self.rotations[self.current].expect(len, piece);
        self.rollback(alike);
        reading
    }

    fn guesses(&self, pending: usize, most: usize) -> usize {
        self.rotations[self.current].guesses(self.len() + pending, most)
    }

    fn rollback(&mut self, len: usize) {
        self.rotations[self.current].rollback(len);
        match &mut self.cache {
            Cache::InPlace(cache) => cache.rollback(len),
            Cache::Concat(cache) => cache.rollback(len),
        }
    }

    fn adopt(&mut self, len: usize) -> Result<(), MethodError> {
        match &mut self.cache {
            Cache::InPlace(cache) => cache.adopt(len),
            Cache::Concat(cache) => cache.adopt(len).map_err(MethodError::model)?,
        }
        if self.shares_cache() {
            self.rotations[self.current].adopt(len);
        }
        Ok(())
    }

    fn len_after_adopting(&self, len: usize) -> usize {
        if self.shares_cache() { len } else { self.len() }
    }
}

impl BatchModel for DecoderSession {
    fn slots(&self) -> usize {
        self.rotations.len()
    }

    fn slot(&mut self, slot: usize) -> &mut dyn TokenModel {
        self.current = slot;
        match &mut self.cache {
            Cache::InPlace(cache) => cache.select(slot),
            Cache::Concat(cache) => cache.select(slot),
        }
        self
    }

    fn batches(&self) -> bool {
        let agree = self
            .fillers
            .is_none_or(|fillers| fillers.prompts_alone && !fillers.evenly);
        matches!(self.cache, Cache::InPlace(_)) && self.rotates_alike() && agree
    }

    fn writes_as_it_reads(&self) -> bool {
        self.fillers.is_none_or(|fillers| !fillers.prompts_alone)
    }

    fn step(&mut self, tokens: &mut [(usize, u32)]) -> Result<Logits<'_>, MethodError> {
        let Cache::InPlace(cache) = &mut self.cache else {
            return Err(MethodError::Bug(
                "a pass over several sequences of caches that are appended to".to_owned(),
            ));
        };
        cache
            .step(&mut self.session, &self.ports, tokens)
            .map_err(MethodError::model)
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<(), MethodError> {
        let failed = |error: ort::Error| MethodError::model(self.session.failed(&error));
        match &mut self.cache {
            Cache::InPlace(cache) => cache.copy(from, to, len).map_err(failed)?,
            Cache::Concat(cache) => cache.copy(from, to, len).map_err(MethodError::model)?,
        }
        self.rotations[to] = self.rotations[from].clone();
        self.rotations[to].rollback(len);
        Ok(())
    }

    fn save(&mut self, slot: usize, len: usize) -> Result<Option<Vec<Vec<u8>>>, MethodError> {
        if !self.rotates_alike() || self.session.provider() != Provider::Cpu {
            return Ok(None);
        }
        let failed = |error: ort::Error| MethodError::model(self.session.failed(&error));
        let saved = match &self.cache {
            Cache::InPlace(cache) => cache.save(slot, len),
            Cache::Concat(cache) => cache.save(&self.ports, slot, len),
        };
        saved.map(Some).map_err(failed)
    }

    fn restore(&mut self, slot: usize, len: usize, cache: &[Vec<u8>]) -> Result<(), MethodError> {
        self.slot(slot).rollback(0);
        if !self.rotates_alike() || !saved::fits(&self.ports.caches, len, cache) {
            let problem = "keys and values that are saved are not those of this model";
            return Err(MethodError::Input(problem.to_owned()));
        }
        let (session, ports) = (&mut self.session, &self.ports);
        let restored = match &mut self.cache {
            Cache::InPlace(held) => held.restore(session, slot, len, cache),
            Cache::Concat(held) => held.restore(session, ports, slot, len, cache),
        };
        restored.map_err(|error| MethodError::model(self.session.failed(&error)))
    }
}
