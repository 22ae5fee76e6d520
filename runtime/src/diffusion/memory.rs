//! What blocks gave at earlier evaluations: values of the backend, which stay where they were
//! computed.

use std::collections::{BTreeMap, VecDeque};

use ort::value::DynValue;

use super::ports::StepPorts;
use crate::session::share;
use crate::{Result, RuntimeError};

/// A history for each block, newest first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    blocks: BTreeMap<String, History>,
}

#[derive(Debug, Default)]
struct History {
    /// How many values some graph looks back at.
    depth: usize,
    values: VecDeque<DynValue>,
}

impl Memory {
    /// An empty memory, as deep as these graphs look back.
    pub fn new<'p>(graphs: impl Iterator<Item = &'p StepPorts>) -> Self {
        let mut memory = Self::default();
        for (block, age) in graphs.flat_map(StepPorts::memories) {
            let history = memory.blocks.entry(block.to_owned()).or_default();
            history.depth = history.depth.max(age.saturating_add(1));
        }
        memory
    }

    /// Another handle on the `age`-th last value of `block`, from 0: nothing is copied.
    pub fn recall(&self, block: &str, age: usize) -> Result<DynValue> {
        let value = self
            .blocks
            .get(block)
            .and_then(|history| history.values.get(age));
        let missing = || {
            RuntimeError::Bug(format!(
                "`{block}` has no value {age} to remember, although the manifest was checked"
            ))
        };
        share(value.ok_or_else(missing)?)
    }

    /// Puts a value in front of the earlier ones, and drops one that no graph looks back at any
    /// more.
    pub fn remember(&mut self, block: &str, value: DynValue) {
        if let Some(history) = self.blocks.get_mut(block) {
            history.values.truncate(history.depth.saturating_sub(1));
            history.values.push_front(value);
        }
    }
}
