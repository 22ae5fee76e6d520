//! Configurations that are refused, with the whole of every message.

use dlc_errors::{Fault, Faulty};

use super::*;
use crate::diffusion::{SamplerState, step_noise};

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn every_refusal_names_what_is_wrong_and_what_there_is() {
    let dpm = |key: &str, value: Value| {
        let mut config = object(json!({"_class_name": "DPMSolverMultistepScheduler"}));
        config.insert(key.to_owned(), value);
        Value::Object(config)
    };
    let ddim = |key: &str, value: Value| {
        let mut config = object(json!({"_class_name": "DDIMScheduler"}));
        config.insert(key.to_owned(), value);
        Value::Object(config)
    };
    let zero = json!({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    let wrong = json!({
        "_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1_000_000_000_000u64, "beta_start": "NaN", "beta_end": 2,
        "beta_schedule": 7, "use_karras_sigmas": "yes", "sigma_min": -1, "steps_offset": -1, "prediction_type": "v-prediction", "eta": 0.5,
    });
    let beyond = json!({
        "_class_name": "DPMSolverMultistepScheduler", "thresholding": true, "algorithm_type": "sde-dpmsolver--",
        "solver_type": "rk4", "use_flow_sigmas": true,
        "use_dynamic_shifting": true, "prediction_type": "flow_prediction", "final_sigmas_type": "one", "beta_schedule": "sigmoid",
    });
    let pndm = json!({"_class_name": "PNDMScheduler", "prediction_type": "sample", "rescale_betas_zero_snr": true, "predict_epsilon": false});
    let unipc = json!({
        "_class_name": "UniPCMultistepScheduler", "solver_p": ["diffusers", "DDIMScheduler"], "shift_terminal": 0.1, "predict_x0": false,
        "disable_corrector": [0, -1], "use_karras_sigmas": true, "use_beta_sigmas": true, "solver_type": "bh3",
    });
    let cases: [(Value, Option<&str>, usize, Fault); 33] = [
        (json!({}), None, 10, Fault::Unsupported),
        (json!({"_class_name": 3}), None, 10, Fault::Unsupported),
        (
            json!({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "LCMScheduler", "original_inference_steps": 20}),
            None,
            21,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true, "shift": 0, "shift_terminal": 1}),
            None,
            10,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler"}),
            Some("euler"),
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "PNDMScheduler"}),
            Some("flow-match-euler"),
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "sample"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
            None,
            10,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "KDPM2DiscreteScheduler"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "DDIMSheduler"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (
            json!({"_class_name": "CogVideoXDPMScheduler"}),
            Some("euler"),
            10,
            Fault::Unsupported,
        ),
        (
            ddim("thresholding", json!(true)),
            None,
            10,
            Fault::Unsupported,
        ),
        (ddim("eta", json!(1.0)), None, 10, Fault::Unsupported),
        (
            ddim("clip_sample_range", json!(0)),
            None,
            10,
            Fault::BadInput,
        ),
        (
            ddim("trained_betas", json!([0.1, 0.2])),
            None,
            10,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "DDIMScheduler", "trained_betas": [0.1, "NaN"], "num_train_timesteps": 2}),
            None,
            1,
            Fault::BadInput,
        ),
        (ddim("steps_offset", json!(100)), None, 10, Fault::BadInput),
        (ddim("beta_start", json!(1e-300)), None, 0, Fault::BadInput),
        (
            ddim("num_train_timesteps", json!(100)),
            None,
            101,
            Fault::BadInput,
        ),
        (
            ddim("num_train_timesteps", json!("many")),
            None,
            10,
            Fault::BadInput,
        ),
        (
            ddim("timestep_spacing", json!("trailling")),
            None,
            10,
            Fault::Unsupported,
        ),
        (zero, None, 10, Fault::BadInput),
        (
            dpm("lambda_min_clipped", json!(100)),
            None,
            10,
            Fault::BadInput,
        ),
        (
            dpm("num_train_timesteps", json!(10)),
            None,
            10,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}),
            None,
            10,
            Fault::Unsupported,
        ),
        (wrong, None, 10, Fault::BadInput),
        (beyond, None, 10, Fault::Unsupported),
        (pndm, None, 10, Fault::Unsupported),
        (unipc, None, 10, Fault::BadInput),
        (
            dpm("algorithm_type", json!("dpmsolver")),
            None,
            10,
            Fault::BadInput,
        ),
        (
            json!({"_class_name": "DDPMScheduler"}),
            Some("pndm"),
            3,
            Fault::BadInput,
        ),
    ];
    let mut messages = Vec::new();
    for (config, scheduler, steps, fault) in cases {
        let kind = scheduler.map(|name| SchedulerKind::from_name(name).unwrap());
        let Err(error) = sampling_plan(&object(config.clone()), kind, steps) else {
            panic!("{config} was accepted")
        };
        assert_eq!(error.fault(), fault, "{error}");
        messages.push(error.to_string());
    }
    messages.push(
        SchedulerKind::from_name("dpm-solver")
            .unwrap_err()
            .to_string(),
    );
    messages.push(
        SchedulerKind::from_name("a\u{1b}[31m")
            .unwrap_err()
            .to_string(),
    );
    messages.push(parse_scheduler_config("[1]").unwrap_err().to_string());
    messages.push(parse_scheduler_config("{").unwrap_err().to_string());
    insta::assert_snapshot!(messages.join("\n\n"));
}

#[test]
fn options_of_schedulers_that_are_not_asked_change_nothing() {
    let plain = plan(json!({"_class_name": "DDIMScheduler"}), 10);
    let crowded = json!({
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", "_anything": 7, "skip_prk_steps": true, "solver_order": 3,
        "lambda_min_clipped": "-Infinity", "variance_type": "learned_range", "use_karras_sigmas": true, "dynamic_thresholding_ratio": 0.9,
        "use_flow_sigmas": true, "trained_betas": null, "unknown": null, "unknown_flag": false,
    });
    assert_eq!(plan(crowded, 10), plain);
}

#[test]
fn a_sampler_is_not_fed_by_another_shape_or_beyond_its_end() {
    let plan = plan(json!({"_class_name": "DDIMScheduler"}), 1);
    let mut state = SamplerState::new(&plan, &[0.0; 4]).unwrap();
    let error = state.advance(&[0.0; 8], None).unwrap_err().to_string();
    assert_eq!(
        error,
        "the network's output has 8 numbers, but there are 4 latents"
    );
    assert!(state.model_input(&mut [0.0; 3]).is_err());
    state.advance(&[0.0; 4], None).unwrap();
    assert_eq!((state.taken(), state.step()), (1, None));
    assert_eq!(state.model_input(&mut [0.0; 4]).unwrap(), None);
    assert!(state.advance(&[0.0; 4], None).is_err());
    let drawing = json!({"_class_name": "EulerAncestralDiscreteScheduler"});
    let drawing = self::plan(drawing, 2);
    let mut state = SamplerState::new(&drawing, &[0.0; 4]).unwrap();
    let error = state.advance(&[0.0; 4], None).unwrap_err().to_string();
    assert!(
        error.contains("step 0 of the sampler draws noise"),
        "{error}"
    );
    assert!(state.advance(&[0.0; 4], Some(&[0.0; 3])).is_err());
    let noise = state.fresh_noise(&[3, 9]).unwrap();
    assert_eq!(noise, [step_noise(3, 0, 2), step_noise(9, 0, 2)].concat());
    state.advance(&[0.0; 4], Some(&noise)).unwrap();
    assert_eq!(state.fresh_noise(&[3]), None);
    assert!(
        SamplerState::new(
            &SamplingPlan {
                image_scale: 0.0,
                initial_scale: 1.0,
                steps: vec![]
            },
            &[0.0]
        )
        .is_err()
    );
}
