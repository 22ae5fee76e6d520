//! `fit-solver`: a multistep solver whose coefficients, and the steps at which it evaluates the
//! network, are fitted to the scheduler's samples. It stands in the scheduler's place, and makes
//! these samples in far fewer evaluations.
//!
//! Bespoke non-stationary solvers (arXiv 2403.01329), found by least squares instead of gradient
//! descent: `network.rs` runs the scheduler, `kept.rs` keeps its runs for a pass that is stopped,
//! `table.rs` holds what least squares need of the runs and chooses the steps, `fit.rs` fits the
//! coefficients.

mod fit;
mod kept;
mod network;
mod options;
mod table;

use dlc_ir::{Diffusion, Module, SolverStep};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use self::fit::{Fitted, Fitting};
use self::kept::KeptRuns;
use self::network::{Network, Run};
use self::table::Table;
use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::report::PassReport;
use crate::skip::{Driver, Scheduled, apply, finish, solved};
use crate::sources::Sources;

pub use options::FitSolverOptions;

const NAME: &str = "fit-solver";
/// Numbers of all images together that a fit needs, and the least images, so that it is one for
/// other images too.
const NUMBERS: usize = 8192;
const SAMPLES: usize = 16;
/// Images that the sample's sensitivity is measured on, at most.
const PROBES: usize = 8;

/// The pass.
#[derive(Debug)]
pub struct FitSolver<'a> {
    sources: Sources<'a>,
    options: FitSolverOptions,
}

impl<'a> FitSolver<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for options that contradict each other or are out of range.
    pub fn new(options: FitSolverOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check()?;
        Ok(Self { sources, options })
    }

    /// The scheduler, if a solver can stand in its place.
    fn driver<'m>(&self, module: &'m Module) -> Result<Driver<'m>, PassError> {
        let driver = Driver::new(NAME, module, &self.options.sampler(), &self.sources)?;
        let fail = |problem: String| {
            Err(PassError::Options {
                pass: NAME,
                problem,
            })
        };
        if !driver.solver.is_empty() {
            return fail("the module has a solver already; ask for one".into());
        }
        if driver.plan.draws_noise() {
            return fail(format!(
                "{} draws new noise at every step, so its samples don't follow from the first; name another scheduler, as scheduler=ddim",
                driver.scheduler
            ));
        }
        Ok(driver)
    }

    /// The module's graphs and sampler with a solver.
    fn apply(&self, driver: Driver<'_>, solver: Vec<SolverStep>) -> Result<Scheduled, PassError> {
        let options = self.options.sampler();
        let driver = Driver {
            plan: solved(NAME, &driver.plan, &solver)?,
            solver,
            ..driver
        };
        let net = driver.net(NAME, &options)?;
        let all = vec![vec![true; net.units.len()]; driver.plan.steps.len()];
        apply(NAME, &net, &options, &driver, &all)
    }
}

impl Pass for FitSolver<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        let diffusion = module.model.diffusion.as_ref();
        let images = diffusion.map_or(0, |diffusion| {
            let samples = self.samples(diffusion);
            let run = (2 * self.options.reference + 1) * diffusion.numbers() * size_of::<f32>();
            (samples + samples.div_ceil(2)) * run
        });
        Needs {
            disk: 0,
            memory: 2 * needs::whole_weights(module) + images as u64,
        }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let driver = self.driver(module)?;
        let texts = self.options.texts();
        texts
            .read(&self.sources, module, driver.guidance)?
            .check(module)?;
        // Coefficients and steps are fitted.
        let step = |at| SolverStep {
            at,
            latents: 1.0,
            outputs: vec![0.0],
        };
        let made = self.apply(driver, (0..self.options.steps).map(step).collect())?;
        finish(module, made);
        Ok(())
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let driver = self.driver(module)?;
        let texts = self.options.texts();
        let texts = texts.read(&self.sources, module, driver.guidance)?;
        // The text encoders' weights go before the denoiser's come.
        let prompts = texts.encode(module, driver.guidance, cx)?;
        let network = Network::load(&driver, &prompts)?;
        let kept = KeptRuns::new(&network, self.options.seed, cx);
        let outcome = self.fit(&network, &kept, cx)?;
        kept.forget(outcome.runs + outcome.judges);
        drop(network);
        let mut made = self.apply(driver, outcome.fitted.solver.clone())?;
        made.report.facts = self.facts(&made, &outcome);
        Ok(finish(module, made))
    }
}

/// What was fitted, and from how many runs of the scheduler.
struct Outcome {
    fitted: Fitted,
    /// Evenly spread steps, fitted alike.
    even: f64,
    runs: usize,
    judges: usize,
}

impl FitSolver<'_> {
    fn fit(
        &self,
        network: &Network<'_>,
        kept: &KeptRuns<'_>,
        cx: &PassContext<'_>,
    ) -> Result<Outcome, PassError> {
        let runs = self.runs(network, kept, cx)?;
        let (runs, judges) = runs.split_at(self.samples(network.driver.diffusion));
        let whole = network.driver.plan.steps.len();
        let table = Table::new(whole, runs);
        let fitting = Fitting {
            network,
            runs,
            judges,
            table: &table,
            order: self.options.order,
            cx,
        };
        let evaluations = self.options.steps;
        let total = 3 + self.options.refine;
        cx.progress.update("weighing steps", 0, total);
        let chosen = table.choose(evaluations, &self.sensitivities(network, runs, cx)?);
        cx.progress.update("fitting", 1, total);
        let even: Vec<usize> = (0..evaluations).map(|i| i * whole / evaluations).collect();
        let even = fitting.least_squares(&even)?;
        cx.progress.update("fitting", 2, total);
        let chosen = fitting.least_squares(&chosen)?;
        let spread = even.distance;
        let mut best = if chosen.distance < spread {
            chosen
        } else {
            even
        };
        for round in 0..self.options.refine {
            cx.progress.update("refining", 3 + round, total);
            match fitting.refined(&best)? {
                Some(better) => best = better,
                None => break,
            }
        }
        cx.progress.update("refining", total, total);
        Ok(Outcome {
            fitted: best,
            even: spread,
            runs: runs.len(),
            judges: judges.len(),
        })
    }

    /// Images to fit to.
    fn samples(&self, diffusion: &Diffusion) -> usize {
        let enough = NUMBERS.div_ceil(diffusion.numbers().max(1)).max(SAMPLES);
        self.options.samples.unwrap_or(enough)
    }

    /// The scheduler's runs: those to fit to, and half as many to judge by.
    fn runs(
        &self,
        network: &Network<'_>,
        kept: &KeptRuns<'_>,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Run>, PassError> {
        let samples = self.samples(network.driver.diffusion);
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let starts: Vec<_> = (0..samples + samples.div_ceil(2))
            .map(|_| network.guidance.draw(&mut rng, false))
            .collect();
        let total = starts.len();
        let numbered: Vec<_> = starts.into_iter().enumerate().collect();
        let mut runs: Vec<Run> = vec![];
        for some in numbered.chunks(cx.pool.current_num_threads().max(1)) {
            let what = format!("sampling with {}", network.driver.scheduler);
            cx.progress.update(&what, runs.len(), total);
            let of_some = || {
                let each = some.par_iter().cloned();
                each.map(|(number, start)| kept.run(number, start))
                    .collect()
            };
            let made: Result<Vec<Run>, PassError> = cx.pool.install(of_some);
            runs.extend(made?);
        }
        Ok(runs)
    }

    /// How much a disturbance of the latents before each step counts in the sample.
    fn sensitivities(
        &self,
        network: &Network<'_>,
        runs: &[Run],
        cx: &PassContext<'_>,
    ) -> Result<Vec<f64>, PassError> {
        let seed = self.options.seed;
        let probe = |(number, run): (usize, &Run)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(1 + number as u64);
            network.sensitivities(run, &mut rng, cx)
        };
        let probes = &runs[..runs.len().min(PROBES)];
        let of_probes = || probes.par_iter().enumerate().map(probe).collect();
        let found: Result<Vec<Vec<f64>>, PassError> = cx.pool.install(of_probes);
        let found = found?;
        let steps = found.first().map_or(0, Vec::len);
        let mean = |step: usize| found.iter().map(|of| of[step]).sum::<f64>() / found.len() as f64;
        Ok((0..steps).map(mean).collect())
    }

    fn facts(&self, made: &Scheduled, outcome: &Outcome) -> Vec<(String, String)> {
        let Fitted { solver, distance } = &outcome.fitted;
        let at: Vec<String> = solver.iter().map(|step| step.at.to_string()).collect();
        let (scheduler, reference) = (&made.sampling.scheduler, self.options.reference);
        let facts = [
            (
                "multiply-adds kept",
                format!("{:.1}%", 100.0 * made.sampling.macs),
            ),
            (
                "evaluations",
                format!(
                    "{} in the place of {reference} steps of {scheduler}, at its steps {}",
                    solver.len(),
                    at.join(", ")
                ),
            ),
            (
                "distance",
                format!(
                    "{distance:.3e} mean square from the samples of {scheduler}, of {} images; evenly spread steps {:.3e}",
                    outcome.judges, outcome.even
                ),
            ),
            ("fitted to", format!("{} other images", outcome.runs)),
        ];
        facts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}
