//! The ONNX reader on files of any origin.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod protobuf;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use common::{TARGET, module, request};
use dlc_bundle::Profile;
use dlc_exporters::write_bundle;
use dlc_onnx::{OnnxError, OnnxSummary, read_onnx};
use proptest::prelude::*;
use protobuf::field;

fn valid() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("bundle");
        write_bundle(&module(&[TARGET]), &request(Profile::Portable), &out, &()).unwrap();
        fs::read(out.join("model.onnx")).unwrap()
    })
}

fn read(bytes: &[u8]) -> Result<OnnxSummary, OnnxError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    read_onnx(file.path())
}

#[test]
fn a_file_is_summarised_without_its_weights() {
    let summary = read(valid()).unwrap();
    assert_eq!((summary.ir_version, summary.opsets[""]), (8, 17));
    assert_eq!(
        summary.inputs[1].ty,
        "i64[batch_size, total_sequence_length]"
    );
    assert_eq!(summary.operators()["Gemm"], 1);
    assert!(summary.initializers > 12 && summary.initializer_bytes > 4 * 16 * 20000);
    assert_eq!(
        summary.listing().lines().count(),
        summary.inputs.len() + summary.outputs.len() + summary.nodes.len()
    );
}

#[test]
fn what_is_no_onnx_file_is_said_to_be_none() {
    for bytes in [
        &b""[..],
        b"GGUF",
        b"\x08\x08",
        b"\x3a\x05ab",
        b"\x3a\x02\x0b\x00",
        &[0xff; 64],
    ] {
        let error = read(bytes).unwrap_err();
        assert!(matches!(error, OnnxError::Damaged { .. }), "{error}");
    }
    assert!(matches!(
        read_onnx(Path::new("/no/such/file.onnx")),
        Err(OnnxError::Input(_))
    ));
}

/// A graph of one initializer with these axes.
#[test]
fn absurd_shapes_are_refused() {
    let axis = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let with_axes = |n: usize| {
        let mut tensor = axis.repeat(n);
        tensor.extend([0x10, 1]);
        let mut graph = vec![0x2a, tensor.len() as u8];
        graph.extend(tensor);
        let mut model = vec![0x3a, graph.len() as u8];
        model.extend(graph);
        read(&model)
    };
    assert!(with_axes(1).unwrap_err().to_string().contains("absurd"));
    assert!(with_axes(3).unwrap_err().to_string().contains("absurd"));
}

/// A model of these fields of its graph: `part` as the field `tag`, `n` times.
fn model_of(tag: u8, part: &[u8], n: usize) -> Vec<u8> {
    field(7, &field(tag, &part.repeat(n)))
}

#[test]
fn messages_of_many_small_parts_are_refused_before_they_are_made() {
    let cases: [(u8, &[u8], &str); 5] = [
        // Empty attributes, inputs and outputs of a node; numbers of an attribute, one a field and
        // packed.
        (1, &[0x2a, 0], "more than 10000 attributes"),
        (1, &[0x0a, 0], "names"),
        (1, &[0x12, 0], "names"),
        (
            1,
            &[0x2a, 6, 0x40, 1, 0x40, 1, 0x40, 1],
            "more than 10000 attributes",
        ),
        // Axes of an input: its type, the tensor's shape, and the axes in it.
        (
            11,
            &[0x12, 6, 0x0a, 4, 0x12, 2, 0x0a, 0],
            "more than 64 axes",
        ),
    ];
    for (tag, part, reason) in cases {
        let bytes = model_of(tag, part, if tag == 1 { 2 << 20 } else { 100_000 });
        let start = std::time::Instant::now();
        let error = read(&bytes).unwrap_err().to_string();
        assert!(
            error.contains(reason) && start.elapsed().as_secs() < 2,
            "{:?} {error}",
            start.elapsed()
        );
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    #[test]
    fn damaged_files_never_panic(cut in 0usize..8000, at in 0usize..8000, byte in any::<u8>()) {
        let mut bytes = valid().to_vec();
        let n = bytes.len();
        bytes[at % n] = byte;
        bytes.truncate(n - cut % n);
        if let Ok(summary) = read(&bytes) {
            let _ = (summary.listing(), summary.operators());
        }
    }
}
