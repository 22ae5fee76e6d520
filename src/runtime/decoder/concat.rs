//! Caches of the profiles `portable` and `onnx`: each step returns past and new entries in a new tensor, which is fed back as it is.
//!
//! Forgetting copies nothing: a rejected entry stays where it is and gets a 0 in `attention_mask`. The graphs count positions and
//! windows over the mask's ones, so such holes are harmless; `position_ids` count likewise. Only when holes outnumber half of the
//! live entries are they squeezed out.

use std::borrow::Cow;

use ort::value::DynValue;

use super::ports::{LOGITS, Ports};
use super::values;
use crate::runtime::session::share;
use crate::runtime::{Logits, Result, Session};

/// Holes that are always tolerated: short caches aren't worth squeezing at every turn.
const FREE_HOLES: usize = 32;

#[derive(Debug, Default)]
pub(super) struct ConcatCache {
    /// By cache port; empty before the first step.
    values: Vec<DynValue>,
    /// 1 for a live entry, 0 for a hole.
    mask: Vec<i64>,
    /// Where the live entries are, ascending.
    live: Vec<usize>,
}

impl ConcatCache {
    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn rollback(&mut self, len: usize) {
        if len == 0 {
            *self = Self::default();
            return;
        }
        for entry in self.live.drain(len.min(self.live.len())..) {
            self.mask[entry] = 0;
        }
    }

    pub fn extend(&mut self, session: &mut Session, ports: &Ports, ids: Vec<i64>, want: usize) -> Result<Logits> {
        let count = ids.len();
        if self.values.is_empty() {
            self.values = ports.caches.iter().map(values::empty).collect::<ort::Result<_>>().map_err(|error| session.failed(&error))?;
        }
        if self.has_too_many_holes() {
            self.squeeze(session, ports).map_err(|error| session.failed(&error))?;
        }
        let mask: Vec<i64> = self.mask.iter().copied().chain(std::iter::repeat_n(1, count)).collect();
        let mut inputs = ports.inputs(ids, mask, self.live.len())?;
        for (port, value) in ports.caches.iter().zip(&self.values) {
            inputs.push((Cow::Owned(port.past.clone()), share(value)?.into()));
        }
        let presents: Vec<&str> = ports.caches.iter().map(|port| port.present.as_str()).collect();
        let (logits, present) = session.run_keeping(inputs, LOGITS, &presents)?;
        self.values = present;
        self.live.extend(self.mask.len()..self.mask.len() + count);
        self.mask.resize(self.mask.len() + count, 1);
        ports.logits(&logits, count, want)
    }

    fn has_too_many_holes(&self) -> bool {
        self.mask.len() - self.live.len() > FREE_HOLES.max(self.live.len() / 2)
    }

    fn squeeze(&mut self, session: &Session, ports: &Ports) -> ort::Result<()> {
        let squeezed = ports.caches.iter().zip(&self.values).map(|(port, value)| values::select(session, port, value, &self.live, self.live.len()));
        self.values = squeezed.collect::<ort::Result<_>>()?;
        self.mask = vec![1; self.live.len()];
        self.live = (0..self.mask.len()).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(mask: &[i64]) -> ConcatCache {
        let live = (0..mask.len()).filter(|&i| mask[i] == 1).collect();
        ConcatCache { values: Vec::new(), mask: mask.to_vec(), live }
    }

    #[test]
    fn forgetting_leaves_holes_where_entries_were() {
        let mut cache = cache(&[1, 1, 0, 1, 1]);
        cache.rollback(3);
        assert_eq!((cache.len(), cache.mask.as_slice()), (3, &[1, 1, 0, 1, 0][..]));
        cache.rollback(9);
        assert_eq!(cache.len(), 3);
        cache.rollback(0);
        assert_eq!((cache.len(), cache.mask.len()), (0, 0));
    }

    #[test]
    fn holes_are_squeezed_out_when_they_are_many() {
        let few = [vec![1; 100], vec![0; 50]].concat();
        let many = [vec![1; 100], vec![0; 51]].concat();
        assert!(!cache(&few).has_too_many_holes() && cache(&many).has_too_many_holes());
        assert!(!cache(&[vec![1], vec![0; FREE_HOLES]].concat()).has_too_many_holes());
    }
}
