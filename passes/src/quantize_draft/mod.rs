//! `quantize-draft`: the matrices of the draft in 4 or 8 bits; without a draft, those of a copy of
//! the target.
//!
//! Weights only, in groups along the rows (`matrices.rs`); an embedding that is the head as well is
//! quantised as the head alone. What a draft proposes is checked by the target, so its errors cost
//! time and never change the text. The target is never changed.

mod matrices;
mod options;

use std::collections::BTreeSet;

use dlc_ir::{Graph, Module, Quantizer, Task, WeightTable};

use crate::context::{Pass, PassContext};
use crate::draft::replace_draft;
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::report::PassReport;
use crate::sources::Sources;

pub use matrices::{Matrix, Perturbation, matrices, perturbation, quantize_block, quantize_nodes};
pub(crate) use matrices::{codes, keeps_codes};
pub(crate) use options::GROUP_SIZES;
pub use options::{QuantizeDraftOptions, Refine};

const NAME: &str = "quantize-draft";
/// Matrices that the report names.
const WORST: usize = 5;

/// The pass.
#[derive(Debug)]
pub struct QuantizeDraft {
    options: QuantizeDraftOptions,
    quantizer: Quantizer,
    /// Whether matrices keep the codes of the checkpoint.
    keeps_codes: bool,
}

impl QuantizeDraft {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range: bits and group sizes that no runtime takes.
    pub fn new(options: QuantizeDraftOptions, sources: &Sources<'_>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        let quantizer = options.quantizer();
        Ok(Self {
            options,
            quantizer,
            keeps_codes: sources.keeps_codes,
        })
    }

    /// The matrices that were asked for.
    fn chosen(&self, graph: &Graph, weights: &WeightTable) -> Result<Vec<Matrix>, PassError> {
        let names: Vec<&str> = self
            .options
            .blocks
            .iter()
            .flat_map(|list| list.split('+'))
            .collect();
        let is_named = |block: &str, name: &str| {
            block
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some(unknown) = names
            .iter()
            .find(|name| !graph.blocks().any(|(_, b)| is_named(&b.name, name)))
        {
            let blocks: Vec<&str> = graph.blocks().map(|(_, b)| b.name.as_str()).collect();
            return Err(options_error(format!(
                "the draft has no block `{unknown}`; it has {}",
                blocks.join(", ")
            )));
        }
        let wanted = |m: &Matrix| match m.block.map(|b| &graph.block(b).name) {
            _ if m.is_head => self.options.head,
            Some(block) => names.is_empty() || names.iter().any(|name| is_named(block, name)),
            None => names.is_empty(),
        };
        // A matrix that keeps the codes of its checkpoint stays the target's own.
        let is_done = |m: &Matrix| {
            let kept = codes(weights, m.weight).filter(|_| self.keeps_codes);
            kept.is_some_and(|(_, format)| format.bits <= self.options.bits)
        };
        let (done, chosen): (Vec<Matrix>, Vec<Matrix>) = matrices(graph, weights)
            .into_iter()
            .filter(wanted)
            .partition(is_done);
        if chosen.is_empty() {
            let way = if done.is_empty() {
                ""
            } else {
                " in the checkpoint; compile with --dequantize for a target in f32"
            };
            Err(unsupported(format!(
                "no matrix is left to quantise: all that was asked for is quantised already{way}"
            )))
        } else {
            Ok(chosen)
        }
    }

    /// What quantising does to each matrix, with its name.
    fn measure(
        &self,
        module: &Module,
        chosen: &[Matrix],
        cx: &PassContext<'_>,
    ) -> Result<Vec<(String, Perturbation)>, PassError> {
        let mut measured = Vec::new();
        for (done, matrix) in chosen.iter().enumerate() {
            cx.progress.update("quantising", done, chosen.len());
            if cx.progress.interrupted() {
                return Err(PassError::Interrupted);
            }
            let weight = &module.weights[matrix.weight];
            measured.push((
                weight.name.clone(),
                cx.pool.install(|| perturbation(weight, &self.quantizer))?,
            ));
        }
        cx.progress.update("quantising", chosen.len(), chosen.len());
        if let Some((name, p)) = measured.iter().find(|(_, p)| !p.relative.is_finite()) {
            return Err(PassError::NotFinite {
                pass: NAME,
                score: "squared error",
                unit: name.clone(),
                value: p.relative,
            });
        }
        Ok(measured)
    }
}

fn options_error(problem: String) -> PassError {
    PassError::Options {
        pass: NAME,
        problem,
    }
}

fn unsupported(problem: impl Into<String>) -> PassError {
    PassError::Unsupported {
        pass: NAME,
        problem: problem.into(),
    }
}

impl Pass for QuantizeDraft {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        let Some(graph) = module.graph("draft").or_else(|| module.graph("target")) else {
            return Needs::default();
        };
        let chosen = self.chosen(graph, &module.weights).unwrap_or_default();
        let elements: usize = chosen
            .iter()
            .map(|matrix| module.weights[matrix.weight].elements())
            .sum();
        // Codes, and a scale in single precision for each group.
        let bits = self.options.bits + 32 / self.options.group_size.max(1) + 1;
        Needs {
            disk: (elements * bits / 8) as u64,
            memory: 4 * needs::largest_weight(module),
        }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let plan = self.plan(module)?;
        self.quantize(module, plan, &mut PassReport::default())
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let plan = self.plan(module)?;
        let measured = self.measure(module, &plan.chosen, cx)?;
        let mut report = PassReport::default();
        report.fact("matrices", measured.len());
        self.quantize(module, plan, &mut report)?;
        report_errors(&mut report, &measured, self.options.refine);
        Ok(report)
    }
}

/// What is quantised.
struct Plan {
    /// The draft, or the target if there is none.
    before: Graph,
    chosen: Vec<Matrix>,
}

impl QuantizeDraft {
    fn plan(&self, module: &Module) -> Result<Plan, PassError> {
        if module.model.task != Task::TextGeneration {
            return Err(unsupported(format!(
                "a model for {} has no draft: nothing checks its answers",
                module.model.task.name()
            )));
        }
        let target = module
            .graph("target")
            .ok_or_else(|| unsupported("the module has no graph `target`"))?;
        let before = module.graph("draft").unwrap_or(target).clone();
        let chosen = self.chosen(&before, &module.weights)?;
        Ok(Plan { before, chosen })
    }

    fn quantize(
        &self,
        module: &mut Module,
        plan: Plan,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let Plan { before, chosen } = plan;
        let mut draft = before.clone();
        draft.name = "draft".into();
        let nodes: BTreeSet<_> = chosen.iter().map(|m| m.node).collect();
        quantize_nodes(&mut draft, &mut module.weights, &nodes, &self.quantizer)?;
        replace_draft(module, report, &before, draft);
        Ok(())
    }
}

/// Errors as shares of the matrices' norms, and what refining did.
fn report_errors(report: &mut PassReport, measured: &[(String, Perturbation)], refine: Refine) {
    let mean = |f: fn(&Perturbation) -> f64| {
        measured.iter().map(|(_, p)| f(p)).sum::<f64>() / measured.len().max(1) as f64
    };
    report.fact(
        "error",
        format!(
            "{:.2}% of a matrix's norm in the mean",
            100.0 * mean(|p| p.relative.sqrt())
        ),
    );
    let mut worst: Vec<&(String, Perturbation)> = measured.iter().collect();
    worst.sort_by(|a, b| b.1.relative.total_cmp(&a.1.relative));
    let worst: Vec<String> = worst
        .iter()
        .take(WORST)
        .map(|(name, p)| format!("{name} {:.2}%", 100.0 * p.relative.sqrt()))
        .collect();
    report.fact("largest errors", worst.join(", "));
    if refine == Refine::Hqq {
        let improved = measured
            .iter()
            .filter(|(_, p)| p.mean_square < p.mean_square_nearest)
            .count();
        let share = mean(|p| {
            if p.mean_square_nearest > 0.0 {
                1.0 - p.mean_square / p.mean_square_nearest
            } else {
                0.0
            }
        });
        let groups = 100.0 * mean(|p| p.refined);
        report.fact("hqq", format!("nearer in {improved} matrices and {groups:.0}% of their groups, squared errors {:.1}% smaller", 100.0 * share));
    }
}
