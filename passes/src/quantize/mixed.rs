//! Bits of each matrix: 4, or 8 where that lessens the divergence most for its bytes.
//!
//! FIT bounds the divergence that rounding causes by `1/2 Tr(F) E[d^2]`, summed over the matrices
//! (Zandonati et al., ICLR 2023): all start with 4 bits, and those with the largest gain for each
//! byte get 8 until the budget is used up.

use std::collections::BTreeMap;

use dlc_ir::WeightId;

/// A matrix, and what its bits cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub weight: WeightId,
    pub entries: usize,
    /// Bytes with 4 bits and with 8, scales included.
    pub bytes: [u64; 2],
    /// Divergence that FIT expects of 4 bits and of 8, in nats.
    pub loss: [f64; 2],
    /// Bits that were asked for, if they were; then all of the above are those of these.
    pub fixed: Option<usize>,
}

/// Bits of every matrix, and the divergence that is expected of all.
#[derive(Debug, Clone, Default)]
pub(super) struct Allocation {
    pub bits: BTreeMap<WeightId, usize>,
    pub bytes: u64,
    pub loss: f64,
}

/// The allocation in at most so many bytes; or, where 4 bits need more, what they need.
pub(super) fn within_bytes(choices: &[Choice], most: u64) -> Result<Allocation, u64> {
    let least: u64 = choices.iter().map(|c| c.bytes[0]).sum();
    if least > most {
        return Err(least);
    }
    Ok(upgraded(choices, |bytes, _| bytes <= most))
}

/// The smallest allocation of which at most so much divergence is expected; or, where 8 bits are
/// expected to lose more, what they lose.
pub(super) fn within_loss(choices: &[Choice], most: f64) -> Result<Allocation, f64> {
    let least: f64 = choices.iter().map(|c| c.loss[1]).sum();
    if least > most {
        return Err(least);
    }
    Ok(upgraded(choices, |_, before| before > most))
}

/// Gives 8 bits to one matrix after the other, the most profitable first, where `goes` allows it by
/// the bytes that it leads to and the loss before it.
fn upgraded(choices: &[Choice], goes: impl Fn(u64, f64) -> bool) -> Allocation {
    let mut allocation = Allocation {
        bits: choices
            .iter()
            .map(|c| (c.weight, c.fixed.unwrap_or(4)))
            .collect(),
        bytes: choices.iter().map(|c| c.bytes[0]).sum(),
        loss: choices.iter().map(|c| c.loss[0]).sum(),
    };
    let gain = |c: &Choice| (c.loss[0] - c.loss[1]) / (c.bytes[1] - c.bytes[0]).max(1) as f64;
    let mut order: Vec<&Choice> = choices.iter().filter(|c| c.fixed.is_none()).collect();
    order.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    for choice in order {
        let bytes = allocation.bytes + choice.bytes[1] - choice.bytes[0];
        if goes(bytes, allocation.loss) {
            allocation.bits.insert(choice.weight, 8);
            allocation.bytes = bytes;
            allocation.loss += choice.loss[1] - choice.loss[0];
        }
    }
    allocation
}

#[cfg(test)]
mod tests {
    use dlc_ir::{EntityId, WeightId};

    use super::*;

    fn choices() -> Vec<Choice> {
        [(100, 8.0), (100, 1.0), (400, 8.0)]
            .into_iter()
            .enumerate()
            .map(|(at, (entries, loss))| Choice {
                weight: WeightId::from_index(at),
                entries,
                bytes: [entries as u64 / 2, entries as u64],
                loss: [loss, loss / 256.0],
                fixed: None,
            })
            .collect()
    }

    fn bits(allocation: &Allocation) -> Vec<usize> {
        allocation.bits.values().copied().collect()
    }

    #[test]
    fn bytes_go_where_they_gain_most() {
        let all = choices();
        assert_eq!(bits(&within_bytes(&all, 300).unwrap()), [4, 4, 4]);
        assert_eq!(bits(&within_bytes(&all, 350).unwrap()), [8, 4, 4]);
        // The large one doesn't fit any more, a smaller one does.
        assert_eq!(bits(&within_bytes(&all, 400).unwrap()), [8, 8, 4]);
        assert_eq!(bits(&within_bytes(&all, 600).unwrap()), [8, 8, 8]);
        assert_eq!(within_bytes(&all, 299).unwrap_err(), 300);
    }

    #[test]
    fn loss_is_brought_down_to_what_may_be_lost() {
        let all = choices();
        assert_eq!(bits(&within_loss(&all, 17.0).unwrap()), [4, 4, 4]);
        assert_eq!(bits(&within_loss(&all, 9.1).unwrap()), [8, 4, 4]);
        assert_eq!(bits(&within_loss(&all, 1.5).unwrap()), [8, 4, 8]);
        let least = within_loss(&all, 0.01).unwrap_err();
        assert!((least - 17.0 / 256.0).abs() < 1e-12);
    }
}
