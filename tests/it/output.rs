//! What commands show of models: help, `passes`, `inspect` and `diff`. The diffs show the graphs
//! that dlc makes: a change needs a review.

use crate::command::{PRUNE_GOLDEN, PRUNE_TINY, Shell, bundles, snapshot};
use crate::common::golden::plain_decoders;

const COMMANDS: [&str; 16] = [
    "compile",
    "convert",
    "merge",
    "score",
    "run",
    "sample",
    "bench",
    "inspect",
    "diff",
    "compare",
    "verify",
    "passes",
    "doctor",
    "setup",
    "demo",
    "completions",
];

#[test]
fn help_describes_every_command() {
    let shell = Shell::new();
    let own = shell.ok(&["--help"]);
    assert!(
        COMMANDS
            .iter()
            .all(|c| own.stdout.contains(&format!("\n  {c} "))),
        "{}",
        own.stdout
    );
    let long = |command: &&clap::Command| {
        let about = command.get_about().unwrap_or_default().to_string();
        about.split_whitespace().count() > 12
    };
    let command = dlc::cli::command();
    let long: Vec<&str> = command
        .get_subcommands()
        .filter(long)
        .map(clap::Command::get_name)
        .collect();
    assert!(long.is_empty(), "more than 12 words: {long:?}");
    snapshot!("help", own.stdout);
    for command in COMMANDS {
        snapshot!(
            format!("help_{command}"),
            shell.ok(&[command, "--help"]).stdout
        );
    }
    snapshot!(
        "help_setup_onnxruntime",
        shell.ok(&["setup", "onnxruntime", "--help"]).stdout
    );
}

#[test]
fn passes_are_listed_with_their_options() {
    snapshot!("passes", Shell::new().ok(&["passes"]).stdout);
}

#[test]
fn doctor_says_where_it_looked_and_what_runs() {
    snapshot!("doctor", Shell::new().ok(&["doctor"]).stdout);
}

#[test]
fn inspect_says_what_a_path_is() {
    let shell = bundles();
    for (name, path) in [
        ("checkpoint", "fixtures/tiny-llama"),
        ("golden", "fixtures/goldens/llama3"),
        ("bundle", "portable"),
        ("bundle_ort", "ort"),
        ("onnx", "golden/model.onnx"),
    ] {
        snapshot!(
            format!("inspect_{name}"),
            shell.ok(&["inspect", path]).stdout
        );
    }
}

#[test]
fn compile_reports_scores_and_what_was_written() {
    let shell = Shell::new();
    let outcome = shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--pass",
        PRUNE_TINY,
        "-o",
        "out",
    ]);
    snapshot!("compile", outcome.transcript());
    snapshot!(
        "compile_golden",
        shell
            .ok(&["compile", "fixtures/goldens/llama", "-o", "golden"])
            .transcript()
    );
}

#[test]
fn diff_shows_what_the_draft_lacks() {
    let shell = Shell::new();
    for golden in plain_decoders() {
        shell.ok(&[
            "compile",
            &format!("fixtures/goldens/{golden}"),
            "--pass",
            PRUNE_GOLDEN,
            "--profile",
            "portable",
            "-o",
            golden,
        ]);
        check_diff(&shell, golden);
    }
    check_diff(&bundles(), "portable");
}

fn check_diff(shell: &Shell, bundle: &str) {
    let text = shell.ok(&["diff", bundle]).stdout;
    let files = [
        format!("{bundle}/model.onnx"),
        format!("{bundle}/draft.onnx"),
    ];
    assert_eq!(
        text,
        shell.ok(&["diff", &files[0], &files[1]]).stdout,
        "{bundle}"
    );
    snapshot!(format!("diff_{bundle}"), text);
}

#[test]
fn diff_tells_by_its_exit_code_on_request() {
    let shell = bundles();
    for (args, code) in [
        (&["diff", "portable"][..], 0),
        (&["diff", "portable", "--exit-code"], 1),
        (&["diff", "portable", "onnx", "--exit-code"], 0),
        (&["diff", "portable", "portable", "--exit-code"], 0),
        (&["diff", "fixtures/tiny-llama", "plain", "--exit-code"], 0),
        (&["diff", "portable", "plain", "--exit-code"], 1),
        (
            &[
                "diff",
                "fixtures/tiny-llama",
                "fixtures/goldens/llama",
                "--exit-code",
                "--summary",
            ],
            1,
        ),
    ] {
        let outcome = shell.dlc(args);
        assert_eq!(outcome.code, Some(code), "{}", outcome.transcript());
    }
    snapshot!(
        "diff_nothing",
        shell.ok(&["diff", "portable", "onnx"]).transcript()
    );
}
