//! Files that open, and hostile ones that are refused.

use std::fs;
use std::path::Path;

use dlc_errors::{Fault, Faulty};
use dlc_ir::{DType, Task};
use proptest::prelude::*;

use super::fixture::{Folder, fixture, safetensors};
use super::{Checkpoint, StoredType};

const A: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
const SHARDS: &str = r#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#;
const INDEX: &str = "model.safetensors.index.json";

/// Opening `path` fails with a message that says all of `parts`, and how to go on.
fn refuses(case: &str, path: &Path, fault: Fault, parts: &[&str]) {
    let error = Checkpoint::open(path)
        .err()
        .unwrap_or_else(|| panic!("{case}: was opened"));
    let message = error.to_string();
    assert_eq!(error.fault(), fault, "{case}: {message}");
    for part in parts {
        assert!(
            message.contains(part),
            "{case}: `{part}` is not in: {message}"
        );
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn hostile_weight_files_are_refused_with_file_and_tensor() {
    let record = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |a: &str, b: &str| {
        let record =
            |offsets: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
        safetensors(
            &format!(r#"{{"a":{},"b":{}}}"#, record(a), record(b)),
            &[0; 16],
        )
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        safetensors(&record(dtype, shape, offsets), &[0; 8])
    };
    let huge_header = [&(33u64 << 20).to_le_bytes()[..], &vec![b' '; 33 << 20]].concat();
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty file", vec![], vec!["0 bytes long", "too short"]),
        (
            "file of seven bytes",
            vec![0; 7],
            vec!["7 bytes long", "too short"],
        ),
        (
            "truncated header",
            safetensors(A, &[])[..20].to_vec(),
            vec!["cut short"],
        ),
        (
            "header length past the file",
            u64::MAX.to_le_bytes().to_vec(),
            vec!["18446744073709551615", "cut short"],
        ),
        (
            "header past the cap",
            huge_header,
            vec!["more than the 33554432"],
        ),
        (
            "truncated data",
            safetensors(A, &[0; 7]),
            vec!["tensor `a`", "7 bytes of data", "Download"],
        ),
        (
            "data after the last tensor",
            safetensors(A, &[0; 9]),
            vec!["holds 9 bytes of data, its header describes 8"],
        ),
        (
            "header that is not UTF-8",
            safetensors("{}", &[])[..9]
                .iter()
                .copied()
                .chain([0xff])
                .collect(),
            vec!["not a JSON object"],
        ),
        (
            "header that is no JSON",
            safetensors("{", &[]),
            vec!["not a JSON object"],
        ),
        (
            "header that is a list",
            safetensors("[]", &[]),
            vec!["not a JSON object"],
        ),
        (
            "deeply nested header",
            safetensors(&"[".repeat(100_000), &[]),
            vec!["not a JSON object"],
        ),
        (
            "metadata of another kind",
            safetensors(r#"{"__metadata__":7}"#, &[]),
            vec!["no valid safetensors file"],
        ),
        (
            "record that is no object",
            safetensors(r#"{"a":7}"#, &[]),
            vec!["tensor `a`", "no `dtype`"],
        ),
        (
            "record without a shape",
            safetensors(r#"{"a":{"dtype":"F32","data_offsets":[0,0]}}"#, &[]),
            vec!["tensor `a`", "no `shape`"],
        ),
        (
            "unknown element type",
            one("F33", "[2]", "[0,8]"),
            vec!["tensor `a`", "F33", "unknown"],
        ),
        (
            "negative axis",
            one("F32", "[-2]", "[0,8]"),
            vec!["tensor `a`", "[-2]"],
        ),
        (
            "axis past 64 bits",
            one("F32", "[99999999999999999999]", "[0,8]"),
            vec!["tensor `a`", "not a list of sizes"],
        ),
        (
            "shape whose product overflows",
            one("F32", "[4294967296,4294967296,2]", "[0,8]"),
            vec!["tensor `a`", "overflows"],
        ),
        (
            "size in bytes that overflows",
            one("F32", "[4611686018427387904]", "[0,8]"),
            vec!["tensor `a`", "overflows"],
        ),
        (
            "shape larger than the data",
            one("F32", "[3]", "[0,8]"),
            vec!["tensor `a`", "needs 12 bytes, it has 8"],
        ),
        (
            "shape smaller than the data",
            one("F16", "[2]", "[0,8]"),
            vec!["tensor `a`", "needs 4 bytes, it has 8"],
        ),
        (
            "no elements",
            safetensors(&record("F32", "[0,4]", "[0,0]"), &[]),
            vec!["tensor `a`", "empty (shape [0, 4])"],
        ),
        (
            "offsets past the file",
            one("F32", "[2]", "[8,16]"),
            vec!["tensor `a`", "not inside"],
        ),
        (
            "offsets that wrap around",
            one("F32", "[2]", "[18446744073709551612,4]"),
            vec!["tensor `a`", "not inside"],
        ),
        (
            "offsets that run backwards",
            one("F32", "[2]", "[8,0]"),
            vec!["tensor `a`", "not inside"],
        ),
        (
            "three offsets",
            one("F32", "[2]", "[0,8,8]"),
            vec!["tensor `a`", "not two positions"],
        ),
        (
            "tensors that overlap",
            two("[0,8]", "[4,12]"),
            vec!["tensor `b`", "overlaps with tensor `a`"],
        ),
        (
            "tensors in the same place",
            two("[0,8]", "[0,8]"),
            vec!["overlaps with"],
        ),
        (
            "a gap between tensors",
            safetensors(&record("F32", "[1]", "[4,8]"), &[0; 8]),
            vec!["tensor `a`", "bytes 0 to 4 before it"],
        ),
        (
            "GGUF under another name",
            b"GGUF\x03\0\0\0\0\0\0\0".to_vec(),
            vec!["GGUF file in spite of its name"],
        ),
        (
            "name with control characters",
            safetensors("{\"\\u001b[31m\":7}", &[]),
            vec!["tensor `\\u{1b}[31m`"],
        ),
    ];
    for (case, bytes, parts) in cases {
        let folder = Folder::new().with("model.safetensors", &bytes);
        refuses(
            case,
            folder.path(),
            Fault::BadInput,
            &[&["model.safetensors"], parts.as_slice()].concat(),
        );
    }
}

#[test]
fn hostile_shards_are_refused() {
    let index = |shard: &str| format!(r#"{{"weight_map":{{"a":{shard}}}}}"#);
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("index that is no JSON", "{".into(), vec!["not JSON"]),
        (
            "index without a map",
            "{}".into(),
            vec!["no object `weight_map`"],
        ),
        (
            "index with an empty map",
            r#"{"weight_map":{}}"#.into(),
            vec!["names no tensors"],
        ),
        (
            "shard that is no name",
            index("7"),
            vec!["tensor `a`", "not a file name"],
        ),
        (
            "shard above the folder",
            index(r#""../x.safetensors""#),
            vec!["tensor `a`", "../x.safetensors", "outside"],
        ),
        (
            "shard at an absolute path",
            index(r#""/etc/passwd""#),
            vec!["tensor `a`", "/etc/passwd", "outside"],
        ),
        (
            "shard in a folder",
            index(r#""sub/x.safetensors""#),
            vec!["tensor `a`", "plain file name"],
        ),
        (
            "shard in a Windows folder",
            index(r#""..\\x.safetensors""#),
            vec!["tensor `a`", "plain file name"],
        ),
        (
            "shard that is the folder",
            index(r#"".""#),
            vec!["tensor `a`", "plain file name"],
        ),
        (
            "shard without a name",
            index(r#""""#),
            vec!["tensor `a`", "plain file name"],
        ),
        (
            "shard that is missing",
            index(r#""gone.safetensors""#),
            vec!["gone.safetensors", "is missing", "Download"],
        ),
        (
            "tensor in two shards",
            SHARDS.replace("y.", "z."),
            vec!["z.safetensors", "tensor `a`", "x.safetensors as well"],
        ),
    ];
    for (case, index, parts) in cases {
        let a = safetensors(A, &[0; 8]);
        let b = safetensors(&A.replace("\"a\"", "\"b\""), &[0; 8]);
        let folder = Folder::new()
            .with(INDEX, index.as_bytes())
            .with("x.safetensors", &a)
            .with("y.safetensors", &b)
            .with("z.safetensors", &a);
        refuses(case, folder.path(), Fault::BadInput, &parts);
    }
}

#[test]
fn what_an_index_names_and_no_shard_holds_is_told_to_who_asks() {
    let index = r#"{"weight_map":{"a":"x.safetensors","gone":"x.safetensors"}}"#;
    let folder = Folder::new()
        .with(INDEX, index.as_bytes())
        .with("x.safetensors", &safetensors(A, &[0; 8]));
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(
        ["a", "gone", "else"].map(|name| checkpoint.absent_shard(name)),
        [None, Some("x.safetensors"), None]
    );
}

#[test]
fn hostile_configurations_are_refused() {
    let cases: [(&str, &[u8], &str); 6] = [
        ("empty", b"", "not JSON"),
        ("not JSON", b"{'a': 1}", "not JSON"),
        ("not UTF-8", b"{\"\xff\": 1}", "not JSON"),
        ("a list", b"[1]", "not an object"),
        ("a number out of range", b"{\"a\": 1e999}", "not JSON"),
        (
            "past the cap",
            &vec![b' '; (16 << 20) + 1],
            "larger than 16777216",
        ),
    ];
    for name in ["config.json", "generation_config.json"] {
        for (case, bytes, part) in cases {
            let folder = Folder::new()
                .with("model.safetensors", &safetensors(A, &[0; 8]))
                .with(name, bytes);
            refuses(case, folder.path(), Fault::BadInput, &[name, part]);
        }
    }
    let folder = Folder::new()
        .with("model.safetensors", &safetensors(A, &[0; 8]))
        .without("config.json");
    refuses(
        "missing",
        folder.path(),
        Fault::BadInput,
        &["config.json", "is missing", "hf download"],
    );
    fs::create_dir(folder.path().join("config.json")).expect("writable");
    refuses(
        "a folder",
        folder.path(),
        Fault::BadInput,
        &["config.json", "not a regular file"],
    );
}

#[test]
fn other_formats_are_refused_with_the_way_to_convert_them() {
    let cases: [(&str, &str, Fault, &[&str]); 6] = [
        (
            "pickle",
            "pytorch_model.bin",
            Fault::Unsupported,
            &["pickle", "save_pretrained"],
        ),
        (
            "old pickle",
            "consolidated.00.pth",
            Fault::Unsupported,
            &["pickle", "save_pretrained"],
        ),
        (
            "GGUF",
            "model-Q4_0.gguf",
            Fault::BadInput,
            &["GGUF", "Name that file", "model-Q4_0.gguf"],
        ),
        (
            "adapter",
            "adapter_config.json",
            Fault::BadInput,
            &["adapter", "--adapter"],
        ),
        (
            "oddly named weights",
            "weights.safetensors",
            Fault::BadInput,
            &["Name one file", "weights.safetensors"],
        ),
        (
            "nothing",
            "README.md",
            Fault::BadInput,
            &["holds no model.safetensors", "hf download"],
        ),
    ];
    for (case, file, fault, parts) in cases {
        let folder = Folder::new().with(file, b"x");
        refuses(case, folder.path(), fault, parts);
        if fault == Fault::Unsupported {
            refuses(case, &folder.path().join(file), fault, parts);
        }
    }
    let folder = Folder::new().with("model.onnx", b"x");
    refuses(
        "another file",
        &folder.path().join("model.onnx"),
        Fault::BadInput,
        &["neither a folder nor"],
    );
    refuses(
        "a name of the hub",
        Path::new("org/name-that-is-not-here"),
        Fault::BadInput,
        &["doesn't exist", "ORG/NAME"],
    );
}

#[test]
fn a_single_variant_is_taken_and_said() {
    let weights = safetensors(A, &[1; 8]);
    let index = SHARDS
        .replace("y.", "x.")
        .replace(",\"b\":\"x.safetensors\"", "");
    for name in [
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
    ] {
        let folder = Folder::new()
            .with(name, &weights)
            .with("other.fp16.safetensors", &weights);
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a"]);
        let notes = checkpoint.warnings(Task::ImageGeneration);
        assert!(notes.len() == 1 && notes[0].contains(name), "{notes:?}");
    }
    for name in [
        "model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
    ] {
        let folder = Folder::new()
            .with("x.safetensors", &weights)
            .with(name, index.as_bytes());
        assert_eq!(
            Checkpoint::open(folder.path())
                .expect("opens")
                .warnings(Task::ImageGeneration)
                .len(),
            1,
            "{name}"
        );
    }
    let plain = Folder::new()
        .with("model.safetensors", &weights)
        .with("model.fp16.safetensors", b"x");
    assert!(
        Checkpoint::open(plain.path())
            .expect("opens")
            .warnings(Task::TextGeneration)
            .is_empty()
    );
    let both = Folder::new()
        .with("model.fp16.safetensors", &weights)
        .with("model.non_ema.safetensors", &weights);
    refuses(
        "two variants",
        both.path(),
        Fault::BadInput,
        &["Name one file, such as", "model.fp16.safetensors"],
    );
    let shard = Folder::new().with("model.fp16-00001-of-00002.safetensors", &weights);
    refuses(
        "a shard of a variant",
        shard.path(),
        Fault::BadInput,
        &["holds no model.safetensors"],
    );
}

#[test]
fn a_bundle_is_called_one() {
    let manifest = b"format: 2\ndlc: 0.1.0\nsource:\n  name: my-model\n  files: {}\n";
    let folder = Folder::new()
        .with("dlc.yaml", manifest)
        .with("model.onnx", b"x")
        .with("weights.bin", b"x");
    for path in [
        folder.path().to_owned(),
        folder.path().join("model.onnx"),
        folder.path().join("weights.bin"),
        folder.path().join("dlc.yaml"),
    ] {
        refuses(
            "a bundle",
            &path,
            Fault::BadInput,
            &[
                "bundle that dlc wrote",
                "name the checkpoint that it came from: my-model",
            ],
        );
    }
    let nameless = Folder::new().with("dlc.yaml", b"\xff");
    refuses(
        "a broken bundle",
        nameless.path(),
        Fault::BadInput,
        &["is a bundle that dlc wrote; name the checkpoint that it came from"],
    );
}

#[test]
fn a_folder_opens_with_its_tensors_configurations_and_side_files() {
    let folder = fixture("tiny-llama");
    let checkpoint = Checkpoint::open(&folder).expect("opens");
    assert_eq!(checkpoint.name(), "tiny-llama");
    assert_eq!(checkpoint.config()["model_type"], "llama");
    assert_eq!(
        checkpoint.generation_config().expect("is there")["eos_token_id"],
        0
    );
    let record = checkpoint.tensor("model.norm.weight").expect("is there");
    assert_eq!(
        (
            record.dtype,
            record.shape.as_slice(),
            record.blob.as_ref().len()
        ),
        (StoredType::Float(DType::Bf16), &[128][..], 256)
    );
    assert_eq!(checkpoint.tensor_names().count(), 2 + 12 * 9);
    let files: Vec<_> = checkpoint
        .files()
        .iter()
        .map(|f| (f.path.clone(), f.size))
        .collect();
    let wanted = ["config.json", "generation_config.json", "model.safetensors"]
        .map(|name| folder.join(name));
    assert_eq!(
        files,
        wanted.map(|path| (path.clone(), fs::metadata(path).expect("is there").len()))
    );
    let side: Vec<String> = checkpoint
        .side_files()
        .into_iter()
        .map(|f| f.name)
        .collect();
    assert_eq!(
        side,
        [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[test]
fn a_component_of_diffusers_opens_by_itself_or_as_its_pipeline() {
    let pipeline = fixture("digits-dit");
    for path in [pipeline.clone(), pipeline.join("transformer")] {
        let checkpoint = Checkpoint::open(&path).expect("opens");
        assert_eq!(
            (checkpoint.name(), checkpoint.folder()),
            ("digits-dit".into(), pipeline.join("transformer").as_path())
        );
        assert_eq!(checkpoint.config()["_class_name"], "DiTTransformer2DModel");
        assert_eq!(
            checkpoint.scheduler(),
            Some(pipeline.join("scheduler/scheduler_config.json").as_path())
        );
        let side: Vec<_> = checkpoint
            .side_files()
            .into_iter()
            .map(|f| (f.name, f.path))
            .collect();
        let wanted = [
            ("config.json", "transformer/config.json"),
            ("scheduler_config.json", "scheduler/scheduler_config.json"),
        ];
        assert_eq!(
            side,
            wanted.map(|(name, path)| (name.to_owned(), pipeline.join(path)))
        );
        let files: Vec<_> = checkpoint.files().iter().map(|f| f.path.clone()).collect();
        let wanted = [
            "transformer/config.json",
            "scheduler/scheduler_config.json",
            "transformer/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(files, wanted.map(|name| pipeline.join(name)));
    }
    let alone = Checkpoint::open(&fixture("goldens/unet-ddpm")).expect("opens");
    assert_eq!(
        (alone.name().as_str(), alone.scheduler()),
        ("unet-ddpm", None)
    );
}

/// A pipeline whose components are folders with a configuration and weights.
fn pipeline(components: &[&str], scheduler: Option<&[u8]>) -> tempfile::TempDir {
    let folder = tempfile::TempDir::new().expect("writable");
    for component in components {
        let component = folder.path().join(component);
        fs::create_dir(&component).expect("writable");
        fs::write(component.join("config.json"), br#"{"_class_name":"X"}"#).expect("writable");
        fs::write(
            component.join("diffusion_pytorch_model.safetensors"),
            safetensors(A, &[0; 8]),
        )
        .expect("writable");
    }
    if let Some(scheduler) = scheduler {
        fs::create_dir(folder.path().join("scheduler")).expect("writable");
        fs::write(
            folder.path().join("scheduler/scheduler_config.json"),
            scheduler,
        )
        .expect("writable");
    }
    folder
}

#[test]
fn pipelines_that_are_ambiguous_or_hostile_are_refused() {
    let both = pipeline(&["unet", "transformer"], None);
    refuses(
        "two models",
        both.path(),
        Fault::BadInput,
        &[
            "holds several models: transformer and unet",
            "Name the folder of one",
        ],
    );
    let large = [b"{".as_slice(), &vec![b' '; 16 << 20], b"}"].concat();
    let folder = pipeline(&["unet"], Some(&large));
    refuses(
        "past the cap",
        folder.path(),
        Fault::BadInput,
        &["scheduler_config.json", "more than"],
    );
    refuses(
        "past the cap",
        &folder.path().join("unet"),
        Fault::BadInput,
        &["scheduler_config.json", "more than"],
    );
    let pickled = Folder::new().with("diffusion_pytorch_model.bin", b"x");
    refuses(
        "pickle",
        pickled.path(),
        Fault::Unsupported,
        &["pickle", "DiffusionPipeline"],
    );
    let neighbour = pipeline(&["unet"], Some(b"{"));
    fs::write(neighbour.path().join("unet/config.json"), b"{}").expect("writable");
    Checkpoint::open(&neighbour.path().join("unet"))
        .expect("a folder beside a model that isn't of diffusers is none of its business");
}

#[test]
fn one_file_opens_with_the_configuration_beside_it_and_nothing_else() {
    let other = safetensors(&A.replace("\"a\"", "\"b\""), &[0; 8]);
    let folder = Folder::new()
        .with("x.safetensors", &safetensors(A, &[1; 8]))
        .with("model.safetensors", &other)
        .with(INDEX, b"{");
    let checkpoint = Checkpoint::open(&folder.path().join("x.safetensors")).expect("opens");
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        checkpoint.tensor("a").expect("is there").blob.as_ref(),
        [1; 8]
    );
    assert_eq!(checkpoint.files().len(), 2);
    assert_eq!(
        checkpoint.name(),
        folder.path().file_name().expect("a name").to_string_lossy()
    );
}

#[test]
fn shards_open_as_one_checkpoint() {
    let b = r#"{"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#;
    let folder = Folder::new().with(INDEX, SHARDS.as_bytes());
    let folder = folder
        .with("x.safetensors", &safetensors(A, &[1; 8]))
        .with("y.safetensors", &safetensors(b, &[2; 8]));
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        checkpoint.tensor("b").expect("is there").blob.as_ref(),
        [2; 8]
    );
    assert!(checkpoint.tensor("a").expect("is there").expr().is_some());
    assert!(
        checkpoint.tensor("b").expect("is there").expr().is_none(),
        "integers are no weights"
    );
    assert_eq!(checkpoint.files().len(), 4);
}

/// Opens whatever `bytes` are; if they pass, every tensor has exactly the bytes that its shape and
/// type need.
fn opens_or_errs(bytes: &[u8]) {
    let folder = Folder::new().with("model.safetensors", bytes);
    if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
        for name in checkpoint.tensor_names() {
            let record = checkpoint.tensor(name).expect("was listed");
            let elements: usize = record.shape.iter().product();
            if let StoredType::Float(dtype) = record.dtype {
                assert_eq!(record.blob.as_ref().len(), elements * dtype.size());
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), honest in any::<bool>()) {
        let length = (bytes.len() as u64).saturating_sub(8).to_le_bytes();
        let bytes = if honest { [&length, bytes.as_slice()].concat() } else { bytes };
        opens_or_errs(&bytes);
    }

    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0usize..40) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}"#;
        let mut bytes = safetensors(header, &[7; 16]);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(20));
        opens_or_errs(&bytes);
    }

    #[test]
    fn mutated_indexes_and_configurations_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), index in any::<bool>()) {
        let mut bytes = SHARDS.replace("y.", "x.").into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let folder = Folder::new().with(INDEX, SHARDS.as_bytes()).with("x.safetensors", &safetensors(A, &[0; 8]));
        let folder = folder.with(if index { INDEX } else { "config.json" }, &bytes);
        let _ = Checkpoint::open(folder.path());
    }
}
