//! How diffusion models take the noise level.

/// Sinusoids of noise levels (Ho et al., 2020), computed in single precision as diffusers does.
///
/// `timesteps f32[...]`, which may be fractional -> `f32[..., dim]`: the sines of
/// `timestep * frequency`, then the cosines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbedding {
    /// Width of the embedding; even.
    pub dim: usize,
    /// Whether the cosines come first.
    pub flip_sin_to_cos: bool,
    /// How much less than `dim / 2` the divisor of the exponents is; less than `dim / 2`.
    pub shift: f32,
}

impl TimestepEmbedding {
    /// The longest period, in steps over a full turn.
    const MAX_PERIOD: f64 = 10_000.0;

    /// The angular frequencies, one for each sine, radians per step.
    pub fn frequencies(&self) -> Vec<f32> {
        let half = self.dim / 2;
        let frequency = |i: usize| {
            let exponent = -(Self::MAX_PERIOD.ln() as f32) * i as f32 / (half as f32 - self.shift);
            // One rounding, where exp of single precision may be off by more.
            f64::from(exponent).exp() as f32
        };
        (0..half).map(frequency).collect()
    }
}
