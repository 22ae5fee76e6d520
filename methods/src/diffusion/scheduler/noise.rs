//! The noise schedule of a diffusion model: how much signal is left at each timestep of the
//! training.
//!
//! `x_t = sqrt(alpha_bar_t) * x_0 + sqrt(1 - alpha_bar_t) * epsilon` with `alpha_bar_t` the product
//! of `1 - beta` up to `t` (Ho, Jain and Abbeel, *Denoising Diffusion Probabilistic Models*,
//! equation 4). The betas and their products are rounded to single precision where diffusers does
//! so, as that is what models were trained with; everything else is computed in double precision.

use std::f64::consts::FRAC_PI_2;

use super::reader::{ConfigReader, show};
use super::start::Mix;

/// The longest training that is read, in timesteps: a hundred times the usual.
const MOST_TIMESTEPS: usize = 100_000;

/// What is left of the signal at the last timestep where `rescale_betas_zero_snr` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// Nothing.
    Zero,
    /// `2^-24`, for samplers that divide by it.
    Tiny,
    /// The scheduler of diffusers has no such option: refused.
    Refused,
}

/// `alpha_bar` of every timestep of the training.
#[derive(Debug, Clone)]
pub(super) struct NoiseSchedule {
    alpha_bars: Vec<f64>,
}

impl NoiseSchedule {
    /// Reads the betas: `num_train_timesteps`, `beta_schedule`, `beta_start`, `beta_end`,
    /// `trained_betas`, `rescale_betas_zero_snr`.
    pub(super) fn read(
        config: &mut ConfigReader<'_>,
        defaults: &Betas,
        terminal: Terminal,
    ) -> Self {
        let betas = defaults.betas(config);
        let rescale = config.flag("rescale_betas_zero_snr", false);
        if rescale && terminal == Terminal::Refused {
            let what = "changes the noise that the model was trained with, which this scheduler can't follow; take ddim, euler, dpm-solver++ or unipc";
            config.unsupported("rescale_betas_zero_snr", format!("is true, which {what}"));
        }
        let mut alpha_bars = products(&if rescale {
            zero_terminal_snr(&betas)
        } else {
            betas
        });
        if let (true, Terminal::Tiny, Some(last)) = (rescale, terminal, alpha_bars.last_mut()) {
            *last = (-24f64).exp2();
        }
        Self { alpha_bars }
    }

    /// Number of timesteps of the training.
    pub(super) fn len(&self) -> usize {
        self.alpha_bars.len()
    }

    /// `alpha_bar` at a timestep, NaN outside of the training.
    pub(super) fn alpha_bar(&self, timestep: usize) -> f64 {
        self.alpha_bars.get(timestep).copied().unwrap_or(f64::NAN)
    }

    /// What latents are at a timestep.
    pub(super) fn mix(&self, timestep: usize) -> Mix {
        let signal = self.alpha_bar(timestep);
        Mix {
            image: signal.sqrt(),
            noise: (1.0 - signal).sqrt(),
        }
    }

    /// The entry of [`sigmas`](Self::sigmas) at a timestep.
    pub(super) fn sigma(&self, timestep: usize) -> f64 {
        sigma(self.alpha_bar(timestep))
    }

    /// Noise relative to signal, `sqrt((1 - alpha_bar) / alpha_bar)`, at every timestep, in single
    /// precision; it grows.
    pub(super) fn sigmas(&self) -> Vec<f64> {
        self.alpha_bars.iter().map(|a| sigma(*a)).collect()
    }
}

/// Noise relative to signal, in single precision.
fn sigma(alpha_bar: f64) -> f64 {
    let alpha_bar = alpha_bar as f32;
    f64::from(((1.0 - alpha_bar) / alpha_bar).sqrt())
}

/// What a scheduler of diffusers takes the betas to be where the configuration doesn't say, and the
/// shapes that it has beside the usual ones.
pub(super) struct Betas {
    start: f64,
    end: f64,
    shape: Shape,
    more: &'static [(&'static str, Shape)],
}

/// How betas grow.
#[derive(Clone, Copy)]
enum Shape {
    Linear,
    ScaledLinear,
    Cosine,
    Exponential,
    Laplace,
    Sigmoid,
}

impl Betas {
    /// Nearly every scheduler's.
    pub(super) const USUAL: Self = Self {
        start: 0.0001,
        end: 0.02,
        shape: Shape::Linear,
        more: &[],
    };
    /// Heun's.
    pub(super) const HEUN: Self = Self {
        start: 0.00085,
        end: 0.012,
        shape: Shape::Linear,
        more: &[("exp", Shape::Exponential)],
    };
    /// DDPM's.
    pub(super) const DDPM: Self = Self {
        more: &[("laplace", Shape::Laplace), ("sigmoid", Shape::Sigmoid)],
        ..Self::USUAL
    };
    /// That of latent consistency models.
    pub(super) const LCM: Self = Self {
        start: 0.00085,
        end: 0.012,
        shape: Shape::ScaledLinear,
        more: &[],
    };
    const SHAPES: [(&'static str, Shape); 3] = [
        ("linear", Shape::Linear),
        ("scaled_linear", Shape::ScaledLinear),
        ("squaredcos_cap_v2", Shape::Cosine),
    ];

    /// The betas, in single precision.
    fn betas(&self, config: &mut ConfigReader<'_>) -> Vec<f32> {
        let timesteps = config.count("num_train_timesteps", 2, MOST_TIMESTEPS, 1000);
        let mut beta = |key, default| {
            let given = config.number(key, "between 0 and 1", |x| x > 0.0 && x < 1.0);
            given.unwrap_or(default)
        };
        let (start, end) = (beta("beta_start", self.start), beta("beta_end", self.end));
        let shapes = [&Self::SHAPES[..], self.more].concat();
        let shape = config.choice("beta_schedule", &shapes, self.shape);
        if let Some(betas) = trained_betas(config, timesteps) {
            return betas;
        }
        match shape {
            Shape::Linear => linspace(start as f32, end as f32, timesteps),
            Shape::ScaledLinear => linspace(start.sqrt() as f32, end.sqrt() as f32, timesteps)
                .into_iter()
                .map(|x| x * x)
                .collect(),
            Shape::Cosine => of_signal(timesteps, |t| {
                ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)
            }),
            Shape::Exponential => of_signal(timesteps, |t| (-12.0 * t).exp()),
            Shape::Laplace => of_signal(timesteps, laplace),
            Shape::Sigmoid => linspace(-6.0, 6.0, timesteps)
                .into_iter()
                .map(|x| (end - start) as f32 / (1.0 + (-x).exp()) + start as f32)
                .collect(),
        }
    }
}

/// `trained_betas`, if the key is there and every entry is a beta.
fn trained_betas(config: &mut ConfigReader<'_>, timesteps: usize) -> Option<Vec<f32>> {
    const KEY: &str = "trained_betas";
    let value = config.get(KEY)?;
    let Some(list) = value.as_array().filter(|list| list.len() == timesteps) else {
        config.bad(
            KEY,
            format!(
                "is {}; it must be a list of `num_train_timesteps` ({timesteps}) numbers",
                show(value)
            ),
        );
        return None;
    };
    let is_beta = |x: &f64| *x > 0.0 && *x <= 1.0;
    let read: Result<Vec<f32>, usize> = list
        .iter()
        .enumerate()
        .map(|(i, x)| x.as_f64().filter(is_beta).map(|x| x as f32).ok_or(i))
        .collect();
    read.map_err(|i| {
        config.bad(
            KEY,
            format!(
                "has {} at index {i}; each must be a number above 0 and at most 1",
                show(&list[i])
            ),
        );
    })
    .ok()
}

/// `torch.linspace` in single precision: from each end up to the middle, with one rounding for each
/// entry.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n - 1) as f32;
    let entry = |i: usize| {
        if i < n / 2 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((n - 1 - i) as f32, end)
        }
    };
    (0..n).map(entry).collect()
}

/// The betas, capped at 0.999, that leave `alpha_bar` of the signal at each part of the training,
/// which goes from 0 to 1 (Nichol and Dhariwal, *Improved Denoising Diffusion Probabilistic Models*,
/// equation 17).
fn of_signal(timesteps: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / timesteps as f64);
    (0..timesteps)
        .map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32)
        .collect()
}

/// `alpha_bar` of the Laplace schedule (Hang et al., *Improved Noise Schedule for Diffusion Training*).
fn laplace(t: f64) -> f64 {
    let side = (0.5 - t).signum();
    let lambda = -0.5 * side * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    (1.0 / (1.0 + (-lambda).exp())).sqrt()
}

/// The products of `1 - beta`, each rounded to single precision.
fn products(betas: &[f32]) -> Vec<f64> {
    let running = betas.iter().scan(1.0, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(f64::from(*product as f32))
    });
    running.collect()
}

/// Betas that leave no signal at the last timestep and as much as before at the first (Lin et al., *Common
/// Diffusion Noise Schedules and Sample Steps are Flawed*, algorithm 1).
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas)
        .into_iter()
        .map(|a| (a as f32).sqrt())
        .collect();
    let (first, last) = (
        roots.first().copied().unwrap_or(1.0),
        roots.last().copied().unwrap_or(0.0),
    );
    let scale = first / (first - last);
    let alpha_bars: Vec<f32> = roots
        .iter()
        .map(|root| ((root - last) * scale).powi(2))
        .collect();
    let before = [1.0].into_iter().chain(alpha_bars.iter().copied());
    alpha_bars
        .iter()
        .zip(before)
        .map(|(now, before)| 1.0 - now / before)
        .collect()
}
