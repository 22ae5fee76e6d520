//! Every scheduler at work on tract.

use std::fs;

use dlc_methods::diffusion::{SchedulerKind, noise, parse_scheduler_config, sampling_plan};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

use crate::common::fixture;
use crate::sampling::{difference, digits, digits_module, evaluated, latents, sample};

/// Two images at once are those that each seed gives alone, so noise that is drawn at every step
/// depends on nothing else.
#[test]
fn every_scheduler_samples_what_the_evaluator_makes_with_it() {
    let (shell, module) = (digits(), digits_module());
    let config = fs::read_to_string(fixture("digits-dit/scheduler/scheduler_config.json")).unwrap();
    let config = parse_scheduler_config(&config).unwrap();
    let (mut kinds, mut seen) = (SchedulerKind::ALL.to_vec(), Vec::new());
    kinds.retain(|kind| *kind != SchedulerKind::FlowMatchEuler);
    for kind in kinds {
        let plan = sampling_plan(&config, Some(kind), 4).unwrap();
        let args = "digits --class 3,7 --seed 5 --steps 4 --guidance 2.5 -o out.png --latents out.safetensors --scheduler";
        let mut args: Vec<&str> = args.split(' ').collect();
        args.push(kind.name());
        let report = sample(&shell, &args);
        assert_eq!(report["scheduler"], kind.name());
        let image = |seed, class| evaluated(&module, &plan, seed, class, 2.5);
        let expected = [image(5, 3), image(6, 7)].concat();
        let found = latents(&shell, "out.safetensors");
        let apart = difference(&found, &expected);
        assert!(apart < 1e-3, "{}: {apart}", kind.name());
        seen.push((kind, found));
    }
    // On the same noise levels DDIM is Euler's method, and DDPM Euler's ancestral one.
    let alike = [
        (SchedulerKind::Ddim, SchedulerKind::Euler),
        (SchedulerKind::Ddpm, SchedulerKind::EulerAncestral),
    ];
    for (at, (kind, one)) in seen.iter().enumerate() {
        for (earlier, other) in &seen[..at] {
            let apart = difference(one, other) > 1e-3;
            assert_eq!(
                apart,
                !alike.contains(&(*earlier, *kind)),
                "{kind:?} {earlier:?}"
            );
        }
    }
}

#[test]
fn few_steps_are_the_default_of_models_made_for_few() {
    let shell = digits();
    let report = sample(&shell, &["digits", "--scheduler", "lcm", "-o", "out.png"]);
    assert_eq!(
        (&report["steps"], &report["evaluations"]),
        (&4.into(), &4.into())
    );
}

/// The noise that images start from can be given; the seed then is that of the later noise.
#[test]
fn given_noise_leaves_the_noise_of_the_steps_to_the_seed() {
    let shell = digits();
    let start: Vec<u8> = noise(5, 64).iter().flat_map(|x| x.to_le_bytes()).collect();
    let start = TensorView::new(Dtype::F32, vec![1, 1, 8, 8], &start).unwrap();
    shell.write(
        "noise.safetensors",
        serialize([("latents", start)], None).unwrap(),
    );
    let run = |more: &[&str]| {
        let args = [
            "digits",
            "--class",
            "3",
            "--scheduler",
            "ddpm",
            "--steps",
            "4",
            "-o",
            "out.png",
        ];
        let latents_to = ["--latents", "out.safetensors"];
        sample(&shell, &[&args[..], &latents_to, more].concat());
        latents(&shell, "out.safetensors")
    };
    let given = ["--noise", "noise.safetensors", "--seed"];
    let same = run(&[&given[..], &["5"]].concat());
    assert_eq!(same, run(&["--seed", "5"]));
    assert_ne!(same, run(&[&given[..], &["6"]].concat()));
}

#[test]
fn what_a_scheduler_names_is_taken() {
    let shell = digits();
    let sampled = |scheduler: &[&str]| {
        sample(
            &shell,
            &[&["digits", "--steps", "4", "-o", "out.png"], scheduler].concat(),
        )
    };
    assert_eq!(sampled(&[])["evaluations"], 4);
    let pndm = sampled(&["--scheduler", "PNDMScheduler"]);
    assert_eq!(
        (
            &pndm["scheduler"],
            pndm["evaluations"].as_u64().unwrap() > 4
        ),
        (&"pndm".into(), true)
    );
}
