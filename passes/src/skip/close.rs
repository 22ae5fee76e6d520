//! Closes a schedule's dependencies: nothing is computed that nobody reads, and all that is read
//! was computed before.

use dlc_ir::Reuse;

use super::net::{Live, SkipNet};

/// What happens at one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The units that are really computed.
    pub computed: Vec<bool>,
    /// The values that are taken from memory.
    pub reads: Vec<Read>,
    /// The values that later steps read, by index.
    pub remembers: Vec<usize>,
    /// Multiply-adds.
    pub macs: u64,
}

/// A value that is taken from memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// Which one, by index.
    pub value: usize,
    /// The steps at which it was computed, the last one first: as many as the forecast needs, or as
    /// there were.
    pub events: Vec<usize>,
}

impl Step {
    /// Whether the network runs as it is: nothing is taken from memory, and nothing kept.
    pub fn is_whole(&self) -> bool {
        self.reads.is_empty() && self.remembers.is_empty()
    }

    /// What is alive at this step.
    pub fn live(&self, net: &SkipNet<'_>) -> Live {
        let mut cut = vec![false; net.values.len()];
        self.reads.iter().for_each(|read| cut[read.value] = true);
        net.live(&self.remembers, &cut)
    }
}

/// The steps of `computed[step][unit]`, the first of which computes everything, last ones first
/// traced back to what they need.
pub(crate) fn close(net: &SkipNet<'_>, reuse: Reuse, computed: &[Vec<bool>]) -> Vec<Step> {
    let mut wanted = vec![0usize; net.values.len()];
    let mut steps: Vec<Step> = Vec::new();
    for row in computed.iter().rev() {
        let cut: Vec<bool> = net.values.iter().map(|v| !row[v.unit]).collect();
        let remembers: Vec<usize> = (0..net.values.len())
            .filter(|&v| !cut[v] && wanted[v] > 0)
            .collect();
        let live = net.live(&remembers, &cut);
        for &v in &remembers {
            wanted[v] -= 1;
        }
        for &v in &live.read {
            wanted[v] = reuse.order();
        }
        let mut made = vec![false; net.units.len()];
        (0..net.values.len())
            .filter(|&v| !cut[v] && net.is_made(v, &live))
            .for_each(|v| made[net.values[v].unit] = true);
        let reads = live
            .read
            .iter()
            .map(|&value| Read {
                value,
                events: Vec::new(),
            })
            .collect();
        steps.push(Step {
            computed: made,
            reads,
            remembers,
            macs: net.macs(&live),
        });
    }
    steps.reverse();
    date_reads(&mut steps, net.values.len(), reuse.order());
    steps
}

/// Fills in when each value that is read was computed.
fn date_reads(steps: &mut [Step], values: usize, order: usize) {
    let mut events: Vec<Vec<usize>> = vec![Vec::new(); values];
    for (number, step) in steps.iter_mut().enumerate() {
        for read in &mut step.reads {
            read.events = events[read.value]
                .iter()
                .rev()
                .take(order)
                .copied()
                .collect();
        }
        step.remembers.iter().for_each(|&v| events[v].push(number));
    }
}

/// Multiply-adds of all steps as a share of those of as many full ones.
pub(crate) fn macs_share(net: &SkipNet<'_>, steps: &[Step]) -> f64 {
    let full = net.full_macs() as f64 * steps.len() as f64;
    steps.iter().map(|s| s.macs as f64).sum::<f64>() / full.max(1.0)
}
