//! `quantize-draft`: the matrices of the draft in 4 or 8 bits; without a draft, those of a copy of
//! the target.
//!
//! As `quantize` does it of the target (`quantize/work.rs`), but that the embedding stays the
//! target's. What a draft proposes is checked by the target, so its errors cost time and never
//! change the text. The target is never changed.

mod options;

use dlc_ir::{Drafting, Graph, Module, Task};

use crate::context::{Pass, PassContext};
use crate::draft::replace_draft;
use crate::error::PassError;
use crate::needs::Needs;
use crate::options::PassOptions;
use crate::quantize::{Codings, Plan, Work, target};
use crate::report::PassReport;
use crate::sources::Sources;

pub use options::QuantizeDraftOptions;

const NAME: &str = "quantize-draft";
/// How often a copy of the target in 8 bits guesses right: 95 to 98 times of 100 on the models of
/// docs/measurements.md.
const ACCEPTANCE_OF_BYTES: f64 = 0.95;

/// The pass.
#[derive(Debug)]
pub struct QuantizeDraft<'a> {
    options: QuantizeDraftOptions,
    work: Work<'a>,
}

impl<'a> QuantizeDraft<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range: bits and group sizes that no runtime takes.
    pub fn new(options: QuantizeDraftOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        let work = Work {
            sources,
            options: options.of_quantize(),
            role: "draft",
        };
        Ok(Self { options, work })
    }

    /// What is quantised: the draft, or the target if there is none.
    fn plan<'m>(&self, module: &'m Module) -> Result<Plan<'m>, PassError> {
        let target = target(module)?;
        if module.model.task != Task::TextGeneration {
            return Err(PassError::Unsupported {
                pass: NAME,
                problem: format!(
                    "a model for {} has no draft: nothing checks its answers",
                    module.model.task.name()
                ),
            });
        }
        let graph = module.graph("draft").unwrap_or(target);
        self.work.plan(module, graph)
    }

    /// Makes `before` with its matrices in codes the draft, and notes how often a copy of the target
    /// in 8 bits is right.
    fn replace(
        &self,
        module: &mut Module,
        report: &mut PassReport,
        before: &Graph,
        codings: &Codings,
    ) -> Result<(), PassError> {
        let is_copy = module.graph("draft").is_none();
        let mut draft = before.clone();
        draft.name = "draft".into();
        codings.apply(&mut draft, &mut module.weights)?;
        replace_draft(module, report, before, draft);
        if is_copy && self.options.is_of_bytes() {
            module.drafting = Some(Drafting {
                draft_tokens: None,
                acceptance: ACCEPTANCE_OF_BYTES,
            });
        }
        Ok(())
    }
}

impl Pass for QuantizeDraft<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        match self.plan(module) {
            Ok(plan) => self.work.needs(module, &plan),
            Err(_) => Needs::default(),
        }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let plan = self.plan(module)?;
        let (before, codings) = (plan.graph.clone(), self.work.rehearsed(&plan));
        self.replace(module, &mut PassReport::default(), &before, &codings)
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let plan = self.plan(module)?;
        let before = plan.graph.clone();
        let (codings, texts) = self.work.codings(module, &plan, cx, &mut report)?;
        self.replace(module, &mut report, &before, &codings)?;
        if let Some(draft) = module.graph("draft") {
            let coded = (draft, &module.weights);
            self.work
                .compare(module, coded, texts.as_ref(), cx, &mut report)?;
        }
        Ok(report)
    }
}
