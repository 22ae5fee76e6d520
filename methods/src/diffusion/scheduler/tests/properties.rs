//! What must hold for every configuration: exactness on data that the samplers solve exactly, and
//! equality with the textbook.

use proptest::prelude::*;

use super::*;

/// `alpha_bar` of a linear schedule, straight from its definition.
fn alpha_bars() -> Vec<f64> {
    let beta = |i: usize| 0.0001 + (0.02 - 0.0001) * i as f64 / 999.0;
    (0..1000)
        .scan(1.0, |product, i| {
            Some(*product)
                .map(|p| *product = p * (1.0 - beta(i)))
                .map(|()| *product)
        })
        .collect()
}

/// A smooth stand-in for a network.
fn network(input: &[f32], timestep: f64) -> Vec<f32> {
    input
        .iter()
        .map(|x| 0.8 * x + 0.3 * (2.0 * x + 0.01 * timestep as f32).sin())
        .collect()
}

/// DDIM as the paper writes it, equation 12 with sigma 0, in double precision.
fn textbook_ddim(noise: &[f32], steps: usize) -> Vec<f64> {
    let alpha_bars = alpha_bars();
    let mut x: Vec<f64> = noise.iter().map(|x| f64::from(*x)).collect();
    for index in (0..steps).rev() {
        let t = index * (1000 / steps);
        let here = alpha_bars[t];
        let there = if index == 0 {
            1.0
        } else {
            alpha_bars[t - 1000 / steps]
        };
        let input: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let epsilon = network(&input, t as f64);
        for (x, epsilon) in x.iter_mut().zip(epsilon) {
            let epsilon = f64::from(epsilon);
            let x0 = (*x - (1.0 - here).sqrt() * epsilon) / here.sqrt();
            *x = there.sqrt() * x0 + (1.0 - there).sqrt() * epsilon;
        }
    }
    x
}

fn latents() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-3.0f32..3.0, 4)
}

/// Betas as they are, and betas as they may be.
fn beta() -> impl Strategy<Value = f64> {
    prop::sample::select(vec![
        1e-300, 1e-30, 1e-9, 1e-4, 0.02, 0.5, 0.999_999, 1.0, 0.0, -1.0,
    ])
}

fn config(class: &str, prediction: &str, spacing: &str) -> Map<String, Value> {
    object(json!({
        "_class_name": class, "prediction_type": prediction, "timestep_spacing": spacing,
        "clip_sample": false, "set_alpha_to_one": true, "skip_prk_steps": true,
        "beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02, "solver_order": 3,
    }))
}

/// The answer of a network that knows the sample, given latents with so much of it and of noise.
fn oracle(prediction: &str, alpha_bar: f64, input: &[f32], x0: &[f32]) -> Vec<f32> {
    let (signal, scale) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
    let answer = |(input, x0): (&f32, &f32)| {
        let noise = (input - signal * x0) / scale;
        match prediction {
            "epsilon" => noise,
            "sample" => *x0,
            _ => signal * noise - scale * x0,
        }
    };
    input.iter().zip(x0).map(answer).collect()
}

/// One of `n` directions.
fn direction(of: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| if i == of { 1.0 } else { 0.0 }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ddim_is_the_textbook(noise in latents(), steps in 1usize..60) {
        let plan = plan(json!({"_class_name": "DDIMScheduler", "clip_sample": false}), steps);
        let found = run(&plan, (&noise, None), network, |_| None).pop().unwrap();
        let expected: Vec<f32> = textbook_ddim(&noise, steps).into_iter().map(|x| x as f32).collect();
        let distance = distance(&found, &expected);
        prop_assert!(distance < 1e-4, "{distance:e}: {found:?} for {expected:?}");
    }

    /// The sample, the first noise and that of each step are directions of their own, so that latents
    /// say how much of each they hold: as much signal and noise as belongs to their timestep, and
    /// in the end the sample alone.
    #[test]
    fn a_perfect_prediction_leads_along_the_noise_schedule_to_the_sample(
        steps in 1usize..40,
        kind in prop::sample::select(SchedulerKind::ALL.to_vec()),
        prediction in prop::sample::select(vec!["epsilon", "v_prediction", "sample"]),
        stochastic in any::<bool>(),
    ) {
        let class = kind.class();
        prop_assume!(kind != SchedulerKind::FlowMatchEuler);
        prop_assume!(prediction == "epsilon" || kind != SchedulerKind::Pndm);
        prop_assume!(prediction != "sample" || kind != SchedulerKind::EulerAncestral);
        // Evenly spread timesteps aren't a whole stride apart, which diffusers' DDIM and PNDM take
        // them to be.
        let spacing = if matches!(kind, SchedulerKind::Pndm | SchedulerKind::Ddim) { "leading" } else { "trailing" };
        let mut config = config(class, prediction, spacing);
        if stochastic && kind == SchedulerKind::DpmSolverPlusPlus {
            config.insert("algorithm_type".into(), "sde-dpmsolver++".into());
        }
        let plan = sampling_plan(&config, None, steps).unwrap();
        let noise_schedule = noise::NoiseSchedule::read(&mut reader::ConfigReader::new(&config), &noise::Betas::USUAL, noise::Terminal::Zero);
        let alpha_bar = |t: f64| noise_schedule.alpha_bar(t as usize);
        let n = plan.steps.len() + 2;
        let x0 = direction(0, n);
        // What a run starts from, in the units of the network's input.
        let start = alpha_bar(plan.steps[0].timestep);
        let scale = plan.steps[0].input_scale * plan.initial_scale;
        let mut first = vec![0.0; n];
        (first[0], first[1]) = ((start.sqrt() / scale) as f32, ((1.0 - start).sqrt() / scale) as f32);
        let mut far = Vec::new();
        let network = |input: &[f32], timestep: f64| {
            let alpha_bar = alpha_bar(timestep);
            let noise = input[1..].iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let apart = (f64::from(input[0]) - alpha_bar.sqrt()).abs().max((noise - (1.0 - alpha_bar).sqrt()).abs());
            if apart > 1e-3 {
                far.push(format!("{apart:e} at timestep {timestep}"));
            }
            oracle(prediction, alpha_bar, input, &x0)
        };
        let fresh = |step: usize| plan.steps[step].draws_noise().then(|| direction(step + 2, n));
        let found = run(&plan, (&first, None), network, fresh).pop().unwrap();
        prop_assert!(far.is_empty(), "{class} {prediction} {steps}: {}", far.join(", "));
        let distance = distance(&found, &x0);
        // DEIS ends with the noise of the first timestep.
        let left = if kind == SchedulerKind::Deis { 0.0101 } else { 1e-3 };
        prop_assert!(distance < left, "{class} {prediction} {steps}: {distance:e}: {found:?}");
    }

    #[test]
    fn no_number_makes_it_panic(
        train in 0usize..200_000,
        steps in 0usize..1200,
        offset in 0usize..1200,
        betas in (beta(), beta()),
        lambda in -20.0f64..20.0,
        flags in prop::collection::vec(any::<bool>(), 10),
        order in 1usize..4,
        kind in prop::sample::select(SchedulerKind::ALL.to_vec()),
        spacing in prop::sample::select(vec!["leading", "trailing", "linspace"]),
        schedule in prop::sample::select(vec!["linear", "scaled_linear", "squaredcos_cap_v2"]),
        prediction in prop::sample::select(vec!["epsilon", "v_prediction", "sample"]),
    ) {
        // Mostly trainings of a usual length.
        let train = if train > 100_000 { train } else { train % 1500 };
        let config = json!({
            "num_train_timesteps": train, "steps_offset": offset, "beta_start": betas.0, "beta_end": betas.1, "lambda_min_clipped": lambda,
            "use_karras_sigmas": flags[0], "rescale_betas_zero_snr": flags[1], "lower_order_final": flags[2], "skip_prk_steps": flags[3],
            "final_sigmas_type": if flags[4] { "zero" } else { "sigma_min" }, "solver_type": if flags[5] { "heun" } else { "midpoint" },
            "timestep_spacing": spacing, "beta_schedule": schedule, "prediction_type": prediction, "solver_order": order,
            "use_lu_lambdas": flags[6], "predict_x0": flags[7], "use_exponential_sigmas": flags[8] && !flags[0],
            "algorithm_type": if flags[9] { "dpmsolver" } else if flags[0] { "sde-dpmsolver++" } else { "dpmsolver++" },
        });
        if let Ok(plan) = sampling_plan(&object(config), Some(kind), steps) {
            prop_assert_eq!(plan.check(), Ok(()));
        }
    }
}
