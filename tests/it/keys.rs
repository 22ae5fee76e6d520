//! Keys of configurations that dlc doesn't know, in the commands that read a checkpoint.

use serde_json::Value;

use crate::command::Shell;
use crate::common::fixture;

const REFUSED: &str = "attention_multiplier";

/// A shell with a llama whose configuration has a key that may change the model, and one of no
/// known meaning.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.copy(&fixture("goldens/llama"), "model");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(shell.path("model/config.json")).unwrap()).unwrap();
    config[REFUSED] = 0.5.into();
    config["frobnicate"] = 3.into();
    shell.write("model/config.json", config.to_string());
    shell
}

#[test]
fn a_refused_key_is_ignored_where_the_user_says_so() {
    let shell = shell();
    let commands: [&[&str]; 4] = [
        &["compile", "model", "-o", "out"],
        &["inspect", "model"],
        &["verify", "out", "--source", "model"],
        &["compile", "--config", "pipeline.yaml", "-o", "again"],
    ];
    shell.write("pipeline.yaml", "model: model\n");
    for command in commands {
        let refused = shell.dlc(command);
        let said = command[0] == "verify"
            || refused
                .stderr
                .contains("`attention_multiplier` is 0.5, which scales the attention's logits");
        assert!(refused.code != Some(0) && said, "{}", refused.transcript());
        let taken = shell.ok(&[command, &["--ignore-key", REFUSED]].concat());
        assert!(
            taken
                .stderr
                .contains("keys that dlc doesn't know, and leaves out: `frobnicate`"),
            "{}",
            taken.transcript()
        );
    }
    shell.write(
        "pipeline.yaml",
        format!("model: model\nignore-keys: [{REFUSED}]\n"),
    );
    let json = shell
        .ok(&[
            "compile",
            "--config",
            "pipeline.yaml",
            "-o",
            "third",
            "--json",
        ])
        .json();
    assert!(
        json["warnings"].to_string().contains("frobnicate"),
        "{json}"
    );
}
