//! The README's tables say what the code says.

use std::path::Path;

use dlc::import::FAMILIES;
use dlc_exporters::manifest::Profile;
use dlc_passes::registry::PASSES;

use crate::common::adapters::all_adapters;
use crate::common::diffusion::DIFFUSION;
use crate::common::fixture;
use crate::common::golden::{ENCODERS, all_decoders};

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// Fails with the rows that the README lacks, ready to be pasted.
fn check_rows(rows: &[String]) {
    let text = readme();
    let missing: Vec<&str> = rows
        .iter()
        .map(String::as_str)
        .filter(|row| !text.lines().any(|line| line == *row))
        .collect();
    assert!(
        missing.is_empty(),
        "README.md lacks:\n{}",
        missing.join("\n")
    );
}

/// Names as the README writes them.
fn quoted(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn every_family_stands_in_the_table_with_what_it_is_tested_on() {
    let all = all_decoders().chain(ENCODERS.iter().chain(DIFFUSION).copied());
    let goldens: Vec<(&str, String)> = all.map(|golden| (golden, family_of(golden))).collect();
    let rows: Vec<String> = FAMILIES
        .iter()
        .map(|f| {
            let tested: Vec<&str> = goldens
                .iter()
                .filter(|(_, family)| family == f.model_type)
                .map(|(golden, _)| *golden)
                .collect();
            let tested = if tested.is_empty() {
                "-".to_owned()
            } else {
                quoted(&tested)
            };
            format!(
                "| `{}` | {} | {} | {tested} |",
                f.model_type,
                quoted(&f.names()),
                f.summary
            )
        })
        .collect();
    check_rows(&rows);
}

fn family_of(golden: &str) -> String {
    let config =
        std::fs::read_to_string(fixture(&format!("goldens/{golden}/config.json"))).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["model_type"]
        .as_str()
        .or(config["_class_name"].as_str())
        .unwrap()
        .to_owned()
}

#[test]
fn every_adapter_golden_stands_in_the_table() {
    let text = readme();
    let table = &text[text.find("### Adapters").unwrap()..text.find("## The code").unwrap()];
    let missing: Vec<&str> = all_adapters()
        .filter(|golden| !table.contains(&format!("`{golden}`")))
        .collect();
    assert!(missing.is_empty(), "README.md lacks {missing:?}");
    let named = table
        .lines()
        .filter(|l| l.starts_with('|'))
        .flat_map(|l| l.split('`'))
        .filter(|word| word.ends_with("-llama") || word.ends_with("-gpt2"));
    let gone: Vec<&str> = named
        .filter(|golden| !all_adapters().any(|other| other == *golden))
        .collect();
    assert!(gone.is_empty(), "{gone:?} are in the README alone");
}

#[test]
fn every_pass_stands_in_the_table() {
    let rows: Vec<String> = PASSES
        .iter()
        .map(|p| format!("| `{}` | {} |", p.name, p.summary))
        .collect();
    check_rows(&rows);
}

#[test]
fn every_profile_and_command_is_named() {
    let text = readme();
    for profile in Profile::ALL {
        assert!(
            text.contains(&format!("| `{}` |", profile.name())),
            "{}",
            profile.name()
        );
    }
    for command in dlc::cli::command().get_subcommands() {
        assert!(
            text.contains(&format!("dlc {}", command.get_name())),
            "{}",
            command.get_name()
        );
    }
}

#[test]
fn every_folder_of_the_code_map_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = readme();
    let rows = text
        .lines()
        .filter(|l| l.starts_with("| `") && l.contains("/` | `dlc"));
    let folders: Vec<String> = rows
        .flat_map(|l| {
            l.split('`')
                .filter(|t| t.ends_with('/'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(folders.len() >= 7, "{folders:?}");
    for folder in folders.iter().filter(|f| !f.is_empty()) {
        assert!(
            root.join(folder).is_dir() || folder.starts_with("src/"),
            "{folder}"
        );
    }
    for part in [
        "checkpoint",
        "import",
        "pipeline",
        "runtime",
        "report",
        "cli",
    ] {
        assert!(
            root.join("src").join(part).is_dir() && text.contains(&format!("src/{part}/")),
            "src/{part}"
        );
    }
}
