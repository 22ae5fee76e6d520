//! A model as a chain: what stands before the first block, the blocks, what stands after the last
//! one.
//!
//! Each link reads one value of the link before it, the residual, so that a link at a time has to
//! be in memory. Positions, which follow from the inputs alone, each link counts by itself.

use std::collections::BTreeMap;

use dlc_eval::{Array, Segment, Values};
use dlc_ir::{BlockId, CacheRole, Def, Dim, Graph, NodeId, Op, Operand, ValueId, WeightTable};

use super::unsupported;
use crate::error::PassError;

/// Why a model without logits can't be scored.
pub(crate) const NO_HEAD: &str = "the target has no output `logits`: a model without a head says nothing that layers could matter for";

/// A graph cut into links.
pub(crate) struct Chain<'m> {
    pub graph: &'m Graph,
    pub weights: &'m WeightTable,
    pub links: Vec<Link>,
    pub logits: ValueId,
}

/// Nodes that stand together: a block, or what stands outside of blocks at the start or the end.
pub(crate) struct Link {
    pub block: Option<BlockId>,
    pub nodes: Vec<NodeId>,
    /// The residual read, made by the link before; none for the first link.
    pub reads: Option<ValueId>,
    /// The residual (or, for the last link, the logits) that the link makes.
    pub makes: ValueId,
}

impl<'m> Chain<'m> {
    pub fn new(graph: &'m Graph, weights: &'m WeightTable) -> Result<Self, PassError> {
        let logits = graph
            .find_output("logits")
            .ok_or_else(|| unsupported(NO_HEAD))?
            .value;
        let mut runs: Vec<(Option<BlockId>, Vec<NodeId>)> = Vec::new();
        for (id, node) in graph.nodes() {
            match runs.last_mut() {
                Some((block, nodes)) if *block == node.block => nodes.push(id),
                _ => runs.push((node.block, vec![id])),
            }
        }
        let mut links: Vec<Link> = Vec::new();
        for (block, mut nodes) in runs {
            let counted = counted_positions(graph, &nodes);
            nodes.splice(0..0, counted);
            let reads = match outside_reads(graph, &nodes)[..] {
                [] if links.is_empty() => None,
                [value]
                    if links
                        .last()
                        .is_some_and(|last| made_by(graph, value, &last.nodes)) =>
                {
                    Some(value)
                }
                _ => {
                    let at = graph.node(nodes[0]).op.name();
                    return Err(unsupported(format!(
                        "the target is not a chain of blocks: see the nodes from {} ({at}) on",
                        nodes[0]
                    )));
                }
            };
            if block.is_some_and(|b| reads != Some(graph.block(b).input)) {
                let name = block.map_or("", |b| &graph.block(b).name);
                return Err(unsupported(format!(
                    "block {name} does not read its residual input from what stands before it"
                )));
            }
            if let (Some(last), Some(value)) = (links.last_mut(), reads) {
                last.makes = value;
            }
            links.push(Link {
                block,
                nodes,
                reads,
                makes: logits,
            });
        }
        if links
            .last()
            .is_none_or(|last| last.block.is_some() || !made_by(graph, logits, &last.nodes))
        {
            return Err(unsupported("the logits are not made after the last block"));
        }
        Ok(Self {
            graph,
            weights,
            links,
            logits,
        })
    }

    /// The link with its weights, ready to run.
    pub fn load(&self, link: &Link) -> Result<Segment<'m>, PassError> {
        Ok(Segment::new(self.graph, self.weights, link.nodes.clone())?)
    }

    /// What each sample feeds. Refuses samples that nothing can be learned from, before anything is
    /// computed.
    pub fn feeds(&self, samples: &[Vec<u32>]) -> Result<Vec<Values>, PassError> {
        let unusable = |problem: String| Err(PassError::Calibration { problem });
        if samples.is_empty() {
            return unusable("there is no sample to score on; give a file with some text".into());
        }
        let vocab = self.vocabulary();
        for (number, tokens) in (1..).zip(samples) {
            if tokens.len() < 2 {
                return unusable(format!(
                    "sample {number} holds less than 2 tokens, so there is none to predict"
                ));
            }
            if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
                return unusable(format!(
                    "sample {number} holds token {token}, outside of the vocabulary of {vocab}"
                ));
            }
        }
        samples
            .iter()
            .map(|tokens| feeds(self.graph, &[tokens], 0, BTreeMap::new()))
            .collect()
    }

    /// The rows of the table that tokens are looked up in.
    fn vocabulary(&self) -> usize {
        let ids = self.graph.find_input("input_ids").map(|i| i.value.into());
        let lookups = self.graph.nodes().filter_map(|(_, node)| node.lookup());
        let table = lookups
            .filter(|(_, looked_up)| Some(*looked_up) == ids)
            .find_map(|(table, _)| match table {
                Operand::Weight(table) => Some(table),
                Operand::Value(_) => None,
            });
        table
            .and_then(|w| self.weights[w].shape.first().copied())
            .unwrap_or(usize::MAX)
    }

    /// Runs a link: the residual that goes in, the one that comes out.
    pub fn forward(
        segment: &Segment<'_>,
        link: &Link,
        feeds: &Values,
        residual: Option<&Array>,
    ) -> Result<Array, PassError> {
        let known = Self::known(link, feeds, residual);
        let mut made = segment.forward(&known, &[link.makes])?;
        made.remove(&link.makes)
            .ok_or_else(|| unsupported(format!("{} was not made", link.makes)))
    }

    /// Puts what a loaded link makes of each residual in its place.
    pub fn advance(
        segment: &Segment<'_>,
        link: &Link,
        feeds: &[Values],
        residuals: &mut [Option<Array>],
    ) -> Result<(), PassError> {
        for (residual, feed) in residuals.iter_mut().zip(feeds) {
            *residual = Some(Self::forward(segment, link, feed, residual.as_ref())?);
        }
        Ok(())
    }

    /// All links but the head.
    pub fn body(&self) -> &[Link] {
        self.links.split_last().map_or(&[], |(_, body)| body)
    }

    /// The values that a link may read.
    pub fn known(link: &Link, feeds: &Values, residual: Option<&Array>) -> Values {
        let mut known = feeds.clone();
        if let (Some(value), Some(array)) = (link.reads, residual) {
            known.insert(value, array.clone());
        }
        known
    }
}

/// What texts feed side by side, without padding: the same number of tokens of each, after `past`
/// of which the caches `held` hold keys and values; caches that aren't held are empty.
pub(crate) fn feeds(
    graph: &Graph,
    unread: &[&[u32]],
    past: usize,
    mut held: BTreeMap<CacheRole, Array>,
) -> Result<Values, PassError> {
    let (batch, n) = (
        unread.len(),
        unread.first().map_or(0, |tokens| tokens.len()),
    );
    let mut feeds = Values::new();
    for input in graph.inputs() {
        let ty = &graph.value(input.value).ty;
        let array = match (input.name.as_str(), input.cache) {
            ("input_ids", _) => Array::i64(
                [batch, n],
                unread.concat().into_iter().map(i64::from).collect(),
            )?,
            ("attention_mask", _) => Array::i64([batch, past + n], vec![1; batch * (past + n)])?,
            ("token_type_ids", _) => Array::i64([batch, n], vec![0; batch * n])?,
            ("position_ids", _) => Array::i64(
                [batch, n],
                (0..batch)
                    .flat_map(|_| past as i64..(past + n) as i64)
                    .collect(),
            )?,
            (_, Some(role)) if ty.dtype.is_float() => match held.remove(&role) {
                Some(array) => array,
                None => empty_cache(&ty.shape.0, batch)?,
            },
            (name, _) => {
                let problem = format!("it doesn't know how to feed input {name} of type {ty}");
                return Err(unsupported(problem));
            }
        };
        feeds.insert(input.value, array);
    }
    Ok(feeds)
}

fn empty_cache(shape: &[Dim], batch: usize) -> Result<Array, PassError> {
    let sizes = shape
        .iter()
        .zip([Some(batch), None, Some(0), None])
        .map(|(dim, fixed)| fixed.or(dim.known()).unwrap_or(0));
    Ok(Array::f32(sizes.collect::<Vec<_>>(), vec![])?)
}

/// The nodes that count the positions that `nodes` read, if they are others.
fn counted_positions(graph: &Graph, nodes: &[NodeId]) -> Vec<NodeId> {
    let makers = outside_reads(graph, nodes).into_iter().filter_map(|value| {
        let Def::Node(maker, _) = graph.value(value).def else {
            return None;
        };
        matches!(graph.node(maker).op, Op::Positions { .. }).then_some(maker)
    });
    makers.collect()
}

fn made_by(graph: &Graph, value: ValueId, nodes: &[NodeId]) -> bool {
    matches!(graph.value(value).def, Def::Node(node, _) if nodes.contains(&node))
}

/// Values made by nodes outside of `nodes` that these read.
fn outside_reads(graph: &Graph, nodes: &[NodeId]) -> Vec<ValueId> {
    let mut reads: Vec<ValueId> = nodes
        .iter()
        .flat_map(|&n| &graph.node(n).inputs)
        .filter_map(|o| {
            if let Operand::Value(v) = o {
                Some(*v)
            } else {
                None
            }
        })
        .filter(|&v| matches!(graph.value(v).def, Def::Node(maker, _) if !nodes.contains(&maker)))
        .collect();
    reads.sort_unstable();
    reads.dedup();
    reads
}
