//! Caches of the profiles `portable` and `onnx`: each step returns past and new entries in a new
//! tensor, which is fed back as it is.
//!
//! Forgetting copies nothing: a rejected entry stays where it is and gets a 0 in `attention_mask`.
//! The graphs count positions and windows over the mask's ones, so such holes are harmless;
//! `position_ids` count likewise. Only when holes outnumber half of the live entries are they
//! squeezed out.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlc_methods::speculation::Logits;
use ort::value::DynValue;

use super::feeds::Feeds;
use super::ports::{Asked, LOGITS, Ports};
use super::saved::Row;
use super::values;
use crate::session::share;
use crate::{Result, Session};

/// Holes that are always tolerated: short caches aren't worth squeezing at every turn.
const FREE_HOLES: usize = 32;

#[derive(Debug)]
pub(super) struct ConcatCache {
    /// Of each sequence.
    entries: Vec<Entries>,
    current: usize,
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
    pub fn new(sequences: usize) -> Self {
        Self {
            entries: (0..sequences).map(|_| Entries::default()).collect(),
            current: 0,
            source: None,
            published: Arc::default(),
            feeds: None,
            logits: None,
            converted: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.entries[self.current].live.len()
    }

    pub fn rollback(&mut self, len: usize) {
        self.entries[self.current].rollback(len);
    }

    /// Takes over entries of `other`, by cache port those of these numbers.
    pub fn share(&mut self, other: &Self, slots: Vec<usize>) {
        self.source = Some((Arc::clone(&other.published), slots));
        (self.entries, self.current) = (vec![Entries::default()], 0);
    }

    /// Whether it takes over another graph's entries.
    pub fn shares(&self) -> bool {
        self.source.is_some()
    }

    pub fn adopt(&mut self, len: usize) -> Result<()> {
        if let Some((source, slots)) = &self.source {
            let mut entries = lock(source).shared(slots.iter().copied())?;
            entries.rollback(len);
            self.entries[self.current] = entries;
        }
        Ok(())
    }

    /// Reads and writes this sequence from now on, and leaves its entries for others.
    pub fn select(&mut self, sequence: usize) {
        self.current = sequence;
        if publish(&self.published, &self.entries[sequence]).is_err() {
            // Whoever reads them has to read the text itself.
            *lock(&self.published) = Entries::default();
        }
    }

    /// Lets a sequence hold the first `len` entries of another one.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        let source = &self.entries[from];
        let mut copy = source.shared(0..source.values.len())?;
        copy.rollback(len);
        self.entries[to] = copy;
        Ok(())
    }

    /// Keys and values of the first `len` entries of a sequence.
    pub fn save(&self, ports: &Ports, sequence: usize, len: usize) -> ort::Result<Vec<Vec<u8>>> {
        let entries = &self.entries[sequence];
        let row = |port| Row {
            port,
            number: 0,
            length: entries.mask.len(),
        };
        let all = ports.caches.iter().zip(&entries.values);
        all.map(|(port, value)| row(port).save(value, &entries.live[..len]))
            .collect()
    }

    /// Lets a sequence hold `len` saved entries.
    pub fn restore(
        &mut self,
        session: &mut Session,
        ports: &Ports,
        sequence: usize,
        len: usize,
        cache: &[Vec<u8>],
    ) -> ort::Result<()> {
        let mut values = Vec::with_capacity(cache.len());
        for (port, bytes) in ports.caches.iter().zip(cache) {
            let mut value = values::allocate(session, port, 1, len)?;
            let row = Row {
                port,
                number: 0,
                length: len,
            };
            row.restore(&mut value, len, bytes)?;
            values.push(value);
        }
        self.entries[sequence] = Entries {
            values,
            mask: vec![1; len],
            live: (0..len).collect(),
        };
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
        let kept = ports.kept(count, asked);
        let entries = &mut self.entries[self.current];
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
            _ => Feeds::new(ports, 1, count)?,
        };
        let feeds = self.feeds.insert(feeds);
        feeds.fill(
            ports,
            &tokens.iter().copied(),
            &(entries.live.len()..),
            asked,
        )?;
        let before = entries.mask.len();
        entries.mask.resize(before + count, 1);
        let mut inputs = feeds.inputs(ports, 1, &entries.mask)?;
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
        publish(&self.published, entries)?;
        let logits = self.logits.insert(logits);
        ports.logits(logits, [1, kept], asked, &mut self.converted)
    }
}

/// Leaves entries for others, if there is anybody to read them.
fn publish(published: &Arc<Mutex<Entries>>, entries: &Entries) -> Result<()> {
    if Arc::strong_count(published) > 1 {
        let shared = entries.shared(0..entries.values.len())?;
        *lock(published) = shared;
    }
    Ok(())
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
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
