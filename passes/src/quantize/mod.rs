//! `quantize`: the matrices of every graph in 4 or 8 bits, and what was lost by it.
//!
//! Weights only, in groups along the rows (`matrices.rs`). `work.rs` is what `quantize-draft` does as
//! well. `held.rs` holds codes that were found by running text through the model (`calibrate.rs`): by
//! search with weighted errors (`weighted.rs`) or by GPTQ (`gptq.rs`, `factor.rs`). `budget.rs` and
//! `mixed.rs` choose formats. Graphs that share a matrix share its codes. An embedding that is the head
//! as well is quantised as the head alone.

mod budget;
mod calibrate;
mod choose;
mod factor;
mod floats;
mod gptq;
mod held;
mod matrices;
mod mixed;
mod options;
mod report;
mod weighted;
mod work;

use dlc_ir::cost::cost;
use dlc_ir::diff::diff;
use dlc_ir::{Graph, Module};

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::needs::Needs;
use crate::options::PassOptions;
use crate::report::PassReport;
use crate::sources::Sources;

pub(crate) use floats::{coded_matrices, in_floats, put_floats};
pub use matrices::{
    Coding, Matrix, Perturbation, code_matrices, matrices, perturbation, quantize_block,
    quantize_nodes,
};
pub(crate) use matrices::{add_parts, codes, keeps_codes};
pub(crate) use options::GROUP_SIZES;
pub use options::{Bits, Budget, Method, PartBits, QuantizeOptions};
pub(crate) use work::{Codings, Plan, Work};

const NAME: &str = "quantize";

/// The pass.
#[derive(Debug)]
pub struct Quantize<'a> {
    work: Work<'a>,
}

impl<'a> Quantize<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range: bits and group sizes that no runtime takes.
    pub fn new(options: QuantizeOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        Ok(Self {
            work: Work {
                sources,
                options,
                role: "target",
            },
        })
    }

    fn plan<'m>(&self, module: &'m Module) -> Result<Plan<'m>, PassError> {
        self.work.plan(module, target(module)?)
    }
}

/// The graph `target`.
pub(crate) fn target(module: &Module) -> Result<&Graph, PassError> {
    module
        .graph("target")
        .ok_or_else(|| unsupported("the module has no graph `target`"))
}

pub(crate) fn unsupported(problem: impl Into<String>) -> PassError {
    PassError::Unsupported {
        pass: NAME,
        problem: problem.into(),
    }
}

fn options_error(problem: String) -> PassError {
    PassError::Options {
        pass: NAME,
        problem,
    }
}

impl Pass for Quantize<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.work.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        match self.plan(module) {
            Ok(plan) => self.work.needs(module, &plan),
            Err(_) => Needs::default(),
        }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let codings = self.work.rehearsed(&self.plan(module)?);
        apply(module, &codings)
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let plan = self.plan(module)?;
        let before = plan.graph;
        let (codings, texts) = self.work.codings(module, &plan, cx, &mut report)?;
        let (after, weights) = codings.applied(module, before)?;
        let bytes = [before, &after].map(|graph| cost(graph, &weights).weight_bytes);
        report.fact(
            "bytes of the target's weights",
            format!("{} -> {}", bytes[0], bytes[1]),
        );
        report.diff = Some(diff((before, &weights), (&after, &weights)));
        let coded = (&after, &weights);
        if !self
            .work
            .compare(module, coded, texts.as_ref(), cx, &mut report)?
        {
            report.fact("compared on", "nothing: `dlc compare` compares the bundle");
        }
        apply(module, &codings)?;
        Ok(report)
    }
}

/// Gives the matrices of all graphs their codes.
fn apply(module: &mut Module, codings: &Codings) -> Result<(), PassError> {
    let graphs = &mut module.graphs;
    graphs
        .iter_mut()
        .try_for_each(|graph| codings.apply(graph, &mut module.weights))
}
