//! Diffusion models with skipped blocks, from checkpoint to image.

use std::ops::ControlFlow;

use dlc::checkpoint::Checkpoint;
use dlc::import::{ImportOptions, import};
use dlc::pipeline::parse_pass_flag;
use dlc_bundle::Profile;
use dlc_methods::diffusion::{SchedulerKind, noise, parse_scheduler_config, sampling_plan};
use dlc_passes::dip_go::supernet_sample;
use dlc_runtime::{
    Backend, BackendKind, BackendSearch, Bundle, DiffusionSession, SampleRequest, SessionOptions,
    start,
};

use crate::command::{Shell, assert_same_files};
use crate::common::decoding::{compile_quietly, compile_request};
use crate::common::fixture;

const STEPS: usize = 8;

/// Compiles digits-dit with a pass, samples one image on `backend`, and compares it with what the
/// SuperNet makes of the same noise.
fn check(backend: &Backend, profile: Profile, pass: &str) {
    let out = tempfile::tempdir().unwrap();
    let mut request = compile_request(fixture("digits-dit"), profile, out.path().join("bundle"));
    request.passes = vec![parse_pass_flag(&format!("{pass},steps={STEPS}")).unwrap()];
    compile_quietly(&request).unwrap();
    let bundle = Bundle::open(&request.output).unwrap();
    let sampling = bundle.manifest().sampling.clone().unwrap();
    let config =
        std::fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    let scheduler = SchedulerKind::from_name(&sampling.scheduler).unwrap();
    let config = parse_scheduler_config(&config).unwrap();
    let plan = sampling_plan(&config, Some(scheduler), STEPS).unwrap();
    let module = import(
        &Checkpoint::open(&fixture("digits-dit")).unwrap(),
        &ImportOptions::default(),
    )
    .unwrap();
    let expected = supernet_sample(
        &module,
        &plan,
        1.5,
        &sampling.schedule,
        (&noise(3, 64), 3),
        (Some(7), None),
    )
    .unwrap();

    let mut session =
        DiffusionSession::open(backend, &bundle, None, &SessionOptions::default()).unwrap();
    let request = SampleRequest {
        plan: &plan,
        image: None,
        guidance: 1.5,
        seeds: &[3],
        noise: None,
        classes: &[7],
        conditions: None,
        size: None,
        prune: true,
    };
    let found = session
        .sample(&request, &mut |_| ControlFlow::Continue(()))
        .unwrap()
        .unwrap();
    let error = expected
        .iter()
        .zip(&found.data)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max);
    assert!(error <= 1e-4, "{pass}: {error:e}");
}

#[test]
fn bundles_sample_what_the_supernet_samples() {
    let backend = start(&BackendSearch {
        force: Some(BackendKind::Tract),
        ..BackendSearch::default()
    })
    .unwrap();
    for (profile, pass) in [
        (Profile::Onnx, "skip:interval=3"),
        (Profile::Portable, "skip:interval=2.5,reuse=linear"),
        (
            Profile::Onnx,
            "skip:macs=0.5,random=true,seed=1,reuse=quadratic",
        ),
        (
            Profile::Portable,
            "skip:macs=0.584,random=true,seed=2,granularity=layer",
        ),
        (
            Profile::Onnx,
            "skip:interval=1.5,reuse=linear,granularity=layer,max_graphs=3",
        ),
        (
            Profile::Portable,
            "skip:interval=2,scheduler=euler-ancestral",
        ),
    ] {
        check(&backend, profile, pass);
    }
}

const LEARN: &str = "dip-go:macs=0.5,steps=6,rounds=2,iterations=2,batch=2";

#[test]
fn a_learned_schedule_meets_its_budget_is_the_same_again_and_can_be_given_back() {
    let shell = Shell::new();
    let compile = |pass: &str, out: &str, more: &[&str]| {
        shell.ok(&[
            &["compile", "fixtures/digits-dit", "--pass", pass, "-o", out][..],
            more,
        ]
        .concat())
    };
    let outcome = compile(LEARN, "a", &["--no-cache", "--threads", "1"]);
    assert!(
        outcome.stderr.contains("multiply-adds kept: 5")
            || outcome.stderr.contains("multiply-adds kept: 49"),
        "{}",
        outcome.stderr
    );
    compile(LEARN, "b", &["--no-cache", "--threads", "2"]);
    assert_same_files(&shell.path("a"), &shell.path("b"));
    compile("skip:schedule=a/dlc.yaml,steps=6", "c", &[]);
    for file in ["weights.bin", "step.0.onnx", "step.1.onnx"] {
        let [a, c] = ["a", "c"].map(|bundle| std::fs::read(shell.path(bundle).join(file)).unwrap());
        assert!(a == c, "{file}");
    }
}

#[test]
fn how_far_learning_got_is_kept_in_the_folder_that_was_named() {
    let shell = Shell::new();
    let compile = |out: &str| {
        shell.ok(&[
            "compile",
            "fixtures/digits-dit",
            "--pass",
            LEARN,
            "--state",
            "kept",
            "-o",
            out,
        ])
    };
    compile("a");
    assert_eq!(std::fs::read_dir(shell.path("kept")).unwrap().count(), 1);
    compile("b");
    assert_same_files(&shell.path("a"), &shell.path("b"));
    shell.write("file", "");
    let refused = shell.dlc(&[
        "compile",
        "fixtures/digits-dit",
        "--pass",
        LEARN,
        "--state",
        "file",
        "-o",
        "c",
    ]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("can't keep scores in file"),
        "{}",
        refused.transcript()
    );
}

#[test]
fn step_graphs_are_the_target_without_what_is_skipped() {
    let shell = Shell::new();
    let mut texts = Vec::new();
    for pass in [
        "skip:interval=2,steps=4",
        "skip:interval=2,steps=4,reuse=linear,granularity=layer",
    ] {
        shell.ok(&[
            "compile",
            "fixtures/digits-dit",
            "--pass",
            pass,
            "-o",
            "bundle",
            "--force",
        ]);
        for step in ["bundle/step.0.onnx", "bundle/step.1.onnx"] {
            texts.push(format!(
                "{pass}, {step}\n{}",
                shell
                    .ok(&["diff", "bundle/model.onnx", step, "--summary"])
                    .stdout
            ));
        }
        texts.push(
            shell
                .ok(&["inspect", "bundle/step.1.onnx", "--graph"])
                .stdout,
        );
    }
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn schedules_that_can_not_be_made_are_refused() {
    let shell = Shell::new();
    shell.write(
        "schedule.yaml",
        "granularity: branch\nreuse: hold\nunits: [layers.0]\nsteps: ['#']\n",
    );
    let mut messages = String::new();
    for args in [
        &[
            "fixtures/digits-dit",
            "--pass",
            "dip-go:macs=0.01,steps=4,rounds=1,iterations=0,batch=1",
        ][..],
        &["fixtures/digits-dit", "--pass", "dip-go:macs=0.5,speedup=2"],
        &["fixtures/digits-dit", "--pass", "dip-go:rate=0"],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:schedule=schedule.yaml,steps=4",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:schedule=missing.yaml",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:schedule=fixtures/prompts.txt",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:interval=2,scheduler=hen",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:interval=2,steps=5000",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:interval=2,unroll=true,scheduler=ddpm",
        ],
        &[
            "fixtures/digits-dit",
            "--pass",
            "dip-go:macs=0.5,steps=4,unroll=true,scheduler=lcm",
        ],
        &["fixtures/goldens/dit", "--pass", "skip:interval=2"],
        &["fixtures/tiny-llama", "--pass", "skip:interval=2"],
        &[
            "fixtures/digits-dit",
            "--pass",
            "skip:interval=2",
            "--pass",
            "skip:interval=3",
        ],
        &["fixtures/digits-dit", "--pass", "fit-prune"],
    ] {
        let outcome = shell.dlc(&[&["compile", "-o", "out"], args].concat());
        assert!(
            matches!(outcome.code, Some(2 | 3)),
            "{}",
            outcome.transcript()
        );
        messages += &outcome.transcript();
    }
    insta::assert_snapshot!(messages);
    assert_eq!(shell.listing(), ["schedule.yaml"]);
}
