//! Configurations of released models: each is imported, or refused for a reason that stands in the
//! snapshot. No weights are at hand: zeros of the shapes that are asked for take their place.

use std::fmt::Write as _;
use std::fs::OpenOptions;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::{ImportError, ImportOptions, Imported, import_with_sources};
use super::{Folder, fixture, safetensors};
use crate::checkpoint::Checkpoint;

/// A shape that no weight has.
const ODD: [usize; 5] = [1; 5];

/// A configuration as it was released.
#[derive(Deserialize)]
struct Released {
    model: String,
    config: Value,
}

#[test]
fn released_configurations_are_imported_or_refused_for_a_stated_reason() {
    let bytes = std::fs::read(fixture("released.json")).expect("fixture");
    let released: Vec<Released> = serde_json::from_slice(&bytes).expect("JSON");
    let mut table = String::new();
    for Released { model, config } in released {
        let outcome = outcome(&config);
        writeln!(table, "{model}: {outcome}").expect("a String takes any text");
    }
    insta::assert_snapshot!(table);
}

/// What the user would see, in lines.
fn outcome(config: &Value) -> String {
    match import_zeros(config) {
        Ok(imported) => {
            let model = &imported.module.model;
            let parameters: usize = (imported.module.weights.entries())
                .map(|(_, weight)| weight.elements())
                .sum();
            let notes: Vec<String> = (imported.warnings.iter())
                .map(|warning| format!("\n    {}", of_config(warning)))
                .collect();
            format!(
                "{}, {parameters} parameters{}",
                model.family,
                notes.concat()
            )
        }
        Err(error) => format!("REFUSED\n    {}", reason(&error)),
    }
}

/// The refusal, without the list of families.
fn reason(error: &ImportError) -> String {
    let text = error.to_string();
    let text = of_config(&text);
    let (reason, _) = text.split_once(". It imports ").unwrap_or((text, ""));
    reason.replace('\n', "\n    ")
}

/// A message without the file's path.
fn of_config(message: &str) -> &str {
    let parts = message.split_once("config.json: ");
    parts.map_or(message, |(_, problem)| problem)
}

/// Imports a model of this configuration whose weights are zeros: the first import says which
/// tensors are missing, the second which shapes they must have.
fn import_zeros(config: &Value) -> Result<Imported, ImportError> {
    let folder = Folder::new().with("config.json", config.to_string().as_bytes());
    let missing = match import(&folder, &Map::new()) {
        Err(ImportError::Tensors { problems, .. }) => problems,
        other => return other,
    };
    let names = missing.iter().map(|problem| quoted(problem, " is missing"));
    let unshaped = names.map(|name| (name, json!(ODD))).collect();
    let misshapen = match import(&folder, &unshaped) {
        Err(ImportError::Tensors { problems, .. }) => problems,
        other => return other,
    };
    let shaped = misshapen.iter().map(|problem| {
        let (tensor, shape) = problem.split_once(", expected ").expect(problem);
        let shape = serde_json::from_str(shape).expect("a shape is a list");
        (quoted(tensor, &format!(" has shape {ODD:?}")), shape)
    });
    import(&folder, &shaped.collect())
}

/// The name in "`NAME` and what is wrong".
fn quoted(problem: &str, wrong: &str) -> String {
    let name = problem
        .strip_suffix(wrong)
        .unwrap_or_else(|| panic!("{problem}"));
    name.trim_matches('`').to_owned()
}

/// Imports the folder with a file of half-precision zeros of these shapes, which takes no space.
fn import(folder: &Folder, shapes: &Map<String, Value>) -> Result<Imported, ImportError> {
    let mut end = 0_u64;
    let header: Map<String, Value> = (shapes.iter())
        .map(|(name, shape)| {
            let sizes = shape.as_array().expect("a shape is a list").iter();
            let length: u64 = sizes.map(|n| n.as_u64().expect("a size")).product();
            let start = end;
            end += 2 * length;
            let record = json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
            (name.clone(), record)
        })
        .collect();
    let head = safetensors(&Value::Object(header).to_string(), &[]);
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &head).expect("the folder is writable");
    let file = OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len(head.len() as u64 + end).expect("grows");
    let checkpoint = Checkpoint::open(folder.path()).expect("the checkpoint opens");
    import_with_sources(&checkpoint, &ImportOptions::default())
}
