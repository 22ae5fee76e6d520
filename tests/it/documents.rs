//! Every Markdown file of the repository: its commands parse and, in `console` blocks, run; its
//! links resolve; the README is short, and its numbers stand beside the commands that made them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dlc::pipeline::{PassSpec, PipelineConfig, parse_pass_flag};
use dlc_passes::registry;
use regex::Regex;

use crate::command::Shell;

/// The folders whose Markdown files are documents.
const FOLDERS: [&str; 3] = ["", "docs", "fixtures"];
/// The most bytes of the README, and the lines of its first screen.
const README_BYTES: usize = 8 << 10;
const FIRST_SCREEN: usize = 30;
/// The most characters of a line of prose.
const WIDTH: usize = 125;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A part of a document.
#[derive(Debug)]
enum Part {
    /// Prose with its tables and headings.
    Prose(String),
    /// A fenced block: its language and its lines.
    Block(String, Vec<String>),
}

#[derive(Debug)]
pub(crate) struct Document {
    /// From the repository's root.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Document {
    pub(crate) fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self {
            name: name.to_owned(),
            text,
        }
    }

    fn parts(&self) -> Vec<Part> {
        let (mut parts, mut prose) = (Vec::new(), String::new());
        let mut block: Option<(String, Vec<String>)> = None;
        for line in self.text.lines() {
            match (line.strip_prefix("```"), &mut block) {
                (Some(_), Some(_)) => {
                    parts.extend(
                        block
                            .take()
                            .map(|(language, lines)| Part::Block(language, lines)),
                    );
                }
                (Some(language), None) => {
                    parts.push(Part::Prose(std::mem::take(&mut prose)));
                    block = Some((language.to_owned(), Vec::new()));
                }
                (None, Some((_, lines))) => lines.push(line.to_owned()),
                (None, None) => prose = prose + line + "\n",
            }
        }
        assert!(block.is_none(), "{}: a block doesn't end", self.name);
        parts.push(Part::Prose(prose));
        parts
    }

    fn prose(&self) -> String {
        let prose = self.parts().into_iter().filter_map(|part| match part {
            Part::Prose(text) => Some(text),
            Part::Block(..) => None,
        });
        prose.collect()
    }

    /// Language and lines of every fenced block.
    fn blocks(&self) -> Vec<(String, Vec<String>)> {
        let blocks = self.parts().into_iter().filter_map(|part| match part {
            Part::Block(language, lines) => Some((language, lines)),
            Part::Prose(_) => None,
        });
        blocks.collect()
    }

    /// What stands between backticks in the prose.
    fn spans(&self) -> Vec<String> {
        let span = Regex::new("`([^`]+)`").unwrap();
        let prose = self.prose();
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        span.captures_iter(&prose).map(|c| words(&c[1])).collect()
    }

    /// The anchors of the headings.
    fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#')))
            .collect()
    }

    /// What stands below the heading with this anchor, up to the next one of its level or above.
    pub(crate) fn section(&self, wanted: &str) -> String {
        let level = |line: &str| line.chars().take_while(|c| *c == '#').count();
        let mut lines = self
            .text
            .lines()
            .skip_while(|line| level(line) == 0 || anchor(line.trim_start_matches('#')) != wanted);
        let heading = lines
            .next()
            .unwrap_or_else(|| panic!("{} has no section {wanted}", self.name));
        let ends = |line: &str| (1..=level(heading)).contains(&level(line));
        let lines: Vec<&str> = lines.take_while(|line| !ends(line)).collect();
        lines.join("\n")
    }
}

fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.trim().to_lowercase().chars().filter(kept).collect();
    text.replace(' ', "-")
}

pub(crate) fn documents() -> Vec<Document> {
    let mut names = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root().join(folder))
            .unwrap()
            .map(Result::unwrap)
        {
            let name = entry.file_name().into_string().unwrap();
            if Path::new(&name).extension().is_some_and(|e| e == "md") {
                names.push(if folder.is_empty() {
                    name
                } else {
                    format!("{folder}/{name}")
                });
            }
        }
    }
    names.sort();
    assert!(names.len() > 15, "{names:?}");
    names.iter().map(|name| Document::read(name)).collect()
}

/// A command line's words, up to a comment; quotes are taken off.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The arguments of `dlc` in the commands of a line; the last command's output may go to a file.
fn dlc_commands(line: &str) -> Vec<Vec<String>> {
    let words = words(line.strip_prefix("$ ").unwrap_or(line));
    let commands = words.split(|word| word == "|" || word == "&&");
    let own = commands.filter_map(|command| {
        let end = command.iter().position(|word| word == ">");
        let command = &command[..end.unwrap_or(command.len())];
        match command {
            [first, rest @ ..] if first == "dlc" => Some(rest.to_vec()),
            [cargo, run, release, dashes, rest @ ..]
                if [cargo, run, release, dashes].map(String::as_str)
                    == ["cargo", "run", "--release", "--"] =>
            {
                Some(rest.to_vec())
            }
            _ => None,
        }
    });
    own.collect()
}

/// The commands in a document's blocks: all lines, or in a `console` those after a prompt.
fn block_commands(document: &Document) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    for (language, lines) in document.blocks() {
        let prompted = |line: &&String| language != "console" || line.starts_with("$ ");
        if matches!(language.as_str(), "text" | "console") {
            commands.extend(
                lines
                    .iter()
                    .filter(prompted)
                    .flat_map(|line| dlc_commands(line)),
            );
        }
    }
    commands
}

/// What is wrong with `NAME:key=value,...`.
fn pass_problem(flag: &str) -> Option<String> {
    match parse_pass_flag(flag) {
        Ok(spec) => spec_problem(&spec),
        Err(error) => Some(error.to_string()),
    }
}

fn spec_problem(spec: &PassSpec) -> Option<String> {
    let info = match registry::find(&spec.name) {
        Ok(info) => info,
        Err(error) => return Some(error.to_string()),
    };
    let options = (info.options)();
    let mut keys = spec.options.keys().filter_map(|key| key.as_str());
    keys.find(|key| !options.iter().any(|option| option.name == *key))
        .map(|key| format!("{} has no option {key}", spec.name))
}

/// The passes that a command asks for.
fn passes(words: &[String]) -> impl Iterator<Item = &str> {
    let pairs = words.windows(2).filter(|pair| pair[0] == "--pass");
    pairs.map(|pair| pair[1].as_str())
}

/// What is wrong with a command in running text, which may leave arguments out.
fn span_problem(words: &[String]) -> Option<String> {
    let cli = dlc::cli::command();
    let name = words
        .first()
        .filter(|word| word.starts_with(char::is_lowercase))?;
    let Some(command) = cli.find_subcommand(name) else {
        return Some(format!("there is no command {name}"));
    };
    let known = |flag: &str| {
        let mut arguments = command.get_arguments().chain(cli.get_arguments());
        flag == "help" || arguments.any(|argument| argument.get_long() == Some(flag))
    };
    let flags = words.iter().filter_map(|word| word.strip_prefix("--"));
    let unknown = flags
        .map(|flag| flag.split('=').next().unwrap_or(flag))
        .find(|flag| !known(flag));
    unknown
        .map(|flag| format!("dlc {name} has no flag --{flag}"))
        .or_else(|| passes(words).find_map(pass_problem))
}

#[test]
fn every_command_parses() {
    let mut problems = Vec::new();
    let mut checked = 0;
    for document in documents() {
        for words in block_commands(&document) {
            checked += 1;
            let parsed = dlc::cli::command()
                .try_get_matches_from(["dlc"].into_iter().chain(words.iter().map(String::as_str)));
            let problem = parsed.err().map(|error| error.to_string());
            let problem = problem.or_else(|| passes(&words).find_map(pass_problem));
            problems
                .extend(problem.map(|p| format!("{}: {}: {p}", document.name, words.join(" "))));
        }
        for span in document.spans() {
            let problem = if let Some(command) = span.strip_prefix("dlc ") {
                span_problem(&words(command))
            } else if registry::PASSES
                .iter()
                .any(|p| span.starts_with(&format!("{}:", p.name)))
            {
                pass_problem(&span)
            } else {
                continue;
            };
            checked += 1;
            problems.extend(problem.map(|p| format!("{}: `{span}`: {p}", document.name)));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert!(checked > 60, "{checked}");
}

#[test]
fn every_pipeline_file_is_read() {
    let shell = Shell::new();
    let mut read = 0;
    for document in documents() {
        for (language, lines) in document.blocks() {
            if language != "yaml" || !lines.iter().any(|line| line == "passes:") {
                continue;
            }
            shell.write("pipeline.yaml", lines.join("\n"));
            let config = PipelineConfig::read(&shell.path("pipeline.yaml")).unwrap();
            let specs = config.pass_specs().unwrap();
            let problems: Vec<String> = specs.iter().filter_map(spec_problem).collect();
            assert!(problems.is_empty(), "{}: {problems:?}", document.name);
            read += 1;
        }
    }
    assert!(read > 0);
}

/// A line without what changes from run to run: numbers, widths and bars.
fn masked(line: &str) -> String {
    let number = Regex::new(r"[0-9][0-9.]*(e-?[0-9]+)?|█+").unwrap();
    let line = number.replace_all(line, "#").into_owned();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn commands_after_a_prompt_run_and_print_what_stands_there() {
    let mut ran = 0;
    for document in documents() {
        let shell = Shell::new();
        let mut printed = BTreeSet::new();
        let blocks = document
            .blocks()
            .into_iter()
            .filter(|(l, _)| l == "console");
        for line in blocks.flat_map(|(_, lines)| lines) {
            if line.starts_with("$ ") {
                printed.clear();
                for words in dlc_commands(&line) {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    let outcome = shell.ok(&words);
                    printed.extend(
                        outcome
                            .stdout
                            .lines()
                            .chain(outcome.stderr.lines())
                            .map(masked),
                    );
                    ran += 1;
                }
            } else if line != "..." && !line.is_empty() {
                let wanted = masked(&line);
                assert!(
                    printed.contains(&wanted),
                    "{}: {wanted}\nis none of\n{printed:#?}",
                    document.name
                );
            }
        }
    }
    assert!(ran > 5, "{ran}");
}

#[test]
fn every_relative_link_resolves() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut problems = Vec::new();
    for document in documents() {
        let folder = root().join(&document.name).parent().unwrap().to_owned();
        for capture in link.captures_iter(&document.prose()) {
            let target = capture[1].to_owned();
            if target.contains("://") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() {
                root().join(&document.name)
            } else {
                folder.join(path)
            };
            if !path.exists() {
                problems.push(format!("{}: {target} isn't there", document.name));
            } else if !fragment.is_empty() && !at(&path).anchors().contains(fragment) {
                problems.push(format!("{}: {target} has no such heading", document.name));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The document at a path, which may lead up and down again.
fn at(path: &Path) -> Document {
    let path: PathBuf = path.canonicalize().unwrap();
    let name = path.strip_prefix(root().canonicalize().unwrap()).unwrap();
    Document::read(name.to_str().unwrap())
}

#[test]
fn every_page_is_listed() {
    let index = Document::read("docs/README.md");
    for document in documents() {
        if let Some(name) = document
            .name
            .strip_prefix("docs/")
            .filter(|n| *n != "README.md")
        {
            assert!(index.text.contains(&format!("]({name})")), "{name}");
        }
    }
}

#[test]
fn lines_of_prose_are_wrapped() {
    let mut problems = Vec::new();
    for document in documents()
        .iter()
        .filter(|d| !d.name.starts_with("fixtures/"))
    {
        let prose = document.prose();
        let long = prose
            .lines()
            .filter(|l| !l.starts_with('|') && l.chars().count() > WIDTH);
        problems.extend(long.map(|line| format!("{}: {line}", document.name)));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_readme_is_short_and_begins_with_the_two_commands() {
    let readme = Document::read("README.md");
    assert!(
        readme.text.len() <= README_BYTES,
        "{} bytes",
        readme.text.len()
    );
    let screen: Vec<&str> = readme.text.lines().take(FIRST_SCREEN).collect();
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        assert!(
            screen.iter().any(|line| line.starts_with(command)),
            "{command}"
        );
    }
}

#[test]
fn the_numbers_of_the_readme_stand_in_the_section_that_they_link_to() {
    let readme = Document::read("README.md");
    let row = Regex::new(r"(?m)^\| (.+) \| .*\]\((docs/[a-z-]+\.md)#([a-z-]+)\) \|$").unwrap();
    let number = Regex::new(r"[0-9]+\.[0-9]+").unwrap();
    let mut found = 0;
    for capture in row.captures_iter(&readme.text) {
        let section = Document::read(&capture[2]).section(&capture[3]);
        for number in number.find_iter(&capture[1]) {
            assert!(
                section.contains(number.as_str()),
                "{}: {}",
                &capture[3],
                number.as_str()
            );
            found += 1;
        }
    }
    assert!(found >= 4, "{found}");
}

#[test]
fn every_measurement_stands_beside_its_command() {
    let page = Document::read("docs/measurements.md");
    let sections: Vec<&str> = page
        .text
        .lines()
        .filter_map(|l| l.strip_prefix("## "))
        .collect();
    assert!(sections.len() >= 4, "{sections:?}");
    for heading in sections {
        let section = page.section(&anchor(heading));
        let commands = ["dlc ", "cargo bench", "scripts/"];
        let block = section.split("```text\n").nth(1).unwrap_or_default();
        assert!(
            commands.iter().any(|c| block.contains(c)),
            "{heading}: no command"
        );
    }
}

/// The folders of the workspace's crates, but for the root's.
pub(crate) fn workspace_members() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest
        .lines()
        .find_map(|l| l.strip_prefix("members = "))
        .unwrap();
    serde_json::from_str(members).unwrap()
}

#[test]
fn every_crate_says_what_it_is() {
    let members = workspace_members();
    for member in members.iter().map(String::as_str).chain([""]) {
        let path = root().join(member).join("Cargo.toml");
        let text = fs::read_to_string(&path).unwrap();
        let package = &text[text.find("[package]").unwrap()..];
        for key in ["description", "license", "readme", "keywords", "categories"] {
            let there = package.lines().any(|l| l.starts_with(key));
            assert!(there, "{} lacks {key}", path.display());
        }
        assert!(!package.contains("\nrepository"), "{}", path.display());
    }
}

#[test]
fn every_path_of_the_repository_that_a_document_names_is_there() {
    let folders: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("target"))
        .collect();
    let crates = workspace_members();
    let is_ours = |span: &str| {
        let (first, _) = span.split_once('/').unwrap_or_default();
        folders.iter().any(|folder| folder.ends_with(first)) || crates.iter().any(|c| c == first)
    };
    // Words in capitals stand for a name; ONNX files are a bundle's.
    let is_path = Regex::new("^[a-z_]+/[A-Za-z0-9_./-]*$").unwrap();
    let is_pattern = Regex::new(r"[A-Z]{2}|\.onnx").unwrap();
    let mut problems = Vec::new();
    for document in documents() {
        for span in document.spans() {
            let checked = is_path.is_match(&span) && !is_pattern.is_match(&span) && is_ours(&span);
            if checked && !root().join(&span).exists() {
                problems.push(format!("{}: {span}", document.name));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
