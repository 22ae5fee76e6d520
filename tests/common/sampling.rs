//! A sampler by hand: graphs so small that what they remember can be followed on paper.

use std::ops::ControlFlow;
use std::path::Path;

use dlc_bundle::Profile;
use dlc_ir::{
    DType, Diffusion, Evaluation, Granularity, ModelInfo, Module, Reuse, Sampling, Scores,
    SkipSchedule, Task, WeightTable, parse_graph_over,
};
use dlc_methods::diffusion::{Estimate, SamplingPlan, SamplingStep, noise};
use dlc_runtime::{
    Backend, Bundle, DiffusionSession, SampleRequest, SessionOptions, SharedWeights,
};

use super::session::export;

/// `out = 2 x`. Remembers `a = x^2`, and `b = 2 x`.
const FULL: &str = "
  %0 = add %sample, %sample : f32[batch, 1, 1, 2]
  %1 = mul %sample, %sample : f32[batch, 1, 1, 2]
  %2 = KEEP %1ONE : TYPE[batch, 1, 1, 2]
  %3 = KEEP %0ONE : TYPE[batch, 1, 1, 2]
  output out_sample = %0
  output remember.a = %2
  output remember.b = %3";

/// `out` is the forecast of `a`. Remembers `a = x^2`.
const FORECAST: &str = "
  input memory.a.0: TYPE[batch, 1, 1, 2]
  input memory.a.1: TYPE[batch, 1, 1, 2]
  input forecast: TYPE[2]
  %0 = slice %forecast axis=0 start=0 len=1 : TYPE[1]
  %1 = slice %forecast axis=0 start=1 len=1 : TYPE[1]
  %2 = mul %memory.a.0, %0 : TYPE[batch, 1, 1, 2]
  %3 = mul %memory.a.1, %1 : TYPE[batch, 1, 1, 2]
  %4 = add %2, %3 : TYPE[batch, 1, 1, 2]
  %5 = READ %4ONE : f32[batch, 1, 1, 2]
  %6 = mul %sample, %sample : f32[batch, 1, 1, 2]
  %7 = KEEP %6ONE : TYPE[batch, 1, 1, 2]
  output out_sample = %5
  output remember.a = %7";

/// `out` is the last `b` and the third last `a`.
const HOLD: &str = "
  input memory.b.0: TYPE[batch, 1, 1, 2]
  input memory.a.2: TYPE[batch, 1, 1, 2]
  %0 = add %memory.b.0, %memory.a.2 : TYPE[batch, 1, 1, 2]
  %1 = READ %0ONE : f32[batch, 1, 1, 2]
  %2 = scale %sample factor=0.0 : f32[batch, 1, 1, 2]
  %3 = add %1, %2 : f32[batch, 1, 1, 2]
  output out_sample = %3";

/// `out = x`, what the whole model says.
const WHOLE: &str = "
  %0 = scale %sample factor=1.0 : f32[batch, 1, 1, 2]
  output out_sample = %0";

/// The module; what is remembered is of type `kept`.
pub fn remembering(kept: DType) -> Module {
    let weights = WeightTable::default();
    let graph = |name: &str, body: &str| {
        let (cast, one) = if kept == DType::F32 {
            ("scale", " factor=1.0")
        } else {
            ("cast", "")
        };
        let body = body
            .replace("KEEP", cast)
            .replace("READ", cast)
            .replace("ONE", one)
            .replace("TYPE", kept.name());
        let text = format!("graph {name} {{\n  input sample: f32[batch, 1, 1, 2]\n{body}\n}}\n");
        parse_graph_over(&text, &weights).unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    let graphs = vec![
        graph("target", WHOLE),
        graph("step.0", FULL),
        graph("step.1", FORECAST),
        graph("step.2", HOLD),
    ];
    let evaluation = |graph: &str, forecast: &[f64]| Evaluation {
        graph: graph.into(),
        forecast: forecast.to_vec(),
    };
    let computed = [
        [true, true],
        [true, true],
        [false, false],
        [false, false],
        [false, false],
    ]
    .map(Vec::from);
    let sampling = Sampling {
        scheduler: "ddim".into(),
        steps: 5,
        guidance: 1.0,
        schedule: SkipSchedule::new(
            Granularity::Branch,
            Reuse::Linear,
            vec!["a".into(), "b".into()],
            &computed,
        ),
        solver: vec![],
        macs: 0.5,
        unrolled: None,
        evaluations: vec![
            evaluation("step.0", &[]),
            evaluation("step.0", &[]),
            evaluation("step.1", &[2.0, -1.0]),
            evaluation("step.1", &[0.5, 1.0]),
            evaluation("step.2", &[]),
        ],
    };
    let diffusion = Diffusion {
        channels: 1,
        height: 1,
        width: 2,
        size_step: None,
        out_channels: 1,
        classes: None,
        text_width: None,
    };
    let model = ModelInfo {
        family: "tiny".into(),
        task: Task::ImageGeneration,
        labels: vec![],
        scores: Scores::OneClass,
        sentence: None,
        dtype: kept,
        diffusion: Some(diffusion),
        prompts: None,
        vocab_size: 0,
        hidden_size: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        context_length: 0,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
    };
    Module {
        graphs,
        weights,
        model,
        sampling: Some(sampling),
        drafting: None,
        side_files: vec![],
    }
}

/// A sampler that adds what the network says: `x + out`.
pub fn adding(steps: usize) -> SamplingPlan {
    let step = SamplingStep {
        timestep: 1.0,
        input_scale: 1.0,
        estimate: Estimate::OUTPUT,
        latents: vec![1.0],
        estimates: vec![],
        output: 1.0,
        noise: 0.0,
    };
    SamplingPlan {
        image_scale: 0.0,
        initial_scale: 0.5,
        steps: vec![step; steps],
    }
}

/// Opens what [`remembering`] wrote.
pub fn open(backend: &Backend, folder: &Path) -> Result<DiffusionSession, String> {
    let bundle = Bundle::open(folder).map_err(|e| e.to_string())?;
    let weights = SharedWeights::open(&bundle, backend).map_err(|e| e.to_string())?;
    DiffusionSession::open(
        backend,
        &bundle,
        weights.as_ref(),
        &SessionOptions::default(),
    )
    .map_err(|e| e.to_string())
}

/// Samples three images through memory, and without, and compares with the numbers on paper.
pub fn check_memory(backend: &Backend, profile: Profile, kept: DType) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&remembering(kept), profile, &out);
    let mut session = open(backend, &out)?;
    let plan = adding(5);
    let seeds = [3, 4, 5];
    let start: Vec<f32> = seeds
        .iter()
        .flat_map(|&seed| noise(seed, 2))
        .map(|x| 0.5 * x)
        .collect();
    // a: x^2, (3x)^2, (9x)^2; x3 = 9x + 2 (9 x^2) - x^2; x4 = x3 + 0.5 (81 x^2) + 9 x^2; the last b
    // is 2 (3x), the third last a 9 x^2.
    let pruned = |x: f32| 9.0 * x + 17.0 * x * x + 49.5 * x * x + 6.0 * x + 9.0 * x * x;
    let whole = |x: f32| 32.0 * x;
    for (prune, expected) in [
        (true, &pruned as &dyn Fn(f32) -> f32),
        (false, &whole),
        (true, &pruned),
    ] {
        let request = SampleRequest {
            plan: &plan,
            image: None,
            guidance: 1.0,
            seeds: &seeds,
            noise: None,
            classes: &[],
            conditions: None,
            size: None,
            prune,
        };
        let mut calls = vec![];
        let found = session.sample(&request, &mut |run| {
            calls.push((run.done, run.total));
            ControlFlow::Continue(())
        });
        let found = found
            .map_err(|e| e.to_string())?
            .ok_or("nothing interrupts")?;
        assert_eq!(
            (found.shape, calls),
            ([3, 1, 1, 2], (0..5).map(|done| (done, 5)).collect())
        );
        let tolerance = if kept == DType::F32 { 1e-5 } else { 3e-3 };
        for (x, found) in start.iter().zip(&found.data) {
            let expected = expected(*x);
            if (expected - found).abs() > tolerance * (1.0 + 100.0 * x * x) {
                return Err(format!(
                    "{x}: {found} instead of {expected}, pruned: {prune}"
                ));
            }
        }
    }
    Ok(())
}
