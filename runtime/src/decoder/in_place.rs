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

use super::ports::{Asked, CachePort, LOGITS, Ports};
use super::values;
use crate::session::share;
use crate::{Result, RuntimeError, Session};

/// Entries to begin with, unless an option says otherwise.
const INITIAL_CAPACITY: usize = 512;

#[derive(Debug)]
pub(super) struct InPlaceCache {
    len: usize,
    /// Of this graph, or of the one whose cache it reads.
    buffers: Arc<Mutex<Buffers>>,
    /// By cache port: which buffer it is.
    slots: Vec<usize>,
    shared: bool,
    /// The last pass, used again when the next one keeps as many logits.
    last: Option<Pass>,
}

/// Where a pass puts its outputs: logits of its own, of so many tokens, and the buffers.
struct Pass {
    kept: usize,
    /// Of the buffers: with it, they were made anew.
    capacity: usize,
    logits: DynValue,
    options: RunOptions<HasSelectedOutputs>,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("kept", &self.kept)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl Pass {
    fn new(ports: &Ports, buffers: &Buffers, slots: &[usize], kept: usize) -> Result<Self> {
        let backend = |error: ort::Error| RuntimeError::port(&ports.graph, LOGITS, error.message());
        let shape = [1, kept as i64, ports.vocab as i64];
        let logits = DynTensor::new(&Allocator::default(), ports.logits_element, shape)
            .map_err(backend)?
            .into_dyn();
        let mut selector = OutputSelector::no_default()
            .with(LOGITS)
            .preallocate(LOGITS, share(&logits)?);
        for (port, &slot) in ports.caches.iter().zip(slots) {
            selector = selector
                .with(&port.present)
                .preallocate(&port.present, share(&buffers.values[slot])?);
        }
        let options = RunOptions::new().map_err(backend)?.with_outputs(selector);
        Ok(Self {
            kept,
            capacity: buffers.capacity,
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
            last: None,
        }
    }

    /// Reads the buffers of `other`, by cache port those of these numbers.
    pub fn share(&mut self, other: &Self, slots: Vec<usize>) {
        (self.buffers, self.slots, self.shared, self.len, self.last) =
            (Arc::clone(&other.buffers), slots, true, 0, None);
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
        ids: Vec<i64>,
        asked: Asked,
    ) -> Result<Logits> {
        let (kept, total) = (ports.kept(ids.len(), asked.want), self.len + ids.len());
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers
            .reserve(session, total)
            .map_err(|error| session.failed(&error))?;
        let pass = match self.last.take() {
            Some(pass) if pass.kept == kept && pass.capacity == buffers.capacity => pass,
            _ => Pass::new(ports, &buffers, &self.slots, kept)?,
        };
        let mut inputs = ports.inputs(ids, vec![1; total], self.len, asked)?;
        for (port, &slot) in ports.caches.iter().zip(&self.slots) {
            inputs.push((
                Cow::Borrowed(&port.past),
                share(&buffers.values[slot])?.into(),
            ));
        }
        session.run_into(inputs, &pass.options)?;
        drop(buffers);
        self.len = total;
        let scores = ports.logits(&pass.logits, kept, asked.want)?;
        self.last = Some(pass);
        Ok(scores)
    }
}
