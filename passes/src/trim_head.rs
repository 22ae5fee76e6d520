//! `trim-head`: the draft's head scores only the tokens that are most frequent in the calibration
//! text.
//!
//! The draft's output keeps the whole vocabulary, minus infinity where a token was cut, so that
//! every consumer stays as it is. A token that the draft can't propose is one that the target
//! chooses by itself: the text doesn't change. The target is never changed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use dlc_ir::{DType, Dim, Expr, Graph, Module, NodeId, Op, Operand, WeightId, WeightTable};

use crate::context::{Pass, PassContext};
use crate::draft::{head, replace_draft};
use crate::error::PassError;
use crate::options::Range::AtLeast;
use crate::options::{PassOptions, options};
use crate::report::PassReport;
use crate::sources::{Calibration, Sources};

const NAME: &str = "trim-head";
/// Most samples that tokens are counted in, and their length.
const SAMPLES: usize = 1 << 20;
const LENGTH: usize = 4096;

options! {
    /// Options of `trim-head`.
    #[serde(deny_unknown_fields)]
    pub struct TrimHeadOptions {
        /// How many tokens the draft may propose, special and single-byte ones included; of equal
        /// counts smaller ids are kept.
        tokens: usize = 8192, in AtLeast(1);
        /// File to count tokens in: text, or .jsonl with `text` or `tokens`; a built-in text if
        /// absent.
        calibration: Option<PathBuf> = None;
    }
}

/// The pass.
#[derive(Debug)]
pub struct TrimHead<'a> {
    sources: Sources<'a>,
    options: TrimHeadOptions,
}

impl<'a> TrimHead<'a> {
    /// The pass with these options.
    ///
    /// # Errors
    /// [`PassError::Options`] for values out of range.
    pub fn new(options: TrimHeadOptions, sources: Sources<'a>) -> Result<Self, PassError> {
        options.check_ranges(NAME)?;
        Ok(Self { sources, options })
    }

    /// The tokens to keep, in order.
    fn kept(&self, basic: &BTreeSet<u32>, counts: &[u64]) -> Result<Vec<u32>, PassError> {
        let tokens = self.options.tokens;
        if tokens < basic.len() {
            let least = basic.len();
            return Err(options_error(format!(
                "tokens={tokens} doesn't hold the {least} special and single-byte tokens; ask for tokens={least} or more"
            )));
        }
        Ok(most_frequent(basic, counts, tokens))
    }
}

/// The basic tokens and the most frequent others, `tokens` in all, in order; of equal counts
/// smaller ids go first.
pub(crate) fn most_frequent(basic: &BTreeSet<u32>, counts: &[u64], tokens: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..counts.len() as u32).collect();
    order.sort_by_key(|id| {
        (
            !basic.contains(id),
            std::cmp::Reverse(counts[*id as usize]),
            *id,
        )
    });
    order.truncate(tokens);
    order.sort_unstable();
    order
}

/// How often each token of a vocabulary stands in the samples.
pub(crate) fn frequencies(samples: &[Vec<u32>], vocab: usize) -> Vec<u64> {
    let mut counts = vec![0; vocab];
    samples
        .iter()
        .flatten()
        .filter_map(|id| counts.get_mut(*id as usize).map(|n| *n += 1))
        .for_each(drop);
    counts
}

/// The tokens that are kept whatever their count: special ones and single bytes.
pub(crate) fn basic_tokens(
    module: &Module,
    vocab: usize,
    calibration: &dyn Calibration,
) -> Result<BTreeSet<u32>, PassError> {
    let model = &module.model;
    let named = model
        .bos_token_id
        .into_iter()
        .chain(model.pad_token_id)
        .chain(model.eos_token_ids.iter().copied());
    Ok(calibration
        .basic_tokens()?
        .into_iter()
        .chain(named)
        .filter(|id| (*id as usize) < vocab)
        .collect())
}

fn options_error(problem: String) -> PassError {
    PassError::Options {
        pass: NAME,
        problem,
    }
}

fn unsupported(problem: &str) -> PassError {
    PassError::Unsupported {
        pass: NAME,
        problem: problem.into(),
    }
}

impl Pass for TrimHead<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap_or_default()
    }

    fn rehearse(&self, module: &mut Module) -> Result<(), PassError> {
        let (before, node, vocab) = self.plan(module)?;
        let mut draft = before.clone();
        // Which tokens are frequent isn't known yet.
        let some: Vec<u32> = (0..self.options.tokens as u32).collect();
        trim(&mut draft, &mut module.weights, node, &some, vocab)?;
        replace_draft(module, &mut PassReport::default(), &before, draft);
        Ok(())
    }

    fn run(&self, module: &mut Module, _: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let (before, node, vocab) = self.plan(module)?;
        let (basic, counts) = self.count(module, vocab)?;
        let kept = self.kept(&basic, &counts)?;
        let mut draft = before.clone();
        trim(&mut draft, &mut module.weights, node, &kept, vocab)?;

        let mut report = PassReport::default();
        report.fact(
            "tokens",
            format!(
                "{} of {vocab}, {} of them special or single bytes",
                kept.len(),
                basic.len()
            ),
        );
        let covered: u64 = kept.iter().map(|id| counts[*id as usize]).sum();
        let share = 100.0 * covered as f64 / counts.iter().sum::<u64>().max(1) as f64;
        report.fact("of the calibration text", format!("{share:.2}%"));
        replace_draft(module, &mut report, &before, draft);
        Ok(report)
    }
}

impl TrimHead<'_> {
    /// The draft, its head and how many tokens that has.
    fn plan(&self, module: &Module) -> Result<(Graph, NodeId, usize), PassError> {
        let no_draft = || {
            unsupported(
                "the module has no draft to trim; put fit-prune or quantize-draft before it",
            )
        };
        let draft = module.graph("draft").ok_or_else(no_draft)?;
        let (node, trimmed) = head(draft).ok_or_else(|| {
            unsupported("the draft's logits don't come from a product with a matrix")
        })?;
        if trimmed {
            return Err(unsupported(
                "the draft's head is trimmed already; ask for this pass once",
            ));
        }
        let vocab = draft
            .node(node)
            .outputs
            .first()
            .and_then(|v| draft.value(*v).ty.shape.last().and_then(Dim::known));
        let vocab = vocab.ok_or_else(|| unsupported("the draft's vocabulary has no known size"))?;
        let tokens = self.options.tokens;
        if tokens >= vocab {
            let problem = format!(
                "tokens={tokens} trims nothing from a vocabulary of {vocab}; ask for less, or leave the pass out"
            );
            return Err(options_error(problem));
        }
        Ok((draft.clone(), node, vocab))
    }

    /// The tokens that are kept whatever their count, and how often each token stands in the
    /// calibration text.
    fn count(&self, module: &Module, vocab: usize) -> Result<(BTreeSet<u32>, Vec<u64>), PassError> {
        let basic = basic_tokens(module, vocab, self.sources.calibration)?;
        let samples = self.sources.calibration.samples(
            self.options.calibration.as_deref(),
            SAMPLES,
            LENGTH,
        )?;
        Ok((basic, frequencies(&samples, vocab)))
    }
}

/// Leaves the head the rows `kept` of every weight that it reads, and spreads its columns over the
/// vocabulary again.
pub(crate) fn trim(
    draft: &mut Graph,
    weights: &mut WeightTable,
    head: NodeId,
    kept: &[u32],
    vocab: usize,
) -> Result<(), PassError> {
    let rows: Arc<[u32]> = kept.into();
    let mut inputs = Vec::new();
    for operand in &draft.node(head).inputs {
        inputs.push(match operand {
            Operand::Weight(id) => choose_rows(weights, *id, &rows)?.into(),
            value @ Operand::Value(_) => *value,
        });
    }
    let map = column_map(weights, kept, vocab)?;
    // The head's readers bend its result entry by entry, so they follow its new width.
    draft.replace_nodes(weights, |id, node| {
        (id == head).then(|| (node.op.clone(), inputs.clone()))
    })?;
    draft.extend_output(weights, "logits", Op::GatherColumns, &[map.into()])?;
    Ok(())
}

/// The column of each token, one past the last for tokens that were cut; the same weight for the
/// same tokens.
fn column_map(
    weights: &mut WeightTable,
    kept: &[u32],
    vocab: usize,
) -> Result<WeightId, PassError> {
    let mut columns = vec![kept.len() as i64; vocab];
    for (column, id) in kept.iter().enumerate() {
        columns[*id as usize] = column as i64;
    }
    let bytes: Vec<u8> = columns.iter().flat_map(|c| c.to_le_bytes()).collect();
    let name = format!("draft.columns{}", kept.len());
    if let Some(id) = weights
        .find(&name)
        .filter(|id| weights[*id].bytes() == bytes.len())
    {
        let mut stored = vec![0; bytes.len()];
        weights[id].write_bytes(0, &mut stored)?;
        if stored == bytes {
            return Ok(id);
        }
    }
    Ok(weights.add(&name, &[vocab], Expr::constant(bytes, DType::I64))?)
}

fn choose_rows(
    weights: &mut WeightTable,
    id: WeightId,
    rows: &Arc<[u32]>,
) -> Result<WeightId, PassError> {
    let weight = &weights[id];
    let columns = weight.shape.iter().skip(1).product::<usize>();
    let input = Arc::new(weight.unrounded()?.clone().cast(weight.dtype));
    let shape = [&[rows.len()], &weight.shape[1..]].concat();
    let name = format!("{}.rows{}", weight.name, rows.len());
    Ok(weights.add(
        &name,
        &shape,
        Expr::Rows {
            input,
            columns,
            rows: Arc::clone(rows),
        },
    )?)
}
