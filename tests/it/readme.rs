//! The README's tables say what the code says.

use std::path::Path;

use dlc::import::FAMILIES;
use dlc_exporters::manifest::Profile;
use dlc_passes::registry::PASSES;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// Fails with the rows that the README lacks, ready to be pasted.
fn check_rows(rows: &[String]) {
    let text = readme();
    let missing: Vec<&str> = rows.iter().map(String::as_str).filter(|row| !text.lines().any(|line| line == *row)).collect();
    assert!(missing.is_empty(), "README.md lacks:\n{}", missing.join("\n"));
}

#[test]
fn every_family_stands_in_the_table() {
    let rows: Vec<String> = FAMILIES.iter().map(|f| format!("| `{}` | `{}` | {} |", f.model_type, f.names().join("`, `"), f.summary)).collect();
    check_rows(&rows);
}

#[test]
fn every_pass_stands_in_the_table() {
    let rows: Vec<String> = PASSES.iter().map(|p| format!("| `{}` | {} |", p.name, p.summary)).collect();
    check_rows(&rows);
}

#[test]
fn every_profile_and_command_is_named() {
    let text = readme();
    for profile in Profile::ALL {
        assert!(text.contains(&format!("| `{}` |", profile.name())), "{}", profile.name());
    }
    for command in dlc::cli::command().get_subcommands() {
        assert!(text.contains(&format!("dlc {}", command.get_name())), "{}", command.get_name());
    }
}

#[test]
fn every_folder_of_the_code_map_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = readme();
    let rows = text.lines().filter(|l| l.starts_with("| `") && l.contains("/` | `dlc"));
    let folders: Vec<String> = rows.flat_map(|l| l.split('`').filter(|t| t.ends_with('/')).map(str::to_owned).collect::<Vec<_>>()).collect();
    assert!(folders.len() >= 7, "{folders:?}");
    for folder in folders.iter().filter(|f| !f.is_empty()) {
        assert!(root.join(folder).is_dir() || folder.starts_with("src/"), "{folder}");
    }
    for part in ["checkpoint", "import", "pipeline", "runtime", "report", "cli"] {
        assert!(root.join("src").join(part).is_dir() && text.contains(&format!("src/{part}/")), "src/{part}");
    }
}
