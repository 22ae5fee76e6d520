//! `quantize-draft`: the matrices of the draft in 4 or 8 bits; without a draft, those of a copy of
//! the target.
//!
//! Weights only, in groups along the rows (`quantize`); an embedding that is the head as well is
//! quantised as the head alone. What a draft proposes is checked by the target, so its errors cost
//! time and never change the text. The target is never changed.

mod options;

use std::collections::BTreeSet;

use dlc_ir::{Graph, Module, Quantizer, Task, WeightTable};

use crate::context::{Pass, PassContext};
use crate::draft::replace_draft;
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::quantize::{
    Coding, Matrix, Selection, measure, no_such_block, quantize_nodes, report_errors,
    report_refinement,
};
use crate::report::PassReport;
use crate::sources::Sources;

pub use options::{QuantizeDraftOptions, Refine};

const NAME: &str = "quantize-draft";

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

    fn selection(&self) -> Selection<'_> {
        Selection {
            blocks: self.options.blocks.as_deref(),
            head: self.options.head,
            kept_bits: self.keeps_codes.then_some(self.options.bits),
        }
    }

    /// The matrices that were asked for.
    fn chosen(&self, graph: &Graph, weights: &WeightTable) -> Result<Vec<Matrix>, PassError> {
        let selection = self.selection();
        if let Some(unknown) = selection.unknown(graph) {
            return Err(options_error(no_such_block("draft", graph, unknown)));
        }
        selection.matrices(graph, weights)
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
        let coding = Coding::Rule(self.quantizer);
        let codings = plan.chosen.iter().map(|matrix| (&matrix.weight, &coding));
        let measured = measure(NAME, &module.weights, codings, cx)?;
        let mut report = PassReport::default();
        report.fact("matrices", measured.len());
        self.quantize(module, plan, &mut report)?;
        report_errors(&mut report, &measured);
        if self.options.refine == Refine::Hqq {
            report_refinement(&mut report, &measured);
        }
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
