//! `merge-adapter`: adapters become part of the weights, as lazy expressions; no byte of a weight is touched before export.
//!
//! LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732) and DoRA (arXiv 2402.09353) as PEFT defines them, and Dual LoRA (arXiv 2512.03402).
//! `config.rs` reads what an adapter says of itself and `targets.rs` which modules it means, `modules.rs` puts its tensors together and builds
//! the expressions.

mod config;
mod measure;
mod modules;
mod targets;

use std::collections::BTreeMap;

use dlc_ir::{Expr, Module};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::PassReport;

const NAME: &str = "merge-adapter";

/// An adapter as it was read.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Name of its folder.
    pub name: String,
    /// How strongly it is merged; 1 as it was trained.
    pub weight: f64,
    /// `adapter_config.json`.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, AdapterTensor>,
}

/// A tensor of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterTensor {
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, as many as the shape says.
    pub data: Expr,
}

/// Options of `merge-adapter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MergeAdapterOptions {
    /// Multiplies the change of every adapter.
    pub scale: f64,
}

impl Default for MergeAdapterOptions {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl MergeAdapterOptions {
    /// Name and meaning of each option, for `dlc passes`.
    pub const DOCS: &'static [(&'static str, &'static str)] = &[("scale", "multiplies the change of every adapter (default 1)")];
}

/// The pass.
#[derive(Debug)]
pub struct MergeAdapter {
    options: MergeAdapterOptions,
}

impl MergeAdapter {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for a scale that is no number.
    pub fn new(options: MergeAdapterOptions) -> Result<Self, PassError> {
        if !options.scale.is_finite() {
            return Err(PassError::Options { pass: NAME, problem: format!("scale={} is not a number to multiply with", options.scale) });
        }
        Ok(Self { options })
    }
}

impl Pass for MergeAdapter {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        if cx.adapters.is_empty() {
            return Err(PassError::Options { pass: NAME, problem: "there is no adapter to merge; name its folder with --adapter DIR".into() });
        }
        let mut report = PassReport::default();
        for (i, adapter) in cx.adapters.iter().enumerate() {
            cx.progress.update("merging adapters", i, cx.adapters.len());
            let config = config::read(adapter)?;
            let merges = modules::merges(adapter, &config, adapter.weight * self.options.scale, module)?;
            report.fact(&format!("adapter {}", adapter.name), format!("{} in {} weights", config.kind.describe(), merges.len()));
            let changes = cx.pool.install(|| merges.par_iter().map(|m| measure::change(m, &module.weights)).collect::<Result<Vec<_>, _>>())?;
            report.changes.extend(changes);
            for merge in merges {
                module.weights.rewrite(merge.weight, |base| merge.apply(base))?;
            }
        }
        Ok(report)
    }
}
