//! `dlc compile`: the same input gives the same bytes, however it is asked for; scores are reused;
//! names are found.

use std::fs;

use crate::command::{PRUNE_GOLDEN, PRUNE_TINY, Shell, assert_same_files};
use crate::common::fixture;

#[test]
fn a_pipeline_file_and_flags_give_the_same_bundle() {
    let shell = Shell::new();
    let flags = [
        "compile",
        "fixtures/tiny-llama",
        "--pass",
        PRUNE_TINY,
        "--profile",
        "ort",
        "--dtype",
        "f16",
        "-o",
        "a",
    ];
    shell.ok(&flags);
    shell.write(
        "pipeline.yaml",
        "model: fixtures/tiny-llama\npasses:\n- fit-prune: {drop: 4, samples: 1, length: 32}\nprofile: ort\ndtype: f16\noutput: b\nthreads: 1\n",
    );
    assert_eq!(
        shell.ok(&["compile", "--config", "pipeline.yaml"]).stdout,
        "b\n"
    );
    assert_same_files(&shell.path("a"), &shell.path("b"));
}

#[test]
fn flags_decide_over_the_pipeline_file() {
    let shell = Shell::new();
    shell.write(
        "pipeline.yaml",
        "model: nowhere\npasses: [fit-prune]\nprofile: ort\ndtype: bf16\noutput: a\n",
    );
    let model = "fixtures/goldens/llama";
    let common = [
        "--profile",
        "portable",
        "--dtype",
        "f32",
        "--pass",
        PRUNE_GOLDEN,
    ];
    shell.ok(&[
        &["compile", "--config", "pipeline.yaml", model, "-o", "b"][..],
        &common,
    ]
    .concat());
    shell.ok(&[&["compile", model, "-o", "c"][..], &common].concat());
    assert_same_files(&shell.path("b"), &shell.path("c"));
    assert!(!shell.path("a").exists());
    // `--deploy` implies a profile, and that is a flag too.
    shell.ok(&[
        "compile",
        "--config",
        "pipeline.yaml",
        model,
        "--deploy",
        "tract",
        "--dtype",
        "f32",
        "--pass",
        PRUNE_GOLDEN,
        "-o",
        "d",
    ]);
    assert_same_files(&shell.path("b"), &shell.path("d"));
}

#[test]
fn groups_of_mixed_bits_are_larger_where_the_budget_demands_it() {
    let shell = Shell::new();
    // 4 bits in groups of 32 take a little more than 5.125 bits a weight, without zero points 5.
    for (budget, larger) in [
        ("budget=5.2", false),
        ("budget=5,symmetric=true", false),
        ("budget=5", true),
        ("budget=4.5", true),
    ] {
        let pass =
            format!("quantize:bits=mixed,{budget},method=rtn,compare=false,samples=2,length=16");
        let compiled = shell.ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            &pass,
            "-o",
            "mixed",
            "--force",
            "--json",
        ]);
        let report = &compiled.json()["passes"][0]["report"];
        let (bits, size) = [&report["bits"], &report["bits per weight"]]
            .map(|fact| fact.as_str().unwrap_or_default().to_owned())
            .into();
        assert_eq!(bits.contains("groups of 128"), larger, "{budget}: {bits}");
        let size: f64 = size.split(' ').next().unwrap().parse().unwrap();
        let most: f64 = budget["budget=".len()..]
            .split(',')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(size <= most + 0.005, "{budget}: {size}");
    }
}

#[test]
fn bytes_depend_neither_on_threads_nor_on_the_run() {
    let shell = Shell::new();
    for (model, pass) in [
        (
            "tiny-llama",
            "fit-prune:drop=4,samples=2,length=24,score=fit+cosine+kl",
        ),
        ("goldens/qwen3", PRUNE_GOLDEN),
    ] {
        for (out, threads) in [("one", "1"), ("two", "2"), ("again", "2")] {
            let model = format!("fixtures/{model}");
            shell.ok(&[
                "compile",
                &model,
                "--pass",
                pass,
                "--no-cache",
                "--threads",
                threads,
                "-o",
                out,
                "--force",
            ]);
        }
        for out in ["two", "again"] {
            assert_same_files(&shell.path("one"), &shell.path(out));
        }
    }
}

#[test]
fn scores_are_taken_from_the_cache_unless_told_otherwise() {
    let shell = Shell::new();
    let compile = |out: &str, pass: &str, more: &[&str]| {
        let outcome = shell.ok(&[
            &[
                "compile",
                "fixtures/goldens/llama",
                "--pass",
                pass,
                "-o",
                out,
            ][..],
            more,
        ]
        .concat());
        match (
            outcome.stderr.contains("scores: computed"),
            outcome.stderr.contains("scores: reused from the cache"),
        ) {
            (true, false) => "computed",
            (false, true) => "reused",
            _ => panic!("{}", outcome.transcript()),
        }
    };
    assert_eq!(compile("a", PRUNE_GOLDEN, &[]), "computed");
    assert_eq!(compile("b", PRUNE_GOLDEN, &[]), "reused");
    assert_eq!(compile("c", PRUNE_GOLDEN, &["--profile", "onnx"]), "reused");
    assert_eq!(compile("d", PRUNE_GOLDEN, &["--no-cache"]), "computed");
    // How many are dropped doesn't change the scores; data, kind of score and element type do.
    assert_eq!(
        compile("e", &PRUNE_GOLDEN.replace("drop=2", "drop=1"), &[]),
        "reused"
    );
    assert_eq!(
        compile(
            "f",
            &PRUNE_GOLDEN.replace("drop=2", "drop=2,samples=2"),
            &[]
        ),
        "computed"
    );
    assert_eq!(
        compile("g", &PRUNE_GOLDEN.replace("drop=2", "drop=2,score=kl"), &[]),
        "computed"
    );
    assert_eq!(compile("h", PRUNE_GOLDEN, &["--dtype", "f16"]), "computed");
    // A damaged cache is computed anew.
    for (name, _) in crate::command::contents(&shell.path(".env/cache/dlc")) {
        shell.write(&format!(".env/cache/dlc/{name}"), "{\"units\":");
    }
    assert_eq!(compile("i", PRUNE_GOLDEN, &[]), "computed");
    assert_eq!(compile("j", PRUNE_GOLDEN, &[]), "reused");
}

#[test]
fn a_bundle_is_the_same_whether_scores_were_computed_or_reused() {
    let shell = Shell::new();
    for out in ["computed", "reused"] {
        shell.ok(&[
            "compile",
            "fixtures/goldens/llama",
            "--pass",
            PRUNE_GOLDEN,
            "-o",
            out,
        ]);
    }
    assert_same_files(&shell.path("computed"), &shell.path("reused"));
}

#[test]
fn a_file_in_the_current_folder_makes_a_bundle_named_after_the_folder() {
    let shell = Shell::new();
    shell.copy(&fixture("tiny-llama"), "my-model");
    let mut command = shell.command(&["compile", "--pass", "fit-prune", "model.safetensors"]);
    let outcome = shell.outcome(
        &["compile"],
        &command
            .current_dir(shell.path("my-model"))
            .output()
            .unwrap(),
    );
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "my-model-dlc\n"),
        "{}",
        outcome.transcript()
    );
    let files: Vec<String> = crate::command::contents(&shell.path("my-model/my-model-dlc"))
        .into_iter()
        .map(|f| f.0)
        .collect();
    assert!(
        ["model.onnx", "draft.onnx", "weights.bin", "dlc.yaml"]
            .iter()
            .all(|f| files.iter().any(|x| x == f)),
        "{files:?}"
    );
    // A folder is named without its slash.
    assert_eq!(shell.ok(&["compile", "my-model/"]).stdout, "my-model-dlc\n");
}

#[test]
fn a_missing_tokenizer_is_warned_of_in_words_and_in_json_and_not_in_the_manifest() {
    let shell = Shell::new();
    let warning = "no tokenizer.json: `dlc run` and calibration with text won't work; put it beside config.json";
    let outcome = shell.ok(&["compile", "fixtures/goldens/llama", "-o", "out", "--json"]);
    assert_eq!(
        outcome.json()["warnings"],
        serde_json::json!([warning]),
        "{}",
        outcome.transcript()
    );
    assert_eq!(
        outcome
            .stderr
            .matches(&format!("warning: {warning}\n"))
            .count(),
        1,
        "{}",
        outcome.transcript()
    );
    assert!(
        !std::fs::read_to_string(shell.path("out/dlc.yaml"))
            .unwrap()
            .contains("warning")
    );
    let outcome = shell.ok(&["compile", "fixtures/tiny-llama", "-o", "whole", "--json"]);
    assert_eq!(
        (
            outcome.json()["warnings"].clone(),
            outcome.stderr.contains("warning")
        ),
        (serde_json::json!([]), false),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn what_nothing_here_can_run_is_warned_of() {
    let shell = Shell::new();
    // The harness hides every library; only tract is left.
    for (flags, warned) in [
        (&["--profile", "ort"][..], true),
        (&["--profile", "onnx"], false),
        (&["--dtype", "f16"], false),
    ] {
        let outcome = shell.ok(&[
            &[
                "compile",
                "fixtures/tiny-llama",
                "--force",
                "-o",
                "out",
                "--json",
            ],
            flags,
        ]
        .concat());
        let found = outcome.json()["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w.as_str().unwrap().starts_with("nothing here can run"));
        assert_eq!(
            (found, outcome.stderr.contains("nothing here can run")),
            (warned, warned),
            "{flags:?}: {}",
            outcome.transcript()
        );
    }
    let bf16 = shell.ok(&[
        "compile",
        "fixtures/tiny-llama",
        "--dtype",
        "bf16",
        "-o",
        "bf16",
    ]);
    let gpu = std::path::Path::new("/dev/nvidiactl").exists();
    assert_eq!(
        bf16.stderr
            .contains("nothing here can run the bundle: neither"),
        !gpu,
        "{}",
        bf16.transcript()
    );
}

#[test]
fn calibration_on_a_single_sample_is_warned_of() {
    let shell = Shell::new();
    shell.write(
        "one.txt",
        "In the beginning God created the heaven and the earth.",
    );
    shell.write("two.txt", "In the beginning God created the heaven and the earth.\n\nAnd the earth was without form, and void.");
    for (file, warned) in [("one.txt", true), ("two.txt", false)] {
        let pass = format!("fit-prune:drop=2,calibration={file}");
        let outcome = shell.ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            &pass,
            "--force",
            "-o",
            "out",
        ]);
        assert_eq!(
            outcome.stderr.contains("one.txt holds one sample, of "),
            warned,
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn calibration_that_is_asked_to_be_a_single_sample_is_warned_of() {
    let shell = Shell::new();
    for (pass, warned) in [
        ("fit-prune:drop=2,samples=1", true),
        ("fit-prune:drop=2,samples=2,length=16", false),
    ] {
        let outcome = shell.ok(&[
            "compile",
            "fixtures/tiny-llama",
            "--pass",
            pass,
            "--force",
            "-o",
            "out",
        ]);
        assert_eq!(
            outcome
                .stderr
                .contains("samples=1 asks for one sample, of "),
            warned,
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn a_folder_does_not_go_to_stdout() {
    let shell = Shell::new();
    shell.write(
        "pipeline.yaml",
        "model: fixtures/goldens/llama\noutput: '-'\n",
    );
    let model = "fixtures/goldens/llama";
    let commands: [&[&str]; 6] = [
        &["compile", model, "-o", "-"],
        &["compile", model, "-o", "/dev/stdout"],
        &["compile", "--config", "pipeline.yaml"],
        &["compile", model, "-o", "out", "--state", "-"],
        &[
            "merge",
            model,
            "--adapter",
            "fixtures/adapters/lora-llama/adapter",
            "-o",
            "-",
        ],
        &["demo", "-o", "-"],
    ];
    for args in commands {
        let outcome = shell.dlc(args);
        assert!(
            outcome.code == Some(2) && outcome.stderr.contains("is stdout, where no folder can go"),
            "{}",
            outcome.transcript()
        );
    }
    assert_eq!(shell.listing(), ["pipeline.yaml"]);
    shell.ok(&["compile", model, "-o", "./-"]);
    shell.ok(&["verify", "./-", "--backend", "tract"]);
}

#[test]
fn the_next_step_that_is_offered_works() {
    let shell = Shell::new();
    let next = |args: &[&str]| {
        let outcome = shell.ok(&[&["compile", "model", "--force", "-o", "out"], args].concat());
        let last = outcome.stderr.lines().last().unwrap_or_default();
        last.rsplit("; ").next().unwrap_or_default().to_owned()
    };
    shell.copy(&fixture("tiny-llama"), "model");
    assert_eq!(next(&[]), "try it: dlc run out --prompt \"...\"");
    // Nothing in this shell runs these.
    assert_eq!(next(&["--profile", "ort"]), "look at it: dlc inspect out");
    assert_eq!(next(&["--dtype", "bf16"]), "look at it: dlc inspect out");
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    shell.write("model/chat_template.jinja", template);
    assert_eq!(next(&[]), "try it: dlc run out --chat");
    shell.write("model/chat_template.jinja", "{{ raise_exception('no') }}");
    assert_eq!(next(&[]), "try it: dlc run out --prompt \"...\"");
    shell.write("model/chat_template.jinja", template);
    shell.write("model/tokenizer.json", "{}");
    assert_eq!(next(&[]), "check it: dlc verify out");
}

#[test]
fn what_json_files_say_twice_and_what_nobody_heeds_is_named() {
    const KEY: &str = "truncation";
    let shell = Shell::new();
    shell.copy(&fixture("tiny-llama"), "model");
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let path = shell.path(&format!("model/{file}"));
        let text = fs::read_to_string(&path).unwrap_or_else(|_| "{\"a\": 1}".into());
        let text = text.trim_end().strip_suffix('}').unwrap().to_owned();
        shell.write(
            &format!("model/{file}"),
            format!("{text}, \"{KEY}\": null, \"{KEY}\": null}}"),
        );
    }
    shell.write("model/added_tokens.json", "{\"<frob>\": 99999}");
    let outcome = shell.dlc(&["compile", "model", "-o", "out"]);
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let warning = format!(
            "warning: {file}: keys that stand there more than once, of which the last counts: `{KEY}`"
        );
        assert!(
            outcome.stderr.contains(&warning),
            "{file}\n{}",
            outcome.transcript()
        );
    }
    assert!(
        outcome.stderr.contains("added_tokens.json: not heeded, as tokenizer.json decides and doesn't have them so: `<frob>`"),
        "{}",
        outcome.transcript()
    );
}
