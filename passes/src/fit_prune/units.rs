//! The units that are scored and dropped: layers, or their blocks.

use dlc_ir::{BlockId, Granularity, Graph};

/// Blocks that are scored and dropped together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Name: `layers.3` or `layers.3.attn`.
    pub name: String,
    /// The layer of the checkpoint.
    pub layer: u32,
    /// Its blocks, in order.
    pub blocks: Vec<BlockId>,
}

/// The units of `graph`, in order.
pub fn units(graph: &Graph, granularity: Granularity) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (id, block) in graph.blocks() {
        match units.last_mut() {
            Some(last) if granularity == Granularity::Layer && last.layer == block.layer => {
                last.blocks.push(id);
            }
            _ => {
                let name = match granularity {
                    Granularity::Layer => format!("layers.{}", block.layer),
                    Granularity::Branch => block.name.clone(),
                };
                units.push(Unit {
                    name,
                    layer: block.layer,
                    blocks: vec![id],
                });
            }
        }
    }
    units
}
