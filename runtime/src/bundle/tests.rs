//! Bundles that open, and those that must not.

use dlc_bundle::WEIGHTS_FILE;

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
        format!(
            "  {name}: {{bytes: {}, sha256: {}}}\n",
            content.len(),
            FileRecord::of_file(&folder.join(name)).unwrap().sha256
        )
    };
    let files = record("model.onnx", "graph") + &record(WEIGHTS_FILE, "0123456789abcdef");
    let text = format!(
        "format: 3\ndlc: 0.1.0\nsource: {{name: tiny, files: {{}}}}\nprofile: portable\ncaches: appended\n\
         model: {{family: llama, task: text-generation, dtype: f32, vocab_size: 8, hidden_size: 2, heads: 1, kv_heads: 1, head_dim: 2, context_length: 16, bos_token_id: null, eos_token_ids: [], pad_token_id: null}}\n\
         passes: []\ngraphs:\n- {{name: target, file: model.onnx, parameters: 4, inputs: [{{name: past_key_values.0.key, dtype: f32, shape: [batch, '1', past, '2']}}], outputs: [], caches: []}}\n\
         weights:\n- {{name: w, dtype: f32, shape: [4], offset: 0, bytes: 16, graphs: [target]}}\nfiles:\n{files}"
    );
    fs::write(folder.join(MANIFEST_FILE), edit(text)).unwrap();
}

#[test]
fn a_whole_bundle_opens_and_its_hashes_hold() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), |text| text);
    let bundle = Bundle::open(folder.path()).unwrap();
    assert_eq!(
        bundle.graph_path(bundle.graph("target").unwrap()),
        folder.path().join("model.onnx")
    );
    assert!(
        bundle
            .graph("draft")
            .unwrap_err()
            .to_string()
            .contains("target")
    );
    assert!(
        bundle.side_file("model.onnx").is_some() && bundle.side_file("../model.onnx").is_none()
    );
}

#[test]
fn a_file_with_other_content_is_refused_by_its_name() {
    for (name, content) in [(WEIGHTS_FILE, "0123456789abcdeX"), ("model.onnx", "grapX")] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), |text| text);
        let cache = folder.path().join("cache");
        Bundle::open_cached(folder.path(), Some(&cache)).unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        for opened in [
            Bundle::open(folder.path()),
            Bundle::open_cached(folder.path(), Some(&cache)),
        ] {
            let error = opened.unwrap_err().to_string();
            assert_eq!(
                [WEIGHTS_FILE, "model.onnx"].map(|file| error.contains(file)),
                [WEIGHTS_FILE, "model.onnx"].map(|file| file == name),
                "{error}"
            );
        }
    }
}

#[test]
fn files_that_are_not_listed_are_strays_and_no_side_files() {
    let folder = tempfile::tempdir().unwrap();
    let listed = |name: &str| {
        format!(
            "  {name}: {{bytes: 2, sha256: 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a}}\n"
        )
    };
    for name in [
        "1_Pooling/config.json",
        "1_Pooling/other.json",
        "2_Dense/config.json",
        "chat_template.jinja",
    ] {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    write(folder.path(), |text| {
        text + &listed("1_Pooling/config.json")
    });
    let bundle = Bundle::open(folder.path()).unwrap();
    assert!(
        bundle.side_file("chat_template.jinja").is_none()
            && bundle.side_file("1_Pooling/config.json").unwrap().is_file()
    );
    assert_eq!(
        bundle.strays().unwrap(),
        ["1_Pooling/other.json", "2_Dense/", "chat_template.jinja"]
    );
}

#[test]
fn broken_manifests_are_refused_with_the_reason() {
    let cases = [
        ("format: 3", "format: 4", "version 4"),
        ("model.onnx:", "../model.onnx:", "isn't a plain file name"),
        ("model.onnx:", "/etc/passwd:", "isn't a plain file name"),
        (
            "model.onnx:",
            "a/../../model.onnx:",
            "isn't a plain file name",
        ),
        ("model.onnx:", "a//model.onnx:", "isn't a plain file name"),
        (
            "  model.onnx:",
            "  weights.bin: {bytes: 1, sha256: x}\n  model.onnx:",
            "the key `weights.bin` stands twice",
        ),
        (
            "bytes: 16, graphs",
            "bytes: 12, graphs",
            "can't have 12 bytes",
        ),
        (
            "shape: [4]",
            "shape: [18446744073709551615, 4]",
            "can't have 16 bytes",
        ),
        (
            "{name: w, dtype: f32",
            "{name: w, dtype: f16",
            "can't have 16 bytes",
        ),
        (
            "outputs: []",
            "outputs: [{name: logits, dtype: f32, shape: [batch, seq, '7']}]",
            "a vocabulary of 8 doesn't fit `logits`, which has 7",
        ),
        (
            "caches: []}",
            "caches: [{slot: 0, layer: 0, heads: 9, head_dim: 2}]}",
            "a number of heads of 9 doesn't fit `past_key_values.0.key`",
        ),
        (
            "caches: []}",
            "caches: [{slot: 0, layer: 0, heads: 1, head_dim: 9}]}",
            "a width of heads of 9 doesn't fit `past_key_values.0.key`",
        ),
        ("model.onnx:", "gone.onnx:", "gone.onnx"),
        ("bytes: 5", "bytes: 6", "instead of 6"),
        ("offset: 0", "offset: 8", "ends after"),
        (
            "weights:\n",
            "weights_file: ../weights.bin\nweights:\n",
            "the weights are in `../weights.bin`, which isn't among the files",
        ),
        (
            "weights:\n",
            "weights_file: model.onnx\nweights:\n",
            "ends after the 5 bytes of model.onnx",
        ),
        ("offset: 0", "offset: 18446744073709551615", "ends after"),
        ("graphs: [target]", "graphs: [other]", "other"),
        (
            "profile: portable",
            "profile: portable\ncolour: red",
            "colour",
        ),
        ("dlc: 0.1.0", "dlc: [", "manifest"),
    ];
    for (from, to, reason) in cases {
        let error = open(|text| text.replacen(from, to, 1))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(MANIFEST_FILE) && error.contains(reason),
            "{to}: {error}"
        );
    }
}

#[test]
fn graphs_lie_in_the_folder_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(folder.path(), |text| {
        text.replace(
            "weights:\n",
            "weights_file: onnx/model.onnx_data\nweights:\n",
        )
        .replace(WEIGHTS_FILE, "onnx/model.onnx_data")
    });
    fs::create_dir(path("onnx")).unwrap();
    fs::rename(path(WEIGHTS_FILE), path("onnx/model.onnx_data")).unwrap();
    let error = Bundle::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("`model.onnx`, which isn't a file beside the weights"),
        "{error}"
    );
    let text = fs::read_to_string(path(MANIFEST_FILE)).unwrap();
    let text = text.replace("model.onnx,", "onnx/model.onnx,");
    let text = text.replace("  model.onnx:", "  onnx/model.onnx:");
    fs::write(path(MANIFEST_FILE), text).unwrap();
    fs::rename(path("model.onnx"), path("onnx/model.onnx")).unwrap();
    let bundle = Bundle::open(folder.path()).unwrap();
    let weights = ("onnx/model.onnx_data", path("onnx/model.onnx_data"));
    assert_eq!(bundle.weights_paths(), [weights].into());
}

/// A bundle of two graphs in folders of their own, with weights in each; then `edit`.
fn open_with_two_weight_files(edit: impl Fn(String) -> String) -> Result<Bundle> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/model.onnx"), "graph").unwrap();
    fs::write(folder.path().join("b/weights"), "01234567").unwrap();
    let of = |name: &str| {
        let record = FileRecord::of_file(&folder.path().join(name)).unwrap();
        format!(
            "  {name}: {{bytes: {}, sha256: {}}}\n",
            record.bytes, record.sha256
        )
    };
    let (graph, weights) = (of("b/model.onnx"), of("b/weights"));
    write(folder.path(), |text| {
        let second = "- {name: b, file: b/model.onnx, weights_file: b/weights, parameters: 2, inputs: [], outputs: [], caches: []}\nweights:\n";
        let weight =
            "- {name: v, dtype: f32, shape: [2], offset: 0, bytes: 8, graphs: [b]}\nfiles:\n";
        edit(
            text.replace("weights:\n", second)
                .replace("files:\n  ", &format!("{weight}{graph}{weights}  ")),
        )
    });
    Bundle::open(folder.path())
}

#[test]
fn graphs_may_have_weights_of_their_own() {
    let bundle = open_with_two_weight_files(|text| text).unwrap();
    let names: Vec<&str> = bundle.weights_paths().into_keys().collect();
    assert_eq!(names, ["b/weights", WEIGHTS_FILE]);
    for (from, to, problem) in [
        (
            "weights_file: b/weights",
            "weights_file: b/other",
            "the weights are in `b/other`, which isn't among the files",
        ),
        (
            "weights_file: b/weights",
            "weights_file: ../w",
            "the weights are in `../w`, which isn't among the files",
        ),
        (
            "weights_file: b/weights, ",
            "",
            "graph `b` is in `b/model.onnx`, which isn't a file beside the weights",
        ),
        (
            "bytes: 8, graphs: [b]",
            "bytes: 8, graphs: [b, target]",
            "weight `v` is in several files: b/weights, weights.bin",
        ),
        (
            "shape: [2], offset: 0, bytes: 8",
            "shape: [3], offset: 0, bytes: 12",
            "weight `v` ends after the 8 bytes of b/weights",
        ),
    ] {
        let edit = |text: String| {
            assert!(text.contains(from), "{text}");
            text.replace(from, to)
        };
        let error = open_with_two_weight_files(edit).unwrap_err().to_string();
        assert!(error.contains(problem), "{to}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_refused() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(folder.path(), |text| text);
    fs::rename(
        folder.path().join("model.onnx"),
        outside.path().join("model.onnx"),
    )
    .unwrap();
    std::os::unix::fs::symlink(
        outside.path().join("model.onnx"),
        folder.path().join("model.onnx"),
    )
    .unwrap();
    assert!(
        Bundle::open(folder.path())
            .unwrap_err()
            .to_string()
            .contains("isn't a file of the bundle's folder")
    );
}

#[test]
fn a_folder_without_a_manifest_is_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        Bundle::open(folder.path())
            .unwrap_err()
            .to_string()
            .contains(MANIFEST_FILE)
    );
}

/// A diffusion bundle of two evaluations: the first remembers `a`, the second takes it. Then
/// `edit`.
fn open_sampled(edit: impl Fn(String) -> String) -> Result<Bundle> {
    let diffusion = "diffusion: {channels: 1, height: 2, width: 2, out_channels: 1, classes: {count: 10, unconditional: 10}}";
    let sampling = "sampling:\n  scheduler: ddim\n  steps: 2\n  guidance: 1.5\n  macs: 0.5\n\
                    \x20 schedule: {granularity: branch, reuse: hold, units: [a], steps: ['#', '.']}\n\
                    \x20 evaluations: [{graph: target}, {graph: again, forecast: [1.0]}]\n";
    let port = |name: &str| format!("{{name: {name}, dtype: f32, shape: []}}");
    let graph = |name: &str, inputs: &str, outputs: &str| {
        format!(
            "- {{name: {name}, file: model.onnx, parameters: 4, inputs: [{inputs}], outputs: [{outputs}], caches: []}}\n"
        )
    };
    let graphs = graph("target", "", &port("remember.a"))
        + &graph(
            "again",
            &[port("memory.a.0"), port("forecast")].join(", "),
            "",
        );
    open(|text| {
        let (head, tail) = text.split_once("graphs:\n").unwrap();
        let head = head.replace(
            "task: text-generation",
            &format!("task: image-generation, {diffusion}"),
        );
        edit(format!(
            "{head}{sampling}graphs:\n{graphs}weights:{}",
            tail.split_once("weights:").unwrap().1
        ))
    })
}

#[test]
fn schedules_that_cannot_run_are_refused_with_the_evaluation() {
    open_sampled(|text| text).unwrap();
    let cases = [
        (
            "graph: again,",
            "graph: step.9,",
            "evaluation 1, graph `step.9`: there is no such graph",
        ),
        (
            "evaluations: [{graph: target}, ",
            "evaluations: [{graph: again, forecast: [1.0]}, ",
            "evaluation 0, graph `again`: it takes value 0 of `a`, of which 0",
        ),
        (
            "memory.a.0",
            "memory.a.1",
            "it takes value 1 of `a`, of which 1",
        ),
        ("memory.a.0", "memory.a.18446744073709551615", "of which 1"),
        (
            "forecast: [1.0]",
            "forecast: [1.0, 2.0]",
            "its forecast has 2 weights instead of 1",
        ),
        (
            "forecast: [1.0]",
            "forecast: []",
            "its forecast has 0 weights instead of 1",
        ),
        (
            "forecast: [1.0]",
            "forecast: [.nan]",
            "its forecast has the weight NaN",
        ),
        (
            "macs: 0.5",
            "macs: 0.5\n  unrolled: sampler",
            "graph `sampler`, which is to be the whole sampler, isn't there",
        ),
        (
            "macs: 0.5",
            "macs: 0.5\n  unrolled: target",
            "doesn't take `latents` and give `out_latents`",
        ),
        (
            "{graph: target}, ",
            "",
            "the schedule has 2 rows for 1 evaluations",
        ),
        (
            "['#', '.']",
            "['#', '.', '#']",
            "the schedule has 3 rows for 2 evaluations",
        ),
        ("['#', '.']", "['#', '?']", "step 1 is `?`"),
        ("['#', '.']", "['#', '..']", "step 1 has 2 cells"),
        ("steps: 2", "steps: 0", "0 steps are absurd"),
        ("guidance: 1.5", "guidance: .inf", "guidance inf"),
        ("macs: 0.5", "macs: -1", "share of -1"),
        (
            "task: image-generation, diffusion",
            "task: fill-mask, diffusion",
            "isn't sampled",
        ),
        ("height: 2", "height: 0", "a height of 0 is absurd"),
        (
            "height: 2, width: 2",
            "height: 268435456, width: 268435456",
            "are absurd",
        ),
        ("count: 10", "count: 0", "0 classes are absurd"),
        (
            "name: again,",
            "name: again, latents_divisor: 0.0,",
            "graph `again`: latents can't be divided by 0",
        ),
        (
            "name: again,",
            "name: again, latents_divisor: .nan,",
            "graph `again`: latents can't be divided by NaN",
        ),
    ];
    for (from, to, reason) in cases {
        let error = open_sampled(|text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(MANIFEST_FILE) && error.contains(reason),
            "{to}: {error}"
        );
    }
}
