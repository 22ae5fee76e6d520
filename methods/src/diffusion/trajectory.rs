//! What a [`SamplingPlan`] computes between two evaluations of the network, in any [`Arithmetic`].

use std::collections::VecDeque;

use crate::diffusion::{Arithmetic, SamplingPlan, SamplingStep};

/// A run of a plan: the latents, and as much of their history as the plan looks at.
#[derive(Debug, Clone)]
pub struct Trajectory<'a, V> {
    plan: &'a SamplingPlan,
    taken: usize,
    /// The current latents first.
    latents: VecDeque<V>,
    /// The last estimate first; none where no step reads it.
    estimates: VecDeque<Option<V>>,
    /// Values that the plan doesn't look at any more: the next step's sums take their places.
    spares: Vec<V>,
}

impl<'a, V> Trajectory<'a, V> {
    /// Starts from `noise` of unit variance and, where the plan has it so, an image. The plan must
    /// be [checked](SamplingPlan::check).
    ///
    /// # Errors
    /// Those of the sums.
    pub fn start<A: Arithmetic<Value = V>>(
        plan: &'a SamplingPlan,
        arithmetic: &mut A,
        noise: &A::Term,
        image: Option<&A::Term>,
    ) -> Result<Self, A::Error> {
        let image = image.map(|image| (plan.image_scale, image));
        let terms = [(plan.initial_scale, noise)].into_iter().chain(image);
        let first = arithmetic.sum_of(terms, None)?;
        Ok(Self {
            plan,
            taken: 0,
            latents: [first].into(),
            estimates: VecDeque::new(),
            spares: Vec::new(),
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
        let latents = self.latents().map(A::term);
        arithmetic.sum_of(latents.map(|x| (step.input_scale, x)), None)
    }

    /// Takes `step`, which is due, with what the network returned and new noise of unit variance,
    /// which must be there if the step [draws](SamplingStep::draws_noise) some; see
    /// [`SamplingStep`].
    ///
    /// # Errors
    /// Those of the sums.
    pub fn advance<A: Arithmetic<Value = V>>(
        &mut self,
        arithmetic: &mut A,
        step: &SamplingStep,
        output: &A::Term,
        noise: Option<&A::Term>,
    ) -> Result<(), A::Error> {
        let estimate = if self.plan.reads_estimate(self.taken) {
            Some(self.estimate(arithmetic, step, output)?)
        } else {
            None
        };
        self.estimates.push_front(estimate);
        let spare = self.spares.pop();
        let latents = self.latents.iter().map(A::term);
        let latents = step.latents.iter().copied().zip(latents);
        let estimates = step.estimates.iter().copied().zip(&self.estimates);
        let estimates = estimates.filter_map(|(c, x)| Some((c, A::term(x.as_ref()?))));
        let noise = noise.map(|noise| (step.noise, noise));
        let terms = latents
            .chain(estimates)
            .chain([(step.output, output)])
            .chain(noise);
        let next = arithmetic.sum_of(terms, spare)?;
        self.latents.push_front(next);
        self.taken += 1;
        self.forget();
        Ok(())
    }

    fn estimate<A: Arithmetic<Value = V>>(
        &mut self,
        arithmetic: &mut A,
        step: &SamplingStep,
        output: &A::Term,
    ) -> Result<V, A::Error> {
        let spare = self.spares.pop();
        let terms = self.estimated::<A>(step, output);
        let estimate = arithmetic.sum_of(terms, spare)?;
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
        output: &A::Term,
    ) -> Result<V, A::Error> {
        arithmetic.sum_of(self.estimated::<A>(step, output), None)
    }

    /// The terms of the estimate of `step`, which is due.
    fn estimated<'v, A: Arithmetic<Value = V>>(
        &'v self,
        step: &SamplingStep,
        output: &'v A::Term,
    ) -> impl Iterator<Item = (f64, &'v A::Term)> + use<'v, 'a, V, A> {
        let (latents, of_output) = (step.estimate.latents, step.estimate.output);
        let latents = self.latents().map(|x| (latents, A::term(x)));
        latents.into_iter().chain([(of_output, output)])
    }

    /// Drops what no later step looks at.
    fn forget(&mut self) {
        if self.latents.len() > self.plan.latent_history() {
            self.spares.extend(self.latents.pop_back());
        }
        while self.estimates.len() > self.plan.estimate_history() {
            self.spares.extend(self.estimates.pop_back().flatten());
        }
    }
}
