//! `quantize`: the matrices of every graph in 4 or 8 bits, and what was lost by it.
//!
//! Weights only, in groups along the rows (`matrices.rs`). `held.rs` holds codes that were found by
//! running text through the model (`calibrate.rs`): by search with weighted errors (`weighted.rs`)
//! or by GPTQ (`gptq.rs`, `factor.rs`). `budget.rs` and `mixed.rs` choose formats. Graphs that share a matrix share
//! its codes. An embedding that is the head as well is quantised as the head alone.

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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::cost::cost;
use dlc_ir::diff::diff;
use dlc_ir::{Graph, GroupFormat, Module, Task, WeightId, WeightTable};
use dlc_methods::divergence::Divergence;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::needs::{self, Needs};
use crate::options::PassOptions;
use crate::report::PassReport;
use crate::scoring::Objective;
use crate::scoring::chain::Chain;
use crate::scoring::divergence::divergence;
use crate::sources::Sources;
use crate::texts::{TextRequest, Texts, texts};
use calibrate::{Calibration, Codes};
use report::report_divergence;

pub(crate) use choose::{Selection, no_such_block};
pub(crate) use floats::{coded_matrices, in_floats, put_floats};
pub use matrices::{
    Coding, Matrix, Perturbation, code_matrices, matrices, perturbation, quantize_block,
    quantize_nodes,
};
pub(crate) use matrices::{add_parts, codes, keeps_codes};
pub(crate) use options::GROUP_SIZES;
pub use options::{Bits, Budget, Method, PartBits, QuantizeOptions};
pub(crate) use report::{Measured, report_errors, report_refinement};

const NAME: &str = "quantize";
/// Texts where they find the codes, and where the result is only compared on them.
const FITTED: usize = 64;
const COMPARED: usize = 16;

/// The pass.
#[derive(Debug)]
pub struct Quantize<'a> {
    sources: Sources<'a>,
    options: QuantizeOptions,
}

impl<'a> Quantize<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range: bits and group sizes that no runtime takes.
    pub fn new(options: QuantizeOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        Ok(Self { sources, options })
    }

    fn selection(&self) -> Selection<'_> {
        let bits = match self.options.bits {
            Bits::All(bits) => bits,
            Bits::Mixed => 8,
        };
        Selection {
            blocks: self.options.blocks.as_deref(),
            head: self.options.head != PartBits::None,
            kept_bits: self.sources.keeps_codes.then_some(bits),
        }
    }

    /// Whether text is needed whether or not the result is compared.
    fn needs_text(&self, takes_text: bool) -> bool {
        self.options.method(takes_text).is_calibrated() || self.options.bits == Bits::Mixed
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
        if !(fitted || self.options.compare && plan.takes_text) {
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
        match texts(&wanted, self.sources.calibration, module, plan.target, cx) {
            // A comparison that nobody asked for needs no text.
            Err(PassError::Calibration { .. }) if wanted.file.is_none() && !fitted => Ok(None),
            found => found.map(Some),
        }
    }

    fn check<'m>(&self, module: &'m Module) -> Result<Plan<'m>, PassError> {
        let target = module
            .graph("target")
            .ok_or_else(|| unsupported("the module has no graph `target`"))?;
        let selection = self.selection();
        if let Some(unknown) = selection.unknown(target) {
            return Err(options_error(no_such_block("target", target, unknown)));
        }
        let mut matrices: BTreeMap<WeightId, Matrix> = BTreeMap::new();
        for matrix in selection.matrices(target, &module.weights)? {
            matrices.entry(matrix.weight).or_insert(matrix);
        }
        let chain = Chain::new(target, &module.weights);
        if let (true, Err(error)) = (self.needs_text(chain.is_ok()), &chain) {
            let reason = match error {
                PassError::Unsupported { problem, .. } => problem.clone(),
                other => other.to_string(),
            };
            return Err(unsupported(format!(
                "no text can be run through the model block by block, as this asks for ({reason}); take method=hqq or rtn, and bits=4 or 8"
            )));
        }
        let method = self.options.method(chain.is_ok());
        if self.options.bits == Bits::Mixed && Objective::of(module.model.task).is_none() {
            return Err(unsupported(
                "bits are mixed by what the model answers, and its answers are not scored",
            ));
        }
        for matrix in matrices.values() {
            matrices::matrix_shape(&module.weights[matrix.weight])?;
        }
        let format = self.options.format(8);
        let mut tables = matrices::tables(target, &module.weights, format.group_size);
        tables
            .retain(|_| self.options.embedding != PartBits::None && self.options.blocks.is_none());
        Ok(Plan {
            target,
            takes_text: chain.is_ok(),
            method,
            matrices,
            tables: tables.iter().map(|table| table.weight).collect(),
        })
    }
}

/// What is quantised.
struct Plan<'m> {
    target: &'m Graph,
    /// Whether text can be run through it block by block.
    takes_text: bool,
    method: Method,
    matrices: BTreeMap<WeightId, Matrix>,
    /// The tables of embeddings among it.
    tables: BTreeSet<WeightId>,
}

/// How matrices become codes, those that products are made with and those that are looked up.
struct Codings {
    products: BTreeMap<WeightId, Coding>,
    tables: BTreeMap<WeightId, Coding>,
}

impl Codings {
    fn of(&self, matrix: &Matrix) -> Option<Coding> {
        let among = if matrix.is_table {
            &self.tables
        } else {
            &self.products
        };
        among.get(&matrix.weight).cloned()
    }
}

type Formats = BTreeMap<WeightId, GroupFormat>;

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
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn needs(&self, module: &Module) -> Needs {
        let Ok(plan) = self.check(module) else {
            return Needs::default();
        };
        let format = self.options.format(8);
        let disk: u64 = plan
            .matrices
            .keys()
            .filter_map(|id| matrices::matrix_shape(&module.weights[*id]).ok())
            .map(|(rows, columns)| mixed::bytes(format, false, [rows, columns]))
            .sum();
        // A model that writes text has all of its weights in memory meanwhile.
        let memory = 2 * needs::whole_weights(module);
        Needs { disk, memory }
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let plan = self.check(module)?;
        let rule = Coding::Rule(self.options.quantizer(self.options.format(8)));
        let rules =
            |ids: &mut dyn Iterator<Item = &WeightId>| ids.map(|id| (*id, rule.clone())).collect();
        let codings = Codings {
            products: rules(&mut plan.matrices.keys()),
            tables: rules(&mut plan.tables.iter()),
        };
        apply(module, &codings)
    }

    fn run(&self, module: &mut Module, cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let plan = self.check(module)?;
        let (before, method) = (plan.target.clone(), plan.method);
        let texts = self.texts(module, &plan, cx)?;
        let mut report = PassReport::default();
        let (formats, known) = match self.options.bits {
            Bits::All(bits) => {
                let of = |matrix: &Matrix| match self.options.head {
                    PartBits::Own(bits) if matrix.is_head => self.options.format(bits),
                    _ => self.options.format(bits),
                };
                let matrices = plan.matrices.iter();
                (
                    matrices.map(|(id, matrix)| (*id, of(matrix))).collect(),
                    None,
                )
            }
            Bits::Mixed => self.mixed(module, &plan, texts.as_ref(), cx, &mut report)?,
        };
        let codings = match known {
            Some(codings) => codings,
            None => self.codings(module, &plan, &formats, texts.as_ref(), cx)?,
        };
        let measured = measure(NAME, &module.weights, codings.products.iter(), cx)?;
        report.fact("method", method.name());
        report.fact("matrices", measured.len());
        let (entries, bytes) = size(&module.weights, &formats, self.options.symmetric);
        report.fact(
            "bits per weight",
            format!(
                "{:.2} with scales",
                8.0 * bytes as f64 / entries.max(1) as f64
            ),
        );
        report_errors(&mut report, &measured);
        if method == Method::Hqq {
            report_refinement(&mut report, &measured);
        }
        let (after, weights) = coded(module, &before, &codings)?;
        let bytes = [&before, &after].map(|graph| cost(graph, &weights).weight_bytes);
        report.fact(
            "bytes of the target's weights",
            format!("{} -> {}", bytes[0], bytes[1]),
        );
        report.diff = Some(diff((&before, &weights), (&after, &weights)));
        match texts.filter(|_| self.options.compare) {
            Some(texts) => {
                let found = compare(module, [&before, &after], &weights, &texts, cx)?;
                report.fact(
                    "compared on",
                    format!(
                        "{} texts held back, {}",
                        texts.held_back.len(),
                        texts.origin
                    ),
                );
                report_divergence(&mut report, &found);
            }
            None => report.fact("compared on", "nothing: `dlc compare` compares the bundle"),
        }
        apply(module, &codings)?;
        Ok(report)
    }
}

impl Quantize<'_> {
    /// How each matrix becomes codes: by those that text leads to, or by rule.
    fn codings(
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
                    .install(|| calibration.run(plan.target, &module.weights, cx.progress))?
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
    fn with_tables(&self, plan: &Plan<'_>, products: BTreeMap<WeightId, Coding>) -> Codings {
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

/// Gives the matrices of all graphs their codes.
fn apply(module: &mut Module, codings: &Codings) -> Result<(), PassError> {
    for graph in &mut module.graphs {
        code_matrices(graph, &mut module.weights, |matrix| codings.of(matrix))?;
    }
    Ok(())
}

/// The target with its matrices in codes, and the weights with these codes among them.
fn coded(
    module: &Module,
    target: &Graph,
    codings: &Codings,
) -> Result<(Graph, WeightTable), PassError> {
    let (mut graph, mut weights) = (target.clone(), module.weights.clone());
    code_matrices(&mut graph, &mut weights, |matrix| codings.of(matrix))?;
    Ok((graph, weights))
}

/// How the answers of a quantised graph differ from those of the one before, on held-back texts.
fn compare(
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

/// What codings do to matrices, with their names.
pub(crate) fn measure<'c>(
    pass: &'static str,
    weights: &WeightTable,
    codings: impl ExactSizeIterator<Item = (&'c WeightId, &'c Coding)>,
    cx: &PassContext<'_>,
) -> Result<Vec<Measured>, PassError> {
    let total = codings.len();
    let mut measured = Vec::new();
    for (done, (id, coding)) in codings.enumerate() {
        cx.progress.update("measuring errors", done, total);
        if cx.progress.interrupted() {
            return Err(PassError::Interrupted);
        }
        let weight = &weights[*id];
        let found = cx.pool.install(|| coding.perturbation(weight))?;
        if !found.relative.is_finite() {
            return Err(PassError::NotFinite {
                pass,
                score: "squared error",
                unit: weight.name.clone(),
                value: found.relative,
            });
        }
        measured.push((weight.name.clone(), found));
    }
    cx.progress.update("measuring errors", total, total);
    Ok(measured)
}

/// Entries of all matrices, and bytes of their codes.
fn size(weights: &WeightTable, formats: &Formats, symmetric: bool) -> (usize, u64) {
    let sizes = formats.iter().filter_map(|(id, format)| {
        let (rows, columns) = matrices::matrix_shape(&weights[*id]).ok()?;
        Some((
            rows * columns,
            mixed::bytes(*format, symmetric, [rows, columns]),
        ))
    });
    sizes.fold((0, 0), |(entries, bytes), (e, b)| (entries + e, bytes + b))
}
