//! `merge-adapter`: adapters become part of the weights, as lazy expressions; no byte of a weight
//! is touched before export.
//!
//! LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732) and DoRA (arXiv 2402.09353) as PEFT defines
//! them, and Dual LoRA (arXiv 2512.03402). `config.rs` reads what an adapter says of itself and
//! `targets.rs` which modules it means, `modules.rs` puts its tensors together, `parts.rs` knows
//! the matrices and builds the expressions, `measure.rs` says what comes out.

mod config;
mod entries;
mod measure;
mod merge;
mod modules;
mod parts;
mod pattern;
mod targets;

use config::Config;
use dlc_ir::Module;
use merge::Merge;
use rayon::prelude::*;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::options::Range::Finite;
use crate::options::{PassOptions, options};
use crate::report::PassReport;
use crate::sources::{Adapter, Sources};

const NAME: &str = "merge-adapter";

options! {
    /// Options of `merge-adapter`.
    #[serde(deny_unknown_fields)]
    pub struct MergeAdapterOptions {
        /// Multiplies the change of every adapter.
        scale: f64 = 1.0, in Finite;
        /// Whether merged weights that are NaN or infinite are taken; `--allow-nan` sets it.
        allow_nan: bool = false;
    }
}

/// The pass.
#[derive(Debug)]
pub struct MergeAdapter<'a> {
    options: MergeAdapterOptions,
    adapters: &'a [Adapter],
}

impl<'a> MergeAdapter<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range.
    pub fn new(mut options: MergeAdapterOptions, sources: &Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        options.allow_nan |= sources.allow_nan;
        Ok(Self {
            options,
            adapters: sources.adapters,
        })
    }

    /// What the adapter says of itself, and its changes of weights.
    fn merges(
        &self,
        adapter: &Adapter,
        module: &Module,
    ) -> Result<(Config, Vec<Merge>), PassError> {
        let config = config::read(adapter)?;
        let strength = adapter.weight * self.options.scale;
        let merges = modules::merges(adapter, &config, strength, module)?;
        Ok((config, merges))
    }
}

/// The adapters, if there are any.
fn some(adapters: &[Adapter]) -> Result<&[Adapter], PassError> {
    if adapters.is_empty() {
        Err(PassError::Options {
            pass: NAME,
            problem: "there is no adapter to merge; name its folder with --adapter DIR".into(),
        })
    } else {
        Ok(adapters)
    }
}

/// Refuses an adapter if there are problems with its `file`; `unsupported` says whether all are
/// things that dlc lacks.
fn refuse(file: &str, problems: Vec<String>, unsupported: bool) -> Result<(), PassError> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(PassError::adapter(file, problems, unsupported))
    }
}

impl Pass for MergeAdapter<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        for adapter in some(self.adapters)? {
            self.merges(adapter, module)?;
        }
        Ok(())
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        for (i, adapter) in some(self.adapters)?.iter().enumerate() {
            cx.progress
                .update("merging adapters", i, self.adapters.len());
            let (config, merges) = self.merges(adapter, module)?;
            report.fact(
                &format!("adapter {}", adapter.name),
                format!("{} in {} weights", config.kind.describe(), merges.len()),
            );
            let measure = |merge| measure::measure(merge, &module.weights);
            let measured = cx.pool.install(|| {
                merges
                    .par_iter()
                    .map(measure)
                    .collect::<Result<Vec<_>, _>>()
            })?;
            if !self.options.allow_nan {
                let problems = measured
                    .iter()
                    .zip(&merges)
                    .filter_map(|(m, merge)| m.problem(merge, &module.weights))
                    .collect();
                refuse(&adapter.tensors_file, problems, false)?;
            }
            let used = module.used_weights();
            let unused: Vec<&str> = merges
                .iter()
                .filter(|m| !used.contains(&m.weight))
                .map(|m| module.weights[m.weight].name.as_str())
                .collect();
            if !unused.is_empty() {
                report.fact(
                    &format!("weights that only adapter {} uses", adapter.name),
                    unused.join(" "),
                );
            }
            report
                .changes
                .extend(measured.into_iter().map(|m| m.change));
            for merge in merges {
                module
                    .weights
                    .rewrite(merge.weight, |base| merge.apply(base))?;
            }
        }
        Ok(report)
    }
}
