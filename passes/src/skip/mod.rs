//! `skip`: a diffusion model's sampler in which blocks are skipped by a fixed schedule, their
//! values taken from earlier steps.
//!
//! A schedule from a file, or one of the controls that learned ones are measured against:
//! everything every N steps (feature caching), or at random. `net.rs` finds the units and what is
//! remembered of them, `close.rs` closes a schedule's dependencies, `budget.rs` fits it to a number
//! of multiply-adds or graphs, and `subnet.rs` builds the graphs. The target is never changed.

mod budget;
mod close;
mod driver;
mod net;
mod options;
mod subnet;
mod unroll;

use dlc_ir::{Granularity, Graph, Module, Sampling, SkipSchedule, WeightTable};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::PassReport;
use crate::sources::Sources;

pub(crate) use budget::{Fit, TOLERANCE, threshold};
pub(crate) use close::{close, macs_share};
pub(crate) use driver::{Driver, solved};
pub(crate) use net::{Inputs, SkipNet};
pub use options::{SamplerOptions, SkipGranularity, SkipOptions};
pub(crate) use options::{is_guided, schedulers};
pub(crate) use subnet::Copier;
use subnet::Subnets;

const NAME: &str = "skip";

/// The pass.
#[derive(Debug)]
pub struct Skip<'a> {
    sources: Sources<'a>,
    options: SkipOptions,
}

impl<'a> Skip<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for options that contradict each other or are out of range.
    pub fn new(options: SkipOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check(NAME)?;
        Ok(Self { sources, options })
    }

    /// The table that the options ask for.
    fn table(&self, net: &SkipNet<'_>, steps: usize) -> Result<Vec<Vec<bool>>, PassError> {
        let options = &self.options;
        let reuse = options.sampler.reuse;
        if let Some(interval) = options.interval {
            return Ok(regular(net.units.len(), steps, interval));
        }
        let Some(share) = options.macs else {
            return Ok(regular(net.units.len(), steps, options::INTERVAL));
        };
        if options.random {
            // Cells in random order: those before a border are computed.
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            let mut order: Vec<usize> = (0..steps * net.units.len()).collect();
            order.shuffle(&mut rng);
            let mut scores = vec![vec![0.0; net.units.len()]; steps];
            for (rank, cell) in order.into_iter().enumerate() {
                scores[cell / net.units.len()][cell % net.units.len()] =
                    rank as f64 + rng.random_range(0.0..0.5);
            }
            return threshold(NAME, net, reuse, &scores, share, options.sampler.max_graphs)
                .map(|fit| fit.table);
        }
        regular_for(net, steps, share)
    }
}

/// Everything every `interval` steps, fractions rounded down, and nothing between.
fn regular(units: usize, steps: usize, interval: f64) -> Vec<Vec<bool>> {
    let mut table = vec![vec![false; units]; steps];
    let computed = (0..steps)
        .map(|i| (i as f64 * interval).floor() as usize)
        .take_while(|step| *step < steps);
    computed.for_each(|step| table[step].fill(true));
    table
}

/// Full steps, evenly spread, whose multiply-adds come nearest to the share that was asked for.
pub(crate) fn regular_for(
    net: &SkipNet<'_>,
    steps: usize,
    share: f64,
) -> Result<Vec<Vec<bool>>, PassError> {
    let tables =
        (1..=steps).map(|full| regular(net.units.len(), steps, steps as f64 / full as f64));
    let reuse = dlc_ir::Reuse::Hold;
    let scored = tables.map(|table| {
        (
            (macs_share(net, &close(net, reuse, &table)) - share).abs(),
            table,
        )
    });
    let best = scored
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, table)| table);
    best.ok_or_else(|| PassError::Options {
        pass: NAME,
        problem: "there are no steps".into(),
    })
}

impl Pass for Skip<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        // No number is looked at anyway.
        self.skip(module).map(drop)
    }

    fn run(&self, module: &mut Module, _: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        self.skip(module)
    }
}

impl Skip<'_> {
    fn skip(&self, module: &mut Module) -> Result<PassReport, PassError> {
        let given = self
            .options
            .schedule
            .as_ref()
            .map(|file| self.sources.samplers(NAME)?.schedule(file))
            .transpose()?;
        let mut sampler = self.options.sampler.clone();
        if let Some(schedule) = &given {
            sampler.granularity = SkipGranularity(schedule.granularity);
            sampler.reuse = schedule.reuse;
        }
        let driver = Driver::new(NAME, module, &sampler, &self.sources)?;
        let net = driver.net(NAME, &sampler)?;
        let steps = driver.plan.steps.len();
        let table = match &given {
            Some(schedule) => fitting(&net, schedule, steps)?,
            None => self.table(&net, steps)?,
        };
        let made = apply(NAME, &net, &sampler, &driver, &table)?;
        Ok(finish(module, made))
    }
}

/// The table of a schedule from a file, if it is one of this model and sampler.
fn fitting(
    net: &SkipNet<'_>,
    schedule: &SkipSchedule,
    steps: usize,
) -> Result<Vec<Vec<bool>>, PassError> {
    let fail = |problem: String| {
        Err(PassError::Options {
            pass: NAME,
            problem: format!("schedule: {problem}"),
        })
    };
    let (names, found) = (net.names(), schedule.steps.len());
    if found != steps {
        return fail(format!(
            "it has {found} steps, and the sampler takes {steps}; ask for steps={found}, or make another"
        ));
    }
    if let Some((ours, theirs)) = names.iter().zip(&schedule.units).find(|(a, b)| a != b) {
        return fail(format!(
            "it has a unit {theirs} where the model has {ours}: it was made for another model"
        ));
    }
    if names.len() != schedule.units.len() {
        return fail(format!(
            "it has {} units, and the model {}: it was made for another model",
            schedule.units.len(),
            names.len()
        ));
    }
    let table = schedule.computed()?;
    match table.first().and_then(|row| row.iter().position(|on| !on)) {
        Some(unit) => fail(format!(
            "the first step reuses {}, and there is nothing to reuse yet; compute everything there",
            names[unit]
        )),
        None => Ok(table),
    }
}

/// What a pass that skips adds to a module.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub graphs: Vec<Graph>,
    /// The module's weights with further ones after them, if the graphs need some.
    pub weights: Option<WeightTable>,
    pub sampling: Sampling,
    pub report: PassReport,
}

/// The graphs and the sampler of a table.
pub(crate) fn apply(
    pass: &'static str,
    net: &SkipNet<'_>,
    sampler: &SamplerOptions,
    driver: &Driver<'_>,
    table: &[Vec<bool>],
) -> Result<Scheduled, PassError> {
    let scheduler = driver.scheduler.clone();
    if sampler.unroll && driver.plan.draws_noise() {
        let problem = format!(
            "unroll=true: {scheduler} draws new noise at every step, and a graph draws none; leave unroll out, or name another scheduler, as scheduler=ddim"
        );
        return Err(PassError::Options { pass, problem });
    }
    let steps = budget::merge_patterns(net, sampler.reuse, table, sampler.max_graphs);
    let (subnets, weights) = if sampler.unroll {
        let (graph, weights) = unroll::unroll(pass, net, driver, sampler, &steps)?;
        (
            Subnets {
                graphs: vec![graph],
                evaluations: vec![],
            },
            Some(weights),
        )
    } else {
        (subnet::build(net, sampler.reuse, &steps)?, None)
    };
    let computed: Vec<Vec<bool>> = steps.iter().map(|s| s.computed.clone()).collect();
    let schedule = SkipSchedule::new(sampler.granularity.0, sampler.reuse, net.names(), &computed);
    // A solver makes fewer evaluations than the scheduler's steps would.
    let macs = macs_share(net, &steps) * steps.len() as f64 / driver.whole as f64;
    let mut report = PassReport::default();
    let unit = if sampler.granularity.0 == Granularity::Layer {
        "blocks"
    } else {
        "branches"
    };
    let (cells, on) = (
        computed.len() * net.units.len(),
        computed.iter().flatten().filter(|c| **c).count(),
    );
    report.fact("multiply-adds kept", format!("{:.1}%", 100.0 * macs));
    report.fact(
        "computed",
        format!(
            "{on} of {cells} {unit} in {} evaluations of {scheduler}",
            computed.len()
        ),
    );
    report.fact("reuse", sampler.reuse.name());
    match subnets.graphs.first().filter(|_| sampler.unroll) {
        Some(graph) => report.fact(
            "graphs",
            format!("1, the whole sampler: {} nodes", graph.nodes().count()),
        ),
        None => report.fact("graphs", subnets.graphs.len()),
    }
    report.schedule = Some(schedule.clone());
    let (steps, guidance) = (sampler.steps, driver.guidance);
    let sampling = Sampling {
        scheduler,
        steps,
        guidance,
        schedule,
        solver: driver.solver.clone(),
        macs,
        evaluations: subnets.evaluations,
        unrolled: sampler.unroll.then(|| unroll::SAMPLER.to_owned()),
    };
    Ok(Scheduled {
        graphs: subnets.graphs,
        weights,
        sampling,
        report,
    })
}

/// Puts the graphs into the module.
pub(crate) fn finish(module: &mut Module, made: Scheduled) -> PassReport {
    module.graphs.extend(made.graphs);
    if let Some(weights) = made.weights {
        module.weights = weights;
    }
    module.sampling = Some(made.sampling);
    made.report
}
