//! Bundles that open, and those that must not.

use super::*;

/// A bundle with one graph and 16 bytes of weights, and then `edit` on its manifest's text.
fn open(edit: impl Fn(String) -> String) -> Result<Bundle> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), edit);
    Bundle::open(folder.path())
}

fn write(folder: &Path, edit: impl Fn(String) -> String) {
    let record = |name: &str, content: &str| {
        fs::write(folder.join(name), content).unwrap();
        format!("  {name}: {{bytes: {}, sha256: {}}}\n", content.len(), FileRecord::of_file(&folder.join(name)).unwrap().sha256)
    };
    let files = record("model.onnx", "graph") + &record(WEIGHTS_FILE, "0123456789abcdef");
    let text = format!(
        "format: 2\ndlc: 0.1.0\nsource: {{name: tiny, files: {{}}}}\nprofile: portable\ndtype: f32\ncaches: appended\n\
         model: {{family: llama, task: text-generation, vocab_size: 8, context_length: 16, bos_token_id: null, eos_token_ids: [], pad_token_id: null}}\n\
         passes: []\ngraphs:\n- {{name: target, file: model.onnx, parameters: 4, inputs: [], outputs: [], caches: []}}\n\
         weights:\n- {{name: w, dtype: f32, shape: [4], offset: 0, bytes: 16, graphs: [target]}}\nfiles:\n{files}"
    );
    fs::write(folder.join(MANIFEST_FILE), edit(text)).unwrap();
}

#[test]
fn a_whole_bundle_opens_and_its_hashes_hold() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), |text| text);
    let bundle = Bundle::open(folder.path()).unwrap();
    bundle.verify_hashes().unwrap();
    assert_eq!(bundle.graph_path(bundle.graph("target").unwrap()), folder.path().join("model.onnx"));
    assert!(bundle.graph("draft").unwrap_err().to_string().contains("target"));
    assert!(bundle.side_file("model.onnx").is_some() && bundle.side_file("../model.onnx").is_none());

    fs::write(folder.path().join(WEIGHTS_FILE), "0123456789abcdeX").unwrap();
    let error = Bundle::open(folder.path()).unwrap().verify_hashes().unwrap_err().to_string();
    assert!(error.contains(WEIGHTS_FILE) && !error.contains("model.onnx"), "{error}");
}

#[test]
fn broken_manifests_are_refused_with_the_reason() {
    let cases = [
        ("format: 2", "format: 3", "version 3"),
        ("model.onnx:", "../model.onnx:", "plain file name"),
        ("model.onnx:", "/etc/passwd:", "plain file name"),
        ("model.onnx:", "gone.onnx:", "gone.onnx"),
        ("bytes: 5", "bytes: 6", "instead of 6"),
        ("offset: 0", "offset: 8", "ends after"),
        ("offset: 0", "offset: 18446744073709551615", "ends after"),
        ("graphs: [target]", "graphs: [other]", "other"),
        ("profile: portable", "profile: portable\ncolour: red", "colour"),
        ("dlc: 0.1.0", "dlc: [", "manifest"),
    ];
    for (from, to, reason) in cases {
        let error = open(|text| text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(MANIFEST_FILE) && error.contains(reason), "{to}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_refused() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(folder.path(), |text| text);
    fs::rename(folder.path().join("model.onnx"), outside.path().join("model.onnx")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("model.onnx"), folder.path().join("model.onnx")).unwrap();
    assert!(Bundle::open(folder.path()).unwrap_err().to_string().contains("isn't a file of the bundle's folder"));
}

#[test]
fn a_folder_without_a_manifest_is_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Bundle::open(folder.path()).unwrap_err().to_string().contains(MANIFEST_FILE));
}
