//! Caches of the profile `ort`: allocated once, written in place by `GroupQueryAttention`.
//!
//! The same memory is past and present (`past_present_share_buffer`), so a step copies nothing and a
//! rollback is an integer: the operator takes the number of valid entries from the mask.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlc_methods::speculation::Logits;
use ort::memory::Allocator;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions};
use ort::value::{DynTensor, DynValue};

use super::buffers::Buffers;
use super::feeds::Feeds;
use super::ports::{Asked, CachePort, LOGITS, Ports};
use crate::session::share;
use crate::{Result, Session};

/// Entries to begin with, unless an option says otherwise.
const INITIAL_CAPACITY: usize = 512;
/// The most passes that are held.
const PASSES: usize = 32;
/// The most logits that they have together, unless a single one has more.
const LOGITS_HELD: usize = 1 << 23;

#[derive(Debug)]
pub(super) struct InPlaceCache {
    /// Entries of each sequence; of the one that it reads, where it reads another graph's buffers.
    lens: Vec<usize>,
    current: usize,
    /// Of this graph, or of the one whose cache it reads.
    buffers: Arc<Mutex<Buffers>>,
    /// By cache port: which buffer it is.
    slots: Vec<usize>,
    shared: bool,
    /// The capacity of the buffers that passes are bound to.
    bound: usize,
    /// Passes of earlier calls, the latest at the end.
    passes: Vec<Pass>,
    /// As many as the capacity.
    ones: Vec<i64>,
    /// Of a pass over several sequences.
    mask: Vec<i64>,
    /// Logits that aren't 32-bit floats, as such.
    converted: Vec<f32>,
}

/// What a pass over some rows is for: so many tokens of each, of which so many get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first_row: usize,
    rows: usize,
    count: usize,
    kept: usize,
}

/// What a pass is bound to: inputs and logits of its own, and rows of the buffers.
struct Pass {
    span: Span,
    feeds: Feeds,
    logits: DynValue,
    /// Declared before what it is bound to: dropped before it.
    options: RunOptions<HasSelectedOutputs>,
    /// Views of the buffers, by cache port.
    pasts: Vec<DynValue>,
    /// What the views are of.
    _wholes: Vec<DynValue>,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("span", &self.span)
            .field("feeds", &self.feeds)
            .finish_non_exhaustive()
    }
}

impl Pass {
    fn new(ports: &Ports, buffers: &mut Buffers, slots: &[usize], span: Span) -> Result<Self> {
        let backend = |error: ort::Error| ports.failed(LOGITS, &error);
        let shape = [span.rows, span.kept, ports.vocab].map(|dim| dim as i64);
        let logits = DynTensor::new(&Allocator::default(), ports.logits_element, shape)
            .map_err(backend)?
            .into_dyn();
        let mut selector = OutputSelector::no_default()
            .with(LOGITS)
            .preallocate(LOGITS, share(&logits)?);
        let (mut pasts, mut wholes) = (Vec::new(), Vec::new());
        for (port, &slot) in ports.caches.iter().zip(slots) {
            let [whole, rows] = buffers.rows(slot, span.first_row, span.rows)?;
            selector = selector
                .with(&port.present)
                .preallocate(&port.present, share(&rows)?);
            pasts.push(rows);
            wholes.push(whole);
        }
        let options = RunOptions::new().map_err(backend)?.with_outputs(selector);
        Ok(Self {
            span,
            feeds: Feeds::new(ports, span.rows, span.count)?,
            logits,
            options,
            pasts,
            _wholes: wholes,
        })
    }
}

impl InPlaceCache {
    pub fn new(
        ports: &[CachePort],
        sequences: usize,
        capacity: Option<usize>,
        context: usize,
    ) -> Self {
        let capacity = capacity
            .unwrap_or(INITIAL_CAPACITY)
            .clamp(1, context.max(1));
        Self {
            lens: vec![0; sequences],
            current: 0,
            buffers: Arc::new(Mutex::new(Buffers::new(
                ports, sequences, capacity, context,
            ))),
            slots: (0..ports.len()).collect(),
            shared: false,
            bound: 0,
            passes: Vec::new(),
            ones: Vec::new(),
            mask: Vec::new(),
            converted: Vec::new(),
        }
    }

    /// Reads the buffers of `other`, by cache port those of these numbers: those of its current
    /// sequence.
    pub fn share(&mut self, other: &Self, slots: Vec<usize>) {
        (self.buffers, self.slots) = (Arc::clone(&other.buffers), slots);
        (self.shared, self.lens, self.current, self.bound) = (true, vec![0], 0, 0);
    }

    /// Whether it reads another graph's buffers.
    pub fn shares(&self) -> bool {
        self.shared
    }

    pub fn adopt(&mut self, len: usize) {
        if self.shared {
            self.lens[self.current] = len;
        }
    }

    pub fn len(&self) -> usize {
        self.lens[self.current]
    }

    pub fn rollback(&mut self, len: usize) {
        let held = &mut self.lens[self.current];
        *held = len.min(*held);
    }

    /// Reads and writes this sequence from now on.
    pub fn select(&mut self, sequence: usize) {
        self.current = sequence;
        lock(&self.buffers).current = sequence;
    }

    /// Lets a sequence hold the first `len` entries of another one.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) -> ort::Result<()> {
        self.lens[to] = 0;
        lock(&self.buffers).copy(from, to, len)?;
        self.lens[to] = len;
        Ok(())
    }

    /// Keys and values of the first `len` entries of a sequence.
    pub fn save(&self, sequence: usize, len: usize) -> ort::Result<Vec<Vec<u8>>> {
        lock(&self.buffers).save(sequence, len)
    }

    /// Lets a sequence hold `len` saved entries.
    pub fn restore(
        &mut self,
        session: &mut Session,
        sequence: usize,
        len: usize,
        cache: &[Vec<u8>],
    ) -> ort::Result<()> {
        self.lens[sequence] = 0;
        let mut buffers = lock(&self.buffers);
        buffers.reserve(session, len)?;
        buffers.restore(sequence, len, cache)?;
        self.lens[sequence] = len;
        Ok(())
    }

    pub fn extend(
        &mut self,
        session: &mut Session,
        ports: &Ports,
        tokens: &[u32],
        asked: Asked,
    ) -> Result<Logits<'_>> {
        let held = self.len();
        let (count, total) = (tokens.len(), held + tokens.len());
        let kept = ports.kept(count, asked);
        let mut buffers = lock(&self.buffers);
        buffers
            .reserve(session, total)
            .map_err(|error| session.failed(&error))?;
        rebind(&mut self.bound, &mut self.passes, &mut self.ones, &buffers);
        let span = Span {
            first_row: buffers.current_row(),
            rows: 1,
            count,
            kept,
        };
        let pass = latest(&mut self.passes, ports, &mut buffers, &self.slots, span)?;
        pass.feeds
            .fill(ports, &tokens.iter().copied(), &(held..), asked)?;
        let mut inputs = pass.feeds.inputs(ports, 1, &self.ones[..total])?;
        let pasts = ports.caches.iter().map(|port| Cow::from(&port.past));
        inputs.extend(pasts.zip(pass.pasts.iter().map(Into::into)));
        session.run_into(inputs, &pass.options)?;
        self.lens[self.current] = total - asked.fillers;
        ports.logits(&pass.logits, [1, kept], asked, &mut self.converted)
    }

    /// Appends a token to each of these sequences, and puts both in the order of the logits.
    pub fn step(
        &mut self,
        session: &mut Session,
        ports: &Ports,
        tokens: &mut [(usize, u32)],
    ) -> Result<Logits<'_>> {
        let rows = tokens.len();
        let sequences: Vec<usize> = tokens.iter().map(|(sequence, _)| *sequence).collect();
        let held = sequences.iter().map(|&sequence| self.lens[sequence]);
        let total = held.max().unwrap_or(0) + 1;
        let mut buffers = lock(&self.buffers);
        let prepared = buffers
            .reserve(session, total)
            .and_then(|()| buffers.gather(&sequences, &self.lens));
        prepared.map_err(|error| session.failed(&error))?;
        rebind(&mut self.bound, &mut self.passes, &mut self.ones, &buffers);
        tokens.sort_unstable_by_key(|&(sequence, _)| buffers.row_of(sequence));
        // A row's token is the last of its entries in the mask, whatever lies between.
        self.mask.clear();
        for (sequence, _) in tokens.iter() {
            let len = self.lens[*sequence];
            self.mask.extend(std::iter::repeat_n(1, len));
            self.mask.extend(std::iter::repeat_n(0, total - 1 - len));
            self.mask.push(1);
        }
        let span = Span {
            first_row: 0,
            rows,
            count: 1,
            kept: 1,
        };
        let pass = latest(&mut self.passes, ports, &mut buffers, &self.slots, span)?;
        let lens = tokens.iter().map(|(sequence, _)| self.lens[*sequence]);
        let asked = Asked {
            want: 1,
            fillers: 0,
            evenly: false,
            length: total,
        };
        let words = tokens.iter().map(|(_, token)| *token);
        pass.feeds.fill(ports, &words, &lens, asked)?;
        let mut inputs = pass.feeds.inputs(ports, rows, &self.mask)?;
        let pasts = ports.caches.iter().map(|port| Cow::from(&port.past));
        inputs.extend(pasts.zip(pass.pasts.iter().map(Into::into)));
        session.run_into(inputs, &pass.options)?;
        for (sequence, _) in tokens.iter() {
            self.lens[*sequence] += 1;
        }
        let asked = Asked {
            want: rows,
            ..asked
        };
        ports.logits(&pass.logits, [rows, 1], asked, &mut self.converted)
    }
}

fn lock(buffers: &Mutex<Buffers>) -> MutexGuard<'_, Buffers> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets passes that are bound to buffers that are no more.
fn rebind(bound: &mut usize, passes: &mut Vec<Pass>, ones: &mut Vec<i64>, buffers: &Buffers) {
    if *bound != buffers.capacity {
        *bound = buffers.capacity;
        passes.clear();
        ones.resize(*bound, 1);
    }
}

/// The pass over `span`: one of `passes` or a new one, which takes the place of the oldest where
/// they are too many.
fn latest<'p>(
    passes: &'p mut Vec<Pass>,
    ports: &Ports,
    buffers: &mut Buffers,
    slots: &[usize],
    span: Span,
) -> Result<&'p mut Pass> {
    if let Some(place) = passes.iter().position(|pass| pass.span == span) {
        passes[place..].rotate_left(1);
    } else {
        let rows = |span: Span| span.rows * span.kept;
        let all = |passes: &[Pass]| passes.iter().map(|pass| rows(pass.span)).sum::<usize>();
        while !passes.is_empty()
            && (passes.len() >= PASSES || ports.vocab * (rows(span) + all(passes)) > LOGITS_HELD)
        {
            passes.remove(0);
        }
        passes.push(Pass::new(ports, buffers, slots, span)?);
    }
    let last = passes.len() - 1;
    Ok(&mut passes[last])
}
