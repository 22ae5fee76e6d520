//! Matrices that are quantised in the files they come from: products with them keep the codes as
//! they are, where `quantized_linear` can say the same. No code, scale or zero point is changed.
//!
//! Runs once all passes have: they see the numbers that the codes stand for. What a pass has
//! changed, and what no product reads, stays numbers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_ir::{
    Coded, CodedPart, Expr, Graph, GroupFormat, Groups, Module, Op, Operand, WeightId, WeightTable,
};

use crate::error::PassError;
use crate::quantize::{add_parts, codes, matrices};

/// What became of quantised matrices.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KeptCodes {
    /// How many keep their codes, by the format of the file and the layout.
    pub kept: BTreeMap<(&'static str, GroupFormat), usize>,
    /// Names of those that became numbers, by the format of the file and the reason.
    pub numbers: BTreeMap<(&'static str, String), BTreeSet<String>>,
}

impl KeptCodes {
    /// What the user should know, a line each.
    pub fn notes(&self) -> Vec<String> {
        let matrices = |count: usize, format: &str| {
            let plural = if count == 1 { "matrix" } else { "matrices" };
            format!("{count} {plural} of {format}")
        };
        let kept = self.kept.iter().map(|((format, layout), count)| {
            format!(
                "{} keep their codes: {} bits in blocks of {}",
                matrices(*count, format),
                layout.bits,
                layout.group_size
            )
        });
        let numbers = self.numbers.iter().map(|((format, reason), names)| {
            let first = names.first().map_or("", String::as_str);
            let which = if names.len() == 1 {
                format!(" ({first})")
            } else {
                format!(" ({first} ...)")
            };
            format!(
                "{}{which} became numbers: {reason}",
                matrices(names.len(), format)
            )
        });
        kept.chain(numbers).collect()
    }
}

/// Lets the products of all graphs keep codes, unless there is an `obstacle`, and says what became
/// of quantised matrices.
///
/// # Errors
/// [`PassError::Ir`] for a graph that then doesn't fit together.
pub fn keep_codes(module: &mut Module, obstacle: Option<&str>) -> Result<KeptCodes, PassError> {
    let mut outcome = KeptCodes::default();
    let mut parts: BTreeMap<WeightId, (GroupFormat, Vec<Operand>)> = BTreeMap::new();
    let weights = &mut module.weights;
    for graph in &mut module.graphs {
        for matrix in matrices(graph, weights) {
            let id = matrix.weight;
            let Some(format) = weights[id].expr().and_then(Expr::packed_as) else {
                continue;
            };
            let obstacle = match graph.node(matrix.node).op {
                Op::Experts(_) => obstacle.or(Some("experts keep no codes of a checkpoint")),
                _ => obstacle,
            };
            let kept = codes(weights, id).filter(|_| obstacle.is_none());
            let Some((matrix, layout)) = kept.map(|(m, layout)| (Arc::clone(m), layout)) else {
                let reason = obstacle.map_or_else(|| reason(weights, id), str::to_owned);
                let names = outcome.numbers.entry((format, reason)).or_default();
                names.insert(weights[id].name.clone());
                continue;
            };
            if let Entry::Vacant(new) = parts.entry(id) {
                new.insert((layout, operands(weights, id, &matrix, layout)?));
                *outcome.kept.entry((format, layout)).or_default() += 1;
            }
        }
        rewrite(graph, weights, &parts)?;
    }
    if !outcome.kept.is_empty() {
        module.remove_unused_weights();
    }
    Ok(outcome)
}

/// Puts products with codes in the place of those with numbers.
fn rewrite(
    graph: &mut Graph,
    weights: &WeightTable,
    parts: &BTreeMap<WeightId, (GroupFormat, Vec<Operand>)>,
) -> Result<(), PassError> {
    Ok(
        graph.replace_nodes(weights, |_, node| match (&node.op, &node.inputs[..]) {
            (Op::Linear, [x @ Operand::Value(_), Operand::Weight(id), more @ ..]) => {
                let (format, parts) = parts.get(id)?;
                Some((
                    Op::QuantizedLinear(*format),
                    [std::slice::from_ref(x), parts.as_slice(), more].concat(),
                ))
            }
            _ => None,
        })?,
    )
}

/// The parts of a matrix as weights.
fn operands(
    weights: &mut WeightTable,
    id: WeightId,
    matrix: &Arc<dyn Coded>,
    format: GroupFormat,
) -> Result<Vec<Operand>, PassError> {
    let name = weights[id].name.clone();
    let [rows, columns] = matrix.shape();
    let symmetric = matrix.is_symmetric(format);
    add_parts(weights, &name, format, (rows, columns), symmetric, |part| {
        Expr::Coded {
            matrix: Arc::clone(matrix),
            part: CodedPart::Part(format, part),
        }
    })
}

/// Why a quantised matrix can't keep its codes.
fn reason(weights: &WeightTable, id: WeightId) -> String {
    match weights[id].expr() {
        Some(Expr::Coded {
            matrix,
            part: CodedPart::Entries,
        }) => match matrix.groups() {
            Groups::Table { .. } => {
                "their inputs were quantised in another order, so that no block of inputs shares a scale".into()
            }
            Groups::Runs(size) => format!("no runtime has blocks that groups of {size} are made of"),
        },
        Some(Expr::Packed { .. }) => {
            "no runtime's blocks of 4 or 8 bits say the same".into()
        }
        _ => "they were changed, or stand in another order".into(),
    }
}
