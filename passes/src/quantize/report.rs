//! What is said of quantised matrices.

use std::collections::BTreeMap;

use dlc_ir::{GroupFormat, Weight, WeightId, WeightTable};
use dlc_methods::divergence::Divergence;

use super::NAME;
use super::matrices::{Coding, Perturbation, matrix_shape};
use crate::context::PassContext;
use crate::error::PassError;
use crate::report::PassReport;

/// Matrices that the report names.
const WORST: usize = 5;

/// A matrix by its name, and what quantising did to it.
pub(super) type Measured = (String, Perturbation);

/// What codings do to matrices, with their names.
pub(super) fn measure(
    weights: &WeightTable,
    codings: &BTreeMap<WeightId, Coding>,
    cx: &PassContext<'_>,
) -> Result<Vec<Measured>, PassError> {
    let total = codings.len();
    let mut measured = Vec::new();
    for (done, (id, coding)) in codings.iter().enumerate() {
        cx.progress.update("measuring errors", done, total);
        if cx.progress.interrupted() {
            return Err(PassError::Interrupted);
        }
        let weight = &weights[*id];
        let found = cx.pool.install(|| coding.perturbation(weight))?;
        if !found.relative.is_finite() {
            return Err(PassError::NotFinite {
                pass: NAME,
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

/// Bytes of a matrix in codes.
pub(super) fn bytes(weight: &Weight, format: GroupFormat, symmetric: bool) -> u64 {
    let Ok((rows, columns)) = matrix_shape(weight) else {
        return 0;
    };
    let zero_points = if symmetric {
        0
    } else {
        format.zero_point_bytes(columns)
    };
    let group = format.code_bytes() + weight.dtype.size();
    (rows * (format.groups(columns) * group + zero_points)) as u64
}

/// Bits of a weight in the mean.
pub(super) fn report_size(
    report: &mut PassReport,
    weights: &WeightTable,
    codings: &BTreeMap<WeightId, Coding>,
    symmetric: bool,
) {
    let sizes = codings.iter().map(|(id, coding)| {
        let weight = &weights[*id];
        (weight.elements(), bytes(weight, coding.format(), symmetric))
    });
    let (entries, bytes) = sizes.fold((0, 0), |(n, sum), (entries, bytes)| {
        (n + entries, sum + bytes)
    });
    let bits = 8.0 * bytes as f64 / entries.max(1) as f64;
    report.fact("bits per weight", format!("{bits:.2} with scales"));
}

/// Errors as shares of the matrices' norms.
pub(super) fn report_errors(report: &mut PassReport, measured: &[Measured]) {
    let relative = measured.iter().map(|(_, p)| p.relative.sqrt());
    let mean = relative.sum::<f64>() / measured.len().max(1) as f64;
    let share = format!("{:.2}% of a matrix's norm in the mean", 100.0 * mean);
    report.fact("error", share);
    let mut worst: Vec<&Measured> = measured.iter().collect();
    worst.sort_by(|a, b| b.1.relative.total_cmp(&a.1.relative));
    let worst: Vec<String> = worst
        .iter()
        .take(WORST)
        .map(|(name, p)| format!("{name} {:.2}%", 100.0 * p.relative.sqrt()))
        .collect();
    report.fact("largest errors", worst.join(", "));
}

/// What HQQ did.
pub(super) fn report_refinement(report: &mut PassReport, measured: &[Measured]) {
    let mean = |f: &dyn Fn(&Perturbation) -> f64| {
        measured.iter().map(|(_, p)| f(p)).sum::<f64>() / measured.len().max(1) as f64
    };
    let improved = measured
        .iter()
        .filter(|(_, p)| p.mean_square < p.mean_square_nearest)
        .count();
    let share = mean(&|p| {
        if p.mean_square_nearest > 0.0 {
            1.0 - p.mean_square / p.mean_square_nearest
        } else {
            0.0
        }
    });
    let groups = 100.0 * mean(&|p| p.refined);
    report.fact("hqq", format!("nearer in {improved} matrices and {groups:.0}% of their groups, squared errors {:.1}% smaller", 100.0 * share));
}

/// How far the answers moved.
pub(super) fn report_divergence(report: &mut PassReport, divergence: &Divergence) {
    report.fact(
        "KL divergence",
        format!(
            "{} nats in the mean, {} at the 99th percentile",
            rounded(divergence.mean_kl()),
            rounded(divergence.kl_quantile(0.99))
        ),
    );
    report.fact(
        "top-1 agreement",
        format!(
            "{:.2}% of {} positions",
            100.0 * divergence.agreement(),
            divergence.count()
        ),
    );
    if let Some([before, after]) = divergence.perplexities() {
        report.fact("perplexity", format!("{before:.4} -> {after:.4}"));
    }
}

/// Three digits that count.
fn rounded(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let digits = (2 - number.abs().log10().floor() as i32).clamp(0, 9) as usize;
    format!("{number:.digits$}")
}

/// The next larger number of three digits that count, in decimals.
pub(super) fn rounded_up(number: f64) -> String {
    if number <= 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let place = number.log10().floor() as i32 - 2;
    let unit = 10f64.powi(place);
    let digits = usize::try_from(-place).unwrap_or_default();
    format!("{:.digits$}", (number / unit).ceil() * unit)
}
