//! Caches of the profiles `portable` and `onnx`: each step returns past and new entries in a new
//! tensor, which is fed back as it is.
//!
//! Forgetting copies nothing: a rejected entry stays where it is and gets a 0 in `attention_mask`.
//! The graphs count positions and windows over the mask's ones, so such holes are harmless;
//! `position_ids` count likewise. Only when holes outnumber half of the live entries are they
//! squeezed out.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use dlc_methods::speculation::Logits;
use ort::value::DynValue;

use super::feeds::Feeds;
use super::ports::{Asked, LOGITS, Ports};
use super::values;
use crate::session::share;
use crate::{Result, Session};

/// Holes that are always tolerated: short caches aren't worth squeezing at every turn.
const FREE_HOLES: usize = 32;

#[derive(Debug, Default)]
pub(super) struct ConcatCache {
    entries: Entries,
    /// What another graph holds: where it leaves its entries, and by cache port which of its values
    /// to take.
    source: Option<(Arc<Mutex<Entries>>, Vec<usize>)>,
    /// Where this one leaves its entries for others.
    published: Arc<Mutex<Entries>>,
    /// Of the last pass, used again when the next one is over as many tokens.
    feeds: Option<Feeds>,
    logits: Option<DynValue>,
    /// Logits that aren't 32-bit floats, as such.
    converted: Vec<f32>,
}

#[derive(Debug, Default)]
struct Entries {
    /// By cache port; empty before the first step.
    values: Vec<DynValue>,
    /// 1 for a live entry, 0 for a hole.
    mask: Vec<i64>,
    /// Where the live entries are, ascending.
    live: Vec<usize>,
}

impl Entries {
    fn rollback(&mut self, len: usize) {
        if len == 0 {
            *self = Self::default();
            return;
        }
        for entry in self.live.drain(len.min(self.live.len())..) {
            self.mask[entry] = 0;
        }
    }

    fn has_too_many_holes(&self) -> bool {
        self.mask.len() - self.live.len() > FREE_HOLES.max(self.live.len() / 2)
    }

    fn squeeze(&mut self, session: &Session, ports: &Ports) -> ort::Result<()> {
        let squeezed =
            ports.caches.iter().zip(&self.values).map(|(port, value)| {
                values::select(session, port, value, &self.live, self.live.len())
            });
        self.values = squeezed.collect::<ort::Result<_>>()?;
        self.mask = vec![1; self.live.len()];
        self.live = (0..self.mask.len()).collect();
        Ok(())
    }

    /// Other handles on the values of these numbers, with the same mask.
    fn shared(&self, slots: impl Iterator<Item = usize>) -> Result<Self> {
        let values = slots
            .filter_map(|slot| self.values.get(slot))
            .map(share)
            .collect::<Result<_>>()?;
        Ok(Self {
            values,
            mask: self.mask.clone(),
            live: self.live.clone(),
        })
    }
}

impl ConcatCache {
    pub fn len(&self) -> usize {
        self.entries.live.len()
    }

    pub fn rollback(&mut self, len: usize) {
        self.entries.rollback(len);
    }

    /// Takes over entries of `other`, by cache port those of these numbers.
    pub fn share(&mut self, other: &Self, slots: Vec<usize>) {
        self.source = Some((Arc::clone(&other.published), slots));
        self.entries = Entries::default();
    }

    /// Whether it takes over another graph's entries.
    pub fn shares(&self) -> bool {
        self.source.is_some()
    }

    pub fn adopt(&mut self, len: usize) -> Result<()> {
        if let Some((source, slots)) = &self.source {
            self.entries = source
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .shared(slots.iter().copied())?;
            self.entries.rollback(len);
        }
        Ok(())
    }

    pub fn extend(
        &mut self,
        session: &mut Session,
        ports: &Ports,
        tokens: &[u32],
        asked: Asked,
    ) -> Result<Logits<'_>> {
        let count = tokens.len();
        let kept = ports.kept(count, asked.want);
        let entries = &mut self.entries;
        if entries.values.is_empty() {
            entries.values = ports
                .caches
                .iter()
                .map(values::empty)
                .collect::<ort::Result<_>>()
                .map_err(|error| session.failed(&error))?;
        }
        if entries.has_too_many_holes() {
            entries
                .squeeze(session, ports)
                .map_err(|error| session.failed(&error))?;
        }
        let feeds = match self.feeds.take() {
            Some(feeds) if feeds.count() == count => feeds,
            _ => Feeds::new(ports, count)?,
        };
        let feeds = self.feeds.insert(feeds);
        feeds.fill(ports, tokens, entries.live.len(), asked)?;
        let before = entries.mask.len();
        entries.mask.resize(before + count, 1);
        let mut inputs = feeds.inputs(ports, &entries.mask)?;
        let pasts = ports.caches.iter().map(|port| Cow::from(&port.past));
        inputs.extend(pasts.zip(entries.values.iter().map(Into::into)));
        let presents: Vec<&str> = ports
            .caches
            .iter()
            .map(|port| port.present.as_str())
            .collect();
        let (logits, present) = session.run_keeping(inputs, LOGITS, &presents)?;
        entries.values = present;
        entries.live.extend(before..before + count);
        // Somebody reads it if there is a second handle.
        if Arc::strong_count(&self.published) > 1 {
            let all = 0..entries.values.len();
            *self
                .published
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = entries.shared(all)?;
        }
        let logits = self.logits.insert(logits);
        ports.logits(logits, kept, asked.want, &mut self.converted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(mask: &[i64]) -> Entries {
        let live = (0..mask.len()).filter(|&i| mask[i] == 1).collect();
        Entries {
            values: Vec::new(),
            mask: mask.to_vec(),
            live,
        }
    }

    #[test]
    fn forgetting_leaves_holes_where_entries_were() {
        let mut cache = cache(&[1, 1, 0, 1, 1]);
        cache.rollback(3);
        assert_eq!(
            (cache.live.len(), cache.mask.as_slice()),
            (3, &[1, 1, 0, 1, 0][..])
        );
        cache.rollback(9);
        assert_eq!(cache.live.len(), 3);
        cache.rollback(0);
        assert_eq!((cache.live.len(), cache.mask.len()), (0, 0));
    }

    #[test]
    fn holes_are_squeezed_out_when_they_are_many() {
        let few = [vec![1; 100], vec![0; 50]].concat();
        let many = [vec![1; 100], vec![0; 51]].concat();
        assert!(!cache(&few).has_too_many_holes() && cache(&many).has_too_many_holes());
        assert!(!cache(&[vec![1], vec![0; FREE_HOLES]].concat()).has_too_many_holes());
    }
}
