//! Padding, where `GroupQueryAttention` keeps the caches: it takes the first entries of a row as
//! its tokens, and counts positions over them.
//!
//! So each run puts its tokens before its padding, on whichever side that was, and puts the states
//! back before the last products. Caches then hold a row's tokens without gaps, and windows and
//! rotations count tokens alone. It holds as long as the mask of past tokens stays what it was when
//! they were read: a caller may add to it, or cut both it and the cache short.

use std::collections::HashSet;

use dlc_bundle::CacheLayout;
use dlc_ir::{Dim, Input, Node, NodeId, Operand, ValueId};
use dlc_onnx::proto::{BOOL, INT32};

use super::super::builder::Name;
use super::context::Context;
use super::masks::length;
use super::optional_nodes::last_rows;
use super::rows::Rows;
use crate::error::ExportError;

impl Rows {
    /// Puts tokens before padding in every input that is `read` and has one number for each.
    pub fn order(&self, cx: &mut Context<'_>, read: &HashSet<Operand>) -> Result<(), ExportError> {
        let takes = |i: &&Input| {
            i.cache.is_none()
                && i.value != self.mask
                && read.contains(&Operand::Value(i.value))
                && self.by_token(cx.graph, i.value)
        };
        let inputs: Vec<ValueId> = cx
            .graph
            .inputs()
            .iter()
            .filter(takes)
            .map(|i| i.value)
            .collect();
        for input in inputs {
            let places = self.places(cx)?;
            let outer = cx.b.enter(format!("{}/tokens_first", cx.full_name(input)));
            let given = cx.full(input)?;
            let ordered =
                cx.b.op("ScatterElements", &[&given, &places, &given])
                    .int("axis", 1)
                    .out();
            cx.b.enter(outer);
            cx.stand_in(input, ordered);
        }
        Ok(())
    }

    /// What `node` is to read in place of its first operand, if it is one of the last products: the
    /// same states, in the caller's order, of the tokens that the caller wants answers for.
    pub fn answered(
        &self,
        cx: &mut Context<'_>,
        id: NodeId,
        node: &Node,
    ) -> Result<Option<(ValueId, Name)>, ExportError> {
        let keeps = cx.keeps(node.outputs.first());
        let orders = cx.target.caches == CacheLayout::InPlace;
        if !self.last.contains(&id) || !(keeps || orders) {
            return Ok(None);
        }
        let value = cx.value_at(node, 0)?;
        let states = cx.full(value)?;
        if !orders {
            return Ok(Some((value, last_rows(cx, &states)?)));
        }
        let mut places = self.places(cx)?;
        if keeps {
            places = last_rows(cx, &places)?;
        }
        let given = cx.once(&format!("{}/given_order", cx.full_name(value)), |cx| {
            let axis = cx.b.ints(&[2]);
            let places = cx.b.op("Unsqueeze", &[&places, &axis]).out();
            Ok(cx
                .b
                .op("GatherND", &[&states, &places])
                .int("batch_dims", 1)
                .out())
        })?;
        Ok(Some((value, given)))
    }

    /// Where each of this run's tokens goes, `[batch, seq]`: after the tokens before it; padding
    /// to the other end, the last of it first.
    fn places(&self, cx: &mut Context<'_>) -> Result<Name, ExportError> {
        let (start, end) = (start(cx, &self.seq)?, last_index(cx, &self.seq)?);
        cx.once(
            &format!("{}/places.{}", cx.full_name(self.mask), self.seq),
            |cx| {
                let (mask, axes, open) =
                    (cx.full(self.mask)?, cx.b.ints(&[1]), cx.b.ints(&[i64::MAX]));
                let (zero, one, down) = (cx.b.int(0), cx.b.int(1), cx.b.int(-1));
                let fresh = cx.b.op("Slice", &[&mask, &start, &open, &axes]).out();
                let before = cx.b.op("CumSum", &[&fresh, &one]).int("exclusive", 1).out();
                let is_token = cx.b.op("Cast", &[&fresh]).int("to", BOOL).out();
                let after = cx.b.op("Range", &[&end, &down, &down]).out();
                let further = cx.b.op("Where", &[&is_token, &zero, &after]).out();
                Ok(cx.b.op("Add", &[&before, &further]).out())
            },
        )
    }
}

/// For each row, the index in the cache of the last entry that this run writes, `i32 [batch]`: past
/// tokens, then all of this run's.
pub(super) fn last_entry(
    cx: &mut Context<'_>,
    mask: ValueId,
    seq: &Dim,
) -> Result<Name, ExportError> {
    let (start, last) = (start(cx, seq)?, last_index(cx, seq)?);
    cx.once(&format!("{}/last", cx.full_name(mask)), |cx| {
        let (mask, zero, axis) = (cx.full(mask)?, cx.b.ints(&[0]), cx.b.ints(&[1]));
        let past = cx.b.op("Slice", &[&mask, &zero, &start, &axis]).out();
        let count =
            cx.b.op("ReduceSum", &[&past, &axis])
                .int("keepdims", 0)
                .out();
        let last = cx.b.op("Add", &[&count, &last]).out();
        Ok(cx.b.op("Cast", &[&last]).int("to", INT32).out())
    })
}

/// Where this run's tokens begin in the mask, from its end: `[1]`.
fn start(cx: &mut Context<'_>, seq: &Dim) -> Result<Name, ExportError> {
    if let Some(n) = seq.known() {
        return Ok(cx.b.ints(&[-(n as i64)]));
    }
    let count = cx.axis(seq)?;
    cx.once(&format!("shape/-{seq}"), |cx| {
        Ok(cx.b.op("Neg", &[&count]).out())
    })
}

/// `seq - 1`, without axes.
fn last_index(cx: &mut Context<'_>, seq: &Dim) -> Result<Name, ExportError> {
    let count = length(cx, seq)?;
    cx.once(&format!("shape/{seq}-1"), |cx| {
        let one = cx.b.int(1);
        Ok(cx.b.op("Sub", &[&count, &one]).out())
    })
}
