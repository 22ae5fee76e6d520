//! `dlc compile --dry-run` refuses what compiling refuses, as far as options and shapes tell.

use crate::command::{Outcome, PRUNE_GOLDEN, Shell};

const LLAMA: &str = "fixtures/goldens/llama";

/// The command, with and without `--dry-run`.
fn both(shell: &Shell, args: &[&str]) -> [Outcome; 2] {
    let command = [&["compile"], args, &["-o", "out"]].concat();
    [
        shell.dlc(&[&command[..], &["--dry-run"]].concat()),
        shell.dlc(&command),
    ]
}

fn error(outcome: &Outcome) -> &str {
    let at = outcome.stderr.find("error: ");
    at.map_or("", |at| &outcome.stderr[at..])
}

#[test]
fn what_a_pass_refuses_by_shape_is_refused_without_running_it() {
    let shell = Shell::new();
    shell.copy(
        &crate::common::fixture("goldens/unet-ddpm"),
        "pipeline/unet",
    );
    shell.write(
        "pipeline/scheduler/scheduler_config.json",
        r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}"#,
    );
    let drop = "fit-prune:drop=99,calibration=fixtures/calibration-tokens.jsonl";
    let trim = "trim-head:tokens=999999,calibration=fixtures/calibration-tokens.jsonl";
    let mut wrong = String::new();
    let commands: [&[&str]; 19] = [
        &[LLAMA, "--pass", drop],
        &[LLAMA, "--pass", "fit-prune:keep=1"],
        &[LLAMA, "--pass", "fit-prune:protect_first=9"],
        &[LLAMA, "--pass", PRUNE_GOLDEN, "--pass", PRUNE_GOLDEN],
        &[LLAMA, "--pass", "trim-head"],
        &[LLAMA, "--pass", PRUNE_GOLDEN, "--pass", trim],
        &[LLAMA, "--pass", "quantize-draft:blocks=nowhere"],
        &[
            LLAMA,
            "--pass",
            "quantize-draft",
            "--pass",
            "quantize-draft",
        ],
        &[LLAMA, "--pass", "auto-draft", "--dtype", "f16"],
        &[LLAMA, "--pass", "quantize", "--dtype", "f16"],
        &[LLAMA, "--pass", "quantize-draft", "--dtype", "f16"],
        &[LLAMA, "--pass", "quantize-draft:refine=none"],
        &[LLAMA, "--pass", "merge-adapter"],
        &[LLAMA, "--adapter", "fixtures/adapters/lora-gpt2/adapter"],
        &[LLAMA, "--pass", "skip:interval=2"],
        &["fixtures/goldens/bert", "--pass", "auto-draft"],
        &["pipeline", "--pass", "skip:interval=2,guidance=2"],
        &["pipeline", "--pass", "skip:interval=2,scheduler=frob"],
        &["fixtures/digits-dit", "--pass", "dip-go:loss=ssim"],
    ];
    for args in commands {
        let [dry, real] = both(&shell, args);
        let same = dry.code == real.code && error(&dry) == error(&real);
        if !same || !matches!(real.code, Some(2 | 3)) || !dry.stdout.is_empty() {
            wrong += &format!("{}{}\n", dry.transcript(), real.transcript());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(shell.listing(), ["pipeline"]);
}

#[test]
fn what_can_be_compiled_is_not_refused() {
    let shell = Shell::new();
    let tokens = "calibration=fixtures/calibration-tokens.jsonl";
    let trim = format!("trim-head:tokens=60,{tokens}");
    let commands: [&[&str]; 5] = [
        &[
            LLAMA,
            "--pass",
            PRUNE_GOLDEN,
            "--pass",
            "quantize-draft",
            "--pass",
            &trim,
        ],
        &[
            LLAMA,
            "--pass",
            "auto-draft",
            "--pass",
            "quantize-draft:bits=8",
        ],
        &[
            "fixtures/adapters/lora-llama",
            "--adapter",
            "fixtures/adapters/lora-llama/adapter",
            "--pass",
            PRUNE_GOLDEN,
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:interval=2,steps=4,unroll=true",
        ],
        &[
            LLAMA,
            "--dtype",
            "f16",
            "--profile",
            "ort",
            "--pass",
            "quantize-draft",
            "--pass",
            "quantize:bits=8",
        ],
    ];
    for args in commands {
        shell.ok(&[&["compile"], args, &["-o", "out", "--dry-run"]].concat());
    }
    assert_eq!(shell.listing(), [""; 0]);
}
