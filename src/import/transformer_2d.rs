//! `DiT` and `PixArt`-alpha under the name that older versions of diffusers gave both.

use dlc_ir::Task;

use super::config::ConfigReader;
use super::{Architecture, Family, dit, pixart};

pub(super) const FAMILY: Family = Family {
    model_type: "Transformer2DModel",
    architectures: &[("Transformer2DModel", Task::ImageGeneration)],
    summary: "DiT and PixArt-alpha as older versions of diffusers saved them",
    read,
};

/// The kind of norm tells them apart.
fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    if config.text("norm_type") == Some("ada_norm_single") { pixart::read(config, task) } else { dit::read(config, task) }
}
