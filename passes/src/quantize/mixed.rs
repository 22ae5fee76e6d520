//! The format of each matrix: few bits in large groups, or more where that lessens the divergence
//! most for its bytes.
//!
//! FIT bounds the divergence that rounding causes by `1/2 Tr(F) E[d^2]`, summed over the matrices
//! (Zandonati et al., ICLR 2023). All start with the fewest bytes, and those with the largest gain
//! for each byte get more until the budget is used up.

use std::collections::BTreeMap;

use dlc_ir::{GroupFormat, WeightId};

/// A format of a matrix, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Form {
    pub format: GroupFormat,
    /// Bytes with scales.
    pub bytes: u64,
    /// Divergence that FIT expects of it, in nats.
    pub loss: f64,
}

/// A matrix, and what it may become.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub weight: WeightId,
    pub entries: usize,
    /// By bytes, fewest first; the gain of a byte falls from each to the next.
    forms: Vec<Form>,
}

impl Choice {
    /// The choice among `forms`, at least one, without those that gain less for their bytes than
    /// others do.
    pub fn among(weight: WeightId, entries: usize, mut forms: Vec<Form>) -> Self {
        forms.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
        let mut kept: Vec<Form> = Vec::new();
        for form in forms {
            if kept.last().is_some_and(|last| form.loss >= last.loss) {
                continue;
            }
            while let [.., before, last] = kept[..]
                && gain(&before, &last) <= gain(&last, &form)
            {
                kept.pop();
            }
            kept.push(form);
        }
        Self {
            weight,
            entries,
            forms: kept,
        }
    }

    /// The form with the fewest bytes.
    pub fn smallest(&self) -> &Form {
        &self.forms[0]
    }

    /// The form of which least is expected to be lost.
    fn best(&self) -> &Form {
        &self.forms[self.forms.len() - 1]
    }
}

/// What a byte gains from one form to a larger one.
fn gain(from: &Form, to: &Form) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes).max(1) as f64
}

/// The format of every matrix, and the divergence that is expected of all.
#[derive(Debug, Clone, Default)]
pub(super) struct Allocation {
    pub formats: BTreeMap<WeightId, GroupFormat>,
    pub loss: f64,
}

/// The allocation in at most so many bytes; or, where the smallest forms need more, what they need.
pub(super) fn within_bytes(choices: &[Choice], most: u64) -> Result<Allocation, u64> {
    let least: u64 = choices.iter().map(|c| c.smallest().bytes).sum();
    if least > most {
        return Err(least);
    }
    Ok(upgraded(choices, |bytes, _| bytes <= most))
}

/// The smallest allocation of which at most so much divergence is expected; or, where the best forms
/// are expected to lose more, what they lose.
pub(super) fn within_loss(choices: &[Choice], most: f64) -> Result<Allocation, f64> {
    let least: f64 = choices.iter().map(|c| c.best().loss).sum();
    if least > most {
        return Err(least);
    }
    Ok(upgraded(choices, |_, before| before > most))
}

/// Gives one matrix after the other its next larger form, the most profitable first, where `goes`
/// allows it by the bytes that it leads to and the loss before it.
fn upgraded(choices: &[Choice], goes: impl Fn(u64, f64) -> bool) -> Allocation {
    let mut taken = vec![0; choices.len()];
    let steps = |(at, choice): (usize, &Choice)| {
        let pairs = choice.forms.windows(2).enumerate();
        pairs
            .map(|(from, pair)| (at, from, gain(&pair[0], &pair[1])))
            .collect::<Vec<_>>()
    };
    let mut order: Vec<_> = choices.iter().enumerate().flat_map(steps).collect();
    order.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut bytes: u64 = choices.iter().map(|c| c.smallest().bytes).sum();
    let mut loss: f64 = choices.iter().map(|c| c.smallest().loss).sum();
    for (at, from, _) in order {
        let [before, after] = [from, from + 1].map(|form| choices[at].forms[form]);
        let larger = bytes + after.bytes - before.bytes;
        if taken[at] == from && goes(larger, loss) {
            taken[at] += 1;
            bytes = larger;
            loss += after.loss - before.loss;
        }
    }
    let format = |(choice, form): (&Choice, usize)| (choice.weight, choice.forms[form].format);
    Allocation {
        formats: choices.iter().zip(taken).map(format).collect(),
        loss,
    }
}

#[cfg(test)]
mod tests {
    use dlc_ir::{EntityId, WeightId};

    use super::*;

    fn form(bits: usize, group_size: usize, bytes: u64, loss: f64) -> Form {
        Form {
            format: GroupFormat { bits, group_size },
            bytes,
            loss,
        }
    }

    fn choices() -> Vec<Choice> {
        [(100, 8.0), (100, 1.0), (400, 8.0)]
            .into_iter()
            .enumerate()
            .map(|(at, (entries, loss))| {
                let forms = [(4, 1), (8, 2)].map(|(bits, halves)| {
                    let lost = if bits == 4 { loss } else { loss / 256.0 };
                    form(bits, 32, halves * entries / 2, lost)
                });
                Choice::among(WeightId::from_index(at), entries as usize, forms.to_vec())
            })
            .collect()
    }

    fn bits(allocation: &Allocation) -> Vec<usize> {
        allocation.formats.values().map(|f| f.bits).collect()
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

    #[test]
    fn forms_that_gain_less_for_their_bytes_are_left_out() {
        let forms = vec![
            form(4, 128, 50, 10.0),
            // Between 50 and 100 bytes, and worse than a mixture of these.
            form(4, 64, 60, 9.5),
            form(4, 32, 70, 6.0),
            // More bytes, and more lost.
            form(8, 64, 99, 6.5),
            form(8, 128, 100, 0.1),
            form(8, 32, 120, 0.05),
        ];
        let choice = Choice::among(WeightId::from_index(0), 100, forms);
        let kept: Vec<_> = choice.forms.iter().map(|form| form.bytes).collect();
        assert_eq!(kept, [50, 70, 100, 120]);
        let within = |most| {
            let allocation = within_bytes(std::slice::from_ref(&choice), most).unwrap();
            let format = allocation.formats[&choice.weight];
            (format.bits, format.group_size)
        };
        assert_eq!(within(99), (4, 32));
        assert_eq!(within(119), (8, 128));
    }
}
