//! `dlc score`: the files of all shards make the bundle that one run makes, and what isn't such a
//! file is refused by its name.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::{Shell, assert_same_files, snapshot};
use crate::common::decoding::HALF_AT_8_BITS;
use crate::common::fixture;

const QUICK: &str = "fit-prune:drop=4,samples=3,length=24";

/// Scores every shard, the last one first, into `NAME-I.safetensors`.
fn score(shell: &Shell, name: &str, count: usize, flags: &[&str]) -> Vec<String> {
    let part = |number: usize| {
        let (shard, file) = (
            format!("{number}/{count}"),
            format!("{name}-{number}.safetensors"),
        );
        shell.ok(&[&["score"], flags, &["--shard", &shard, "-o", &file]].concat());
        file
    };
    (1..=count).rev().map(part).collect()
}

/// Compiles with the scores of these files.
fn compile<'a>(flags: &[&'a str], parts: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let parts = parts.iter().map(String::as_str);
    let scores = ["--scores"].into_iter().chain(parts);
    ["compile"]
        .into_iter()
        .chain(flags.iter().copied())
        .chain(scores)
        .chain(more.iter().copied())
        .collect()
}

#[test]
fn shards_make_the_bundle_of_one_run() {
    let shell = Shell::new();
    shell.write("costs.yaml", HALF_AT_8_BITS);
    let cases: [(&str, &[&str]); 5] = [
        (
            "encoder",
            &[
                "fixtures/goldens/bert-classifier",
                "--pass",
                "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl,samples=3",
            ],
        ),
        ("fit", &["fixtures/tiny-llama", "--pass", QUICK]),
        (
            "kl",
            &[
                "fixtures/tiny-llama",
                "--pass",
                "fit-prune:granularity=branch,score=kl+fit-elementwise+trace,samples=3,length=24",
            ],
        ),
        (
            "adapter",
            &[
                "fixtures/adapters/lora-llama",
                "--adapter",
                "fixtures/adapters/lora-llama/adapter=0.5",
                "--pass",
                "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl,samples=3",
            ],
        ),
        (
            "auto",
            &[
                "fixtures/tiny-llama",
                "--pass",
                "auto-draft:samples=6,length=24,candidates=1,costs=costs.yaml",
            ],
        ),
    ];
    for (name, flags) in cases {
        let whole = format!("{name}-whole");
        shell.ok(&[&["compile"], flags, &["--no-cache", "-o", &whole]].concat());
        for count in [1, 2, 3] {
            let parts = score(&shell, &format!("{name}-{count}"), count, flags);
            let out = format!("{name}-{count}");
            let outcome = shell.ok(&compile(flags, &parts, &["-o", &out]));
            assert_same_files(&shell.path(&whole), &shell.path(&out));
            let noted = outcome.stderr.contains("scores: computed in shards");
            assert_eq!(noted, name != "auto", "{}", outcome.transcript());
        }
    }
}

#[test]
fn a_shard_is_the_same_file_with_a_cache_and_without() {
    let shell = Shell::new();
    let args = ["score", "fixtures/tiny-llama", "--pass", QUICK, "-o"];
    let run = |more: &[&str]| shell.ok(&[&args[..], more].concat());
    run(&["a.safetensors"]);
    run(&["b.safetensors", "--no-cache", "--threads", "1"]);
    let json = run(&["c.safetensors", "--state", "state", "--json"]).json();
    assert_eq!(json["shard"], "1/1");
    assert_eq!(
        (&json["shard_samples"], &json["samples"]),
        (&3.into(), &3.into())
    );
    let read = |name: &str| fs::read(shell.path(name)).unwrap();
    assert_eq!(read("a.safetensors"), read("b.safetensors"));
    assert_eq!(read("a.safetensors"), read("c.safetensors"));
    let again = shell.dlc(&[&args[..], &["a.safetensors"]].concat());
    snapshot!("exists", again.transcript());
    run(&["a.safetensors", "--force"]);
    let raw = shell
        .command(&[&args[..], &["-"]].concat())
        .output()
        .unwrap();
    assert_eq!(raw.stdout, read("a.safetensors"));
}

#[test]
fn scores_that_are_no_whole_or_of_something_else_are_refused() {
    let shell = Shell::new();
    let tiny = ["fixtures/tiny-llama", "--pass", QUICK];
    score(&shell, "two", 2, &tiny);
    score(&shell, "three", 3, &tiny);
    score(&shell, "one", 1, &tiny);
    let other = [
        "fixtures/tiny-llama",
        "--pass",
        "fit-prune:samples=3,length=20",
    ];
    score(&shell, "short", 2, &other);
    let golden = [
        "fixtures/goldens/llama",
        "--pass",
        "fit-prune:calibration=fixtures/calibration-tokens.jsonl,samples=3",
    ];
    score(&shell, "golden", 1, &golden);
    let cases: [(&[&str], &[&str]); 13] = [
        (&tiny, &["two-1"]),
        (&tiny, &["three-1", "three-3"]),
        (&tiny, &["two-1", "two-2", "two-1"]),
        (&tiny, &["two-1", "three-2"]),
        (&tiny, &["two-1", "short-2"]),
        (&tiny, &["golden-1"]),
        (&other, &["two-1", "two-2"]),
        (
            &["fixtures/tiny-llama", "--pass", "fit-prune:samples=2"],
            &["one-1"],
        ),
        (
            &["fixtures/tiny-llama", "--dtype", "f16", "--pass", QUICK],
            &["one-1"],
        ),
        (
            &["fixtures/tiny-llama", "--pass", "auto-draft"],
            &["nowhere"],
        ),
        (
            &["fixtures/tiny-llama", "--pass", "fit-prune:score=kl"],
            &["one-1"],
        ),
        (&["fixtures/tiny-llama", "--pass", "quantize"], &["one-1"]),
        (&["fixtures/tiny-llama"], &["one-1"]),
    ];
    let mut transcripts = String::new();
    for (flags, parts) in cases {
        let parts: Vec<String> = parts.iter().map(|p| format!("{p}.safetensors")).collect();
        let outcome = shell.dlc(&compile(flags, &parts, &["-o", "out"]));
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        transcripts += &(outcome.transcript() + "\n");
    }
    for flags in [
        &["--pass", QUICK, "--shard", "1/4"][..],
        &["--pass", QUICK, "--shard", "3/2"],
        &["--pass", "quantize"],
        &["--pass", "fit-prune:drop=99"],
    ] {
        let base = ["score", "fixtures/tiny-llama", "-o", "x.safetensors"];
        let outcome = shell.dlc(&[&base, flags].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.transcript());
        transcripts += &(outcome.transcript() + "\n");
    }
    assert!(!shell.path("out").exists() && !shell.path("x.safetensors").exists());
    snapshot!("refused", transcripts);
}

#[test]
fn the_job_of_the_example_scores_every_shard() {
    let shell = Shell::new();
    shell.copy(&fixture("tiny-llama"), "model");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/score_kubernetes.yaml");
    let job: serde_yaml::Value =
        serde_yaml::from_str(&fs::read_to_string(example).unwrap()).unwrap();
    let script = &job["spec"]["template"]["spec"]["containers"][0]["args"][0];
    let quick = "fit-prune:samples=4,length=16";
    let script = script.as_str().unwrap().replace("/data", ".");
    let script = script.replace("fit-prune:samples=64", quick);
    let pods = job["spec"]["completions"].as_u64().unwrap();
    let dlc = Path::new(env!("CARGO_BIN_EXE_dlc"));
    for index in 0..pods {
        let (own, mut pod) = (shell.command(&[]), Command::new("/bin/sh"));
        let variables = own.get_envs().filter_map(|(k, v)| Some((k, v?)));
        pod.args(["-c", &script]).env_clear().envs(variables);
        pod.env("PATH", dlc.parent().unwrap())
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .current_dir(own.get_current_dir().unwrap());
        let output = pod.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }
    let parts: Vec<String> = (1..=pods)
        .map(|number| format!("part-{number}.safetensors"))
        .collect();
    shell.ok(&compile(
        &["model", "--pass", quick],
        &parts,
        &["-o", "out"],
    ));
}

/// Makes something else of a file's bytes.
type Damage = fn(Vec<u8>) -> Vec<u8>;

/// The bytes with the first `old` replaced by `new`, which is as long.
fn replaced(mut bytes: Vec<u8>, old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {old}"));
    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
    bytes
}

/// The bytes with the last sum replaced.
fn with_sum(mut bytes: Vec<u8>, sum: f64) -> Vec<u8> {
    let at = bytes.len() - 16;
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn files_of_scores_may_come_from_anyone() {
    let shell = Shell::new();
    let tiny = ["fixtures/tiny-llama", "--pass", QUICK];
    score(&shell, "part", 2, &tiny);
    let good = fs::read(shell.path("part-1.safetensors")).unwrap();
    let cases: [(Damage, &str); 17] = [
        (|_| vec![], "no whole safetensors file"),
        (|b| b[..b.len() / 2].to_vec(), "no whole safetensors file"),
        (|b| b[..b.len() - 1].to_vec(), "no whole safetensors file"),
        (
            |b| [&[0xff; 8], &b[8..]].concat(),
            "no whole safetensors file",
        ),
        (
            |b| [&b[..8], &vec![b'{'; b.len()]].concat(),
            "no whole safetensors file",
        ),
        (
            |b| replaced(b, "[0,32]", "[0,99]"),
            "no whole safetensors file",
        ),
        (
            |_| fs::read(fixture("tiny-llama/model.safetensors")).unwrap(),
            "no file of scores",
        ),
        (
            |b| replaced(b, "dlc.scores", "dlc.stores"),
            "no file of scores",
        ),
        (
            |b| replaced(b, r#"\"model\""#, r#"\"medol\""#),
            "no file of scores",
        ),
        (
            |b| replaced(b, r#"\"format\":1"#, r#"\"format\":9"#),
            "has format 9",
        ),
        (
            |b| replaced(b, r#"\"1/2\""#, r#"\"7/2\""#),
            "is of shard `7/2`, which there isn't",
        ),
        (|b| replaced(b, r#""F64""#, r#""I64""#), "not F64"),
        (|b| replaced(b, "[2,2]", "[4,1]"), "not [numbers, 2]"),
        (
            |b| replaced(b, "layers.0.attn/", "layers.0.ettn/"),
            "layers.0.ettn/",
        ),
        (|b| with_sum(b, f64::NAN), "holds NaN"),
        (|b| with_sum(b, f64::INFINITY), "holds inf"),
        (|b| with_sum(b, -1.0), "holds -1"),
    ];
    for (damage, expected) in cases {
        shell.write("bad.safetensors", damage(good.clone()));
        let parts = [
            "part-2.safetensors".to_owned(),
            "bad.safetensors".to_owned(),
        ];
        let outcome = shell.dlc(&compile(&tiny, &parts, &["-o", "out"]));
        let refused = outcome.code == Some(2)
            && outcome.stderr.contains("error: bad.safetensors: ")
            && outcome.stderr.contains(expected);
        assert!(refused, "{expected}\n{}", outcome.transcript());
        assert!(!shell.path("out").exists());
    }
}
