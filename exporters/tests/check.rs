//! ONNX files against what manifests say of them.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod protobuf;

use std::fs;

use common::{DRAFT, TARGET, module, request};
use dlc_bundle::{Manifest, PortRecord, Profile, WeightRecord, check_graph};
use dlc_exporters::write_bundle;
use dlc_ir::DType;
use protobuf::field;
use tempfile::TempDir;

fn bundle(profile: Profile) -> (TempDir, Manifest) {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write_bundle(
        &module(&[TARGET, DRAFT]),
        &request(profile),
        &folder.path().join("bundle"),
        &(),
    )
    .unwrap();
    (folder, manifest)
}

#[test]
fn what_was_written_is_what_the_manifest_says() {
    for profile in Profile::ALL {
        let (folder, manifest) = bundle(profile);
        for graph in &manifest.graphs {
            check_graph(
                &folder.path().join("bundle").join(&graph.file),
                graph,
                &manifest,
            )
            .unwrap();
        }
    }
}

#[test]
fn codes_of_4_bits_are_the_bytes_of_a_weight() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let module = module(&[include_str!("graphs/quantized.dlc")]);
    let manifest = write_bundle(&module, &request(Profile::Onnx), &out, &()).unwrap();
    let check = |manifest: &Manifest| {
        check_graph(&out.join("model.onnx"), &manifest.graphs[0], manifest)
            .map_err(|error| error.to_string())
    };
    check(&manifest).unwrap();
    let at = manifest.weights.iter().position(|w| w.name == "b.codes");
    let refused = |edit: &dyn Fn(&mut WeightRecord), reason: &str| {
        let mut edited = manifest.clone();
        edit(&mut edited.weights[at.unwrap()]);
        let error = check(&edited).unwrap_err();
        assert!(error.contains(reason), "{error}");
    };
    let of_codes = "weight `b.codes.u4`";
    refused(&|w| w.offset += 64, &format!("{of_codes} lies elsewhere"));
    refused(
        &|w| w.dtype = DType::F16,
        &format!("{of_codes} is u4[64, 48], not f16"),
    );
    refused(
        &|w| w.name = "b".into(),
        "tensor `b.codes.u4` lies in another file",
    );
    refused(
        &|w| w.name = "b".into(),
        "weight `b` isn't one of its tensors",
    );
}

#[test]
fn a_manifest_that_says_something_else_is_refused_with_what_differs() {
    let (folder, manifest) = bundle(Profile::Portable);
    let refused = |edit: &dyn Fn(&mut Manifest), reason: &str| {
        let mut edited = manifest.clone();
        edit(&mut edited);
        let graph = &edited.graphs[0];
        let error = check_graph(
            &folder.path().join("bundle").join("model.onnx"),
            graph,
            &edited,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("model.onnx") && error.contains(reason),
            "{reason}: {error}"
        );
    };
    let name = manifest.weights[0].name.clone();
    let of_weight = format!("weight `{name}`");
    refused(
        &|m| m.weights[0].offset += 64,
        &format!("{of_weight} lies elsewhere"),
    );
    refused(
        &|m| m.weights[0].bytes -= 4,
        &format!("{of_weight} lies elsewhere"),
    );
    refused(
        &|m| m.weights[0].shape.reverse(),
        &format!("{of_weight} is f"),
    );
    refused(
        &|m| m.weights[0].dtype = DType::I64,
        &format!("{of_weight} is f"),
    );
    refused(
        &|m| m.weights[0].name = "other".into(),
        "weight `other` isn't one of its tensors",
    );
    refused(
        &|m| m.weights[0].name = "other".into(),
        &format!("tensor `{name}` lies in another file"),
    );
    refused(
        &|m| m.weights[0].graphs.clear(),
        &format!("tensor `{name}` lies in another file"),
    );
    refused(
        &|m| drop(m.weights.remove(0)),
        &format!("tensor `{name}` lies in another file"),
    );
    let vocabulary = |port: &mut PortRecord| *port.shape.last_mut().unwrap() = "268435456".into();
    refused(
        &|m| {
            m.graphs[0]
                .outputs
                .iter_mut()
                .filter(|port| port.name == "logits")
                .for_each(vocabulary);
        },
        "output `logits` is f32[batch_size",
    );
    refused(
        &|m| m.graphs[0].inputs[0].dtype = DType::F32,
        "input `input_ids` is i64[",
    );
    refused(
        &|m| m.graphs[0].inputs[0].name = "ids".into(),
        "the manifest has `ids`: i64[batch, seq]",
    );
    refused(
        &|m| drop(m.graphs[0].inputs.pop()),
        "and the manifest has no more",
    );
    let extra = manifest.graphs[0].inputs[0].clone();
    refused(&|m| m.graphs[0].outputs.push(extra.clone()), " outputs");
    refused(&|m| m.graphs[0].inputs.swap(0, 1), "input `input_ids`");
}

#[test]
fn nothing_names_another_file_than_the_weights() {
    let (folder, manifest) = bundle(Profile::Portable);
    let path = folder.path().join("bundle/model.onnx");
    let whole = fs::read(&path).unwrap();
    let check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        check_graph(&path, &manifest.graphs[0], &manifest)
            .unwrap_err()
            .to_string()
    };
    let at = whole
        .windows(11)
        .position(|window| window == b"weights.bin")
        .unwrap();
    let mut elsewhere = whole.clone();
    elsewhere[at..at + 11].copy_from_slice(b"/etc/passwd");
    assert!(
        check(&elsewhere).contains("lies elsewhere than at"),
        "{}",
        check(&elsewhere)
    );
    // Protobuf joins the fields of a second graph to the first. The attribute 5 of a node holds a
    // tensor (5) or a graph (6).
    let with = |part: &[u8]| check(&[whole.as_slice(), part].concat());
    for attribute in [5, 6, 10, 11] {
        let node = field(1, &field(5, &field(attribute, b"")));
        assert!(with(&field(7, &node)).contains("a node has a tensor or a graph"));
    }
    let outside = [field(8, b"outside"), vec![14 << 3, 1]].concat();
    assert!(with(&field(7, &field(5, &outside))).contains("tensor `outside` lies in another file"));
    let twice = field(8, manifest.weights[0].name.as_bytes());
    assert!(with(&field(7, &field(5, &twice))).contains("is there twice"));
    assert!(with(&field(7, &field(15, b""))).contains("sparse"));
    assert!(with(&field(25, b"")).contains("functions"));
}
