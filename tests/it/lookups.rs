//! What is looked up in the text and in earlier ones, on tract.

use serde_json::Value;

use crate::command::bundles;

fn lookups(record: &Value) -> u64 {
    record["stats"]["lookup"]["accepted"].as_u64().unwrap()
}

fn rounds(record: &Value) -> u64 {
    record["stats"]["rounds"].as_u64().unwrap()
}

#[test]
fn a_bundle_without_a_draft_copies_from_its_text() {
    let shell = bundles();
    let prompt = "And the LORD spake unto Moses, saying, And the LORD spake unto Moses, saying, And the LORD spake";
    let run = |more: &[&str]| {
        let args = [
            "run",
            "plain",
            "--backend",
            "tract",
            "--prompt",
            prompt,
            "--max-tokens",
            "24",
            "--json",
        ];
        shell.ok(&[&args[..], more].concat()).json()[0].clone()
    };
    let (copying, plain) = (run(&["--draft-tokens", "4"]), run(&["--no-lookup"]));
    assert_eq!(copying["tokens"], plain["tokens"]);
    assert!(lookups(&copying) > 0, "{copying}");
    assert_eq!(
        (&plain["stats"]["drafted"], rounds(&plain)),
        (&0.into(), 24)
    );
}

#[test]
fn earlier_texts_are_looked_up_in_where_that_is_asked_for() {
    let shell = bundles();
    let name = "the-same-prompt-twice.txt";
    shell.write(name, "In the beginning\nIn the beginning\n");
    let run = |more: &[&str]| {
        let args = [
            "run",
            "plain",
            "--backend",
            "tract",
            "--prompts",
            name,
            "--max-tokens",
            "24",
            "--json",
        ];
        shell.ok(&[&args[..], more].concat()).json()
    };
    let (alone, all) = (run(&[]), run(&["--lookup-history"]));
    for record in [&alone[0], &alone[1], &all[0], &all[1]] {
        assert_eq!(record["tokens"], alone[0]["tokens"]);
    }
    let [first, again, before, after] = [&alone[0], &alone[1], &all[0], &all[1]].map(rounds);
    assert_eq!((first, first), (again, before));
    assert!(3 * after < before, "{after} of {before}");
}

#[test]
fn bench_reports_cold_and_warm_lookups_apart() {
    let shell = bundles();
    let name = "a-prompt-and-its-beginning.txt";
    shell.write(name, "In the beginning God\nIn the beginning\n");
    let args = [
        "bench",
        "plain",
        "--backend",
        "tract",
        "--prompts",
        name,
        "--max-tokens",
        "16",
        "--repeats",
        "1",
        // As many as pay would depend on how busy the machine is.
        "--draft-tokens",
        "4",
    ];
    let cold = shell.ok(&[&args[..], &["--json"]].concat()).json();
    assert!(cold["warm"].is_null());
    let both = shell
        .ok(&[&args[..], &["--lookup-history", "--json"]].concat())
        .json();
    let accepted = |report: &Value| report["lookup"]["accepted"].as_u64().unwrap();
    assert!(accepted(&both["warm"]) > accepted(&both), "{both}");
    for prompt in both["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .chain(both["warm"]["prompts"].as_array().unwrap())
    {
        assert_eq!(prompt["output"], "equal");
    }
    let text = shell
        .ok(&[&args[..], &["--lookup-history"]].concat())
        .stdout;
    assert!(
        text.contains("\nwarm: lookups in earlier prompts and their texts too\n"),
        "{text}"
    );
}
