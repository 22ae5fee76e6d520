//! What `quantize` and `quantize-draft` have in common: which matrices of a graph are quantised, how
//! each becomes codes, and what is said of them. What becomes of the graph, the passes decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::{DType, Graph, GroupFormat, Module, Op, Task, Weight, WeightId, WeightTable};
use dlc_methods::divergence::Divergence;

use super::calibrate::{Calibration, Codes};
use super::choose::{Selection, no_such_block};
use super::matrices::{self, Coding, Matrix, code_matrices};
use super::options::{Bits, Method, PartBits, QuantizeOptions};
use super::report::{report_divergence, report_errors, report_refinement, report_size};
use super::{options_error, report, unsupported};
use crate::context::PassContext;
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::report::PassReport;
use crate::scoring::Objective;
use crate::scoring::chain::Chain;
use crate::scoring::divergence::divergence;
use crate::sources::Sources;
use crate::texts::{TextRequest, Texts, texts};

/// Texts where they find the codes, and where the result is only compared on them.
const FITTED: usize = 64;
const COMPARED: usize = 16;

/// What is asked for of a graph.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub sources: Sources<'a>,
    pub options: QuantizeOptions,
    /// What the graph is to the model: `target` or `draft`.
    pub role: &'static str,
}

/// What is quantised.
pub(crate) struct Plan<'m> {
    pub graph: &'m Graph,
    /// Whether text can be run through it block by block.
    takes_text: bool,
    pub method: Method,
    pub matrices: BTreeMap<WeightId, Matrix>,
    /// The tables of embeddings among it.
    pub tables: BTreeSet<WeightId>,
}

/// How matrices become codes, those that products are made with and those that are looked up.
pub(crate) struct Codings {
    products: BTreeMap<WeightId, Coding>,
    tables: BTreeMap<WeightId, Coding>,
}

impl Codings {
    /// Gives the matrices of `graph` their codes.
    pub fn apply(&self, graph: &mut Graph, weights: &mut WeightTable) -> Result<(), PassError> {
        code_matrices(graph, weights, |matrix| {
            let among = if matrix.is_table {
                &self.tables
            } else {
                &self.products
            };
            among.get(&matrix.weight).cloned()
        })
    }

    /// `graph` with its matrices in codes, and the weights of `module` with these codes among them.
    pub fn applied(
        &self,
        module: &Module,
        graph: &Graph,
    ) -> Result<(Graph, WeightTable), PassError> {
        let (mut graph, mut weights) = (graph.clone(), module.weights.clone());
        self.apply(&mut graph, &mut weights)?;
        Ok((graph, weights))
    }
}

pub(super) type Formats = BTreeMap<WeightId, GroupFormat>;

impl Work<'_> {
    /// Bits of most matrices, or the most bits of any.
    fn bits(&self) -> usize {
        match self.options.bits {
            Bits::All(bits) => bits,
            Bits::Mixed => 8,
        }
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            blocks: self.options.blocks.as_deref(),
            head: self.options.head != PartBits::None,
            kept_bits: self.sources.keeps_codes.then_some(self.bits()),
        }
    }

    /// Whether text is needed whether or not the result is compared.
    fn needs_text(&self, takes_text: bool) -> bool {
        self.options.method(takes_text).is_calibrated() || self.options.bits == Bits::Mixed
    }

    /// Whether the result is compared where text is at hand.
    fn compares(&self, takes_text: bool) -> bool {
        self.options.compare && takes_text
    }

    /// Which matrices of `graph`, and how.
    pub fn plan<'m>(&self, module: &Module, graph: &'m Graph) -> Result<Plan<'m>, PassError> {
        let selection = self.selection();
        if let Some(unknown) = selection.unknown(graph) {
            return Err(options_error(no_such_block(self.role, graph, unknown)));
        }
        let mut matrices: BTreeMap<WeightId, Matrix> = BTreeMap::new();
        for matrix in selection.matrices(graph, &module.weights)? {
            matrices.entry(matrix.weight).or_insert(matrix);
        }
        let takes_text = self.takes_text(module, graph)?;
        for (id, matrix) in &matrices {
            let is_expert = matches!(graph.node(matrix.node).op, Op::Experts(_));
            self.check_matrix(&module.weights[*id], is_expert)?;
        }
        let group_size = self.options.format(8).group_size;
        let mut tables = matrices::tables(graph, &module.weights, group_size);
        tables
            .retain(|_| self.options.embedding != PartBits::None && self.options.blocks.is_none());
        Ok(Plan {
            graph,
            takes_text,
            method: self.options.method(takes_text),
            matrices,
            tables: tables.iter().map(|table| table.weight).collect(),
        })
    }

    /// Whether text can be run through `graph` block by block; an error if it must.
    fn takes_text(&self, module: &Module, graph: &Graph) -> Result<bool, PassError> {
        let chain = Chain::new(graph, &module.weights);
        if let (true, Err(error)) = (self.needs_text(chain.is_ok()), &chain) {
            let reason = match error {
                PassError::Unsupported { problem, .. } => problem.clone(),
                other => other.to_string(),
            };
            return Err(unsupported(format!(
                "no text can be run through the model block by block, as this asks for ({reason}); take method=hqq or rtn, and bits=4 or 8"
            )));
        }
        if self.options.bits == Bits::Mixed && Objective::of(module.model.task).is_none() {
            return Err(unsupported(
                "bits are mixed by what the model answers, and its answers are not scored",
            ));
        }
        Ok(chain.is_ok())
    }

    fn check_matrix(&self, weight: &Weight, is_expert: bool) -> Result<(), PassError> {
        let (_, columns) = matrices::matrix_shape(weight)?;
        if weight.dtype != DType::F16 {
            return Ok(());
        }
        let (problem, way) = if !self.sources.multiplies_f16_codes {
            let problem = "only operators of profile ort multiply f16 with codes";
            (problem, "--profile ort, or with --dtype f32")
        } else if is_expert && !columns.is_multiple_of(self.options.format(8).group_size) {
            let problem = "experts in f16 are multiplied with whole groups of codes alone";
            (problem, "--dtype f32")
        } else {
            return Ok(());
        };
        Err(unsupported(format!(
            "weight {} is {}, and {problem}; compile with {way}",
            weight.name,
            weight.ty()
        )))
    }

    /// What it needs.
    pub fn needs(&self, module: &Module, plan: &Plan<'_>) -> Needs {
        let size = |(id, matrix): (&WeightId, &Matrix)| {
            let format = self.format_of(matrix, self.bits());
            report::bytes(&module.weights[*id], format, self.options.symmetric)
        };
        let reads_text = self.needs_text(plan.takes_text) || self.compares(plan.takes_text);
        Needs {
            disk: plan.matrices.iter().map(size).sum(),
            // A model that writes text has all of its weights in memory meanwhile.
            memory: if reads_text {
                2 * needs::whole_weights(module)
            } else {
                4 * needs::largest_weight(module)
            },
        }
    }

    /// Codings that stand in for those that [`codings`](Self::codings) would find, without a look at
    /// any number.
    pub fn rehearsed(&self, plan: &Plan<'_>) -> Codings {
        let rule = Coding::Rule(self.options.quantizer(self.options.format(8)));
        let rules =
            |ids: &mut dyn Iterator<Item = &WeightId>| ids.map(|id| (*id, rule.clone())).collect();
        Codings {
            products: rules(&mut plan.matrices.keys()),
            tables: rules(&mut plan.tables.iter()),
        }
    }

    /// How each matrix becomes codes, reported; and the texts, if any were needed.
    pub fn codings(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        cx: &PassContext<'_>,
        report: &mut PassReport,
    ) -> Result<(Codings, Option<Texts>), PassError> {
        let texts = self.texts(module, plan, cx)?;
        let codings = match self.options.bits {
            Bits::All(bits) => {
                let matrices = plan.matrices.iter();
                let formats = matrices.map(|(id, matrix)| (*id, self.format_of(matrix, bits)));
                self.coded_in(module, plan, &formats.collect(), texts.as_ref(), cx)?
            }
            Bits::Mixed => self.mixed(module, plan, texts.as_ref(), cx, report)?,
        };
        let measured = report::measure(&module.weights, &codings.products, cx)?;
        report.fact("method", plan.method.name());
        report.fact("matrices", measured.len());
        report_size(
            report,
            &module.weights,
            &codings.products,
            self.options.symmetric,
        );
        report_errors(report, &measured);
        if plan.method == Method::Hqq {
            report_refinement(report, &measured);
        }
        Ok((codings, texts))
    }

    /// Compares a graph with the target on texts that were held back, if it is to be compared.
    pub fn compare(
        &self,
        module: &Module,
        (graph, weights): (&Graph, &WeightTable),
        texts: Option<&Texts>,
        cx: &PassContext<'_>,
        report: &mut PassReport,
    ) -> Result<bool, PassError> {
        let target = module.graph("target");
        let (Some(texts), Some(target)) = (texts.filter(|_| self.options.compare), target) else {
            return Ok(false);
        };
        let found = compared(module, [target, graph], weights, texts, cx)?;
        report.fact(
            "compared on",
            format!(
                "{} texts held back, {}",
                texts.held_back.len(),
                texts.origin
            ),
        );
        report_divergence(report, &found);
        Ok(true)
    }

    /// The texts, if any are needed.
    fn texts(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        cx: &PassContext<'_>,
    ) -> Result<Option<Texts>, PassError> {
        let QuantizeOptions {
            length,
            seed,
            temperature,
            ..
        } = self.options;
        let fitted = self.needs_text(plan.takes_text);
        let writer = module.graph("target").unwrap_or(plan.graph);
        if !(fitted || self.compares(plan.takes_text)) {
            return Ok(None);
        }
        let samples = if fitted { FITTED } else { COMPARED };
        let wanted = TextRequest {
            file: self.options.calibration.as_deref(),
            samples: self.options.samples.unwrap_or(samples),
            length,
            seed,
            temperature,
        };
        match texts(&wanted, self.sources.calibration, module, writer, cx) {
            // A comparison that nobody asked for needs no text.
            Err(PassError::Calibration { .. }) if wanted.file.is_none() && !fitted => Ok(None),
            found => found.map(Some),
        }
    }

    /// The layout of a matrix where most have so many bits.
    fn format_of(&self, matrix: &Matrix, bits: usize) -> GroupFormat {
        match self.options.head {
            PartBits::Own(bits) if matrix.is_head => self.options.format(bits),
            _ => self.options.format(bits),
        }
    }

    /// How each matrix becomes codes of its format: by those that text leads to, or by rule.
    pub(super) fn coded_in(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        formats: &Formats,
        texts: Option<&Texts>,
        cx: &PassContext<'_>,
    ) -> Result<Codings, PassError> {
        let known = match texts.filter(|_| plan.method.is_calibrated()) {
            Some(texts) => {
                let calibration = Calibration {
                    method: plan.method,
                    symmetric: self.options.symmetric,
                    formats,
                    samples: &texts.scored,
                };
                cx.pool
                    .install(|| calibration.run(plan.graph, &module.weights, cx.progress))?
            }
            None => Codes::new(),
        };
        let coding = |(id, format): (&WeightId, &GroupFormat)| {
            let coding = match known.get(id) {
                Some(matrix) => Coding::Known(Arc::clone(matrix), *format),
                None => Coding::Rule(self.options.quantizer(*format)),
            };
            (*id, coding)
        };
        Ok(self.with_tables(plan, formats.iter().map(coding).collect()))
    }

    /// The codings of products, and those of tables that go with them.
    pub(super) fn with_tables(
        &self,
        plan: &Plan<'_>,
        products: BTreeMap<WeightId, Coding>,
    ) -> Codings {
        let table = |id: &WeightId| {
            let own = |bits| Coding::Rule(self.options.quantizer(self.options.format(bits)));
            let coding = match (self.options.embedding, products.get(id), self.options.bits) {
                (PartBits::Same | PartBits::None, Some(head), _) => head.clone(),
                (PartBits::Own(bits), ..) | (_, None, Bits::All(bits)) => own(bits),
                (_, None, Bits::Mixed) => own(8),
            };
            (*id, coding)
        };
        Codings {
            tables: plan.tables.iter().map(table).collect(),
            products,
        }
    }
}

/// How the answers of a graph differ from those of another, on held-back texts.
pub(super) fn compared(
    module: &Module,
    graphs: [&Graph; 2],
    weights: &WeightTable,
    texts: &Texts,
    cx: &PassContext<'_>,
) -> Result<Divergence, PassError> {
    let continues = module.model.task == Task::TextGeneration;
    let (held_back, prompt) = (&texts.held_back, texts.prompt);
    cx.pool
        .install(|| divergence(graphs, weights, held_back, prompt, continues, cx.progress))
}
