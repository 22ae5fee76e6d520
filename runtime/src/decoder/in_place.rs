//! Caches of the profile `ort`: allocated once, written in place by `GroupQueryAttention`.
//!
//! The same value is past and present (`past_present_share_buffer`), so a step copies nothing and a
//! rollback is an integer: the operator takes the number of valid entries from the mask's length.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use dlc_methods::speculation::Logits;
use ort::memory::Allocator;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions};
use ort::value::{DynTensor, DynValue};

use super::feeds::Feeds;
use super::ports::{Asked, CachePort, LOGITS, Ports};
use super::values;
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
    len: usize,
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
    /// Logits that aren't 32-bit floats, as such.
    converted: Vec<f32>,
}

/// What a pass over so many tokens that keeps so many logits is bound to: inputs and logits of its
/// own, and the buffers.
struct Pass {
    kept: usize,
    feeds: Feeds,
    logits: DynValue,
    options: RunOptions<HasSelectedOutputs>,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("kept", &self.kept)
            .field("feeds", &self.feeds)
            .finish_non_exhaustive()
    }
}

impl Pass {
    fn new<'c>(
        ports: &Ports,
        caches: impl Iterator<Item = &'c DynValue>,
        count: usize,
        kept: usize,
    ) -> Result<Self> {
        let backend = |error: ort::Error| ports.failed(LOGITS, &error);
        let shape = [1, kept as i64, ports.vocab as i64];
        let logits = DynTensor::new(&Allocator::default(), ports.logits_element, shape)
            .map_err(backend)?
            .into_dyn();
        let mut selector = OutputSelector::no_default()
            .with(LOGITS)
            .preallocate(LOGITS, share(&logits)?);
        for (port, cache) in ports.caches.iter().zip(caches) {
            selector = selector
                .with(&port.present)
                .preallocate(&port.present, share(cache)?);
        }
        let options = RunOptions::new().map_err(backend)?.with_outputs(selector);
        Ok(Self {
            kept,
            feeds: Feeds::new(ports, count)?,
            logits,
            options,
        })
    }
}

/// Keys and values of all layers.
#[derive(Debug)]
struct Buffers {
    ports: Vec<CachePort>,
    capacity: usize,
    context: usize,
    /// By port; empty before the first step.
    values: Vec<DynValue>,
}

impl Buffers {
    /// Makes room for `total` entries.
    fn reserve(&mut self, session: &mut Session, total: usize) -> ort::Result<()> {
        let wanted = if total <= self.capacity {
            self.capacity
        } else {
            total.max(self.capacity * 2).min(self.context)
        };
        if self.values.is_empty() {
            self.values = self
                .ports
                .iter()
                .map(|port| values::allocate(session, port, wanted))
                .collect::<ort::Result<_>>()?;
        } else if wanted > self.capacity {
            let rows: Vec<usize> = (0..self.capacity).collect();
            let grown = self
                .ports
                .iter()
                .zip(&self.values)
                .map(|(port, value)| values::select(session, port, value, &rows, wanted));
            self.values = grown.collect::<ort::Result<_>>()?;
        }
        self.capacity = wanted;
        Ok(())
    }
}

impl InPlaceCache {
    pub fn new(ports: &[CachePort], capacity: Option<usize>, context: usize) -> Self {
        let capacity = capacity
            .unwrap_or(INITIAL_CAPACITY)
            .clamp(1, context.max(1));
        let buffers = Buffers {
            ports: ports.to_vec(),
            capacity,
            context,
            values: Vec::new(),
        };
        Self {
            len: 0,
            buffers: Arc::new(Mutex::new(buffers)),
            slots: (0..ports.len()).collect(),
            shared: false,
            bound: 0,
            passes: Vec::new(),
            ones: Vec::new(),
            converted: Vec::new(),
        }
    }

    /// Reads the buffers of `other`, by cache port those of these numbers.
    pub fn share(&mut self, other: &Self, slots: Vec<usize>) {
        (self.buffers, self.slots) = (Arc::clone(&other.buffers), slots);
        (self.shared, self.len, self.bound) = (true, 0, 0);
    }

    /// Whether it reads another graph's buffers.
    pub fn shares(&self) -> bool {
        self.shared
    }

    pub fn adopt(&mut self, len: usize) {
        if self.shared {
            self.len = len;
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn rollback(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub fn extend(
        &mut self,
        session: &mut Session,
        ports: &Ports,
        tokens: &[u32],
        asked: Asked,
    ) -> Result<Logits<'_>> {
        let (count, total) = (tokens.len(), self.len + tokens.len());
        let kept = ports.kept(count, asked.want);
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers
            .reserve(session, total)
            .map_err(|error| session.failed(&error))?;
        if self.bound != buffers.capacity {
            self.bound = buffers.capacity;
            self.passes.clear();
            self.ones.resize(self.bound, 1);
        }
        let caches = self.slots.iter().map(|&slot| &buffers.values[slot]);
        let pass = latest(&mut self.passes, ports, caches.clone(), count, kept)?;
        pass.feeds.fill(ports, tokens, self.len, asked)?;
        let mut inputs = pass.feeds.inputs(ports, &self.ones[..total])?;
        let pasts = ports.caches.iter().map(|port| Cow::from(&port.past));
        inputs.extend(pasts.zip(caches.map(Into::into)));
        session.run_into(inputs, &pass.options)?;
        self.len = total;
        ports.logits(&pass.logits, kept, asked.want, &mut self.converted)
    }
}

/// The pass over `count` tokens that keeps `kept` logits: one of `passes` or a new one, which
/// takes the place of the oldest where they are too many.
fn latest<'p, 'c>(
    passes: &'p mut Vec<Pass>,
    ports: &Ports,
    caches: impl Iterator<Item = &'c DynValue>,
    count: usize,
    kept: usize,
) -> Result<&'p mut Pass> {
    let is_it = |pass: &Pass| pass.kept == kept && pass.feeds.count() == count;
    if let Some(place) = passes.iter().position(is_it) {
        passes[place..].rotate_left(1);
    } else {
        let rows = |passes: &[Pass]| kept + passes.iter().map(|pass| pass.kept).sum::<usize>();
        while !passes.is_empty()
            && (passes.len() >= PASSES || ports.vocab * rows(passes) > LOGITS_HELD)
        {
            passes.remove(0);
        }
        passes.push(Pass::new(ports, caches, count, kept)?);
    }
    let last = passes.len() - 1;
    Ok(&mut passes[last])
}
