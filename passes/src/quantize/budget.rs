//! Bits of each matrix within a budget: what they cost by FIT, and what the model then loses.

use std::collections::BTreeMap;

use dlc_ir::cost::cost;
use dlc_ir::{Module, WeightId};

use super::mixed::{self, Allocation, Choice};
use super::work::{Codings, Formats, Plan, Work, compared};
use super::{Budget, Coding, NAME, PartBits, options_error, perturbation, report, unsupported};
use crate::context::PassContext;
use crate::error::PassError;
use crate::kept::Kept;
use crate::report::PassReport;
use crate::scoring::{Objective, fisher, most_links};
use crate::texts::Texts;

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
        let choices = self.choices(module, plan, texts, cx)?;
        let fixed = self.fixed_bytes(module, plan, &choices)?;
        let entries: usize = choices.iter().map(|choice| choice.entries).sum();
        let allocation = match self.options.budget {
            Budget::Bits(bits) => {
                let most = (bits * entries as f64 / 8.0) as u64;
                mixed::within_bytes(&choices, most)
                    .map(|allocation| (allocation, None))
                    .map_err(|least| report::rounded_up(8.0 * least as f64 / entries.max(1) as f64))
            }
            Budget::Megabytes(megabytes) => {
                let most = ((megabytes * 1e6) as u64).saturating_sub(fixed);
                mixed::within_bytes(&choices, most)
                    .map(|allocation| (allocation, None))
                    .map_err(|least| {
                        format!("{}MB", report::rounded_up((least + fixed) as f64 / 1e6))
                    })
            }
            Budget::Nats(nats) => self
                .within_nats(module, plan, &choices, nats, texts, cx)?
                .map(|(allocation, codings)| (allocation, Some(codings))),
        };
        let (Allocation { bits, loss, .. }, codings) = allocation.map_err(|least| {
            let asked = self.options.budget;
            options_error(format!(
                "budget={asked} can't be met with 4 and 8 bits; the nearest that can is budget={least}"
            ))
        })?;
        let eights = bits.values().filter(|bits| **bits == 8).count();
        report.fact(
            "bits",
            format!("{eights} matrices in 8, {} in 4", bits.len() - eights),
        );
        report.fact("divergence that FIT expects", format!("{loss:.3e} nats"));
        match codings {
            Some(codings) => Ok(codings),
            None => self.coded_in(module, plan, &self.formats(&bits), Some(texts), cx),
        }
    }

    /// The formats of codes of so many bits.
    fn formats(&self, bits: &BTreeMap<WeightId, usize>) -> Formats {
        bits.iter()
            .map(|(id, bits)| (*id, self.options.format(*bits)))
            .collect()
    }

    /// Bytes of the graph that bits of its matrices don't change.
    fn fixed_bytes(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        choices: &[Choice],
    ) -> Result<u64, PassError> {
        let least = choices.iter().map(|choice| {
            let bits = choice.fixed.unwrap_or(4);
            let quantizer = self.options.quantizer(self.options.format(bits));
            (choice.weight, Coding::Rule(quantizer))
        });
        let codings = self.with_tables(plan, least.collect());
        let (graph, weights) = codings.applied(module, plan.graph)?;
        let matrices = choices.iter().map(|choice| choice.bytes[0]);
        let whole = cost(&graph, &weights).weight_bytes;
        Ok(whole.saturating_sub(matrices.sum()))
    }

    /// What 4 and 8 bits of each matrix cost, by FIT.
    fn choices(
        &self,
        module: &Module,
        plan: &Plan<'_>,
        texts: &Texts,
        cx: &PassContext<'_>,
    ) -> Result<Vec<Choice>, PassError> {
        let objective = Objective::of(module.model.task).ok_or_else(|| {
            unsupported("bits are mixed by what the model answers, and it doesn't")
        })?;
        let so_far = format!(
            "{NAME} fit so far 1 {} {} {:?}",
            cx.module_key, plan.graph.name, texts.scored
        );
        let so_far = Kept::new(cx.cache, &so_far);
        let scores = cx.pool.install(|| {
            let head = fisher::Head::of(plan.graph);
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
        let mut traces: BTreeMap<WeightId, f64> = scores.head.into_iter().collect();
        let tensors = scores.blocks.values().flatten();
        tensors.for_each(|tensor| *traces.entry(tensor.weight).or_default() += tensor.trace);

        let mut choices = Vec::new();
        for (id, matrix) in &plan.matrices {
            let weight = &module.weights[*id];
            let trace = traces.get(id).copied().unwrap_or_default();
            let mut choice = Choice {
                weight: *id,
                entries: weight.elements(),
                bytes: [0; 2],
                loss: [0.0; 2],
                fixed: None,
            };
            for (at, bits) in [4, 8].into_iter().enumerate() {
                let format = self.options.format(bits);
                let quantizer = self.options.quantizer(format);
                let square = cx
                    .pool
                    .install(|| perturbation(weight, &quantizer))?
                    .mean_square;
                choice.bytes[at] = report::bytes(weight, format, self.options.symmetric);
                choice.loss[at] = 0.5 * trace * square;
            }
            if let (true, PartBits::Own(bits)) = (matrix.is_head, self.options.head) {
                let at = usize::from(bits == 8);
                choice.bytes = [choice.bytes[at]; 2];
                choice.loss = [choice.loss[at]; 2];
                choice.fixed = Some(bits);
            }
            if choice.loss.iter().any(|loss| !loss.is_finite()) {
                return Err(PassError::NotFinite {
                    pass: NAME,
                    score: "fit",
                    unit: weight.name.clone(),
                    value: choice.loss[0],
                });
            }
            choices.push(choice);
        }
        Ok(choices)
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
            let formats = self.formats(&allocation.bits);
            let codings = self.coded_in(module, plan, &formats, Some(texts), cx)?;
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
