//! fit-solver: what is fitted makes the scheduler's samples, survives a run that is stopped, and
//! composes with dip-go.

use dlc_errors::Faulty;
use dlc_ir::{DType, Expr, Module, Sampling, SolverStep, WeightTable};
use dlc_passes::{PassError, PassRun};

use super::fakes::{Given, Memory, Outside, Watcher, run_with};
use super::skipping::{Fixed, STEPS, dit, plan, unet};

fn run(
    pass: &str,
    options: &str,
    module: &mut Module,
    progress: &Watcher,
    cache: Option<&Memory>,
) -> Result<Vec<PassRun>, PassError> {
    let (calibration, samplers) = (Given::new(vec![]), Fixed::default());
    let outside = Outside {
        calibration: &calibration,
        machine: None,
        samplers: Some(&samplers),
        progress,
        cache,
        key: "",
        threads: 2,
    };
    run_with(pass, options, module, &outside)
}

const QUICK: &str = "steps: 3, reference: 6, samples: 4, refine: 1";

fn fitted(options: &str, module: &mut Module) -> Sampling {
    run("fit-solver", options, module, &Watcher::default(), None).unwrap();
    module.sampling.clone().unwrap()
}

#[test]
fn steps_that_leave_none_of_the_scheduler_out_are_the_schedulers_own() {
    let less = STEPS - 1;
    let options = format!("steps: {less}, reference: {STEPS}, samples: 12, refine: 0");
    let solver = fitted(&options, &mut dit()).solver;
    let scheduler = plan(STEPS).steps;
    let mut own = 0;
    for (pair, step) in solver.windows(2).zip(&scheduler) {
        let SolverStep {
            at,
            latents,
            outputs,
        } = &pair[0];
        if pair[1].at != own + 1 {
            break;
        }
        let wanted = step.latents.iter().chain(&step.estimates);
        for (found, wanted) in [latents].into_iter().chain(outputs).zip(wanted) {
            assert!((found - wanted).abs() < 1e-3, "{at}: {latents} {outputs:?}");
        }
        own += 1;
    }
    assert!(own > 0 && solver.len() == less, "{solver:?}");
}

#[test]
fn a_solver_runs_the_target_and_counts_its_evaluations() {
    for mut module in [dit(), unet()] {
        let graphs = module.graphs.len();
        let sampling = fitted(QUICK, &mut module);
        assert_eq!((sampling.steps, sampling.solver.len()), (6, 3));
        assert!(sampling.evaluations.iter().all(|e| e.graph == "target"));
        assert_eq!(module.graphs.len(), graphs);
        assert!((sampling.macs - 0.5).abs() < 1e-12, "{}", sampling.macs);
        let again = fitted(
            QUICK,
            &mut Module {
                sampling: None,
                ..module
            },
        );
        assert_eq!(again, sampling);
    }
}

#[test]
fn fitting_that_was_stopped_makes_no_run_again_and_ends_alike() {
    let (mut whole, progress) = (dit(), Watcher::default());
    run("fit-solver", QUICK, &mut whole, &progress, None).unwrap();
    let updates = progress.updates.lock().unwrap().len();
    for patience in 1..=updates {
        let cache = Memory::default();
        let stopped = Watcher {
            patience: Some(patience),
            ..Watcher::default()
        };
        let outcome = run("fit-solver", QUICK, &mut dit(), &stopped, Some(&cache));
        let is_last = patience == updates;
        match outcome {
            Err(error) => assert!(matches!(error, PassError::Interrupted), "{error}"),
            Ok(_) => assert!(is_last, "wasn't stopped after {patience} updates"),
        }
        let kept = cache.0.lock().unwrap().len();
        let begun = stopped.updates.lock().unwrap();
        let sampled = begun
            .iter()
            .filter(|(what, ..)| what.starts_with("sampling"))
            .count();
        assert!(is_last || kept >= 2 * (sampled - 1), "{kept} runs are kept");
        let mut module = dit();
        run(
            "fit-solver",
            QUICK,
            &mut module,
            &Watcher::default(),
            Some(&cache),
        )
        .unwrap();
        assert_eq!(module.sampling, whole.sampling, "after {patience} updates");
        assert!(cache.0.lock().unwrap().is_empty(), "runs stay behind");
    }
}

#[test]
fn blocks_are_skipped_within_the_evaluations_of_a_solver() {
    let mut module = dit();
    let solver = fitted(QUICK, &mut module).solver;
    let skip = "interval: 3, steps: 6, reuse: linear";
    run("skip", skip, &mut module, &Watcher::default(), None).unwrap();
    let sampling = module.sampling.unwrap();
    assert_eq!(sampling.solver, solver);
    assert_eq!(sampling.schedule.steps.len(), 3);
    assert!(sampling.macs < 0.4 && sampling.evaluations.len() == 3);
    assert_ne!(sampling.evaluations[1].graph, "target");
}

#[test]
fn a_network_that_gives_no_numbers_is_refused() {
    let mut broken = dit();
    let mut weights = WeightTable::default();
    for (_, weight) in broken.weights.entries() {
        let bytes = f32::NAN.to_le_bytes().repeat(weight.elements());
        let numbers = Expr::constant(bytes, DType::F32);
        weights.add(&weight.name, &weight.shape, numbers).unwrap();
    }
    broken.weights = weights;
    let outcome = run("fit-solver", QUICK, &mut broken, &Watcher::default(), None);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("at timestep 900 isn't finite"), "{error}");
}

#[test]
fn what_can_not_be_fitted_is_refused() {
    let skipped = || {
        let mut module = dit();
        let skip = format!("interval: 2, steps: {STEPS}");
        run("skip", &skip, &mut module, &Watcher::default(), None).unwrap();
        module
    };
    let solved = || {
        let mut module = dit();
        fitted(QUICK, &mut module);
        module
    };
    let mut messages = String::new();
    for (pass, options, mut module) in [
        ("fit-solver", "steps: 6, reference: 6", dit()),
        ("fit-solver", "steps: 0", dit()),
        ("fit-solver", "reference: 251", dit()),
        ("fit-solver", "guidance: 3", unet()),
        ("fit-solver", QUICK, skipped()),
        ("fit-solver", QUICK, solved()),
        ("skip", "interval: 2, steps: 5", solved()),
        ("skip", "interval: 2, steps: 6, guidance: 2", solved()),
    ] {
        let error = run(pass, options, &mut module, &Watcher::default(), None).unwrap_err();
        messages += &format!("{pass} {options}: {:?}: {error}\n", error.fault());
    }
    insta::assert_snapshot!(messages);
}
