//! How `dlc run` takes text, chooses tokens, ends texts and talks.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::command::{Outcome, PRUNE_TINY, Shell, bundles};
use crate::common::fixture;

const PROMPT: &str = "In the beginning";
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// Runs with `input` on stdin.
fn with_input(shell: &Shell, args: &[&str], input: &[u8]) -> Outcome {
    let mut child = shell
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    shell.outcome(args, &child.wait_with_output().unwrap())
}

fn lines(outcome: &Outcome) -> Vec<Value> {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    outcome
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// tiny-llama with other values in one of its files; null takes a key out.
fn model(shell: &Shell, changes: &[(&str, Value)]) {
    shell.copy(&fixture("tiny-llama"), "model");
    for (file, values) in changes {
        let path = shell.path(&format!("model/{file}"));
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in values.as_object().unwrap() {
            json[key] = value.clone();
        }
        fs::write(path, json.to_string()).unwrap();
    }
}

const QUICK: [&str; 5] = ["run", "portable", "--backend", "tract", "--max-tokens=8"];

#[test]
fn text_comes_from_stdin_and_files_as_from_the_command_line() {
    let shell = bundles();
    let own = Shell::new();
    own.write("prompt.txt", "In the beginning\n");
    let path = own.path("prompt.txt").to_str().unwrap().to_owned();
    let expected = shell
        .ok(&[&QUICK[..], &["--prompt", PROMPT]].concat())
        .stdout;
    for more in [
        &[][..],
        &["--prompt", "-"],
        &["--prompt-file", "-"],
        &["--prompts", "-"],
    ] {
        let outcome = with_input(&shell, &[&QUICK[..], more].concat(), b"In the beginning\n");
        assert_eq!(outcome.stdout, expected, "{}", outcome.transcript());
    }
    assert_eq!(
        shell
            .ok(&[&QUICK[..], &["--prompt-file", &path]].concat())
            .stdout,
        expected
    );
    let nothing = with_input(&shell, &QUICK, b" \n");
    assert!(
        nothing.code == Some(2) && nothing.stderr.contains("there is nothing to continue"),
        "{}",
        nothing.transcript()
    );
    let binary = with_input(&shell, &QUICK, b"\xFF\xFE");
    assert!(
        binary.code == Some(2) && binary.stderr.contains("stdin isn't UTF-8 text"),
        "{}",
        binary.transcript()
    );
}

#[test]
fn the_prompt_is_left_out_and_the_reason_for_the_end_is_said() {
    let shell = bundles();
    let run = |more: &[&str]| shell.ok(&[&QUICK[..], &["--prompt", PROMPT], more].concat());
    let (whole, bare) = (run(&[]), run(&["--no-echo"]));
    assert_eq!(whole.stdout, format!("{PROMPT}{}", bare.stdout));
    assert!(
        bare.stderr.trim_end().ends_with("; stopped at max tokens"),
        "{}",
        bare.transcript()
    );
}

#[test]
fn texts_end_exactly_before_stop_strings_with_a_draft_and_without() {
    let shell = bundles();
    let run = |more: &[&str]| {
        let args = [
            "run",
            "portable",
            "--backend",
            "tract",
            "--prompt",
            PROMPT,
            "--max-tokens=24",
            "--json",
        ];
        shell.ok(&[&args[..], more].concat()).json()[0].clone()
    };
    let whole = run(&[]);
    let text = whole["text"].as_str().unwrap();
    for (start, length) in [(3, 1), (5, 4), (9, 7), (14, 2)] {
        let stop: String = text.chars().skip(start).take(length).collect();
        let expected = &text[..text.find(&stop).unwrap()];
        let (plain, drafted) = (
            run(&["--stop", &stop, "--no-draft", "--no-lookup"]),
            run(&["--stop", &stop, "--stop", "never", "--draft-tokens=5"]),
        );
        assert_eq!(
            (&plain["text"], &plain["stop"]),
            (&json!(expected), &json!("stop string")),
            "{stop:?} of {text:?}"
        );
        assert_eq!(
            (&drafted["text"], &drafted["tokens"]),
            (&plain["text"], &plain["tokens"]),
            "{stop:?} of {text:?}"
        );
    }
    let shown = shell.ok(&[
        "run",
        "portable",
        "--backend",
        "tract",
        "--prompt",
        PROMPT,
        "--stop",
        &text[6..9],
        "--no-echo",
    ]);
    assert_eq!(
        shown.stdout,
        format!("{}\n", &text[..text.find(&text[6..9]).unwrap()])
    );
    assert!(
        shown.stderr.trim_end().ends_with("; stop string"),
        "{}",
        shown.transcript()
    );
}

#[test]
fn json_lines_hold_what_the_array_does() {
    let shell = bundles();
    let input = b"In the beginning\n\nAnd it came to pass\n";
    let array = with_input(
        &shell,
        &[&QUICK[..], &["--prompts", "-", "--json"]].concat(),
        input,
    )
    .json();
    let lines = lines(&with_input(
        &shell,
        &[&QUICK[..], &["--prompts", "-", "--jsonl"]].concat(),
        input,
    ));
    assert_eq!(lines.len(), 2);
    for (line, record) in lines.iter().zip(array.as_array().unwrap()) {
        assert_eq!(
            (&line["text"], &line["tokens"], &line["prompt"]),
            (&record["text"], &record["tokens"], &record["prompt"])
        );
    }
}

#[test]
fn flags_without_effect_are_refused_with_what_would_give_them_one() {
    let shell = bundles();
    let own = Shell::new();
    own.ok(&["compile", "fixtures/goldens/bert", "-o", "encoder"]);
    let prompt = ["run", "plain", "--prompt", PROMPT];
    for (args, expected) in [
        (
            &[&prompt[..], &["--top-p", "0.9"]].concat(),
            "--top-p has no effect while the most likely token is taken; draw tokens with --temperature",
        ),
        (
            &[&prompt[..], &["--top-k", "5"]].concat(),
            "--top-k has no effect",
        ),
        (
            &[&prompt[..], &["--seed", "5"]].concat(),
            "--seed has no effect",
        ),
        (
            &[&prompt[..], &["--min-p", "0.1", "--temperature", "0"]].concat(),
            "--min-p has no effect",
        ),
        (
            &[&prompt[..], &["--sample", "--temperature", "0"]].concat(),
            "give one of them",
        ),
        (
            &[&prompt[..], &["--top", "3"]].concat(),
            "--top is for encoders, and has no effect on a llama for text-generation",
        ),
        (
            &[&prompt[..], &["--repetition-penalty", "0"]].concat(),
            "repetition penalty 0 must be",
        ),
        (
            &[&prompt[..], &["--regex", "("]].concat(),
            "the grammar can't be used",
        ),
        (
            &[&prompt[..], &["--json-schema", "fixtures/prompts.txt"]].concat(),
            "fixtures/prompts.txt: isn't JSON",
        ),
        (
            &[&prompt[..], &["--json-object", "--regex", "a"]].concat(),
            "cannot be used with",
        ),
        (
            &vec!["bench", "plain", "--classifier", "x"],
            "--classifier is for models that make images",
        ),
        (
            &vec!["bench", "plain", "--lengths", "3"],
            "--lengths is for encoders",
        ),
        (
            &vec!["run", "plain", "--text", "x"],
            "--text is for encoders, and has no effect on a llama for text-generation: give it --prompt",
        ),
    ] {
        let outcome = shell.dlc(args);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
    for (args, expected) in [
        (
            &["run", "encoder", "--text", "x", "--temperature", "1"][..],
            "--temperature is for models that continue texts, and has no effect on a bert",
        ),
        (
            &["run", "encoder", "--text", "x", "--stop", "1"],
            "--stop is for models that continue texts",
        ),
        (
            &["bench", "encoder", "--max-tokens", "1"],
            "--max-tokens is for models that continue texts",
        ),
    ] {
        let outcome = own.dlc(args);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn prompts_that_leave_nothing_to_write_are_refused() {
    let shell = Shell::new();
    model(
        &shell,
        &[
            (
                "config.json",
                json!({"max_position_embeddings": 32, "bos_token_id": null}),
            ),
            ("generation_config.json", json!({"bos_token_id": null})),
        ],
    );
    shell.ok(&["compile", "model", "-o", "out"]);
    let run = |prompt: &str, more: &[&str]| {
        shell.dlc(
            &[
                &["run", "out", "--backend", "tract", "--prompt", prompt][..],
                more,
            ]
            .concat(),
        )
    };
    let long = run(&"word ".repeat(60), &[]);
    assert!(
        long.code == Some(2)
            && long
                .stderr
                .contains("the model's context 32: shorten the prompt"),
        "{}",
        long.transcript()
    );
    let empty = run("", &[]);
    assert!(
        empty.code == Some(2)
            && empty
                .stderr
                .contains("the prompt has no token, and the model names none"),
        "{}",
        empty.transcript()
    );
    let special = run("<|end|>", &["--max-tokens", "2", "--json"]);
    assert_eq!(
        special.json()[0]["prompt_tokens"],
        json!([0]),
        "{}",
        special.transcript()
    );
    let full = run(PROMPT, &[]);
    assert!(
        full.stderr.trim_end().ends_with("; context is full"),
        "{}",
        full.transcript()
    );
}

#[test]
fn an_empty_prompt_begins_with_the_token_that_texts_begin_with() {
    let shell = bundles();
    let outcome = shell.ok(&[
        "run",
        "plain",
        "--backend",
        "tract",
        "--prompt",
        "",
        "--max-tokens",
        "2",
        "--json",
    ]);
    assert_eq!(outcome.json()[0]["prompt_tokens"], json!([0]));
}

#[test]
fn generation_config_is_heeded_overridden_and_left_alone() {
    let shell = Shell::new();
    let case = fixture("cases/generation-repetition-penalty");
    shell.copy(&case, "model");
    let golden: Value =
        serde_json::from_slice(&fs::read(case.join("golden.json")).unwrap()).unwrap();
    shell.ok(&["compile", "model", "-o", "out"]);
    let tokens = |more: &[&str]| {
        let args = [
            "run",
            "out",
            "--backend",
            "tract",
            "--prompt",
            "Hello there",
            "--max-tokens",
            "16",
            "--json",
        ];
        shell.ok(&[&args[..], more].concat()).json()[0]["tokens"].clone()
    };
    assert_eq!(
        tokens(&["--no-generation-config"]),
        golden["without_the_key"]
    );
    assert_eq!(
        tokens(&["--repetition-penalty", "1"]),
        golden["without_the_key"]
    );
    assert_eq!(
        tokens(&["--no-generation-config", "--repetition-penalty", "1.5"]),
        golden["tokens"]
    );
    assert_eq!(
        tokens(&["--draft-tokens", "4", "--lookup", "1"]),
        golden["tokens"]
    );
}

#[test]
fn lengths_and_stop_strings_of_the_file_hold_unless_flags_say_otherwise() {
    let shell = Shell::new();
    model(
        &shell,
        &[("generation_config.json", json!({"max_length": 9}))],
    );
    shell.ok(&["compile", "model", "-o", "total"]);
    model(
        &shell,
        &[(
            "generation_config.json",
            json!({"max_length": 9, "max_new_tokens": 5}),
        )],
    );
    shell.ok(&["compile", "model", "-o", "new"]);
    let run = |bundle: &str, more: &[&str]| {
        shell
            .ok(&[
                &[
                    "run",
                    bundle,
                    "--backend",
                    "tract",
                    "--prompt",
                    PROMPT,
                    "--json",
                ][..],
                more,
            ]
            .concat())
            .json()[0]
            .clone()
    };
    let count = |record: &Value| record["tokens"].as_array().unwrap().len();
    let total = run("total", &[]);
    assert_eq!(
        count(&total) + total["prompt_tokens"].as_array().unwrap().len(),
        9,
        "{total}"
    );
    assert_eq!(
        (
            count(&run("new", &[])),
            count(&run("new", &["--max-tokens", "12"]))
        ),
        (5, 12)
    );
    let text = run("new", &[])["text"].as_str().unwrap().to_owned();
    model(
        &shell,
        &[(
            "generation_config.json",
            json!({"stop_strings": [&text[3..6]]}),
        )],
    );
    shell.ok(&["compile", "model", "-o", "stops"]);
    assert_eq!(
        run("stops", &[])["text"],
        text[..text.find(&text[3..6]).unwrap()]
    );
}

#[test]
fn sampling_that_a_file_suggests_is_named_and_used_on_demand() {
    let shell = Shell::new();
    model(
        &shell,
        &[(
            "generation_config.json",
            json!({"do_sample": true, "temperature": 1.5, "top_p": 0.9, "top_k": null}),
        )],
    );
    shell.ok(&["compile", "model", "-o", "out"]);
    let run = |more: &[&str]| {
        shell.ok(&[
            &[
                "run",
                "out",
                "--backend",
                "tract",
                "--prompt",
                PROMPT,
                "--max-tokens",
                "12",
            ][..],
            more,
        ]
        .concat())
    };
    let greedy = run(&[]);
    assert!(
        greedy.stderr.starts_with("the model suggests drawing tokens (temperature 1.5, top-k 50, top-p 0.9): --sample does"),
        "{}",
        greedy.transcript()
    );
    assert_eq!(greedy.stdout, run(&["--no-generation-config"]).stdout);
    let sampled = run(&["--sample", "--seed", "3"]);
    assert!(
        sampled.stdout != greedy.stdout && !sampled.stderr.contains("suggests"),
        "{}",
        sampled.transcript()
    );
    assert_eq!(
        sampled.stdout,
        run(&[
            "--temperature",
            "1.5",
            "--top-p",
            "0.9",
            "--top-k",
            "50",
            "--seed",
            "3",
            "--no-generation-config"
        ])
        .stdout
    );
    assert_ne!(run(&["--sample", "--seed", "4"]).stdout, sampled.stdout);
}

#[test]
fn what_of_a_generation_config_is_not_heeded_is_said_at_compile_time_and_what_is_absurd_refused() {
    let shell = Shell::new();
    model(
        &shell,
        &[(
            "generation_config.json",
            json!({"num_beams": 4, "my_key": 1, "eos_token_id": [0, 99999], "bad_words_ids": [[5]]}),
        )],
    );
    let outcome = shell.ok(&[
        "compile",
        "model",
        "--profile",
        "ort",
        "-o",
        "out",
        "--json",
    ]);
    let warnings = outcome.json()["warnings"].to_string();
    for expected in [
        "dlc doesn't heed `num_beams` (beam search), `my_key` (unknown to dlc)",
        "99999; genai_config.json leaves them out",
        "can't express bad_words_ids",
    ] {
        assert!(
            warnings.contains(expected) && warnings.matches(expected).count() == 1,
            "{warnings}"
        );
    }
    let genai: Value =
        serde_json::from_slice(&fs::read(shell.path("out/genai_config.json")).unwrap()).unwrap();
    assert_eq!(genai["model"]["eos_token_id"], 0);
    model(
        &shell,
        &[("generation_config.json", json!({"repetition_penalty": -2}))],
    );
    let refused = shell.dlc(&["compile", "model", "-o", "bad"]);
    assert!(
        refused.code == Some(2)
            && refused.stderr.contains(
                "generation_config.json: `repetition_penalty` is -2; it must be a number from"
            ),
        "{}",
        refused.transcript()
    );
}

#[test]
fn bench_decodes_plainly_and_speculatively_by_the_same_rules() {
    let shell = Shell::new();
    model(
        &shell,
        &[(
            "generation_config.json",
            json!({"repetition_penalty": 1.3, "no_repeat_ngram_size": 4, "min_new_tokens": 3}),
        )],
    );
    shell.ok(&["compile", "model", "--pass", PRUNE_TINY, "-o", "out"]);
    let report = shell
        .ok(&[
            "bench",
            "out",
            "--backend",
            "tract",
            "--max-tokens",
            "12",
            "--repeats",
            "1",
            "--json",
        ])
        .json();
    assert_eq!(
        (
            &report["different"],
            report["prompts"].as_array().unwrap().len()
        ),
        (&json!(0), 8),
        "{report}"
    );
}

/// tiny-llama with a chat template and a context of so many tokens.
fn talker(context: usize) -> Shell {
    let shell = Shell::new();
    model(
        &shell,
        &[("config.json", json!({"max_position_embeddings": context}))],
    );
    shell.write("model/chat_template.jinja", TEMPLATE);
    shell.ok(&["compile", "model", "-o", "out"]);
    shell
}

#[test]
fn a_conversation_passes_over_empty_lines_and_says_which_answers_are_cut() {
    let shell = talker(512);
    let input = [
        b"hello\n\n   \n".to_vec(),
        vec![b'x'; (1 << 20) + 1],
        b"\n\xFF\nagain".to_vec(),
    ]
    .concat();
    let outcome = with_input(
        &shell,
        &[
            "run",
            "out",
            "--backend",
            "tract",
            "--chat",
            "--max-tokens",
            "6",
            "--jsonl",
        ],
        &input,
    );
    let records = lines(&outcome);
    assert_eq!(
        records
            .iter()
            .map(|r| r["prompt"].clone())
            .collect::<Vec<_>>(),
        [json!("hello"), json!("again")],
        "{}",
        outcome.transcript()
    );
    for expected in [
        "too long, and was passed over",
        "isn't UTF-8 text, and was passed over",
        "(cut at 6 tokens; --max-tokens sets how many)",
    ] {
        assert!(
            outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn the_oldest_turns_leave_a_conversation_that_fills_the_context_and_the_system_stays() {
    let shell = talker(64);
    let long = "many words ".repeat(60);
    let input = format!("one\ntwo\nthree\nfour\nfive\n{long}\nsix\n");
    let args = [
        "run",
        "out",
        "--backend",
        "tract",
        "--chat",
        "--system",
        "Be brief",
        "--max-tokens",
        "8",
        "--jsonl",
    ];
    let outcome = with_input(&shell, &args, input.as_bytes());
    let records = lines(&outcome);
    assert_eq!(records.len(), 6, "{}", outcome.transcript());
    assert!(
        records
            .iter()
            .all(|r| r["prompt_tokens"].as_array().unwrap().len() + 8 <= 64),
        "{}",
        outcome.transcript()
    );
    let first = |record: &Value| record["prompt_tokens"].as_array().unwrap()[..4].to_vec();
    assert_eq!(first(&records[0]), first(&records[5]));
    // What was too long took nothing with it.
    let length = |record: &Value| record["prompt_tokens"].as_array().unwrap().len();
    assert!(
        length(&records[5]) > length(&records[0]),
        "{}",
        outcome.transcript()
    );
    for expected in ["turn was dropped)", "and the model takes 64: say less)"] {
        assert!(
            outcome.stderr.contains(expected),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn an_interrupted_answer_leaves_the_conversation_going() {
    let shell = talker(100_000);
    let args = [
        "run",
        "out",
        "--backend",
        "tract",
        "--chat",
        "--min-tokens",
        "20000",
        "--max-tokens",
        "20000",
        "--no-lookup",
    ];
    let mut child = shell
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let interrupt = || {
        assert!(
            Command::new("sh")
                .args(["-c", &format!("kill -INT {}", child.id())])
                .status()
                .unwrap()
                .success()
        );
    };
    stdin.write_all(b"hello\n").unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap();
    interrupt();
    let mut line = String::new();
    while !line.contains("(stopped)") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
    }
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_array_of_answers_is_printed_when_ctrl_c_ends_the_conversation() {
    let shell = talker(512);
    let mut args = vec!["run", "out", "--backend", "tract", "--chat", "--json"];
    args.extend(["--max-tokens", "6"]);
    let mut child = shell
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    for said in ["hello", "again"] {
        writeln!(stdin, "{said}").unwrap();
        let mut line = String::new();
        while !line.contains("(cut at 6 tokens") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
        }
    }
    // It waits for the next line, or is about to.
    let kill = format!("kill -INT {}", child.id());
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let outcome = shell.outcome(&args, &child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.transcript());
    let said: Vec<Value> = outcome
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["prompt"].clone())
        .collect();
    assert_eq!(said, ["hello", "again"], "{}", outcome.transcript());
    drop(stdin);
}

#[test]
fn a_text_has_the_form_that_is_asked_for_with_a_draft_as_without() {
    let shell = bundles();
    shell.write(
        "schema.json",
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["name", "age"], "additionalProperties": false}"#,
    );
    shell.write(
        "list.lark",
        "start: NAME (\", \" NAME){1,2} \"!\"\nNAME: /[A-Z][a-z]{1,4}/\n",
    );
    let base = [
        "run",
        "onnx",
        "--prompt",
        "Who is it?",
        "--no-echo",
        "--max-tokens",
        "60",
    ];
    let write = |more: &[&str]| shell.ok(&[&base[..], more].concat()).stdout;
    for more in [
        &["--json-schema", "schema.json"][..],
        &["--regex", "(yes|no){2,3}\\."],
        &["--grammar", "list.lark"],
    ] {
        let text = write(more);
        let plain = write(&[more, &["--no-draft", "--no-lookup"]].concat());
        assert_eq!(text, plain);
        // Guesses go on behind the end of the text.
        let far = write(&[more, &["--draft-tokens", "8", "--no-lookup"]].concat());
        assert_eq!(far, plain);
        assert!(text.trim_end().ends_with(['}', '.', '!']), "{text}");
    }
    let short = &["--regex", "[a-z]{1,3}", "--draft-tokens", "8"];
    assert!((1..=4).contains(&write(short).len()));
    let said: serde_json::Value = serde_json::from_str(&write(&[
        "--json-schema",
        "schema.json",
        "--temperature",
        "1.2",
    ]))
    .unwrap();
    assert!(said["age"].as_u64().unwrap() < 100 && said["name"].is_string());
    assert!(write(&["--json-object"]).starts_with('{'));
}
