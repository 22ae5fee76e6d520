//! Bundles at work: `run`, `bench`, `demo` and `verify` on tract, and what they print for machines.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::command::{PRUNE_TINY, Shell, bundles};
use crate::common::decoding::HALF_AT_8_BITS;
use crate::common::fixture;

const PROMPT: &str = "In the beginning";

#[test]
fn demo_decodes_the_same_text_plainly_and_speculatively() {
    let shell = Shell::new();
    // Of the repository nothing is there.
    std::fs::remove_file(shell.path("fixtures")).unwrap();
    let outcome = shell.ok(&["demo", "--backend", "tract", "--max-tokens", "24"]);
    assert!(
        outcome
            .stdout
            .contains("output       equal, token for token (24 tokens)"),
        "{}",
        outcome.transcript()
    );
    assert!(
        outcome.stdout.starts_with("1. compile tiny-llama with ")
            && !outcome.stdout.contains("FAILED"),
        "{}",
        outcome.transcript()
    );
    let forced = shell.ok(&[
        "demo",
        "--backend",
        "tract",
        "--max-tokens",
        "9",
        "--draft-tokens",
        "2",
        "--no-lookup",
    ]);
    assert!(
        forced.stdout.contains("  lookup     proposed in none of "),
        "{}",
        forced.transcript()
    );
    assert!(
        !forced.stdout.contains("  draft      proposed in none of "),
        "{}",
        forced.transcript()
    );
    // Nothing is left, neither here nor among the temporary files.
    assert_eq!(shell.listing(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(shell.path(".env")).unwrap().count(), 1);
}

#[test]
fn run_prints_the_text_and_nothing_else() {
    let shell = bundles();
    let run = |more: &[&str]| {
        shell.ok(&[
            &[
                "run",
                "portable",
                "--backend",
                "tract",
                "--prompt",
                PROMPT,
                "--max-tokens",
                "8",
            ][..],
            more,
        ]
        .concat())
    };
    let outcome = run(&[]);
    assert!(
        outcome.stdout.starts_with(PROMPT) && outcome.stdout.len() > PROMPT.len() + 8,
        "{}",
        outcome.transcript()
    );
    assert_eq!(
        outcome.stdout.matches('\n').count(),
        1,
        "{}",
        outcome.transcript()
    );
    assert!(
        outcome.stderr.starts_with("8 tokens, ") && outcome.stderr.lines().count() == 1,
        "{}",
        outcome.transcript()
    );
    // Greedy text is the target's, with a draft or without; and so is sampled text with a seed.
    assert_eq!(outcome.stdout, run(&["--no-draft"]).stdout);
    assert_eq!(outcome.stdout, run(&["--draft-tokens", "1"]).stdout);
    let sampled = ["--temperature", "2", "--top-k", "50", "--seed", "3"];
    assert_eq!(run(&sampled).stdout, run(&sampled).stdout);
    assert_ne!(run(&sampled).stdout, outcome.stdout);
}

#[test]
fn run_in_json_has_one_record_for_each_prompt() {
    let shell = bundles();
    let prompts = Shell::new();
    prompts.write("prompts.txt", "In the beginning\n\nAnd it came to pass\n");
    let path = prompts.path("prompts.txt").to_str().unwrap().to_owned();
    let outcome = shell.ok(&[
        "run",
        "onnx",
        "--backend",
        "tract",
        "--prompts",
        &path,
        "--max-tokens",
        "8",
        "--draft-tokens",
        "4",
        "--json",
    ]);
    let records = outcome.json();
    let records = records.as_array().unwrap();
    assert_eq!(records.len(), 2);
    for (record, prompt) in records
        .iter()
        .zip(["In the beginning", "And it came to pass"])
    {
        let keys: Vec<&String> = record.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["prompt", "prompt_tokens", "tokens", "text", "stop", "stats"]
        );
        assert_eq!(record["prompt"], prompt);
        assert_eq!(record["stop"], "max tokens");
        assert_eq!(record["tokens"].as_array().unwrap().len(), 8);
        assert!(!record["text"].as_str().unwrap().is_empty());
        let (drafted, accepted) = (
            record["stats"]["drafted"].as_u64().unwrap(),
            record["stats"]["accepted"].as_u64().unwrap(),
        );
        assert!(drafted > 0 && accepted <= drafted, "{record}");
    }
}

type Check = fn(&Value) -> bool;

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn json_is_all_that_stdout_holds() {
    let shell = bundles();
    let own = Shell::new();
    let commands: [(&[&str], Check); 12] = [
        (&["passes", "--json"], |v| {
            v.as_array()
                .is_some_and(|a| a.iter().any(|p| p["name"] == "fit-prune"))
        }),
        (&["doctor", "--json", "--backend", "tract"], |v| {
            v["backend"] == "tract"
        }),
        (&["inspect", "fixtures/tiny-llama", "--json"], |v| {
            v["kind"] == "checkpoint"
        }),
        (
            &["inspect", "fixtures/tiny-llama", "--json", "--graph"],
            |v| v["kind"] == "checkpoint",
        ),
        (&["inspect", "portable", "--json"], |v| {
            v["kind"] == "bundle" && v["manifest"]["profile"] == "portable"
        }),
        (&["inspect", "portable/draft.onnx", "--json"], |v| {
            v["kind"] == "onnx" && v["operators"]["MatMul"].is_u64()
        }),
        (&["diff", "portable", "--json"], |v| {
            v["graphs"].as_array().is_some_and(|a| a.len() == 1)
        }),
        (&["diff", "portable", "onnx", "--json"], |v| {
            v["graphs"].as_array().is_some_and(|a| a.len() == 2)
        }),
        (
            &["verify", "portable", "--json", "--backend", "tract"],
            |v| v["checks"].as_array().is_some_and(|a| a.len() == 8),
        ),
        (
            &[
                "verify",
                "portable",
                "--source",
                "fixtures/tiny-llama",
                "--json",
                "--backend",
                "tract",
            ],
            |v| v["source"] == Value::Array(vec![]),
        ),
        (
            &[
                "bench",
                "portable",
                "--json",
                "--backend",
                "tract",
                "--max-tokens",
                "2",
                "--repeats",
                "1",
            ],
            |v| {
                v["prompts"].as_array().is_some_and(|a| a.len() == 8)
                    && v["speedup"].is_f64()
                    && v["draft"]["runner_up"].is_u64()
                    && v["tree_gain"]["at_most"].is_f64()
                    && v["load_average"].is_f64() == cfg!(target_os = "linux")
                    && v["prompts"][0]["speedup_range"]
                        .as_array()
                        .is_some_and(|range| {
                            range.len() == 2 && range[0].as_f64() <= range[1].as_f64()
                        })
            },
        ),
        (
            &[
                "run",
                "portable",
                "--json",
                "--backend",
                "tract",
                "--prompt",
                PROMPT,
                "--max-tokens",
                "1",
            ],
            Value::is_array,
        ),
    ];
    for (args, check) in commands {
        let outcome = shell.ok(args);
        assert!(check(&outcome.json()), "{}", outcome.transcript());
    }
    let compiled = own
        .ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            PRUNE_TINY,
            "-o",
            "out",
            "--json",
        ])
        .json();
    assert_eq!(
        (&compiled["output"], &compiled["passes"][0]["name"]),
        (&Value::from("out"), &Value::from("fit-prune"))
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let shell = bundles();
    for args in [
        &["inspect", "portable", "--graph"][..],
        &["diff", "portable"],
        &["passes"],
        &["completions", "bash"],
    ] {
        let mut child = shell.start(args);
        let mut line = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let outcome = shell.outcome(args, &child.wait_with_output().unwrap());
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(0), ""),
            "{}",
            outcome.transcript()
        );
        // Gone before the first word.
        let mut command = shell.command(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let outcome = shell.outcome(args, &child.wait_with_output().unwrap());
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(0), ""),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn completions_know_the_commands() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish"] {
        let script = shell.ok(&["completions", name]).stdout;
        assert!(
            script.contains("compile") && script.contains("no-cache"),
            "{name}"
        );
    }
}

#[test]
fn verify_passes_what_compile_wrote() {
    let shell = bundles();
    for bundle in ["portable", "onnx", "golden"] {
        let outcome = shell.ok(&["verify", bundle, "--backend", "tract"]);
        assert_eq!(
            outcome.stdout.matches("  ok").count(),
            8,
            "{}",
            outcome.transcript()
        );
    }
    let strict = shell.dlc(&[
        "verify",
        "portable",
        "--backend",
        "tract",
        "--tolerance",
        "0",
    ]);
    assert!(
        strict.code == Some(1) && strict.stdout.contains("FAILED"),
        "{}",
        strict.transcript()
    );
}

#[test]
fn verify_finds_what_differs_from_the_checkpoint() {
    let shell = Shell::new();
    shell.ok(&["compile", "fixtures/tiny-llama", "-o", "bundle"]);
    let verify =
        |source: &str| shell.dlc(&["verify", "bundle", "--backend", "tract", "--source", source]);
    assert_eq!(verify("fixtures/tiny-llama").code, Some(0));

    shell.copy(&fixture("tiny-llama"), "changed");
    let path = shell.path("changed/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let outcome = verify("changed");
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    let lines: Vec<&str> = outcome
        .stdout
        .lines()
        .filter(|l| l.starts_with("against the checkpoint: weight "))
        .collect();
    assert!(
        lines.len() == 1 && lines[0].contains(" differs from element "),
        "{}",
        outcome.transcript()
    );

    let other = verify("fixtures/goldens/llama");
    assert_eq!(other.code, Some(1), "{}", other.transcript());
}

#[test]
fn costs_are_measured_once_and_used_again() {
    let shell = Shell::new();
    shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--pass",
        PRUNE_TINY,
        "--profile",
        "onnx",
        "-o",
        "pruned",
    ]);
    let bench = |more: &[&str]| {
        shell
            .ok(&[
                &["bench", "pruned", "--backend", "tract", "--json"][..],
                more,
            ]
            .concat())
            .json()
    };
    let quick = ["--max-tokens", "2", "--repeats", "1"];
    let costs = bench(&["--calibrate"]);
    assert!(
        costs["draft"].as_f64().unwrap() > 0.0 && costs["verify"].as_array().unwrap().len() == 7,
        "{costs}"
    );
    assert_eq!(costs["verify"][0], serde_json::json!([1, 1.0]));
    let used = bench(&quick)["costs"].clone();
    assert_eq!(
        (&used["draft"], &used["verify"]),
        (&costs["draft"], &costs["verify"])
    );
    let threads = bench(&[&quick[..], &["--threads", "7"]].concat());
    assert_ne!(
        threads["costs"]["verify"], costs["verify"],
        "measured with another number of threads"
    );
}

#[test]
fn drafts_are_chosen_by_costs_that_calibration_printed() {
    let other = Shell::new();
    other.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--pass",
        "quantize-draft:bits=8,method=rtn",
        "--profile",
        "portable",
        "-o",
        "quantised",
    ]);
    let printed = other
        .ok(&["bench", "quantised", "--backend", "tract", "--calibrate"])
        .stdout;
    other.write("costs.yaml", &printed);
    let pass = "auto-draft:samples=4,length=32,candidates=1,costs=costs.yaml";
    let compiled = other
        .ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            pass,
            "--profile",
            "portable",
            "-o",
            "out",
            "--json",
        ])
        .json();
    let report = &compiled["passes"][0]["report"];
    assert_eq!(report["costs"], "of costs.yaml");
    let candidates = report["candidates"].as_array().unwrap();
    assert!(
        candidates.len() >= 3
            && candidates
                .iter()
                .all(|c| c["memory"].as_f64().unwrap() <= 1.35),
        "{report}"
    );
    let graphs = compiled["graphs"].as_array().unwrap();
    assert_eq!(
        graphs.len() == 2,
        candidates[0]["draft_tokens"] != 0,
        "a draft stands in the bundle if one pays: {report}"
    );
    assert_eq!(
        graphs.len() == 1,
        report["draft"].as_str().unwrap().starts_with("none"),
        "{report}"
    );
}

#[test]
fn a_draft_asked_for_after_none_paid_has_the_usual_defaults() {
    let shell = Shell::new();
    shell.write(
        "costs.yaml",
        HALF_AT_8_BITS.replace("fixed: 0.06", "fixed: 2.0"),
    );
    let choose = "auto-draft:samples=2,length=16,candidates=1,costs=costs.yaml";
    let quantise = "quantize-draft:bits=8,method=rtn";
    let args = [
        "compile",
        "fixtures/tiny-llama",
        "--pass",
        choose,
        "--pass",
        quantise,
        "--profile",
        "ort",
        "-o",
        "out",
        "--json",
    ];
    let report = shell.ok(&args).json();
    assert!(
        report["passes"][0]["report"]["draft"]
            .as_str()
            .unwrap()
            .starts_with("none: no draft beats plain decoding"),
        "{report}"
    );
    let genai = fs::read_to_string(shell.path("out/genai_config.json")).unwrap();
    let genai: serde_json::Value = serde_json::from_str(&genai).unwrap();
    assert_eq!(genai["speculative"]["max_draft_tokens"], 4, "{genai}");
    let manifest = fs::read_to_string(shell.path("out/dlc.yaml")).unwrap();
    assert!(manifest.contains("\ndraft_acceptance: 0.95\n"));
    // Nothing is known of a copy in 4 bits, and of one whose head was trimmed.
    let others = [
        vec!["quantize-draft:bits=4,method=rtn"],
        vec![quantise, "trim-head:tokens=1024"],
    ];
    for passes in others {
        let passes = passes.iter().flat_map(|pass| ["--pass", pass]);
        let args = ["compile", "fixtures/tiny-llama", "-o", "other", "--force"];
        shell.ok(&args.into_iter().chain(passes).collect::<Vec<_>>());
        let manifest = fs::read_to_string(shell.path("other/dlc.yaml")).unwrap();
        assert!(!manifest.contains("draft_acceptance"));
    }
}

#[test]
fn bench_sums_up_by_task_and_draws_it() {
    let shell = bundles();
    let plots = Shell::new();
    let plot = plots.path("plot.svg").to_str().unwrap().to_owned();
    let args = [
        "bench",
        "onnx",
        "--backend",
        "tract",
        "--suite",
        "--max-tokens",
        "2",
        "--repeats",
        "1",
        "--plot",
        &plot,
        "--json",
    ];
    let report = shell.ok(&args).json();
    let tasks: Vec<&str> = report["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["task"].as_str().unwrap())
        .collect();
    assert_eq!(tasks, ["code", "chat", "continuation", "summary"]);
    assert!(
        report["predicted_speedup"].as_f64().unwrap() > 0.0 && report["different"] == 0,
        "{report}"
    );
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(
        svg.starts_with("<svg") && tasks.iter().all(|task| svg.contains(task)),
        "{svg}"
    );
}
