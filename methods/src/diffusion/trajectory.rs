//! What a [`SamplingPlan`] computes between two evaluations of the network, on whatever latents
//! are: numbers in memory, or values of a graph.

use std::collections::VecDeque;

use crate::diffusion::{SamplingPlan, SamplingStep};

/// Sums of latents and outputs.
pub trait Arithmetic {
    /// Latents, an estimate or an output of the network.
    type Value;
    /// Why a sum can't be made.
    type Error;

    /// The sum of values times coefficients, of which none is 0. `spare` is a value that nobody
    /// reads any more.
    ///
    /// # Errors
    /// What the values are makes them.
    fn sum(
        &mut self,
        terms: &[(f64, &Self::Value)],
        spare: Option<Self::Value>,
    ) -> Result<Self::Value, Self::Error>;

    /// The value with each entry clipped to `[-limit, limit]`.
    ///
    /// # Errors
    /// What the values are makes them.
    fn clip(&mut self, value: Self::Value, limit: f32) -> Result<Self::Value, Self::Error>;

    /// [`sum`](Self::sum) without the terms whose coefficient is 0.
    ///
    /// # Errors
    /// Those of [`sum`](Self::sum).
    fn sum_of<'v>(
        &mut self,
        terms: impl IntoIterator<Item = (f64, &'v Self::Value)>,
        spare: Option<Self::Value>,
    ) -> Result<Self::Value, Self::Error>
    where
        Self::Value: 'v,
    {
        let terms = terms.into_iter().filter(|(c, _)| *c != 0.0);
        self.sum(&terms.collect::<Vec<_>>(), spare)
    }
}

/// A run of a plan: the latents, and as much of their history as the plan looks at.
#[derive(Debug, Clone)]
pub struct Trajectory<'a, V> {
    plan: &'a SamplingPlan,
    taken: usize,
    /// The current latents first.
    latents: VecDeque<V>,
    /// The last estimate first; none where no step reads it.
    estimates: VecDeque<Option<V>>,
    /// A value that the plan doesn't look at any more.
    spare: Option<V>,
}

impl<'a, V> Trajectory<'a, V> {
    /// Starts from `noise` of unit variance. The plan must be [checked](SamplingPlan::check).
    ///
    /// # Errors
    /// Those of the sums.
    pub fn start<A: Arithmetic<Value = V>>(
        plan: &'a SamplingPlan,
        arithmetic: &mut A,
        noise: &V,
    ) -> Result<Self, A::Error> {
        let first = arithmetic.sum_of([(plan.initial_scale, noise)], None)?;
        Ok(Self {
            plan,
            taken: 0,
            latents: [first].into(),
            estimates: VecDeque::new(),
            spare: None,
        })
    }

    /// The step that is due, or nothing after the last.
    pub fn step(&self) -> Option<&'a SamplingStep> {
        self.plan.steps.get(self.taken)
    }

    /// How many steps were taken.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The current latents: after the last step the sample.
    pub fn latents(&self) -> Option<&V> {
        self.latents.front()
    }

    /// What the network is given at `step`, which is due.
    ///
    /// # Errors
    /// Those of the sums.
    pub fn input<A: Arithmetic<Value = V>>(
        &self,
        arithmetic: &mut A,
        step: &SamplingStep,
    ) -> Result<V, A::Error> {
        arithmetic.sum_of(self.latents().map(|x| (step.input_scale, x)), None)
    }

    /// Takes `step`, which is due, with what the network returned, see [`SamplingStep`].
    ///
    /// # Errors
    /// Those of the sums.
    pub fn advance<A: Arithmetic<Value = V>>(
        &mut self,
        arithmetic: &mut A,
        step: &SamplingStep,
        output: &V,
    ) -> Result<(), A::Error> {
        let estimate = if self.plan.reads_estimate(self.taken) {
            Some(self.estimate(arithmetic, step, output)?)
        } else {
            None
        };
        self.estimates.push_front(estimate);
        let latents = step.latents.iter().copied().zip(&self.latents);
        let estimates = step.estimates.iter().copied().zip(&self.estimates);
        let estimates = estimates.filter_map(|(c, estimate)| Some((c, estimate.as_ref()?)));
        let terms = latents.chain(estimates).chain([(step.output, output)]);
        let next = arithmetic.sum_of(terms, self.spare.take())?;
        self.latents.push_front(next);
        self.taken += 1;
        self.forget();
        Ok(())
    }

    fn estimate<A: Arithmetic<Value = V>>(
        &mut self,
        arithmetic: &mut A,
        step: &SamplingStep,
        output: &V,
    ) -> Result<V, A::Error> {
        let estimate = self.unclipped(arithmetic, step, output)?;
        match step.estimate.clip {
            Some(limit) => arithmetic.clip(estimate, limit as f32),
            None => Ok(estimate),
        }
    }

    /// The estimate of `step`, which is due, before it is clipped.
    ///
    /// # Errors
    /// Those of the sums.
    pub fn unclipped<A: Arithmetic<Value = V>>(
        &self,
        arithmetic: &mut A,
        step: &SamplingStep,
        output: &V,
    ) -> Result<V, A::Error> {
        let latents = self.latents().map(|x| (step.estimate.latents, x));
        let terms = latents.into_iter().chain([(step.estimate.output, output)]);
        arithmetic.sum_of(terms, None)
    }

    /// Drops what no later step looks at.
    fn forget(&mut self) {
        if self.latents.len() > self.plan.latent_history() {
            self.spare = self.latents.pop_back();
        }
        self.estimates.truncate(self.plan.estimate_history());
    }
}
