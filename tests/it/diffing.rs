//! `dlc diff` tells the truth about weights, whatever holds them.

use std::fs;

use crate::command::{Outcome, Shell, bundles};

/// A field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128);
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// Two floats, in the way that `data` says, under a name.
fn tensor(name: &str, data: &[u8]) -> Vec<u8> {
    [
        &number(1, 2)[..],
        &number(2, 1),
        &field(8, name.as_bytes()),
        data,
    ]
    .concat()
}

fn floats(values: [f32; 2]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn raw(values: [f32; 2]) -> Vec<u8> {
    field(9, &floats(values))
}

fn external(location: &str, offset: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| {
        field(
            13,
            &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat(),
        )
    };
    [
        entry("location", location),
        entry("offset", offset),
        entry("length", "8"),
        number(14, 1),
    ]
    .concat()
}

/// A file of another tool: `y = x + w + c`, where `c` is the value of a node.
fn model(w: &[u8], c: &[u8]) -> Vec<u8> {
    let value = [
        field(1, b"value"),
        field(5, &tensor("", c)),
        vec![0xa0, 1, 4],
    ]
    .concat();
    let constant = [field(2, b"c"), field(4, b"Constant"), field(5, &value)].concat();
    let add = |a: &[u8], b: &[u8], to: &[u8]| {
        [field(1, a), field(1, b), field(2, to), field(4, b"Add")].concat()
    };
    let graph = [
        field(1, &constant),
        field(1, &add(b"x", b"w", b"z")),
        field(1, &add(b"z", b"c", b"y")),
        field(5, &tensor("w", w)),
    ]
    .concat();
    let mut model = vec![
        0x3a,
        0x80 | (graph.len() & 127) as u8,
        (graph.len() >> 7) as u8,
    ];
    model.extend(graph);
    model
}

fn assert_differs(outcome: &Outcome, weight: &str) {
    assert!(
        outcome.code == Some(1)
            && outcome.stdout.contains("weights that differ: 1")
            && outcome.stdout.contains(weight),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn other_values_in_files_of_other_tools_are_differences() {
    let shell = Shell::new();
    let c = raw([3.0, 4.0]);
    shell.write("a.onnx", model(&raw([1.0, 2.0]), &c));
    shell.write("typed.onnx", model(&field(4, &floats([1.0, 2.0])), &c));
    shell.write("external.onnx", model(&external("data/w.bin", "4"), &c));
    shell.write("data/w.bin", [&[0; 4][..], &floats([1.0, 2.0])].concat());
    shell.write("other.onnx", model(&raw([1.0, 2.5]), &c));
    shell.write(
        "other-constant.onnx",
        model(&raw([1.0, 2.0]), &raw([3.0, 5.0])),
    );
    shell.write("outside.onnx", model(&external("../w.bin", "0"), &c));
    shell.write("missing.onnx", model(&external("none.bin", "0"), &c));
    shell.write("past-the-end.onnx", model(&external("data/w.bin", "8"), &c));
    let diff = |b: &str, flags: &[&str]| {
        shell.dlc(&[&["diff", "a.onnx", b, "--exit-code"], flags].concat())
    };
    for same in ["a.onnx", "typed.onnx", "external.onnx"] {
        let outcome = diff(same, &[]);
        assert!(
            outcome.code == Some(0) && outcome.stdout.contains("the weights are the same"),
            "{}",
            outcome.transcript()
        );
    }
    assert_differs(&diff("other.onnx", &[]), "  w ");
    assert_differs(&diff("other-constant.onnx", &[]), "  c.value ");
    let report = shell
        .dlc(&["diff", "a.onnx", "other.onnx", "--json"])
        .json();
    assert_eq!(
        report["weights"],
        serde_json::json!([{"weight": "w", "before": "f32[2]", "after": "f32[2]"}])
    );
    for (name, expected) in [
        ("outside.onnx", "no file below"),
        ("missing.onnx", "none.bin"),
        ("past-the-end.onnx", "ends after the 12 bytes"),
    ] {
        let outcome = diff(name, &[]);
        let right = outcome.code == Some(2)
            && outcome.stderr.contains(expected)
            && outcome.stderr.contains("--graphs-only");
        assert!(right, "{}", outcome.transcript());
    }
    for graphs in ["other.onnx", "missing.onnx"] {
        let outcome = diff(graphs, &["--graphs-only"]);
        assert!(
            outcome.code == Some(0) && !outcome.stdout.contains("weights"),
            "{}",
            outcome.transcript()
        );
    }
}

#[test]
fn other_weights_beside_the_same_graph_are_differences() {
    let (shell, shared) = (Shell::new(), bundles());
    shell.copy(&shared.path("plain"), "a");
    shell.copy(&shared.path("plain"), "b");
    let mut weights = fs::read(shell.path("b/weights.bin")).unwrap();
    weights[2] ^= 0x40;
    shell.write("b/weights.bin", weights);
    assert_differs(
        &shell.dlc(&["diff", "a/model.onnx", "b/model.onnx", "--exit-code"]),
        "f32[",
    );
    assert_eq!(
        shell
            .dlc(&[
                "diff",
                "a/model.onnx",
                "b/model.onnx",
                "--exit-code",
                "--graphs-only"
            ])
            .code,
        Some(0)
    );
    assert_eq!(
        shell
            .dlc(&["diff", "a/model.onnx", "a/model.onnx", "--exit-code"])
            .code,
        Some(0)
    );
    // An ONNX file against the bundle that it is of, and against another.
    assert_eq!(
        shell
            .dlc(&["diff", "a/model.onnx", "a", "--exit-code"])
            .code,
        Some(0)
    );
    assert_differs(
        &shell.dlc(&["diff", "b/model.onnx", "a", "--exit-code"]),
        "f32[",
    );
    assert_eq!(
        shell
            .dlc(&["diff", "a/model.onnx", "fixtures/tiny-llama", "--exit-code"])
            .code,
        Some(0)
    );
    assert_differs(
        &shell.dlc(&["diff", "fixtures/tiny-llama", "b/model.onnx", "--exit-code"]),
        "f32[",
    );
}

#[test]
fn nodes_that_were_changed_since_dlc_wrote_them_are_differences() {
    let (shell, shared) = (Shell::new(), bundles());
    shell.copy(&shared.path("plain"), "a");
    let mut bytes = fs::read(shell.path("a/model.onnx")).unwrap();
    let at = bytes
        .windows(6)
        .position(|window| window == b"\x22\x04Gemm")
        .expect("a product");
    bytes[at + 2..at + 6].copy_from_slice(b"Gemn");
    shell.write("a/changed.onnx", bytes);
    let outcome = shell.dlc(&["diff", "a/model.onnx", "a/changed.onnx", "--exit-code"]);
    assert!(
        outcome.code == Some(1) && outcome.stdout.contains("Gemn"),
        "{}",
        outcome.transcript()
    );
}
