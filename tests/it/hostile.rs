//! Chat templates and tokenizers that are made to do harm, or broken: warned of when compiling,
//! refused by their file's name when used.

use std::fs;

use crate::command::Shell;
use crate::common::fixture;

/// Compiles tiny-llama with `file` of a case as `name`, says what of it was warned of, and runs it
/// with `flags`.
fn check(case: &str, file: &str, name: &str, flags: &[&str]) {
    let shell = Shell::new();
    shell.copy(&fixture("tiny-llama"), "model");
    shell.write(
        &format!("model/{name}"),
        fs::read(fixture(&format!("cases/{case}/{file}"))).unwrap(),
    );
    let compiled = shell.ok(&["compile", "model", "-o", "out", "--json"]);
    let warnings = compiled.json()["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|warning| warning.as_str().unwrap().contains(name))
        .count();
    assert_eq!(warnings, 1, "{}", compiled.transcript());
    assert!(
        compiled.stderr.contains("warning: ") && compiled.stderr.contains("won't work"),
        "{}",
        compiled.transcript()
    );
    let run = shell.dlc(
        &[
            &["run", "out", "--backend", "tract", "--max-tokens", "1"],
            flags,
        ]
        .concat(),
    );
    assert!(
        run.code == Some(2) && run.stderr.contains(name) && !run.stderr.contains("panicked"),
        "{}",
        run.transcript()
    );
}

#[test]
fn hostile_templates_are_refused() {
    for case in [
        "attack-template-deep",
        "attack-template-deep-data",
        "attack-template-memory",
    ] {
        check(
            case,
            "t.jinja",
            "chat_template.jinja",
            &["--chat", "--prompt", "hi"],
        );
    }
}

#[test]
fn hostile_tokenizers_are_refused() {
    for case in [
        "bpe-prefix",
        "charsmap",
        "charsmap-units",
        "fixed0",
        "post-sequence",
        "template",
    ] {
        check(
            &format!("attack-tokenizer-{case}"),
            "t.json",
            "tokenizer.json",
            &["--prompt", "aaaa hi"],
        );
    }
}

#[test]
fn what_will_not_work_is_said_when_compiling() {
    let warnings = |files: &[(&str, &str)]| {
        let shell = Shell::new();
        shell.copy(&fixture("tiny-llama"), "model");
        for (name, content) in files {
            shell.write(&format!("model/{name}"), content);
        }
        let compiled = shell
            .ok(&["compile", "model", "-o", "out", "--json"])
            .json();
        compiled["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|warning| warning.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    for (files, expected) in [
        (
            &[("tokenizer.json", "{}")][..],
            "`dlc run` and calibration with text won't work",
        ),
        (
            &[("chat_template.jinja", "{% if %}")],
            "`dlc run --chat` won't work",
        ),
        (
            &[("chat_template.jinja", "{{ messages | nosuchfilter }}")],
            "nosuchfilter",
        ),
        (
            &[(
                "chat_template.jinja",
                "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}",
            )],
            "answers only once",
        ),
        (
            &[
                ("chat_template.jinja", "x"),
                ("additional_chat_templates/rag.jinja", "y"),
            ],
            "`rag` aren't heeded",
        ),
        (&[("tokenizer_config.json", "{")], "tokenizer_config.json"),
        (
            &[("tokenizer_config.json", r#"{"add_prefix_space": true}"#)],
            "`add_prefix_space: true` isn't heeded",
        ),
    ] {
        let found = warnings(files);
        assert!(found.contains(expected), "{files:?}: {found}");
    }
    assert_eq!(
        warnings(&[(
            "chat_template.jinja",
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        )]),
        ""
    );
}

#[test]
fn a_template_in_a_folder_of_templates_or_of_a_processor_is_used() {
    for (name, content) in [
        (
            "additional_chat_templates/default.jinja",
            "{{ messages[0].content }}",
        ),
        (
            "chat_template.json",
            r#"{"chat_template": "{{ messages[0].content }}"}"#,
        ),
    ] {
        let shell = Shell::new();
        shell.copy(&fixture("tiny-llama"), "model");
        shell.write(&format!("model/{name}"), content);
        shell.ok(&["compile", "model", "-o", "out"]);
        let plain = shell
            .ok(&[
                "run",
                "out",
                "--backend",
                "tract",
                "--prompt",
                "God",
                "--max-tokens",
                "1",
                "--json",
            ])
            .json();
        let chat = shell
            .ok(&[
                "run",
                "out",
                "--backend",
                "tract",
                "--chat",
                "--prompt",
                "God",
                "--max-tokens",
                "1",
                "--json",
            ])
            .json();
        assert!(
            !chat[0]["prompt_tokens"].as_array().unwrap().is_empty()
                && plain[0]["prompt_tokens"]
                    .as_array()
                    .unwrap()
                    .ends_with(chat[0]["prompt_tokens"].as_array().unwrap()),
            "{chat}"
        );
    }
}
