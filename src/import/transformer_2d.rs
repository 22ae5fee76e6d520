//! `DiT` and `PixArt`-alpha under the name that older versions of diffusers gave both.

use dlc_ir::Task;
use serde_json::{Map, Value};

use super::config::ConfigReader;
use super::defaults::Absent::Text;
use super::defaults::{Key, key};
use super::{Architecture, Family, dit, pixart};

pub(super) const FAMILY: Family = Family {
    model_type: "Transformer2DModel",
    architectures: &[("Transformer2DModel", Task::ImageGeneration)],
    summary: "DiT and PixArt-alpha as older versions of diffusers saved them",
    keys,
    aliases: &[],
    read,
};

/// Of models that diffusers takes for neither of these.
const KEYS: &[Key] = &[key("norm_type", Text("layer_norm"))];

/// diffusers takes a model for the class that the kind of norm tells, with that class's defaults.
fn keys(config: &Map<String, Value>) -> &'static [Key] {
    match config.get("norm_type").and_then(Value::as_str) {
        Some("ada_norm_single") => pixart::KEYS,
        Some("ada_norm_zero") => dit::KEYS,
        _ => KEYS,
    }
}

/// The kind of norm tells them apart.
fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    if config.text("norm_type") == Some("ada_norm_single") {
        pixart::read(config, task)
    } else {
        dit::read(config, task)
    }
}
