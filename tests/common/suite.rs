//! Every golden on an engine: what transformers and diffusers computed, in single precision and in
//! half, padded and continued.

use dlc_ir::{DType, Module};
use dlc_passes::fold_constants;

use super::diffusion::{DIFFUSION, check_diffusion};
use super::golden::{
    CASES, Case, ENCODERS, EncoderGolden, Feed, Golden, HALF_TOLERANCE, TOLERANCE, all_decoders,
    module,
};
use super::lengths;
use super::padding::check_padding;
use super::pipelines::{Graph, PipelineGolden};
use super::session::{Arrays, Engine, Runner};

/// One comparison with the reference.
pub struct Comparison {
    /// `llama_ort_f16`.
    pub title: String,
    /// Fails with the largest error.
    pub run: Check,
}

type Check = Box<dyn FnOnce(&Engine) -> Result<(), String> + Send>;

/// Every comparison, for an engine called `on`; in half precision too if `half` says so.
pub fn comparisons(on: &str, half: Half) -> Vec<Comparison> {
    let mut list = Vec::new();
    let mut add = |title: String, run: Check| list.push(Comparison { title, run });
    for name in all_decoders() {
        for case in CASES {
            let check: Check =
                Box::new(move |engine| check_decoder(engine, name, DType::F32, case));
            add(format!("{name}_{on}_{case:?}"), check);
        }
        let padded: Check = Box::new(move |engine| check_padding(engine, name));
        add(format!("{name}_{on}_padded_on_either_side"), padded);
        if half == Half::Compared {
            let check: Check =
                Box::new(move |engine| check_decoder(engine, name, DType::F16, Case::Sequence));
            add(format!("{name}_{on}_f16"), check);
        }
    }
    let title = format!("{}_{on}_around_the_length_trained_on", lengths::GOLDEN);
    add(title, Box::new(lengths::check_lengths));
    let types = match half {
        Half::Compared => &[DType::F32, DType::F16][..],
        Half::LeftOut => &[DType::F32],
    };
    for &dtype in types {
        for &name in ENCODERS {
            let check: Check = Box::new(move |engine| check_encoder(engine, name, dtype));
            add(format!("{name}_{on}_{dtype}"), check);
        }
        for &name in DIFFUSION {
            let check: Check =
                Box::new(move |engine| check_diffusion(engine, name, dtype, tolerance(dtype)));
            add(format!("{name}_{on}_{dtype}"), check);
        }
        for golden in PipelineGolden::all() {
            for graph in golden.graphs() {
                let title = format!("{}_{graph:?}_{on}_{dtype}", golden.name);
                let golden = golden.clone();
                let check: Check =
                    Box::new(move |e| golden.check_graph(e, graph, dtype, tolerance(dtype)));
                add(title, check);
            }
        }
    }
    for golden in PipelineGolden::adapted() {
        for graph in [Graph::TextEncoder, Graph::Denoiser] {
            let title = format!("adapters_of_{}_{graph:?}_{on}", golden.name);
            let golden = golden.clone();
            let check: Check =
                Box::new(move |e| golden.check_graph(e, graph, DType::F32, TOLERANCE));
            add(title, check);
        }
        if half == Half::Compared {
            let title = format!("adapters_of_{}_{on}_pictures", golden.name);
            add(title, Box::new(move |engine| golden.check_pictures(engine)));
        }
    }
    if half == Half::Compared {
        for golden in PipelineGolden::all() {
            let title = format!("{}_{on}_pictures", golden.name);
            add(title, Box::new(move |engine| golden.check_pictures(engine)));
        }
    }
    list
}

/// Whether models in half precision are compared too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Compared,
    LeftOut,
}

fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::F32 {
        TOLERANCE
    } else {
        HALF_TOLERANCE
    }
}

/// Compares one run of a decoder with what is recorded.
pub fn check_decoder(
    engine: &Engine,
    name: &'static str,
    dtype: DType,
    case: Case,
) -> Result<(), String> {
    let golden = Golden::read(name);
    check_module(
        engine,
        golden.module(dtype),
        &golden,
        case,
        tolerance(dtype),
    )
}

/// Compares one run of a decoder, however it was read, with what is recorded.
pub fn check_module(
    engine: &Engine,
    module: Module,
    golden: &Golden,
    case: Case,
    tolerance: f32,
) -> Result<(), String> {
    let mut runner = engine.load(module)?;
    let (before, feed) = golden.feeds(case);
    let logits = match before {
        // One sequence after the other, where several can't be continued.
        Some(before) if runner.continues_one_sequence_only() => {
            let rows = (0..feed.shape[0])
                .map(|row| logits(&mut runner, Some(&before.row(row)), &feed.row(row)));
            rows.collect::<Result<Vec<_>, _>>()?.concat()
        }
        before => logits(&mut runner, before.as_ref(), &feed)?,
    };
    golden.check(case, &logits, tolerance)
}

fn logits(runner: &mut Runner, before: Option<&Feed>, feed: &Feed) -> Result<Vec<f32>, String> {
    let caches = match before {
        Some(before) => runner.run(&before.arrays(runner, &Arrays::new()))?,
        None => Arrays::new(),
    };
    let outputs = runner.run(&feed.arrays(runner, &caches))?;
    Ok(outputs["logits"].as_f32().unwrap().to_vec())
}

/// Compares the outputs of an encoder with what is recorded: on the evaluator as it was imported, on
/// backends as bundles hold it.
fn check_encoder(engine: &Engine, name: &'static str, dtype: DType) -> Result<(), String> {
    let golden = EncoderGolden::read(name);
    let mut module = module(name, dtype);
    if let Engine::Backend(..) = engine {
        fold_constants(&mut module).map_err(|error| error.to_string())?;
    }
    let found = engine.load(module)?.run(&golden.inputs)?;
    let scale = if dtype == DType::F16 {
        golden.scale()
    } else {
        1.0
    };
    for output in golden.outputs() {
        let found = found.get(output).ok_or("the output is missing")?;
        golden.check(output, found.as_f32().unwrap(), tolerance(dtype) * scale)?;
    }
    Ok(())
}
