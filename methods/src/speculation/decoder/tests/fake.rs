//! A model whose logits are a hash of the whole prefix.

use crate::Result;
use crate::speculation::{KeyRotations, LengthRotation, Logits, Reading, TokenModel};

/// A model without weights. Its cache is the list of tokens it was fed.
#[derive(Debug, Clone)]
pub(in crate::speculation) struct Fake {
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
    /// Rotates by length: what each cached token was rotated for, and the rule.
    pub rotated: Vec<usize>,
    pub rotations: KeyRotations,
    pub told: bool,
    pub rule: Option<LengthRotation>,
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
            rotated: Vec::new(),
            rotations: KeyRotations::default(),
            told: false,
            rule: None,
            passes: Vec::new(),
            adoptions: 0,
        }
    }

    pub fn like(mut self, other: u64, share: f32) -> Self {
        self.near = Some((other, share));
        self
    }

    /// A model whose rotation depends on how far calls reach.
    pub fn rotating(self, rule: LengthRotation, told: bool) -> Self {
        Self {
            rule: Some(rule),
            told,
            rotations: KeyRotations::new(Some(rule), told),
            ..self
        }
    }

    /// What a token is rotated for in a call that ends at `end`.
    fn rotation(&self, end: usize) -> usize {
        match self.rule {
            Some(rule) if end <= rule.trained => 0,
            Some(rule) if rule.grows => end,
            Some(_) => 1,
            None => 0,
        }
    }

    /// What it says after a prompt, read at once, and tokens that were read one by one.
    pub fn scores_after(&self, sequence: &[u32], prompt: usize) -> Vec<f32> {
        let end = |i: usize| if i < prompt { prompt } else { i + 1 };
        let rotated: Vec<usize> = (0..sequence.len()).map(|i| self.rotation(end(i))).collect();
        self.scores_of(sequence, &rotated)
    }

    pub fn scores(&self, prefix: &[u32]) -> Vec<f32> {
        self.scores_of(prefix, &vec![0; prefix.len()])
    }

    fn scores_of(&self, prefix: &[u32], rotated: &[usize]) -> Vec<f32> {
        let of = |seed: u64, id: usize| {
            let fold = |h: u64, x: u64| (h ^ x).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            let hash = prefix
                .iter()
                .zip(rotated)
                .fold(fold(seed, 77), |h, (&token, &rotation)| {
                    fold(h, u64::from(token) + 1 + 100 * rotation as u64)
                });
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

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>> {
        assert!(
            !tokens.is_empty() && want <= tokens.len(),
            "{want} of {tokens:?}"
        );
        self.passes.push(tokens.len());
        let held = self.cache.len();
        self.rotations.read(held, held + tokens.len());
        let mut end = held + tokens.len();
        if self.told {
            end = end.max(self.rotations.expected());
        }
        let rotation = self.rotation(end);
        let mut data = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            self.cache.push(token);
            self.rotated.push(rotation);
            if i + want >= tokens.len() {
                data.extend(self.scores_of(&self.cache, &self.rotated));
            }
        }
        assert!(self.cache.len() <= self.context, "fed past the context");
        Ok(Logits::new(self.vocab, data))
    }

    fn expect(&mut self, len: usize, piece: usize) -> Reading {
        let (alike, reading) = self.rotations.expect(len, piece);
        self.rollback(alike);
        reading
    }

    fn guesses(&self, pending: usize, most: usize) -> usize {
        self.rotations.guesses(self.cache.len() + pending, most)
    }

    fn rollback(&mut self, len: usize) {
        self.cache.truncate(len);
        self.rotated.truncate(len);
        self.rotations.rollback(len);
    }

    fn adopt(&mut self, _: usize) -> Result<()> {
        self.adoptions += 1;
        Ok(())
    }
}
