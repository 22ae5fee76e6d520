//! The memory of caches that are kept in place: a row for each sequence, keys and values of all
//! layers.
//!
//! Rows lie one after the other, so that a pass over one sequence is bound to its row, and a pass
//! over several to the first rows: nothing is copied but when sequences change places.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ort::value::DynValue;

use super::ports::CachePort;
use super::saved::Row;
use super::values::{self, Move, Window};
use crate::session::share;
use crate::{Result, Session};

#[derive(Debug)]
pub(super) struct Buffers {
    ports: Vec<CachePort>,
    pub capacity: usize,
    context: usize,
    /// The row of each sequence.
    row_of: Vec<usize>,
    /// The sequence that is read and written where none is named.
    pub current: usize,
    /// By port; empty before the first step.
    values: Vec<DynValue>,
    /// Of some rows of a value: its number, the first row, how many. Each is made once, since what
    /// `ort` makes over given memory is never given back whole.
    views: BTreeMap<[usize; 3], DynValue>,
}

impl Buffers {
    pub fn new(ports: &[CachePort], sequences: usize, capacity: usize, context: usize) -> Self {
        Self {
            ports: ports.to_vec(),
            capacity,
            context,
            row_of: (0..sequences).collect(),
            current: 0,
            values: Vec::new(),
            views: BTreeMap::new(),
        }
    }

    /// Makes room for `total` entries of each sequence.
    pub fn reserve(&mut self, session: &mut Session, total: usize) -> ort::Result<()> {
        let wanted = if total <= self.capacity {
            self.capacity
        } else {
            total.max(self.capacity * 2).min(self.context)
        };
        let rows = self.row_of.len();
        if self.values.is_empty() {
            self.values = self
                .ports
                .iter()
                .map(|port| values::allocate(session, port, rows, wanted))
                .collect::<ort::Result<_>>()?;
        } else if wanted > self.capacity {
            self.views.clear();
            let entries: Vec<usize> = (0..self.capacity).collect();
            let grown = self
                .ports
                .iter()
                .zip(&self.values)
                .map(|(port, value)| values::select(session, port, value, &entries, wanted));
            self.values = grown.collect::<ort::Result<_>>()?;
        }
        self.capacity = wanted;
        Ok(())
    }

    /// The row of the current sequence.
    pub fn current_row(&self) -> usize {
        self.row_of[self.current]
    }

    pub fn row_of(&self, sequence: usize) -> usize {
        self.row_of[sequence]
    }

    fn window(&self) -> Window {
        Window {
            rows: self.row_of.len(),
            length: self.capacity,
        }
    }

    /// Cache `slot` as a whole, and a view of some of its rows that is valid as long as the whole
    /// is.
    pub fn rows(&mut self, slot: usize, first: usize, count: usize) -> Result<[DynValue; 2]> {
        let (whole, port, window) = (&self.values[slot], &self.ports[slot], self.window());
        let view = match self.views.entry([slot, first, count]) {
            Entry::Occupied(view) => view.into_mut(),
            Entry::Vacant(place) => place.insert(values::rows(whole, port, window, first, count)?),
        };
        Ok([share(whole)?, share(view)?])
    }

    /// Puts these sequences into the first rows. `lens` has the entries of each sequence.
    pub fn gather(&mut self, sequences: &[usize], lens: &[usize]) -> ort::Result<()> {
        let count = sequences.len();
        for &sequence in sequences {
            if self.row_of[sequence] < count {
                continue;
            }
            let is_other =
                |other: &usize| self.row_of[*other] < count && !sequences.contains(other);
            let Some(other) = (0..self.row_of.len()).find(is_other) else {
                continue;
            };
            self.apply(Move {
                from: self.row_of[sequence],
                to: self.row_of[other],
                entries: lens[sequence].max(lens[other]),
                swaps: true,
            })?;
            self.row_of.swap(sequence, other);
        }
        Ok(())
    }

    /// Copies the first `entries` of a sequence to another one.
    pub fn copy(&mut self, from: usize, to: usize, entries: usize) -> ort::Result<()> {
        self.apply(Move {
            from: self.row_of[from],
            to: self.row_of[to],
            entries,
            swaps: false,
        })
    }

    /// Keys and values of the first `entries` of a sequence, by port.
    pub fn save(&self, sequence: usize, entries: usize) -> ort::Result<Vec<Vec<u8>>> {
        let entries: Vec<usize> = (0..entries).collect();
        let all = self.ports.iter().zip(&self.values);
        let row = |port| Row {
            port,
            number: self.row_of[sequence],
            length: self.capacity,
        };
        all.map(|(port, value)| row(port).save(value, &entries))
            .collect()
    }

    /// Lets a sequence begin with these entries, for which there is room.
    pub fn restore(
        &mut self,
        sequence: usize,
        entries: usize,
        cache: &[Vec<u8>],
    ) -> ort::Result<()> {
        let (number, length) = (self.row_of[sequence], self.capacity);
        for ((port, value), bytes) in self.ports.iter().zip(&mut self.values).zip(cache) {
            let row = Row {
                port,
                number,
                length,
            };
            row.restore(value, entries, bytes)?;
        }
        Ok(())
    }

    fn apply(&mut self, what: Move) -> ort::Result<()> {
        let window = self.window();
        let each = self.values.iter_mut().zip(&self.ports);
        for (value, port) in each {
            values::move_entries(value, port, window, what)?;
        }
        Ok(())
    }
}
