//! The format of each matrix within a budget: what it costs by FIT, and what the model then loses.

use std::collections::BTreeMap;

use dlc_ir::cost::cost;
use dlc_ir::{DType, GroupFormat, Module, Op, Weight, WeightId};

use super::matrices::{self, Matrix};
use super::mixed::{self, Allocation, Choice, Form};
use super::work::{Codings, Formats, Plan, Work, compared};
use super::{Budget, Coding, NAME, PartBits, options_error, perturbation, report, unsupported};
use crate::context::PassContext;
use crate::error::PassError;
use crate::kept::Kept;
use crate::report::PassReport;
use crate::scoring::{Head, Objective, fisher, most_links};
use crate::texts::Texts;

/// Groups that are taken where those of the usual size don't fit. Where they do, larger ones were
/// measured to lose more than FIT expects of them (docs/measurements.md).
const LARGER_GROUPS: [usize; 2] = [128, 64];

/// What FIT says of each matrix: the trace of the Fisher information.
type Traces = BTreeMap<WeightId, f64>;

impl Work<'_> {
    /// How each matrix becomes codes of so many bits that all keep within the budget.
    pub(super) fn mixed(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        texts: Option<&Texts>,
        cx: &PassContext<'_>,
        report: &mut PassReport,
    ) -> Result<Codings, PassError> {
        let texts =
            texts.ok_or_else(|| unsupported("bits are mixed by text, and there is none"))?;
        let traces = traces(module, plan, texts, cx)?;
        let usual = self.options.format(8).group_size;
        let choices = self.choices(module, plan, &traces, &[usual], cx)?;
        let fixed = self.fixed_bytes(module, plan, &choices)?;
        let entries: usize = choices.iter().map(|choice| choice.entries).sum();
        let within = |most: u64| match mixed::within_bytes(&choices, most) {
            Err(_) if self.options.group_size.is_none() => {
                let sizes = [&LARGER_GROUPS[..], &[usual]].concat();
                let choices = self.choices(module, plan, &traces, &sizes, cx)?;
                Ok(mixed::within_bytes(&choices, most))
            }
            found => Ok::<_, PassError>(found),
        };
        let allocation = match self.options.budget {
            Budget::Bits(bits) => within((bits * entries as f64 / 8.0) as u64)?
                .map(|allocation| (allocation, None))
                .map_err(|least| report::rounded_up(8.0 * least as f64 / entries.max(1) as f64)),
            Budget::Megabytes(megabytes) => {
                within(((megabytes * 1e6) as u64).saturating_sub(fixed))?
                    .map(|allocation| (allocation, None))
                    .map_err(|least| {
                        format!("{}MB", report::rounded_up((least + fixed) as f64 / 1e6))
                    })
            }
            Budget::Nats(nats) => self
                .within_nats(module, plan, &choices, nats, texts, cx)?
                .map(|(allocation, codings)| (allocation, Some(codings))),
        };
        let (Allocation { formats, loss, .. }, codings) = allocation.map_err(|least| {
            let asked = self.options.budget;
            options_error(format!(
                "budget={asked} can't be met with 4 and 8 bits; the nearest that can is budget={least}"
            ))
        })?;
        report.fact("bits", counts(&formats));
        report.fact("divergence that FIT expects", format!("{loss:.3e} nats"));
        match codings {
            Some(codings) => Ok(codings),
            None => self.coded_in(module, plan, &formats, Some(texts), cx),
        }
    }

    /// Bytes of the graph that bits of its matrices don't change.
    fn fixed_bytes(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        choices: &[Choice],
    ) -> Result<u64, PassError> {
        let least = choices.iter().map(|choice| {
            let quantizer = self.options.quantizer(choice.smallest().format);
            (choice.weight, Coding::Rule(quantizer))
        });
        let codings = self.with_tables(plan, least.collect());
        let (graph, weights) = codings.applied(module, plan.graph)?;
        let matrices = choices.iter().map(|choice| choice.smallest().bytes);
        let whole = cost(&graph, &weights).weight_bytes;
        Ok(whole.saturating_sub(matrices.sum()))
    }

    /// What the formats of each matrix, in groups of these sizes, cost by FIT.
    fn choices(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        traces: &Traces,
        sizes: &[usize],
        cx: &PassContext<'_>,
    ) -> Result<Vec<Choice>, PassError> {
        let choice = |(id, matrix): (&WeightId, &Matrix)| {
            let trace = traces.get(id).copied().unwrap_or_default();
            let weight = &module.weights[*id];
            let formats = self.formats(plan, matrix, weight, sizes)?;
            let form = |format| self.form(weight, format, trace, cx);
            let forms = formats
                .into_iter()
                .map(form)
                .collect::<Result<_, PassError>>()?;
            Ok(Choice::among(*id, weight.elements(), forms))
        };
        plan.matrices.iter().map(choice).collect()
    }

    /// The formats that `matrix` may have. Tables that tokens are looked up in, and experts in f16,
    /// have whole groups.
    fn formats(
        &self,
        plan: &Plan<'_>,
        matrix: &Matrix,
        weight: &Weight,
        sizes: &[usize],
    ) -> Result<Vec<GroupFormat>, PassError> {
        let (_, columns) = matrices::matrix_shape(weight)?;
        let bits = match self.options.head {
            PartBits::Own(bits) if matrix.is_head => vec![bits],
            _ => vec![4, 8],
        };
        let is_expert = matches!(plan.graph.node(matrix.node).op, Op::Experts(_));
        let is_whole =
            plan.tables.contains(&matrix.weight) || is_expert && weight.dtype == DType::F16;
        let fits = |size: &&usize| !is_whole || columns.is_multiple_of(**size);
        let of_size = |&group_size: &usize| {
            let format = move |&bits: &usize| GroupFormat { bits, group_size };
            bits.iter().map(format)
        };
        Ok(sizes.iter().filter(fits).flat_map(of_size).collect())
    }

    /// What `format` costs a matrix with this trace of the Fisher information.
    fn form(
        &self,
        weight: &Weight,
        format: GroupFormat,
        trace: f64,
        cx: &PassContext<'_>,
    ) -> Result<Form, PassError> {
        let quantizer = self.options.quantizer(format);
        let found = cx.pool.install(|| perturbation(weight, &quantizer))?;
        let loss = 0.5 * trace * found.mean_square;
        if !loss.is_finite() {
            return Err(PassError::NotFinite {
                pass: NAME,
                score: "fit",
                unit: weight.name.clone(),
                value: loss,
            });
        }
        Ok(Form {
            format,
            bytes: report::bytes(weight, format, self.options.symmetric),
            loss,
        })
    }

    /// The smallest allocation whose measured divergence is at most `most`. FIT ranks matrices, and
    /// a measured model says what its unit is.
    fn within_nats(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        choices: &[Choice],
        most: f64,
        texts: &Texts,
        cx: &PassContext<'_>,
    ) -> Result<Result<(Allocation, Codings), String>, PassError> {
        const TRIES: usize = 6;
        let measured = |allocation: &Allocation| -> Result<(f64, Codings), PassError> {
            let codings = self.coded_in(module, plan, &allocation.formats, Some(texts), cx)?;
            let (after, weights) = codings.applied(module, plan.graph)?;
            let found = compared(module, [plan.graph, &after], &weights, texts, cx)?;
            Ok((found.mean_kl(), codings))
        };
        let mut expected = f64::INFINITY;
        for _ in 0..TRIES {
            let Ok(allocation) = mixed::within_loss(choices, expected) else {
                break;
            };
            let (found, codings) = measured(&allocation)?;
            if found <= most {
                return Ok(Ok((allocation, codings)));
            }
            // A tenth more, so that the next try is another one.
            expected = allocation.loss * (most / found).min(0.9);
        }
        let widest = mixed::within_bytes(choices, u64::MAX).unwrap_or_default();
        let (found, codings) = measured(&widest)?;
        if found <= most {
            Ok(Ok((widest, codings)))
        } else {
            Ok(Err(format!("{}nats", report::rounded_up(found))))
        }
    }
}

/// What text says of the matrices.
fn traces(
    module: &Module,
    plan: &Plan<'_>,
    texts: &Texts,
    cx: &PassContext<'_>,
) -> Result<Traces, PassError> {
    let objective = Objective::of(module.model.task)
        .ok_or_else(|| unsupported("bits are mixed by what the model answers, and it doesn't"))?;
    let so_far = format!(
        "{NAME} fit so far 2 {} {} {:?}",
        cx.module_key, plan.graph.name, texts.scored
    );
    let so_far = Kept::new(cx.cache, &so_far);
    let scores = cx.pool.install(|| {
        let head = Head::of(plan.graph);
        let head = head.as_ref();
        let (weights, samples) = (&module.weights, &texts.scored);
        let progress = cx.progress;
        fisher::scores(
            plan.graph, weights, objective, samples, head, so_far, progress,
        )
    });
    if !matches!(scores, Err(PassError::Interrupted)) {
        fisher::forget(so_far, most_links(plan.graph));
    }
    let scores = scores?;
    let mut traces: Traces = scores.head.into_iter().collect();
    let tensors = scores.blocks.values().flatten();
    tensors.for_each(|tensor| *traces.entry(tensor.weight).or_default() += tensor.trace);
    Ok(traces)
}

/// How many matrices have which format.
fn counts(formats: &Formats) -> String {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for format in formats.values() {
        *counts.entry((format.bits, format.group_size)).or_default() += 1;
    }
    let shown = counts
        .iter()
        .rev()
        .map(|((bits, size), count)| format!("{count} in {bits} by groups of {size}"));
    format!("matrices: {}", shown.collect::<Vec<_>>().join(", "))
}
