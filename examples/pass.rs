//! A pass of one's own: it drops one block of the target by name, and runs between import and
//! export.
//!
//!   cargo run --example pass -- MODEL layers.3.mlp
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::path::Path;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc_ir::Module;
use dlc_passes::{Pass, PassContext, PassError, PassReport, RemoveDeadNodes, run_passes};

#[derive(Debug)]
struct DropBlock(String);

impl Pass for DropBlock {
    fn name(&self) -> &'static str {
        "drop-block"
    }

    fn options(&self) -> serde_json::Value {
        serde_json::json!({ "block": self.0 })
    }

    fn run(&self, module: &mut Module, _: &mut PassContext<'_>) -> Result<PassReport, PassError> {
        let mut report = PassReport::default();
        let target = &mut module.graphs[0];
        let found = target.blocks().find(|(_, block)| block.name == self.0);
        let Some((block, _)) = found else {
            return Err(PassError::Options {
                pass: self.name(),
                problem: format!("there is no block `{}`", self.0),
            });
        };
        target.bypass(block)?;
        report.fact("dropped", &self.0);
        Ok(report)
    }
}

/// How many nodes the target has before and after.
///
/// # Errors
/// What is wrong with the model, and a block that isn't there.
pub fn drop_block(model: &Path, block: &str) -> Result<[usize; 2], Box<dyn Error>> {
    let mut module = import(&Checkpoint::open(model)?, &ImportOptions::default())?;
    let before = module.graphs[0].nodes().count();
    let passes: [Box<dyn Pass>; 2] = [
        Box::new(DropBlock(block.to_owned())),
        Box::new(RemoveDeadNodes),
    ];
    let pool = rayon::ThreadPoolBuilder::new().build()?;
    let mut context = PassContext {
        progress: &(),
        cache: None,
        module_key: String::new(),
        pool: &pool,
    };
    run_passes(&mut module, &passes, &mut context)?;
    Ok([before, module.graphs[0].nodes().count()])
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, block] = &arguments[..] else {
        return Err("give a checkpoint, and the name of a block".into());
    };
    let [before, after] = drop_block(Path::new(model), block)?;
    println!("{before} nodes before, {after} after");
    Ok(())
}
