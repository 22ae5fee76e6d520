//! The command on diffusion models: from a pipeline's folder to a bundle that verifies.

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::module_of_bundle;
use dlc_runtime::Bundle;

use crate::command::{Shell, snapshot};
use crate::common::diffusion::DIFFUSION;
use crate::common::fixture;

#[test]
fn a_pipeline_is_compiled_inspected_verified_and_compared() {
    let shell = Shell::new();
    snapshot!(
        "diffusion_inspect",
        shell.ok(&["inspect", "fixtures/digits-dit"]).stdout
    );
    snapshot!(
        "diffusion_compile",
        shell
            .ok(&[
                "compile",
                "fixtures/digits-dit",
                "--profile",
                "portable",
                "-o",
                "digits"
            ])
            .transcript()
    );
    snapshot!(
        "diffusion_inspect_bundle",
        shell.ok(&["inspect", "digits"]).stdout
    );
    let verified = shell
        .ok(&[
            "verify",
            "digits",
            "--source",
            "fixtures/digits-dit/transformer",
        ])
        .stdout;
    assert!(
        verified.contains("random inputs") && verified.contains("ok"),
        "{verified}"
    );
    let scheduler = std::fs::read(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    assert_eq!(
        std::fs::read(shell.path("digits/scheduler_config.json")).unwrap(),
        scheduler
    );
    snapshot!("diffusion_manifest", manifest_head(&shell));
}

/// The manifest up to the model's record.
fn manifest_head(shell: &Shell) -> String {
    let text = std::fs::read_to_string(shell.path("digits/dlc.yaml")).unwrap();
    text.split("passes:").next().unwrap().to_owned()
}

#[test]
fn every_golden_verifies_and_comes_back_from_its_bundle() {
    let shell = Shell::new();
    for &name in DIFFUSION {
        let checkpoint = format!("fixtures/goldens/{name}");
        shell.ok(&["compile", &checkpoint, "--profile", "onnx", "-o", name]);
        let verified = shell.ok(&["verify", name, "--source", &checkpoint]);
        assert!(
            !verified.stdout.contains("against the checkpoint"),
            "{}",
            verified.transcript()
        );
        let module = module_of_bundle(&Bundle::open(&shell.path(name)).unwrap()).unwrap();
        let source = import(
            &Checkpoint::open(&fixture(&format!("goldens/{name}"))).unwrap(),
            &ImportOptions::default(),
        )
        .unwrap();
        assert_eq!(
            (module.model.diffusion, module.model.task),
            (source.model.diffusion, source.model.task),
            "{name}"
        );
        assert_eq!(
            module.graphs[0].to_text(&module.weights),
            source.graphs[0].to_text(&source.weights),
            "{name}"
        );
    }
}

#[test]
fn graphs_of_two_checkpoints_are_compared() {
    let shell = Shell::new();
    let same = shell.ok(&[
        "diff",
        "fixtures/goldens/unet-ddpm",
        "fixtures/goldens/unet-ddpm",
        "--exit-code",
    ]);
    assert!(same.stdout.contains("the same"), "{}", same.transcript());
    let outcome = shell.dlc(&[
        "diff",
        "fixtures/goldens/dit",
        "fixtures/goldens/dit-geglu",
        "--exit-code",
        "--summary",
    ]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.transcript());
    assert!(
        outcome
            .stdout
            .contains("layers.2.attn layers.2.mlp layers.3.attn layers.3.mlp"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn passes_for_decoders_decline_diffusion_models() {
    let shell = Shell::new();
    for golden in ["fixtures/goldens/dit", "fixtures/goldens/unet-sd15"] {
        let outcome = shell.dlc(&[
            "compile",
            golden,
            "--pass",
            "fit-prune:drop=1,calibration=fixtures/calibration-tokens.jsonl",
            "-o",
            "out",
        ]);
        assert_eq!(outcome.code, Some(3), "{}", outcome.transcript());
        assert!(
            outcome.stderr.contains("pass fit-prune"),
            "{}",
            outcome.transcript()
        );
    }
}
