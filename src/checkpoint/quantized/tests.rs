//! Packed matrices against the libraries that packed them; what is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dlc_errors::{Fault, Faulty};
use dlc_ir::{Blob, Coded, CodedPart, Expr, GroupFormat, QuantizedPart};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fixture::{Folder, fixture, safetensors};
use super::super::tensors::{StoredType, TensorRecord, read_tensors};
use super::super::{Checkpoint, CheckpointError};
use super::matrix::{PackedMatrix, Parts};
use super::scheme::{Method, Scheme};

/// The recorded matrices: name, method, bits, group size, whether zero points are stored less 1.
const RECORDED: [(&str, Method, usize, Option<usize>, bool); 13] = [
    ("gptq-2", Method::Gptq, 2, Some(16), true),
    ("gptq-3", Method::Gptq, 3, Some(32), true),
    ("gptq-3-v2", Method::Gptq, 3, Some(32), false),
    ("gptq-4", Method::Gptq, 4, Some(32), true),
    ("gptq-4-asym", Method::Gptq, 4, Some(32), true),
    ("gptq-4-borrow", Method::Gptq, 4, Some(16), true),
    ("gptq-4-v2", Method::Gptq, 4, Some(16), false),
    ("gptq-4-act", Method::Gptq, 4, Some(16), true),
    ("gptq-4-whole", Method::Gptq, 4, None, true),
    ("gptq-8", Method::Gptq, 8, Some(32), true),
    ("gptq-8-v2-act", Method::Gptq, 8, None, false),
    ("awq", Method::Awq, 4, Some(16), false),
    ("awq-whole", Method::Awq, 4, None, false),
];

/// Every recorded matrix, and what its library makes of it.
fn recorded() -> Vec<(&'static str, Arc<PackedMatrix>, Vec<f32>)> {
    let (tensors, _) = read_tensors(&fixture("quantised/matrices.safetensors")).unwrap();
    let tensors: BTreeMap<String, TensorRecord> = tensors.into_iter().collect();
    let read = |(name, method, bits, group_size, less_one)| {
        let part = |part: &str| tensors.get(&format!("{name}.{part}"));
        let parts = Parts {
            codes: part("qweight").unwrap(),
            zero_points: part("qzeros").unwrap(),
            scales: part("scales").unwrap(),
            groups: part("g_idx"),
        };
        let scheme = Scheme {
            method,
            bits,
            group_size,
            less_one,
        };
        let matrix = PackedMatrix::new(scheme, &parts).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let weight = part("weight").unwrap().expr().unwrap();
        let mut entries = vec![0.0; weight.elements()];
        weight.read_f32(0, &mut entries);
        (name, Arc::new(matrix), entries)
    };
    RECORDED.into_iter().map(read).collect()
}

fn part(matrix: &Arc<PackedMatrix>, part: CodedPart) -> Vec<f32> {
    let matrix = Arc::clone(matrix) as Arc<dyn Coded>;
    let expr = Expr::Coded { matrix, part };
    let mut out = vec![f32::NAN; expr.elements()];
    expr.read_f32(0, &mut out);
    out
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn matrices_are_unpacked_to_the_bit_as_their_libraries_do() {
    for (name, matrix, expected) in recorded() {
        let entries = part(&matrix, CodedPart::Entries);
        // -0.0 and 0.0 are the same number.
        let plain = |numbers: &[f32]| bits(&numbers.iter().map(|x| x + 0.0).collect::<Vec<_>>());
        assert_eq!(plain(&entries), plain(&expected), "{name}");
    }
}

/// The matrix that `quantized_linear` computes with.
fn from_parts(matrix: &Arc<PackedMatrix>, format: GroupFormat) -> Vec<f32> {
    let read = |p| part(matrix, CodedPart::Part(format, p));
    let bytes = |p| read(p).iter().map(|x| *x as u8).collect::<Vec<_>>();
    let [rows, columns] = matrix.shape();
    let (codes, scales) = (bytes(QuantizedPart::Codes), read(QuantizedPart::Scales));
    let zero_points = bytes(QuantizedPart::ZeroPoints);
    let groups = format.groups(columns);
    let mut entries = Vec::new();
    for row in 0..rows {
        let mut unpacked = vec![0; groups * format.group_size];
        let width = groups * format.code_bytes();
        format.unpack(&codes[row * width..][..width], &mut unpacked);
        let mut zeros = vec![0; groups];
        let width = format.zero_point_bytes(columns);
        format.unpack(&zero_points[row * width..][..width], &mut zeros);
        for (column, code) in unpacked.iter().enumerate() {
            let group = column / format.group_size;
            let entry = (f32::from(*code) - f32::from(zeros[group])) * scales[row * groups + group];
            if column < columns {
                entries.push(entry);
            } else {
                assert!(entry == 0.0, "what fills a group up stands for 0");
            }
        }
    }
    entries
}

#[test]
fn codes_are_kept_where_groups_are_runs() {
    let mut kept = Vec::new();
    for (name, matrix, expected) in recorded() {
        let coded: &dyn Coded = &*matrix;
        let Some(format) = coded.group_format() else {
            continue;
        };
        let entries = from_parts(&matrix, format);
        // Either zero is 0.
        let bits = |x: &f32| (x + 0.0).to_bits();
        assert!(
            entries.iter().map(bits).eq(expected.iter().map(bits)),
            "{name}"
        );
        let symmetric = coded.is_symmetric(format);
        kept.push(format!(
            "{name} {}x{}{}",
            format.bits,
            format.group_size,
            if symmetric { " symmetric" } else { "" }
        ));
    }
    insta::assert_snapshot!("kept", kept.join("\n"));
}

/// A layer's tensors by hand: random words, some scales.
fn layer(
    scheme: Scheme,
    [outputs, inputs]: [usize; 2],
    words: &[u32],
) -> (Arc<PackedMatrix>, Vec<u32>, Vec<u32>) {
    let size = scheme.group_size.unwrap_or(inputs);
    let groups = inputs.div_ceil(size);
    let per = |n: usize| (n * scheme.bits).div_ceil(32);
    let (codes, zeros) = match scheme.method {
        Method::Gptq => ([per(inputs), outputs], [groups, per(outputs)]),
        Method::Awq => ([inputs, per(outputs)], [groups, per(outputs)]),
    };
    let take = |shape: [usize; 2], from: usize| -> Vec<u32> {
        let n = shape[0] * shape[1];
        (0..n).map(|i| words[(from + i) % words.len()]).collect()
    };
    let (code_words, zero_words) = (take(codes, 0), take(zeros, 7));
    let record = |dtype, shape: &[usize], bytes: Vec<u8>| {
        let length = bytes.len();
        TensorRecord {
            dtype,
            shape: shape.to_vec(),
            blob: Blob::new(Arc::new(bytes), 0..length).unwrap(),
            laid_out: None,
            file: Arc::from(Path::new("file")),
        }
    };
    let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let i32s = StoredType::Other(safetensors::Dtype::I32);
    let scales: Vec<u8> = (0..groups * outputs)
        .flat_map(|i| (1.0 + i as f32).to_le_bytes())
        .collect();
    let parts = Parts {
        codes: &record(i32s, &codes, bytes(&code_words)),
        zero_points: &record(i32s, &zeros, bytes(&zero_words)),
        scales: &record(
            StoredType::Float(dlc_ir::DType::F32),
            &[groups, outputs],
            scales,
        ),
        groups: None,
    };
    let matrix = PackedMatrix::new(scheme, &parts).unwrap();
    (Arc::new(matrix), code_words, zero_words)
}

/// `bits` bits of a line of words from `bit` on, one by one.
fn bit_by_bit(line: impl Fn(usize) -> u32, bit: usize, bits: usize) -> u32 {
    (0..bits)
        .map(|i| (line((bit + i) / 32) >> ((bit + i) % 32) & 1) << i)
        .sum()
}

fn schemes() -> impl Strategy<Value = Scheme> {
    let gptq = (
        prop_oneof![Just(2usize), Just(3), Just(4), Just(8)],
        any::<bool>(),
    );
    let gptq = gptq.prop_map(|(bits, less_one)| (Method::Gptq, bits, less_one));
    let any = prop_oneof![gptq, Just((Method::Awq, 4, false))];
    (any, prop::option::of(1usize..70)).prop_map(|((method, bits, less_one), group_size)| Scheme {
        method,
        bits,
        group_size,
        less_one,
    })
}

proptest! {
    #[test]
    fn any_words_are_read_as_bits_say(scheme in schemes(), outputs in 1usize..5, inputs in 1usize..4, words in prop::collection::vec(any::<u32>(), 8..64), from in 0usize..2000, len in 1usize..2000) {
        let [outputs, inputs] = [outputs * 32, inputs * 32];
        let (matrix, codes, zeros) = layer(scheme, [outputs, inputs], &words);
        let bits = scheme.bits;
        let order = [0usize, 2, 4, 6, 1, 3, 5, 7];
        let place = |output: usize| match scheme.method {
            Method::Gptq => output * bits,
            Method::Awq => output / 8 * 32 + 4 * order.iter().position(|o| *o == output % 8).unwrap(),
        };
        let size = scheme.group_size.unwrap_or(inputs);
        let width = (outputs * bits).div_ceil(32);
        let expected = |output: usize, input: usize| {
            let code = match scheme.method {
                Method::Gptq => bit_by_bit(|word| codes[word * outputs + output], input * bits, bits),
                Method::Awq => bit_by_bit(|word| codes[input * width + word], place(output), bits),
            };
            let group = input / size;
            let stored = |word: usize| zeros[group * width + word];
            // Added to the whole word, lowest field first, as a carry goes.
            let mut zero = bit_by_bit(stored, place(output), bits);
            if scheme.less_one {
                let whole = bits != 3;
                let below = place(output) % 32 / bits;
                let carry = (0..below).fold(1, |carry, field| {
                    let field = bit_by_bit(stored, place(output) / 32 * 32 + field * bits, bits);
                    1 + u32::from(field + carry >= 1 << bits)
                });
                zero = (zero + if whole { carry } else { 1 }) % (1 << bits);
            }
            (f64::from(code) - f64::from(zero)) * (1 + group * outputs + output) as f64
        };
        let all = outputs * inputs;
        let from = from % all;
        let len = len.min(all - from);
        let matrix = matrix as Arc<dyn Coded>;
        let expr = Expr::Coded { matrix, part: CodedPart::Entries };
        let mut out = vec![f32::NAN; len];
        expr.read_f32(from, &mut out);
        for (at, x) in (from..).zip(out) {
            let expected = expected(at / inputs, at % inputs);
            prop_assert!((f64::from(x) - expected).abs() <= 0.0, "entry {}", at);
        }
    }

    #[test]
    fn any_range_of_a_part_is_that_of_the_whole(which in 0usize..13, kind in 0usize..4, from in any::<prop::sample::Index>(), len in 1usize..400) {
        let (_, matrix, _) = recorded().swap_remove(which);
        let format = (&*matrix as &dyn Coded).group_format();
        let kinds = [QuantizedPart::Codes, QuantizedPart::Scales, QuantizedPart::ZeroPoints];
        let one = match (kind, format) {
            (3, _) | (_, None) => CodedPart::Entries,
            (kind, Some(format)) => CodedPart::Part(format, kinds[kind]),
        };
        let whole = part(&matrix, one);
        let from = from.index(whole.len());
        let mut out = vec![f32::NAN; len.min(whole.len() - from)];
        let matrix = matrix as Arc<dyn Coded>;
        Expr::Coded { matrix, part: one }.read_f32(from, &mut out);
        prop_assert_eq!(bits(&out), bits(&whole[from..from + out.len()]));
    }
}

/// What opening a folder is refused with.
fn refused(folder: &Folder) -> (Fault, String) {
    let error: CheckpointError = Checkpoint::open(folder.path()).unwrap_err();
    (error.fault(), error.to_string())
}

#[test]
fn configurations_that_cannot_be_followed_are_refused_key_by_key() {
    let mut said = Vec::new();
    for (name, patch) in [
        ("gptq-llama", json!({"bits": 5})),
        ("gptq-llama", json!({"bits": "4", "group_size": 0})),
        (
            "gptq-llama",
            json!({"checkpoint_format": "marlin", "is_marlin_format": true}),
        ),
        (
            "gptq-llama",
            json!({"checkpoint_format": "gptq_v2", "format": "gptq"}),
        ),
        (
            "gptq-llama",
            json!({"dynamic": {"-:a": {}, "+:b": {"bits": 8}}, "pack_dtype": "int16", "rotation": "hadamard"}),
        ),
        (
            "awq-qwen2",
            json!({"bits": 3, "version": "gemv", "zero_point": false}),
        ),
        (
            "awq-qwen2",
            json!({"backend": "llm-awq", "w_bit": 8, "modules_to_not_convert": "o_proj"}),
        ),
    ] {
        let folder = Folder::patched(
            &format!("quantised/{name}"),
            &json!({"quantization_config": patched(name, &patch)}),
        );
        let (fault, message) = refused(&folder);
        assert_eq!(fault, Fault::Unsupported, "{message}");
        let root = folder.path().display().to_string();
        said.push(message.replace(&root, ""));
    }
    insta::assert_snapshot!("configurations", said.join("\n"));
}

/// The fixture's `quantization_config` with `patch` over it.
fn patched(name: &str, patch: &Value) -> Value {
    let path = fixture(&format!("quantised/{name}/config.json"));
    let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut said = config["quantization_config"].clone();
    let said_object = said.as_object_mut().unwrap();
    said_object.extend(patch.as_object().unwrap().clone());
    said
}

/// Name, type, shape and first bytes of a tensor; the others are 0.
type Change<'a> = (&'a str, &'a str, &'a [usize], &'a [u8]);

/// A folder of one packed layer, `bits` 4 in groups of 16, 32 outputs and 64 inputs, of which some
/// tensors are others; a type `-` leaves one out.
fn one_layer(changes: &[Change<'_>]) -> Folder {
    let groups: Vec<u8> = (0..64i32).flat_map(|i| (i / 16).to_le_bytes()).collect();
    let mut tensors: BTreeMap<&str, (&str, Vec<usize>, Vec<u8>)> = BTreeMap::from([
        ("l.qweight", ("I32", vec![8, 32], vec![0; 8 * 32 * 4])),
        ("l.qzeros", ("I32", vec![4, 4], vec![0; 4 * 4 * 4])),
        ("l.scales", ("F16", vec![4, 32], vec![0; 4 * 32 * 2])),
        ("l.g_idx", ("I32", vec![64], groups)),
    ]);
    for (name, dtype, shape, start) in changes {
        if *dtype == "-" {
            tensors.remove(name);
            continue;
        }
        let size = shape.iter().product::<usize>() * if *dtype == "F16" { 2 } else { 4 };
        let mut bytes = start.to_vec();
        bytes.resize(size, 0);
        tensors.insert(name, (dtype, shape.to_vec(), bytes));
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let record = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.to_owned(), record);
        data.extend(bytes);
    }
    let config =
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}});
    let file = safetensors(&Value::from(header).to_string(), &data);
    Folder::new()
        .with("config.json", config.to_string().as_bytes())
        .with("model.safetensors", &file)
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let nan = [0, 0, 0x00, 0x7e];
    let mut said = Vec::new();
    let cases: [&[Change<'_>]; 13] = [
        &[("l.qweight", "F32", &[8, 32], &[])],
        &[("l.qweight", "I32", &[9, 32], &[])],
        &[("l.qweight", "I32", &[256], &[])],
        &[("l.qzeros", "-", &[], &[])],
        &[("l.qzeros", "I32", &[4, 3], &[])],
        &[("l.qzeros", "F16", &[4, 4], &[])],
        &[("l.scales", "I32", &[4, 32], &[])],
        &[("l.scales", "F16", &[3, 32], &[])],
        &[("l.scales", "F16", &[4, 32], &nan)],
        &[("l.g_idx", "F32", &[64], &[])],
        &[("l.g_idx", "I32", &[64], &[4, 0, 0, 0])],
        &[("l.g_idx", "I32", &[64], &[255, 255, 255, 255])],
        &[("l.weight", "F32", &[32, 64], &[])],
    ];
    for changes in cases {
        let folder = one_layer(changes);
        let (fault, message) = refused(&folder);
        assert_eq!(fault, Fault::BadInput, "{message}");
        let root = folder.path().display().to_string();
        said.push(message.replace(&root, ""));
    }
    insta::assert_snapshot!("tensors", said.join("\n"));
    assert!(Checkpoint::open(one_layer(&[]).path()).is_ok());
}

#[test]
fn what_says_how_has_to_be_there_and_agree() {
    let folder = one_layer(&[]).with("config.json", b"{}");
    let (fault, message) = refused(&folder);
    assert_eq!(fault, Fault::BadInput);
    assert!(
        message.contains("`l.qweight`") || message.contains("*.qweight"),
        "{message}"
    );
    assert!(message.contains("quantize_config.json"), "{message}");
    let same = br#"{"bits": 4, "group_size": 16}"#;
    let folder = one_layer(&[]).with("quantize_config.json", same);
    assert!(Checkpoint::open(folder.path()).is_ok());
    let other = br#"{"bits": 4, "group_size": 32}"#;
    let (fault, message) = refused(&folder.with("quantize_config.json", other));
    assert_eq!(fault, Fault::BadInput);
    assert!(message.contains("says otherwise than"), "{message}");
}

#[test]
fn layers_that_are_said_to_be_plain_are_not_packed() {
    let patch = json!({"modules_to_not_convert": ["o_proj", "v_proj"]});
    let config = json!({"quantization_config": patched("awq-qwen2", &patch)});
    let (_, message) = refused(&Folder::patched("quantised/awq-qwen2", &config));
    assert!(
        message.contains("`model.layers.1.self_attn.v_proj.qweight` is packed"),
        "{message}"
    );
    assert!(!message.contains("o_proj.qweight"), "{message}");
}
