//! A model whose logits are a hash of the whole prefix.

use crate::Result;
use crate::speculation::{Logits, TokenModel};

/// A model without weights. Its cache is the list of tokens it was fed.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    pub vocab: usize,
    pub context: usize,
    pub seed: u64,
    /// Mixes in the logits of the model with this seed: a draft that is often right.
    pub near: Option<(u64, f32)>,
    /// One bit for each token that it never proposes: their logits are -inf.
    pub blind: u32,
    /// How far apart its logits are: the larger, the surer it is.
    pub sharpness: f32,
    pub cache: Vec<u32>,
    pub passes: Vec<usize>,
    pub adoptions: usize,
}

impl Fake {
    pub fn new(seed: u64) -> Self {
        Self {
            vocab: 6,
            context: 64,
            seed,
            near: None,
            blind: 0,
            sharpness: 1.0,
            cache: Vec::new(),
            passes: Vec::new(),
            adoptions: 0,
        }
    }

    pub fn like(mut self, other: u64, share: f32) -> Self {
        self.near = Some((other, share));
        self
    }

    pub fn scores(&self, prefix: &[u32]) -> Vec<f32> {
        let of = |seed: u64, id: usize| {
            let fold = |h: u64, x: u64| (h ^ x).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            let hash = prefix
                .iter()
                .fold(fold(seed, 77), |h, &token| fold(h, u64::from(token) + 1));
            (fold(fold(hash, id as u64 + 1), 3) >> 40) as f32 / (1 << 22) as f32
        };
        let score = |id| match self.near {
            Some((other, share)) => share * of(other, id) + (1.0 - share) * of(self.seed, id),
            None => of(self.seed, id),
        };
        let seen = |id: usize| {
            if self.blind >> id & 1 == 1 {
                f32::NEG_INFINITY
            } else {
                self.sharpness * score(id)
            }
        };
        (0..self.vocab).map(seen).collect()
    }
}

impl TokenModel for Fake {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits> {
        assert!(
            !tokens.is_empty() && want <= tokens.len(),
            "{want} of {tokens:?}"
        );
        self.passes.push(tokens.len());
        let mut data = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            self.cache.push(token);
            if i + want >= tokens.len() {
                data.extend(self.scores(&self.cache));
            }
        }
        assert!(self.cache.len() <= self.context, "fed past the context");
        Ok(Logits::new(self.vocab, data))
    }

    fn rollback(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    fn adopt(&mut self, _: usize) -> Result<()> {
        self.adoptions += 1;
        Ok(())
    }
}
