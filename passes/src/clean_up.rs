//! Passes that take away what nothing uses any more, so that a pruned graph is as small as it
//! claims.

use dlc_ir::Module;

use crate::context::{Pass, PassContext};
use crate::error::PassError;
use crate::report::PassReport;

/// Drops nodes that no output depends on.
#[derive(Debug, Clone, Copy)]
pub struct RemoveDeadNodes;

/// Drops inputs that no node reads, and weights that no graph uses.
#[derive(Debug, Clone, Copy)]
pub struct RemoveUnused;

/// Numbers the caches of every graph from 0; the layers that they belong to stay on record.
#[derive(Debug, Clone, Copy)]
pub struct RenumberCaches;

fn no_options() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

impl Pass for RemoveDeadNodes {
    fn name(&self) -> &'static str {
        "remove-dead-nodes"
    }

    fn options(&self) -> serde_json::Value {
        no_options()
    }

    fn run(&self, module: &mut Module, _cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        for graph in &mut module.graphs {
            let removed = graph.remove_dead();
            report.fact(&format!("{} nodes removed", graph.name), removed);
        }
        Ok(report)
    }
}

impl Pass for RemoveUnused {
    fn name(&self) -> &'static str {
        "remove-unused"
    }

    fn options(&self) -> serde_json::Value {
        no_options()
    }

    fn run(&self, module: &mut Module, _cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        for graph in &mut module.graphs {
            let removed = graph.remove_unused_inputs();
            report.fact(&format!("{} inputs removed", graph.name), removed.len());
        }
        report.fact("weights removed", module.remove_unused_weights());
        Ok(report)
    }
}

impl Pass for RenumberCaches {
    fn name(&self) -> &'static str {
        "renumber-caches"
    }

    fn options(&self) -> serde_json::Value {
        no_options()
    }

    fn run(&self, module: &mut Module, _cx: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        for graph in &mut module.graphs {
            let layers: Vec<String> = graph
                .renumber_caches()
                .iter()
                .map(ToString::to_string)
                .collect();
            report.fact(&format!("{} cache layers", graph.name), layers.join(" "));
        }
        Ok(report)
    }
}
