//! Bundles as folders: what they hold, and that they appear whole or not at all.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{DRAFT, TARGET, module, request};
use dlc_bundle::{FileRecord, MANIFEST_FILE, Manifest, Profile, WEIGHTS_FILE};
use dlc_exporters::{BundleRequest, ExportError, Progress, SearchDefaults, write_bundle};
use dlc_ir::{Module, SideFile};
use sha2::{Digest, Sha256};

/// The names and contents of a folder's files.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn two_graphs() -> Module {
    module(&[TARGET, DRAFT])
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let written: Vec<_> = [1, 2, 5]
        .iter()
        .map(|&threads| {
            let out = folder.path().join(threads.to_string());
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| write_bundle(&two_graphs(), &request(Profile::Ort), &out, &()))
                .unwrap();
            contents(&out)
        })
        .collect();
    assert!(written[0] == written[1] && written[0] == written[2]);
}

#[test]
fn weights_stand_once_aligned_and_exact() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let module = two_graphs();
    let manifest = write_bundle(&module, &request(Profile::Ort), &out, &()).unwrap();
    let bytes = fs::read(out.join(WEIGHTS_FILE)).unwrap();
    let mut end = 0;
    for record in &manifest.weights {
        assert!(
            record.offset >= end && record.offset % 64 == 0,
            "{record:?}"
        );
        assert!(
            record.bytes < 64 << 10 || record.offset % 4096 == 0,
            "{record:?}"
        );
        end = record.offset + record.bytes;
        let Some(id) = module.weights.find(&record.name) else {
            assert!(record.name.starts_with("rope."), "{record:?}");
            continue;
        };
        let expected: Vec<u8> = module.weights[id]
            .to_f32()
            .unwrap()
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert!(
            bytes[record.offset as usize..end as usize] == expected,
            "{record:?}"
        );
    }
    assert_eq!(bytes.len() as u64, end);
    let users = |name: &str| {
        manifest
            .weights
            .iter()
            .find(|w| w.name == name)
            .unwrap()
            .graphs
            .join(" ")
    };
    assert_eq!([users("embed"), users("gate")], ["target draft", "target"]);
    let tables = manifest
        .weights
        .iter()
        .filter(|w| w.name.starts_with("rope."))
        .map(|w| (w.shape.clone(), w.graphs.len()));
    assert_eq!(
        tables.collect::<Vec<_>>(),
        [(vec![64, 8], 2), (vec![64, 8], 2)]
    );
}

#[test]
fn rotary_tables_hold_cosines_and_sines_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let manifest = write_bundle(&two_graphs(), &request(Profile::Ort), &out, &()).unwrap();
    let bytes = fs::read(out.join(WEIGHTS_FILE)).unwrap();
    for (wave, function) in [("cos", f64::cos as fn(f64) -> f64), ("sin", f64::sin)] {
        let record = manifest
            .weights
            .iter()
            .find(|w| w.name == format!("rope.theta10000.0.dim16.{wave}.64.f32"))
            .unwrap();
        for (i, chunk) in bytes[record.offset as usize..][..record.bytes as usize]
            .chunks_exact(4)
            .enumerate()
        {
            let expected = function((i / 8) as f64 * 10000f64.powf(-((i % 8) as f64) / 8.0));
            assert!(
                (f64::from(f32::from_le_bytes(chunk.try_into().unwrap())) - expected).abs() < 1e-5
            );
        }
    }
}

#[test]
fn the_manifest_records_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    fs::write(&tokenizer, "{}").unwrap();
    let mut module = two_graphs();
    module.side_files.push(SideFile {
        name: "tokenizer.json".into(),
        path: tokenizer,
    });
    for profile in Profile::ALL {
        let out = folder.path().join(profile.name());
        let manifest = write_bundle(&module, &request(profile), &out, &()).unwrap();
        let mut files = contents(&out);
        let text = files.remove(MANIFEST_FILE).unwrap();
        assert_eq!(serde_yaml::from_slice::<Manifest>(&text).unwrap(), manifest);
        let records = files.iter().map(|(name, bytes)| {
            (
                name.clone(),
                FileRecord {
                    bytes: bytes.len() as u64,
                    sha256: format!("{:x}", Sha256::digest(bytes)),
                },
            )
        });
        assert_eq!(records.collect::<BTreeMap<_, _>>(), manifest.files);
        let genai: serde_json::Value = serde_json::from_slice(&files["genai_config.json"]).unwrap();
        assert_eq!(
            genai["search"]["past_present_share_buffer"],
            profile == Profile::Ort
        );
        let target = &manifest.graphs[0];
        assert_eq!(
            (
                target.file.as_str(),
                target.caches[0].layer,
                target.caches[0].heads,
                target.caches[0].head_dim
            ),
            ("model.onnx", 3, 1, 16)
        );
        assert_eq!(
            target.inputs.iter().any(|i| i.name == "position_ids"),
            profile != Profile::Ort
        );
    }
}

#[test]
fn onnxruntime_genai_gets_a_configuration_with_the_draft() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    write_bundle(&two_graphs(), &request(Profile::Ort), &out, &()).unwrap();
    insta::assert_snapshot!(fs::read_to_string(out.join("genai_config.json")).unwrap());
}

#[test]
fn onnxruntime_genai_chooses_tokens_as_the_checkpoint_says_and_hears_of_no_foreign_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (mut module, out) = (two_graphs(), folder.path().join("bundle"));
    let vocab = module.model.vocab_size as u32;
    (
        module.model.bos_token_id,
        module.model.eos_token_ids,
        module.model.pad_token_id,
    ) = (Some(vocab), vec![vocab + 7, 1], Some(u32::MAX));
    let search = SearchDefaults {
        do_sample: true,
        temperature: 0.6,
        top_k: 20,
        top_p: 0.95,
        repetition_penalty: 1.05,
        no_repeat_ngram_size: 3,
        min_length: 4,
    };
    write_bundle(
        &module,
        &BundleRequest {
            search,
            ..request(Profile::Portable)
        },
        &out,
        &(),
    )
    .unwrap();
    let genai: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("genai_config.json")).unwrap()).unwrap();
    let (model, found) = (&genai["model"], &genai["search"]);
    assert_eq!(
        (
            &model["bos_token_id"],
            &model["eos_token_id"],
            &model["pad_token_id"]
        ),
        (&1.into(), &1.into(), &1.into())
    );
    let keys = [
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "min_length",
    ];
    assert_eq!(
        serde_json::json!(keys.map(|key| &found[key])),
        serde_json::json!([true, 0.6, 20, 0.95, 1.05, 3, 4])
    );
    // It refuses to load a draft beside `no_repeat_ngram_size`.
    assert!(
        model["draft"].is_null() && genai["speculative"].is_null(),
        "{genai}"
    );
}

#[test]
fn an_output_that_exists_is_replaced_only_by_force_and_only_if_it_is_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let write = |force: bool| {
        write_bundle(
            &two_graphs(),
            &BundleRequest {
                force,
                ..request(Profile::Onnx)
            },
            &out,
            &(),
        )
    };
    let refused = |force: bool| {
        let before = contents(&out);
        let error = write(force).unwrap_err().to_string();
        assert_eq!(contents(&out), before);
        error.replace(&*out.to_string_lossy(), "OUT")
    };
    fs::create_dir(&out).unwrap();
    write(false).unwrap();
    let mut errors = vec![refused(false)];
    write(true).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    errors.push(refused(true));
    fs::remove_file(out.join(MANIFEST_FILE)).unwrap();
    errors.push(refused(true));
    fs::write(out.join(MANIFEST_FILE), "format: 2\n").unwrap();
    errors.push(refused(true));
    fs::remove_dir_all(&out).unwrap();
    fs::write(&out, "a file").unwrap();
    errors.push(
        write(true)
            .unwrap_err()
            .to_string()
            .replace(&*out.to_string_lossy(), "OUT"),
    );
    insta::assert_snapshot!(errors.join("\n"));
    assert_eq!(names(folder.path()), ["bundle"]);
}

/// Asks to stop after so many bytes.
struct StopAfter(u64, AtomicU64);

impl Progress for StopAfter {
    fn advance(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.1.load(Ordering::Relaxed) >= self.0
    }
}

#[test]
fn a_failed_or_stopped_run_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    for bytes in [0, 1 << 20] {
        let stopped = write_bundle(
            &two_graphs(),
            &request(Profile::Onnx),
            &out,
            &StopAfter(bytes, AtomicU64::new(0)),
        );
        assert!(
            matches!(stopped, Err(ExportError::Interrupted)),
            "{stopped:?}"
        );
        assert_eq!(names(folder.path()), [""; 0]);
    }
    let mut module = two_graphs();
    module.side_files.push(SideFile {
        name: "tokenizer.json".into(),
        path: folder.path().join("missing.json"),
    });
    let error = write_bundle(&module, &request(Profile::Onnx), &out, &())
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing.json"), "{error}");
    let undeclared = dlc_ir::parse_graph(TARGET).unwrap();
    let without_data = Module {
        graphs: vec![undeclared.0],
        weights: undeclared.1,
        ..two_graphs()
    };
    let error = write_bundle(&without_data, &request(Profile::Onnx), &out, &())
        .unwrap_err()
        .to_string();
    assert!(error.contains("weight embed: has no data"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn an_output_that_can_not_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = write_bundle(
        &two_graphs(),
        &request(Profile::Onnx),
        &folder.path().join("file/bundle"),
        &(),
    )
    .unwrap_err();
    assert!(
        matches!(&error, ExportError::NotReplaced { path, .. } if path.starts_with(folder.path().join("file"))),
        "{error}"
    );
}

#[test]
fn what_a_dead_run_left_is_removed_and_what_a_live_one_writes_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let leave = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("weights.bin"), "half").unwrap();
        File::create(folder.path().join(format!("{name}.lock"))).unwrap()
    };
    drop(leave(".bundle.dlc-tmp-1-0"));
    drop(leave(".other.dlc-tmp-1-0"));
    let live = leave(".bundle.dlc-tmp-2-0");
    live.try_lock().unwrap();
    fs::create_dir(folder.path().join(".bundle.dlc-tmp-mine")).unwrap();
    write_bundle(
        &two_graphs(),
        &request(Profile::Onnx),
        &folder.path().join("bundle"),
        &(),
    )
    .unwrap();
    let left = [
        ".bundle.dlc-tmp-2-0",
        ".bundle.dlc-tmp-2-0.lock",
        ".bundle.dlc-tmp-mine",
        ".other.dlc-tmp-1-0",
        ".other.dlc-tmp-1-0.lock",
        "bundle",
    ];
    assert_eq!(names(folder.path()), left);
}

#[test]
fn a_bundle_that_a_dead_run_had_moved_away_gets_its_name_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    write_bundle(&two_graphs(), &request(Profile::Onnx), &out, &()).unwrap();
    fs::rename(&out, folder.path().join(".bundle.dlc-tmp-1-0.old")).unwrap();
    File::create(folder.path().join(".bundle.dlc-tmp-1-0.lock")).unwrap();
    let error = write_bundle(&two_graphs(), &request(Profile::Onnx), &out, &()).unwrap_err();
    assert!(matches!(error, ExportError::Exists(_)), "{error}");
    assert_eq!(names(folder.path()), ["bundle"]);
}

#[test]
fn file_names_stay_inside_the_bundle_and_are_unique() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "../escape",
        "/a",
        "a//b",
        "a/../b",
        "",
        ".hidden",
        "model.onnx",
        "Weights.bin",
        "dlc.yaml",
        "draft.onnx",
    ] {
        let mut module = two_graphs();
        module.side_files.push(SideFile {
            name: name.into(),
            path: folder.path().join("x"),
        });
        let error = write_bundle(
            &module,
            &request(Profile::Onnx),
            &folder.path().join("bundle"),
            &(),
        )
        .unwrap_err();
        assert!(
            matches!(error, ExportError::Module { .. }),
            "{name}: {error}"
        );
    }
    assert_eq!(names(folder.path()), [""; 0]);
}
