//! What deployment targets get: where the graphs and their weights lie, and what their consumers
//! read beside them.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{DRAFT, TARGET, module, request};
use dlc_bundle::{MANIFEST_FILE, Manifest, Profile, check_graph};
use dlc_exporters::{
    BundleRequest, DeploymentTarget, ExportError, TARGETS, find_target, write_bundle,
};
use dlc_ir::{DType, Module, Sentence, SideFile, Task};
use dlc_onnx::read_onnx;

/// The paths of the files in a folder and in those inside, sorted.
fn paths(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            let inner = self::paths(&entry.path());
            paths.extend(inner.iter().map(|path| format!("{name}/{path}")));
        } else {
            paths.push(name);
        }
    }
    paths.sort();
    paths
}

fn deploy(
    target: &'static DeploymentTarget,
    module: &Module,
    out: &Path,
) -> Result<Manifest, ExportError> {
    let request = BundleRequest {
        deploy: Some(target),
        ..request(target.profile)
    };
    write_bundle(module, &request, out, &())
}

/// A decoder with a draft, or the same graphs called an encoder.
fn model(task: Task, dtype: DType) -> Module {
    let mut module = module(&[TARGET, DRAFT]);
    (module.model.task, module.model.dtype) = (task, dtype);
    if task == Task::FeatureExtraction {
        module.model.sentence = Some(Sentence::default());
    }
    module
}

#[test]
fn every_target_finds_graphs_and_weights_where_it_looks() {
    let folder = tempfile::tempdir().unwrap();
    let mut listed = String::new();
    for target in TARGETS {
        for dtype in [DType::F32, DType::F16] {
            let out = folder.path().join(format!("{}-{dtype}", target.name));
            let module = model(Task::FeatureExtraction, dtype);
            let manifest = deploy(target, &module, &out).unwrap();
            listed += &format!("{} {dtype}: {}\n", target.name, paths(&out).join(" "));
            let recorded: Vec<&String> = manifest.files.keys().collect();
            let written = paths(&out);
            let but_manifest = written.iter().filter(|path| *path != MANIFEST_FILE);
            assert_eq!(recorded, but_manifest.collect::<Vec<_>>());
            assert!(manifest.strays(&out).unwrap().is_empty());
            for graph in &manifest.graphs {
                let path = out.join(&graph.file);
                check_graph(&path, graph, &manifest).unwrap();
                let files = read_onnx(&path).unwrap().external_files;
                let location = manifest.weights_file.rsplit('/').next().unwrap();
                assert_eq!(files, [location]);
            }
            let text = fs::read(out.join(MANIFEST_FILE)).unwrap();
            assert_eq!(serde_yaml::from_slice::<Manifest>(&text).unwrap(), manifest);
        }
    }
    insta::assert_snapshot!(listed);
}

#[test]
fn a_target_refuses_what_it_can_not_run_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let mut told = String::new();
    for target in TARGETS {
        for task in Task::ALL {
            for dtype in [DType::F32, DType::Bf16] {
                let mut module = model(task, dtype);
                if task == Task::FeatureExtraction && dtype == DType::Bf16 {
                    module.model.sentence = None;
                }
                let Err(error) = target.check(&module.model) else {
                    continue;
                };
                let written = deploy(target, &module, &out).unwrap_err();
                assert_eq!(written.to_string(), error.to_string());
                assert!(matches!(error, ExportError::Target { .. }), "{error}");
                told += &format!("{} {dtype}: {error}\n", task.name());
            }
        }
    }
    assert!(paths(folder.path()).is_empty());
    insta::assert_snapshot!(told);
}

/// A module with this file of the checkpoint.
fn with_file(mut module: Module, folder: &Path, name: &str, content: &str) -> Module {
    let path = folder.join(name.replace('/', "-"));
    fs::write(&path, content).unwrap();
    let name = name.to_owned();
    module.side_files.push(SideFile { name, path });
    module
}

#[test]
fn transformers_js_hears_of_its_files_and_the_checkpoints_other_bytes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let target = find_target("transformers.js").unwrap();
    let text = "{\n  \"eps\": 1E-05,\n  \"transformers.js_config\": {\n    \"kv_cache_dtype\": {\"fp16\": \"float16\"},\n    \"dtype\": \"q4\"\n  },\n  \"x\" : [ ]\n}\n";
    let written = |dtype: DType| {
        let module = model(Task::TextGeneration, dtype);
        let module = with_file(module, folder.path(), "config.json", text);
        let out = folder.path().join(dtype.name());
        deploy(target, &module, &out).unwrap();
        fs::read_to_string(out.join("config.json")).unwrap()
    };
    let expected = text.replace("\"q4\"", "\"fp16\",\n  \"use_external_data_format\": true");
    assert_eq!(written(DType::F16), expected);
    assert_eq!(
        written(DType::F32),
        expected.replace("\"fp16\",", "\"fp32\",")
    );
    // Other targets take the file as it is.
    let module = model(Task::TextGeneration, DType::F32);
    let module = with_file(module, folder.path(), "config.json", text);
    let out = folder.path().join("optimum");
    deploy(find_target("optimum").unwrap(), &module, &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), text);
    // A configuration that dlc writes anew is edited like a file.
    let request = BundleRequest {
        deploy: Some(target),
        rewritten: [("config.json".to_owned(), b"{\"y\": 1}".to_vec())].into(),
        ..request(Profile::Portable)
    };
    let out = folder.path().join("rewritten");
    write_bundle(&module, &request, &out, &()).unwrap();
    assert_eq!(
        fs::read_to_string(out.join("config.json")).unwrap(),
        "{\"y\": 1, \"transformers.js_config\": {\"dtype\": \"fp32\", \"use_external_data_format\": true}}"
    );
}

#[test]
fn triton_gets_a_configuration_with_every_input_and_output() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let module = model(Task::FeatureExtraction, DType::F32);
    deploy(find_target("triton").unwrap(), &module, &out).unwrap();
    insta::assert_snapshot!(fs::read_to_string(out.join("config.pbtxt")).unwrap());
}

#[test]
fn files_of_the_checkpoint_do_not_take_a_targets_places() {
    let folder = tempfile::tempdir().unwrap();
    for (target, name, fits) in [
        ("transformers.js", "onnx/model.onnx_data", false),
        ("transformers.js", "onnx/Draft.onnx", false),
        ("transformers.js", "onnx", false),
        ("transformers.js", "onnx/config.json", true),
        ("optimum", "onnx/model.onnx", true),
        ("triton", "1", false),
        ("triton", "config.pbtxt", false),
        ("triton", "weights.bin", true),
    ] {
        let module = with_file(model(Task::FillMask, DType::F32), folder.path(), name, "{}");
        let out = folder.path().join("bundle");
        let written = deploy(find_target(target).unwrap(), &module, &out);
        assert_eq!(written.is_ok(), fits, "{target} {name}: {written:?}");
        let _ = fs::remove_dir_all(&out);
    }
}
