//! Quantised products on a backend against double precision, and cheap drafts of the trained
//! fixture.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dlc::pipeline::{Check, module_of_bundle, verify_bundle};
use dlc_bundle::Profile;
use dlc_ir::{
    Blob, DType, Expr, GroupFormat, ModelInfo, Module, QuantizedPart, Quantizer, Refinement,
    Scores, Task, WeightTable, parse_graph_over,
};
use dlc_runtime::{Backend, Bundle, HostTensor, Session, SessionOptions};

use super::decoding::{Pair, compile_quietly, compile_request};
use super::fixture;
use super::session::export;

/// A draft that lacks layers, has 4 bits and proposes a quarter of the vocabulary.
pub const CHEAP: [&str; 3] = [
    "fit-prune:drop=4,samples=2,length=32",
    "quantize-draft:symmetric=false",
    "trim-head:tokens=512",
];

/// Rows of activations, rows and columns of the matrix: whole blocks, a block that is filled up, an
/// odd number of blocks.
const SHAPES: [[usize; 3]; 3] = [[3, 24, 64], [2, 16, 40], [5, 8, 96]];

/// Numbers in [-1, 1) from a linear congruence.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

/// Numbers in single precision, rounded to the element type that computes with them.
fn mapped(numbers: &[f32], dtype: DType) -> Expr {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let length = bytes.len();
    Expr::Mapped {
        blob: Blob::new(Arc::new(bytes), 0..length).unwrap(),
        dtype: DType::F32,
    }
    .cast(dtype)
}

fn info(dtype: DType) -> ModelInfo {
    ModelInfo {
        family: "llama".into(),
        task: Task::FeatureExtraction,
        labels: vec![],
        scores: Scores::OneClass,
        sentence: None,
        dtype,
        diffusion: None,
        prompts: None,
        vocab_size: 8,
        hidden_size: 8,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        context_length: 8,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
    }
}

/// `x [rows, inner]` times a quantised `[out, inner]` plus a bias, as a module; and the parts of
/// the matrix as they are stored.
fn product(
    [rows, out, inner]: [usize; 3],
    (quantizer, dtype): (Quantizer, DType),
    x: &[f32],
    matrix: &[f32],
    bias: &[f32],
) -> (Module, [Vec<f32>; 3]) {
    let format = quantizer.format;
    let part = |part| Expr::Quantize {
        input: Arc::new(mapped(matrix, dtype)),
        columns: inner,
        quantizer,
        part,
    };
    let mut weights = WeightTable::default();
    weights.add("x", &[rows, inner], mapped(x, dtype)).unwrap();
    let codes = weights
        .add(
            "codes",
            &[out, format.groups(inner), format.code_bytes()],
            part(QuantizedPart::Codes),
        )
        .unwrap();
    let scales = weights
        .add(
            "scales",
            &[out, format.groups(inner)],
            part(QuantizedPart::Scales),
        )
        .unwrap();
    let zeros = weights
        .add(
            "zeros",
            &[out, format.zero_point_bytes(inner)],
            part(QuantizedPart::ZeroPoints),
        )
        .unwrap();
    weights.add("bias", &[out], mapped(bias, dtype)).unwrap();
    let parts = [codes, scales, zeros].map(|id| weights[id].to_f32().unwrap());
    let (bits, block) = (format.bits, format.group_size);
    let zeros = if quantizer.symmetric { "" } else { ", @zeros" };
    let text = format!(
        "graph target {{\n  input input_ids: i64[batch, seq]\n  %0 = gather @x, %input_ids : {dtype}[batch, seq, {inner}]\n  \
         %1 = quantized_linear %0, @codes, @scales{zeros}, @bias bits={bits} group_size={block} : {dtype}[batch, seq, {out}]\n  \
         output last_hidden_state = %1\n}}\n"
    );
    let graph = parse_graph_over(&text, &weights).unwrap();
    (
        Module {
            graphs: vec![graph],
            weights,
            model: info(dtype),
            sampling: None,
            drafting: None,
            side_files: vec![],
        },
        parts,
    )
}

/// Entry `i` of codes that are packed by `format`.
fn code(format: GroupFormat, bytes: &[f32], i: usize) -> f64 {
    if format.bits == 4 {
        f64::from(bytes[i / 2] as u32 >> (4 * (i % 2)) & 15)
    } else {
        f64::from(bytes[i])
    }
}

/// What a product should be, and how far rounding activations to 8 bits, block by block, can take
/// it from that.
fn by_hand(
    [_, out, inner]: [usize; 3],
    quantizer: Quantizer,
    x: &[f32],
    [codes, scales, zeros]: &[Vec<f32>; 3],
    bias: &[f32],
) -> Vec<(f64, f64)> {
    let format = quantizer.format;
    let (groups, middle) = (format.groups(inner), f64::from(format.default_zero_point()));
    let weight = |row: usize, column: usize| {
        let block = column / format.group_size;
        let zero = if quantizer.symmetric {
            middle
        } else {
            code(
                format,
                &zeros[row * format.zero_point_bytes(inner)..],
                block,
            )
        };
        (code(format, &codes[row * groups * format.code_bytes()..], column) - zero)
            * f64::from(scales[row * groups + block])
    };
    let entry = |x: &[f32], row: usize| {
        let (mut sum, mut rounding) = (f64::from(bias[row]), 0.0);
        for (block, x) in x.chunks(format.group_size).enumerate() {
            let step = f64::from(x.iter().fold(0f32, |m, x| m.max(x.abs()))) / 127.0;
            for (i, &x) in x.iter().enumerate() {
                let weight = weight(row, block * format.group_size + i);
                sum += f64::from(x) * weight;
                rounding += step / 2.0 * weight.abs();
            }
        }
        (sum, rounding)
    };
    x.chunks(inner)
        .flat_map(|x| (0..out).map(move |row| entry(x, row)))
        .collect()
}

/// Every kind of quantised matrix, with a bias: within 1e-4 of double precision, in profiles `onnx`
/// and `ort` within what rounded activations allow. In f16, which is for profile `ort`, entries are
/// those of scales in f16, and results are rounded.
pub fn check_products(backend: &Backend, profile: Profile) -> Result<(), String> {
    check_products_in(backend, profile, DType::F32)?;
    if profile == Profile::Ort {
        check_products_in(backend, profile, DType::F16)?;
    }
    Ok(())
}

fn check_products_in(backend: &Backend, profile: Profile, dtype: DType) -> Result<(), String> {
    for shape in SHAPES {
        for (bits, block, symmetric) in [
            (4, 32, true),
            (4, 32, false),
            (4, 64, false),
            (8, 32, true),
            (8, 32, false),
            (8, 128, true),
        ] {
            let quantizer = Quantizer {
                format: GroupFormat {
                    bits,
                    group_size: block,
                },
                symmetric,
                refinement: Refinement::Hqq,
            };
            let [rows, out, inner] = shape;
            let numbers = |n, seed| -> Vec<f32> {
                let noise = noise(n, seed).into_iter();
                noise.map(|x| dtype.rounded(x)).collect()
            };
            let (x, matrix) = (numbers(rows * inner, 1), numbers(out * inner, 2));
            let bias = numbers(out, 3);
            let (module, parts) = product(shape, (quantizer, dtype), &x, &matrix, &bias);
            if module
                .weights
                .entries()
                .any(|(_, weight)| weight.name == "scales" && weight.dtype != dtype)
            {
                return Err(format!("{shape:?} {quantizer:?}: scales aren't {dtype}"));
            }
            let folder = tempfile::tempdir().unwrap();
            export(&module, profile, &folder.path().join("bundle"));
            let bundle = Bundle::open(&folder.path().join("bundle")).map_err(|e| e.to_string())?;
            let mut session =
                Session::load(backend, &bundle, "target", None, &SessionOptions::default())
                    .map_err(|e| e.to_string())?;
            let ids = HostTensor::i64([1, rows], (0..rows as i64).collect());
            let made = session
                .run_host(&[("input_ids", ids)])
                .map_err(|e| e.to_string())?;
            let made = made[0].1.to_f32().unwrap();
            let expected = by_hand(shape, quantizer, &x, &parts, &bias);
            if made.len() != expected.len() {
                return Err(format!("{shape:?} {quantizer:?}: {} numbers", made.len()));
            }
            for (made, (expected, rounding)) in made.iter().zip(expected) {
                let of_activations = if profile == Profile::Portable {
                    0.0
                } else {
                    1.05 * rounding
                };
                let of_result = if dtype == DType::F16 {
                    1e-3 * (1.0 + expected.abs())
                } else {
                    0.0
                };
                let allowed = 1e-4 + of_activations + of_result;
                let error = (f64::from(*made) - expected).abs();
                if error.is_nan() || error > allowed {
                    return Err(format!(
                        "{shape:?} {quantizer:?}: {made}, not {expected}: {error:e} is more than {allowed:e}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// tiny-llama with the cheap draft, compiled into `folder`.
fn compiled(profile: Profile, folder: &Path) -> Bundle {
    let mut request = compile_request(fixture("tiny-llama"), profile, folder.join("bundle"));
    request.passes = CHEAP
        .iter()
        .map(|pass| dlc::pipeline::parse_pass_flag(pass).unwrap())
        .collect();
    compile_quietly(&request).unwrap();
    Bundle::open(&request.output).unwrap()
}

/// Goldens of every kind of model, and how they are quantised.
const TARGETS: [(&str, &str); 11] = [
    ("bert-classifier", "bits=4,method=hqq"),
    ("deberta-v3", "bits=8"),
    ("modernbert", "bits=4,method=hqq"),
    ("gemma2", "bits=8,symmetric=true"),
    ("gpt2", "bits=4,method=hqq,head=8,embedding=none"),
    ("gpt_neox", "bits=4,method=hqq,embedding=8"),
    ("mixtral", "bits=4,method=rtn"),
    ("qwen3-encoder", "bits=8"),
    ("smollm3", "bits=8,group_size=64"),
    ("pixart", "bits=4,method=hqq"),
    ("unet-sd15", "bits=8"),
];
/// The same in f16, for profile `ort`.
const HALF_TARGETS: [(&str, &str); 6] = [
    ("bert-classifier", "bits=8"),
    ("gemma2", "bits=8,symmetric=true"),
    ("gpt_neox", "bits=4,method=hqq,embedding=8"),
    ("mixtral", "bits=4,method=rtn"),
    ("mixtral", "bits=8,symmetric=true"),
    ("smollm3", "bits=4,method=hqq"),
];

/// Quantised models of every kind run as the evaluator says of the same codes.
pub fn check_targets(backend: &Backend, profile: Profile) -> Result<(), String> {
    for (golden, options) in TARGETS {
        check_target(backend, profile, DType::F32, (golden, options))?;
    }
    if profile == Profile::Ort {
        for (golden, options) in HALF_TARGETS {
            check_target(backend, profile, DType::F16, (golden, options))?;
        }
    }
    Ok(())
}

fn check_target(
    backend: &Backend,
    profile: Profile,
    dtype: DType,
    (golden, options): (&str, &str),
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = fixture("goldens").join(golden);
    let mut request = compile_request(checkpoint, profile, folder.path().join("bundle"));
    request.dtype = Some(dtype);
    let pass = format!("quantize:{options}");
    request.passes = vec![dlc::pipeline::parse_pass_flag(&pass).unwrap()];
    compile_quietly(&request).map_err(|e| format!("{golden}: {e}"))?;
    let bundle = Bundle::open(&request.output).unwrap();
    let module = module_of_bundle(&bundle).map_err(|e| e.to_string())?;
    if !module.graphs[0].nodes().any(|(_, n)| n.op.is_quantized()) {
        return Err(format!("{golden}: nothing is quantised"));
    }
    let checks = verify_bundle(&bundle, &module, backend, &SessionOptions::default(), None)
        .map_err(|e| format!("{golden}: {e}"))?;
    match checks.iter().find(|check| !check.passed()) {
        Some(failed) => Err(format!("{golden} in {dtype}: {failed:?}")),
        None => Ok(()),
    }
}

/// A pruned, quantised and trimmed draft runs as the evaluator says, and its greedy speculative
/// text is the target's own.
pub fn check_cheap_draft(
    backend: &Backend,
    profile: Profile,
    prompts: usize,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = compiled(profile, folder.path());
    let module = module_of_bundle(&bundle).map_err(|e| e.to_string())?;
    let checks = verify_bundle(&bundle, &module, backend, &SessionOptions::default(), None)
        .map_err(|e| e.to_string())?;
    let failed: Vec<&Check> = checks.iter().filter(|c| !c.passed()).collect();
    if !failed.is_empty() {
        return Err(format!("{failed:?}"));
    }
    let allowed: BTreeMap<&str, f32> = checks
        .iter()
        .map(|c| (c.graph.as_str(), c.outcome.allowed))
        .collect();
    if (profile == Profile::Portable) == (allowed["draft"] > 0.1) || allowed["target"] > 1e-3 {
        return Err(format!(
            "only a quantised draft of profiles onnx and ort may be far from the evaluator: {allowed:?}"
        ));
    }
    let folder = tempfile::tempdir().unwrap();
    Pair::compile_with(&CHEAP, backend, profile, folder.path(), false).check_greedy(prompts)
}
