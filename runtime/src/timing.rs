//! Seconds of the same work, measured several times.

/// What several runs took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timing {
    /// In ascending order.
    seconds: Vec<f64>,
}

impl Timing {
    /// Of runs that took these seconds.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Self {
        let mut seconds: Vec<f64> = seconds.into_iter().collect();
        seconds.sort_by(f64::total_cmp);
        Self { seconds }
    }

    /// The median; NaN of no runs.
    pub fn median(&self) -> f64 {
        self.at(2)
    }

    /// The shortest and the longest; NaN of no runs.
    pub fn range(&self) -> [f64; 2] {
        [self.at(0), self.at(4)]
    }

    /// How far the middle half of the runs lies apart, as a share of the median; none of fewer than
    /// four runs.
    pub fn spread(&self) -> Option<f64> {
        (self.seconds.len() >= 4 && self.median() > 0.0)
            .then(|| (self.at(3) - self.at(1)) / self.median())
    }

    /// The run below which so many quarters of all lie.
    fn at(&self, quarters: usize) -> f64 {
        let last = self.seconds.len().saturating_sub(1);
        let place = if quarters == 2 {
            self.seconds.len() / 2
        } else {
            (last * quarters).div_ceil(4)
        };
        self.seconds.get(place).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_by_their_median_their_ends_and_their_middle_half() {
        let timing = Timing::of([5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            (timing.median(), timing.range(), timing.spread()),
            (3.0, [1.0, 5.0], Some(2.0 / 3.0))
        );
        assert_eq!(
            (Timing::of([2.0]).range(), Timing::of([2.0]).spread()),
            ([2.0, 2.0], None)
        );
        assert!(Timing::default().median().is_nan() && Timing::default().range()[0].is_nan());
    }
}
