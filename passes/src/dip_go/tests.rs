//! Gradients of the gates against finite differences, through whole samplers.

use dlc_ir::{
    Classes, DType, Diffusion, Expr, Granularity, Graph, Reuse, WeightTable, parse_graph,
    parse_graph_over,
};
use dlc_methods::diffusion::{Estimate, SamplingPlan, SamplingStep};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::NAME;
use super::rollout::Sampler;
use super::supernet::SuperNet;
use super::view::{Space, ViewPlan};
use crate::sampling::{Guidance, Start};
use crate::skip::SkipNet;

/// How far a gate is moved.
const STEP: f32 = 1e-2;

const DIT: &str = include_str!("../../tests/graphs/dit.dlc");
const UNET: &str = include_str!("../../tests/graphs/unet-ddpm.dlc");
const DECODER: &str = include_str!("../../tests/graphs/vae-decoder.dlc");

/// The graph of a text over made-up weights.
fn model(text: &str) -> (Graph, WeightTable) {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (_, declared) = parse_graph(text).expect("parses");
    let mut weights = WeightTable::default();
    for (_, w) in declared.entries() {
        // Small enough that the sampler doesn't run away.
        let fan = if w.shape.len() > 1 {
            w.shape.iter().skip(1).product::<usize>() as f32
        } else {
            16.0
        };
        let centre = if w.shape.len() == 1 && w.name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        let numbers =
            (0..w.elements()).map(|_| centre + rng.random_range(-0.8..0.8f32) / fan.sqrt());
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        weights
            .add(&w.name, &w.shape, Expr::constant(bytes, DType::F32))
            .expect("fits");
    }
    (parse_graph_over(text, &weights).expect("parses"), weights)
}

/// Steps that look back, scale their input and clip, so that every part of the way back is taken.
fn plan() -> SamplingPlan {
    let step = |i: usize| SamplingStep {
        timestep: 900.0 - 200.0 * i as f64,
        input_scale: 1.0 / (1.0 + 0.1 * i as f64),
        estimate: Estimate {
            latents: 0.4,
            output: -0.3,
            clip: (i == 2).then_some(0.5),
        },
        latents: if i == 0 { vec![0.8] } else { vec![0.7, 0.1] },
        estimates: if i == 0 { vec![0.3] } else { vec![0.4, -0.1] },
        output: 0.05,
        noise: if i == 2 { 0.3 } else { 0.0 },
    };
    SamplingPlan {
        image_scale: 0.0,
        initial_scale: 1.2,
        steps: (0..4).map(step).collect(),
    }
}

fn check(text: &str, diffusion: &Diffusion, granularity: Granularity, reuse: Reuse) {
    let (graph, weights) = model(text);
    let net = SkipNet::new(NAME, &graph, &weights, diffusion, granularity).expect("has blocks");
    let supernet = SuperNet::new(NAME, &net, diffusion).expect("can be trained");
    let segment = supernet.load(&weights).expect("loads");
    let plan = plan();
    let sampler = Sampler {
        net: &supernet,
        segment: &segment,
        plan: &plan,
        guidance: Guidance {
            diffusion,
            prompts: &[],
            scale: 1.5,
        },
        reuse,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let n = diffusion.numbers();
    let start = Start {
        noise: (0..n).map(|_| rng.random_range(-1.5..1.5)).collect(),
        seed: 4,
        class: diffusion.classes.map(|_| 3),
        prompt: None,
    };
    let signs: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    // Between on and off, but for the first step: gates are numbers to the way back.
    let mut gates: Vec<Vec<f32>> = (0..plan.steps.len())
        .map(|_| {
            net.units
                .iter()
                .map(|_| rng.random_range(0.2..0.8))
                .collect()
        })
        .collect();
    gates[0].fill(1.0);
    let value = |gates: &[Vec<f32>]| -> f64 {
        let rollout = sampler.run(&start, gates).expect("runs");
        rollout
            .sample()
            .iter()
            .zip(&signs)
            .map(|(x, s)| f64::from(x * s))
            .sum()
    };
    let rollout = sampler.run(&start, &gates).expect("runs");
    let gradient = sampler
        .back(&start, &gates, &rollout, signs.clone())
        .expect("runs back");
    let scale = gradient
        .iter()
        .skip(1)
        .flatten()
        .fold(0f64, |m, g| m.max(g.abs()));
    assert!(scale > 1e-4, "the gates change nothing");
    for _ in 0..6 {
        let (step, unit) = (
            rng.random_range(1..plan.steps.len()),
            rng.random_range(0..net.units.len()),
        );
        let moved = |by: f32| {
            let mut gates = gates.clone();
            gates[step][unit] += by;
            value(&gates)
        };
        let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        let error = (slope - gradient[step][unit]).abs();
        assert!(
            error <= 2e-2 * scale,
            "{granularity:?} {reuse:?}, step {step}, {}: {:e}, not {slope:e}",
            net.units[unit].name,
            gradient[step][unit]
        );
    }
}

/// Of latents with so many channels, eight by eight.
fn latents(channels: usize) -> Diffusion {
    Diffusion {
        channels,
        height: 8,
        width: 8,
        size_step: None,
        out_channels: channels,
        classes: None,
        text_width: None,
    }
}

#[test]
fn the_way_back_through_the_decoder_is_that_of_finite_differences() {
    let (graph, weights) = model(DECODER);
    let plan = ViewPlan::new(Some(&graph), &weights, &latents(4), None, None);
    let view = plan.expect("fits").load().expect("loads");
    assert_eq!(view.name(), "1 - SSIM of pictures");
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut sample = |_| rng.random_range(-1.0..1.0f32);
    let (at, full): (Vec<f32>, Vec<f32>) = (
        (0..256).map(&mut sample).collect(),
        (0..256).map(&mut sample).collect(),
    );
    let full = view.of(&full).expect("decodes");
    assert_eq!(full.len(), 3 * 16 * 16);
    let loss = |sample: &[f32]| {
        view.loss
            .distance(&view.of(sample).expect("decodes"), &full)
    };
    let (distance, adjoint) = view.loss.gradient(&view.of(&at).expect("decodes"), &full);
    assert!(
        (distance - loss(&at)).abs() < 1e-9 && distance > 0.01,
        "{distance}"
    );
    let back = view.back(&at, |image| {
        assert_eq!(image.len(), full.len());
        adjoint
    });
    let gradient = back.expect("runs back");
    let scale = gradient.iter().fold(0f32, |most, g| most.max(g.abs()));
    for i in (0..256).step_by(31) {
        let moved = |by: f32| {
            let mut sample = at.clone();
            sample[i] += by;
            loss(&sample)
        };
        let slope = ((moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP)) as f32;
        let error = (slope - gradient[i]).abs();
        assert!(error <= 2e-2 * scale, "{i}: {}, not {slope}", gradient[i]);
    }
}

#[test]
fn images_are_compared_as_pictures_where_there_is_a_decoder() {
    let (graph, weights) = model(DECODER);
    let name = |decoder, channels, space| {
        let plan = ViewPlan::new(decoder, &weights, &latents(channels), space, None);
        Some(plan.ok()?.load().expect("loads").name())
    };
    let (image, latent) = (Some(Space::Image), Some(Space::Latent));
    assert_eq!(name(Some(&graph), 4, image), name(Some(&graph), 4, None));
    assert_eq!(
        name(Some(&graph), 4, latent).as_deref(),
        Some("mean square")
    );
    assert_eq!(name(None, 4, None).as_deref(), Some("mean square"));
    assert_eq!(name(None, 3, image).as_deref(), Some("mean square"));
    assert_eq!(name(None, 4, image), None);
}

#[test]
fn gate_gradients_are_those_of_finite_differences() {
    let dit = Diffusion {
        channels: 4,
        height: 8,
        width: 8,
        size_step: None,
        out_channels: 8,
        classes: Some(Classes {
            count: 10,
            unconditional: Some(10),
        }),
        text_width: None,
    };
    let unet = Diffusion {
        channels: 1,
        height: 16,
        width: 16,
        size_step: None,
        out_channels: 1,
        classes: None,
        text_width: None,
    };
    for granularity in [Granularity::Branch, Granularity::Layer] {
        for reuse in [Reuse::Hold, Reuse::Linear, Reuse::Quadratic] {
            check(DIT, &dit, granularity, reuse);
        }
        check(UNET, &unet, granularity, Reuse::Hold);
    }
}
