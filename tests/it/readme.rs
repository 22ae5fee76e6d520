//! The tables of the documents say what the code says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dlc::import::FAMILIES;
use dlc_bundle::Profile;
use dlc_passes::registry::PASSES;

use crate::common::adapters::all_adapters;
use crate::common::diffusion::DIFFUSION;
use crate::common::fixture;
use crate::common::golden::{ENCODERS, all_decoders};
use crate::documents::{Document, workspace_members};

/// Fails with the rows that `text`, a part of a document, lacks, ready to be pasted.
fn check_rows(document: &str, text: &str, rows: &[String]) {
    let missing: Vec<&str> = rows
        .iter()
        .map(String::as_str)
        .filter(|row| !text.lines().any(|line| line == *row))
        .collect();
    assert!(
        missing.is_empty(),
        "{document} lacks:\n{}",
        missing.join("\n")
    );
}

/// Names as documents write them.
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
    check_rows(
        "docs/models.md",
        &Document::read("docs/models.md").text,
        &rows,
    );
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
    let table = Document::read("docs/adapters.md").text;
    let missing: Vec<&str> = all_adapters()
        .filter(|golden| !table.contains(&format!("`{golden}`")))
        .collect();
    assert!(missing.is_empty(), "docs/adapters.md lacks {missing:?}");
    let named = table
        .lines()
        .filter(|l| l.starts_with('|'))
        .flat_map(|l| l.split('`'))
        .filter(|word| word.ends_with("-llama") || word.ends_with("-gpt2"));
    let gone: Vec<&str> = named
        .filter(|golden| !all_adapters().any(|other| other == *golden))
        .collect();
    assert!(gone.is_empty(), "{gone:?} are in docs/adapters.md alone");
}

#[test]
fn every_pass_stands_in_the_table_with_its_options_below() {
    const PAGE: &str = "docs/passes.md";
    let page = Document::read(PAGE);
    let rows: Vec<String> = PASSES
        .iter()
        .map(|p| format!("| `{}` | {} |", p.name, p.summary))
        .collect();
    check_rows(PAGE, &page.text, &rows);
    for (pass, options) in PASSES
        .iter()
        .map(|pass| (pass, (pass.options)()))
        .filter(|(_, options)| !options.is_empty())
    {
        let section = page.section(pass.name);
        let rows: Vec<String> = options
            .iter()
            .map(|option| format!("| `{}` | {option} |", option.name))
            .collect();
        check_rows(PAGE, &section, &rows);
        let table = section.lines().skip_while(|l| !l.starts_with("| option |"));
        let written: Vec<&str> = table.skip(2).take_while(|l| l.starts_with('|')).collect();
        assert_eq!(written, rows, "{}", pass.name);
    }
}

#[test]
fn every_profile_and_command_is_named() {
    let profiles = Document::read("docs/bundle-format.md").text;
    for profile in Profile::ALL {
        let row = format!("| `{}` |", profile.name());
        assert!(profiles.contains(&row), "{row}");
    }
    let commands = Document::read("docs/commands.md").text;
    for command in dlc::cli::command().get_subcommands() {
        let name = command.get_name();
        let row = format!("| `dlc {name}");
        assert!(
            commands.contains(&row),
            "docs/commands.md lacks a row {row}"
        );
    }
}

#[test]
fn the_readme_names_all_that_is_supported() {
    let readme = Document::read("README.md").text;
    let families = FAMILIES.iter().map(|family| family.model_type);
    let passes = PASSES.iter().map(|pass| pass.name);
    let profiles = Profile::ALL.into_iter().map(Profile::name);
    let names: Vec<&str> = families.chain(passes).chain(profiles).collect();
    let missing: Vec<&&str> = names
        .iter()
        .filter(|name| !readme.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "README.md lacks {missing:?}");
}

#[test]
fn the_code_map_has_every_crate_and_every_part_of_the_command() {
    let section = Document::read("CONTRIBUTING.md").section("the-code");
    let rows = section.lines().filter_map(|l| l.strip_prefix("| `"));
    let written: BTreeSet<String> = rows
        .filter_map(|row| row.split_once("/` |"))
        .map(|(folder, _)| folder.to_owned())
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts = fs::read_dir(root.join("src")).unwrap().map(Result::unwrap);
    let parts = parts.filter(|entry| entry.path().is_dir());
    let names = parts.map(|entry| format!("src/{}", entry.file_name().to_str().unwrap()));
    let there: BTreeSet<String> = names.chain(workspace_members()).collect();
    assert_eq!(written, there);
}
