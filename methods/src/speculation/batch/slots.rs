//! Which text is in which slot, what slots hold of earlier texts, and where a new one goes.

use super::{Continuation, TextId};
use crate::speculation::decoder::common_prefix;

/// Tokens that are worth copying from another slot.
const WORTH_COPYING: usize = 8;

/// A text under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub id: TextId,
    pub text: Continuation,
    /// Whether the target holds the prompt as far as it has to.
    pub is_read: bool,
}

#[derive(Debug, Default)]
struct Slot {
    text: Option<UnderWay>,
    /// What it holds of an earlier text, where none is under way.
    kept: Vec<u32>,
    /// When it was last vacated.
    left: u64,
}

impl Slot {
    fn tokens(&self) -> &[u32] {
        self.text
            .as_ref()
            .map_or(self.kept.as_slice(), |text| text.text.tokens())
    }
}

/// The slots of a model.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    vacated: u64,
}

/// Where a text goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub slot: usize,
    /// Tokens of the prompt that the slot holds then, the last one apart.
    pub known: usize,
    /// The slot that they come from, if it is another one.
    pub copied_from: Option<usize>,
}

impl Slots {
    pub fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            vacated: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Tokens of texts under way, and of those before them that are held.
    pub fn cached(&self) -> usize {
        self.slots.iter().map(|slot| slot.tokens().len()).sum()
    }

    /// Tokens of the text in a slot, or of the earlier one that it holds.
    pub fn tokens(&self, slot: usize) -> &[u32] {
        self.slots[slot].tokens()
    }

    /// Slots that hold an earlier text and no other, the one left last at the end.
    pub fn kept(&self) -> Vec<usize> {
        let holds = |slot: &Slot| slot.text.is_none() && !slot.kept.is_empty();
        let mut all: Vec<usize> = (0..self.slots.len())
            .filter(|&i| holds(&self.slots[i]))
            .collect();
        all.sort_by_key(|&i| self.slots[i].left);
        all
    }

    /// A slot that holds nothing.
    pub fn empty(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.tokens().is_empty())
    }

    /// A slot without a text holds these tokens from now on.
    pub fn keep(&mut self, slot: usize, tokens: &[u32]) {
        self.vacated += 1;
        let slot = &mut self.slots[slot];
        (slot.kept, slot.left) = (tokens.to_vec(), self.vacated);
    }

    pub fn texts(&self) -> impl Iterator<Item = (usize, &UnderWay)> {
        let texts = self.slots.iter().enumerate();
        texts.filter_map(|(i, slot)| Some((i, slot.text.as_ref()?)))
    }

    pub fn of(&self, id: TextId) -> Option<usize> {
        let mut texts = self.texts();
        texts.find(|(_, text)| text.id == id).map(|(slot, _)| slot)
    }

    pub fn text(&self, slot: usize) -> Option<&UnderWay> {
        self.slots.get(slot)?.text.as_ref()
    }

    pub fn text_mut(&mut self, slot: usize) -> Option<&mut UnderWay> {
        self.slots.get_mut(slot)?.text.as_mut()
    }

    pub fn occupy(&mut self, slot: usize, text: UnderWay) {
        self.slots[slot].kept.clear();
        self.slots[slot].text = Some(text);
    }

    /// Takes the text out of a slot that holds its first `held` tokens.
    pub fn vacate(&mut self, slot: usize, held: usize) -> Option<UnderWay> {
        self.vacated += 1;
        let slot = self.slots.get_mut(slot)?;
        let text = slot.text.take()?;
        let tokens = text.text.tokens();
        slot.kept
            .extend_from_slice(&tokens[..held.min(tokens.len())]);
        slot.left = self.vacated;
        Some(text)
    }

    /// The free slot for a prompt: the one that holds most of its beginning, unless it holds much
    /// else, which may be asked for again; then the beginning is copied to the slot that was left
    /// first. `held` has the number of tokens that each slot holds.
    pub fn place(&self, prompt: &[u32], held: &[usize]) -> Option<Place> {
        let most = prompt.len().saturating_sub(1);
        let known = |i: usize| {
            let tokens = self.slots[i].tokens();
            common_prefix(&tokens[..held[i].min(tokens.len())], prompt).min(most)
        };
        let free = |i: &usize| self.slots[*i].text.is_none();
        let all = 0..self.slots.len();
        let oldest = all
            .clone()
            .filter(free)
            .min_by_key(|&i| self.slots[i].left)?;
        let best = all.max_by_key(|&i| (known(i), free(&i)))?;
        let (found, own) = (known(best), known(oldest));
        let is_most = 4 * found >= 3 * held[best];
        let stays = best == oldest || free(&best) && is_most && found > own;
        Some(if stays {
            Place {
                slot: best,
                known: found,
                copied_from: None,
            }
        } else if found >= own + WORTH_COPYING {
            Place {
                slot: oldest,
                known: found,
                copied_from: Some(best),
            }
        } else {
            Place {
                slot: oldest,
                known: own,
                copied_from: None,
            }
        })
    }
}
