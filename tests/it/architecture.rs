//! The arrows and house rules of the design that neither Cargo nor clippy checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// A Rust file, by its path from the repository's root.
struct Source {
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Every Rust file below these folders.
fn sources<S: AsRef<str>>(folders: &[S]) -> Vec<Source> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&root().join(folder.as_ref()), &mut files);
    }
    files.sort();
    assert!(!files.is_empty());
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).unwrap(),
        path: path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/"),
    };
    files.into_iter().map(source).collect()
}

/// The crates that others may embed; the command isn't one.
const CRATES: [&str; 12] = [
    "errors",
    "ir",
    "files",
    "methods",
    "tokenizer",
    "gguf",
    "onnx",
    "bundle",
    "eval",
    "passes",
    "exporters",
    "runtime",
];

/// Folders with the code of the libraries, the root package's among them.
fn libraries() -> Vec<String> {
    let own = CRATES.iter().map(|name| format!("{name}/src"));
    own.chain(["src".to_owned()]).collect()
}

/// Folders with code of any kind.
fn everything() -> Vec<String> {
    let tests = ["tests", "benches"].map(str::to_owned);
    let of_crates = ["ir", "eval", "passes", "exporters"].map(|name| format!("{name}/tests"));
    [libraries(), tests.to_vec(), of_crates.to_vec()].concat()
}

impl Source {
    fn is_test(&self) -> bool {
        self.path
            .split('/')
            .any(|part| matches!(part, "tests" | "tests.rs" | "fixture.rs"))
    }

    /// Numbered lines of code: no comments, and no unit tests, which stand at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let all: Vec<&str> = self.text.lines().collect();
        let starts_tests = |i: usize| {
            all[i] == "#[cfg(test)]"
                && all
                    .get(i + 1)
                    .is_some_and(|l| l.starts_with("mod ") && l.ends_with('{'))
        };
        let end = (0..all.len())
            .find(|&i| starts_tests(i))
            .unwrap_or(all.len());
        let lines = self.text.lines().take(end).enumerate();
        let code = lines
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
            .map(|(i, l)| (i + 1, l));
        code.filter(|_| !self.is_test())
    }
}

/// Where `word` occurs, not as a part of a longer name.
fn names<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .filter(move |(i, _)| !line[..*i].ends_with(part_of_a_name))
        .map(|(i, w)| &line[i + w.len()..])
}

/// Fails with all places at which `line` finds something wrong.
fn check<S: AsRef<str>>(folders: &[S], wrong: impl Fn(&Source, &str) -> Option<String>) {
    let mut problems = Vec::new();
    for source in sources(folders) {
        for (number, line) in source.code() {
            problems.extend(
                wrong(&source, line).map(|problem| format!("{}:{number}: {problem}", source.path)),
            );
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn modules_use_only_what_is_below_them() {
    // Module, modules of this crate, crates of this workspace.
    let arrows: [(&str, &[&str], &[&str]); 8] = [
        ("http", &[], &[]),
        (
            "hub",
            &["checkpoint", "http"],
            &["errors", "files", "passes"],
        ),
        (
            "checkpoint",
            &[],
            &["errors", "files", "gguf", "ir", "tokenizer"],
        ),
        (
            "import",
            &["checkpoint"],
            &["errors", "files", "ir", "methods"],
        ),
        (
            "pipeline",
            &["checkpoint", "import"],
            &[
                "bundle",
                "errors",
                "eval",
                "exporters",
                "files",
                "ir",
                "methods",
                "onnx",
                "passes",
                "runtime",
            ],
        ),
        ("quality", &[], &["methods", "runtime"]),
        ("serve", &[], &["errors", "runtime"]),
        (
            "report",
            &["pipeline"],
            &["bundle", "errors", "ir", "onnx", "passes", "runtime"],
        ),
    ];
    check(&["src"], |source, line| {
        let (module, own, crates) = arrows
            .iter()
            .find(|(m, ..)| source.path.starts_with(&format!("src/{m}")))?;
        let first = |rest: &str| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let inside = names(line, "crate::")
            .map(first)
            .find(|m| m != module && !own.contains(&m.as_str()));
        let outside = names(line, "dlc_")
            .map(first)
            .find(|c| !crates.contains(&c.as_str()));
        inside
            .or(outside)
            .map(|used| format!("{module} uses {used}"))
    });
}

#[test]
fn foreign_types_stay_where_they_are_wrapped() {
    for (word, homes) in [
        ("prost::", &["onnx/src/", "exporters/src/"][..]),
        ("candle_core::", &["eval/src/"]),
        ("ort_tract::", &["runtime/src/"]),
        ("tokenizers::", &["runtime/src/"]),
        ("minijinja::", &["runtime/src/"]),
        ("memmap2::", &["files/src/mapped/mod.rs"]),
        ("clap::", &["src/cli/"]),
        ("indicatif::", &["src/cli/"]),
        ("ureq::", &["src/http.rs"]),
        ("rustls::", &["src/http.rs"]),
        (
            "std::net",
            &["src/http.rs", "src/serve/", "src/cli/serve.rs"],
        ),
        ("axum::", &["src/serve/"]),
        ("tokio::", &["src/serve/"]),
        ("llguidance::", &["runtime/src/"]),
        ("zip::", &["src/cli/wheel.rs"]),
    ] {
        check(&libraries(), |source, line| {
            let away = !homes.iter().any(|home| source.path.starts_with(home));
            (away && names(line, word).next().is_some())
                .then(|| format!("{word} belongs into {}", homes.join(", ")))
        });
    }
    // The exporters have a module called `ort`.
    let others: Vec<String> = libraries()
        .into_iter()
        .filter(|folder| folder != "runtime/src" && folder != "exporters/src")
        .collect();
    check(&others, |_, line| {
        (names(line, "ort::").next().is_some()).then(|| "ort:: belongs into runtime/src/".into())
    });
}

#[test]
fn only_the_command_reads_the_environment_and_prints() {
    let words = [
        "std::env",
        "env::var",
        "env::args",
        "env::current",
        "env::home",
        "print!",
        "println!",
        "eprint!",
        "eprintln!",
        "stdout()",
        "stderr()",
    ];
    check(&libraries(), |source, line| {
        let found = words.iter().find(|word| names(line, word).next().is_some());
        // ONNX Runtime has no other switch for its telemetry than a variable.
        let home = source.path.starts_with("src/cli/")
            || source.path == "runtime/src/backend/telemetry.rs";
        found
            .filter(|_| !home)
            .map(|word| format!("{word} belongs into src/cli/"))
    });
}

#[test]
fn the_program_needs_no_source_tree() {
    check(&libraries(), |_, line| {
        let found = ["CARGO_MANIFEST_DIR", "CARGO_WORKSPACE_DIR", "file!()"]
            .iter()
            .find(|word| line.contains(**word));
        found.map(|word| format!("{word} is a path of the machine that builds"))
    });
}

#[test]
fn libraries_neither_unwrap_nor_panic() {
    check(&libraries(), |_, line| {
        let found = [".unwrap()", "panic!(", "todo!(", "unimplemented!("]
            .iter()
            .find(|word| line.contains(**word));
        found.map(|word| format!("{word} outside of tests"))
    });
}

#[test]
fn files_say_what_they_are_and_fit_on_a_few_screens() {
    let mut problems = Vec::new();
    for source in sources(&everything()) {
        let lines = source.text.lines().count();
        let longest = if source.is_test() { 920 } else { 500 };
        if lines > longest {
            problems.push(format!(
                "{} has {lines} lines, more than {longest}",
                source.path
            ));
        }
        if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
            problems.push(format!("{} doesn't begin with `//!`", source.path));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Names in the dependency tables of a manifest, those for tests included.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let (mut inside, mut names) = (false, Vec::new());
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && !line.starts_with("[workspace");
        } else if inside
            && let Some(name) = line
                .split(['.', ' ', '='])
                .next()
                .filter(|n| !n.is_empty() && !n.starts_with('#'))
        {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn crates_depend_only_on_what_is_below_them() {
    for (name, own) in [
        ("errors", &[][..]),
        ("ir", &["errors"]),
        ("methods", &["errors"]),
        ("files", &["errors"]),
        ("tokenizer", &["errors", "files"]),
        ("gguf", &["errors", "files", "ir", "tokenizer"]),
        ("onnx", &["errors", "files", "ir"]),
        ("bundle", &["errors", "files", "ir", "onnx"]),
        ("eval", &["errors", "ir"]),
        ("passes", &["errors", "eval", "ir", "methods"]),
        ("exporters", &["bundle", "errors", "files", "ir", "onnx"]),
        (
            "runtime",
            &["bundle", "errors", "files", "ir", "methods", "tokenizer"],
        ),
    ] {
        let manifest = &format!("{name}/Cargo.toml");
        let names = dependencies(manifest);
        let strange: Vec<&str> = names
            .iter()
            .filter_map(|name| name.strip_prefix("dlc-"))
            .filter(|name| !own.contains(name))
            .collect();
        assert!(strange.is_empty(), "{manifest}: {strange:?}");
        assert_eq!(name == "errors", names.iter().all(|n| n != "thiserror"));
        for (foreign, homes) in [
            ("candle-core", &["eval"][..]),
            ("prost", &["onnx", "exporters"]),
            ("ort", &["runtime"]),
            ("tokenizers", &["runtime"]),
            ("clap", &[]),
            ("ureq", &[]),
        ] {
            assert!(
                homes.contains(&name) || !names.iter().any(|n| n == foreign),
                "{manifest}: {foreign} belongs to {homes:?}"
            );
        }
    }
}

/// Costs that were measured on tract are kept under its version.
#[test]
fn the_built_in_tract_says_the_version_that_is_locked() {
    use dlc_runtime::{BackendKind, BackendSearch, start};

    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let (_, after) = lock
        .split_once("name = \"tract-core\"\nversion = \"")
        .unwrap();
    let (version, _) = after.split_once('"').unwrap();
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    });
    assert_eq!(backend.unwrap().version(), version);
}

/// A module's path in its crate, empty for the root.
type Module = Vec<String>;

/// Which modules of a crate import which. What is inside of a module counts as the module itself,
/// but for imports of its neighbours there.
fn imports(folder: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let sources = sources(&[folder]);
    let module = |source: &Source| {
        let path = source.path[folder.len()..].trim_end_matches(".rs");
        let parts = path.split('/').filter(|part| !part.is_empty());
        let mut module: Module = parts.map(str::to_owned).collect();
        module.pop_if(|last| matches!(last.as_str(), "lib" | "main" | "mod"));
        module
    };
    let known: BTreeSet<Module> = sources.iter().map(module).collect();
    let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for source in &sources {
        let from = module(source);
        let code = |(_, line): (usize, &str)| format!("{}\n", line.split("//").next().unwrap());
        for path in paths(&source.code().map(code).collect::<String>()) {
            let mut to = from.clone();
            for part in path {
                match part {
                    "crate" => to.clear(),
                    "super" => drop(to.pop()),
                    name => to.push(name.to_owned()),
                }
            }
            // What comes after the module is an item of it.
            while !known.contains(&to) {
                to.pop();
            }
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (from.get(..=shared), to.get(..=shared)) {
                let imported = imports.entry(from.to_vec()).or_default();
                imported.insert(to.to_vec());
            }
        }
    }
    imports
}

/// All paths from `crate` or `super` on.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let goes_on = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if !code[..at].ends_with(goes_on) {
                read_paths(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Reads a path or a group of paths (`a::{b::c, d}`) below `prefix`, and returns what follows.
fn read_paths<'a>(code: &'a str, prefix: &[&'a str], found: &mut Vec<Vec<&'a str>>) -> &'a str {
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        let mut rest = group;
        loop {
            let renamed = read_paths(rest, prefix, found);
            let end = renamed.find([',', '}']).unwrap_or(renamed.len());
            match renamed[end..].strip_prefix(',') {
                Some(next) => rest = next,
                None => return renamed[end..].strip_prefix('}').unwrap_or_default(),
            }
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_');
    let (name, rest) = code.split_at(end.unwrap_or(code.len()));
    let path = [prefix, &[name]].concat();
    if let Some(below) = rest.strip_prefix("::") {
        return read_paths(below, &path, found);
    }
    found.push(path);
    rest
}

/// The shortest way from a module back to itself.
fn cycle(start: &Module, imports: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut reached = BTreeSet::new();
    let mut ways = VecDeque::from([vec![start.clone()]]);
    while let Some(way) = ways.pop_front() {
        for next in imports.get(way.last()?).into_iter().flatten() {
            let longer = [way.clone(), vec![next.clone()]].concat();
            if next == start {
                return Some(longer);
            }
            if reached.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}

#[test]
fn imports_of_modules_form_no_cycles() {
    let mut cycles = Vec::new();
    for folder in libraries() {
        let imports = imports(&folder);
        for module in imports.keys() {
            let Some(way) = cycle(module, &imports) else {
                continue;
            };
            // Each cycle is shown from its first module.
            if way.iter().min() == Some(module) {
                let names: Vec<String> = way.iter().map(|module| module.join("::")).collect();
                cycles.push(format!("{folder}: {}", names.join(" -> ")));
            }
        }
    }
    assert!(cycles.is_empty(), "\n{}", cycles.join("\n"));
}

#[test]
fn paths_are_read_out_of_groups() {
    let code = "use crate::{a::{b::{c, d as e}}, f::*};\nfn f() { super::super::g::<T>() }";
    let read: Vec<String> = paths(code).iter().map(|path| path.join("::")).collect();
    assert_eq!(
        read,
        [
            "crate::a::b::c",
            "crate::a::b::d",
            "crate::f::",
            "super::super::g::"
        ]
    );
}

/// The packages of Cargo.lock, each with those that it depends on.
fn locked() -> BTreeMap<String, Vec<String>> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let package = |text: &str| {
        let name = text.lines().find(|line| line.starts_with("name = "));
        let needs = text.lines().filter(|line| line.starts_with(" \""));
        // A second version of a package is named with its number.
        let needs = needs.filter_map(quoted);
        let needs = needs.map(|need| need.split(' ').next().unwrap().to_owned());
        Some((quoted(name?)?, needs.collect()))
    };
    lock.split("[[package]]").filter_map(package).collect()
}

#[test]
fn what_applications_embed_brings_neither_candle_nor_a_command_line() {
    let locked = locked();
    let mut seen = BTreeSet::new();
    let mut open = vec!["dlc-runtime"];
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(locked[name].iter().map(String::as_str));
        }
    }
    assert!(
        seen.contains("ort") && seen.contains("tokenizers"),
        "{seen:?}"
    );
    for foreign in [
        "candle-core",
        "clap",
        "dlc-passes",
        "dlc-exporters",
        "dlc-eval",
    ] {
        assert!(!seen.contains(foreign), "dlc-runtime brings {foreign}");
    }
}
