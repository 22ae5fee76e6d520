//! The examples run, and do what they say.

use dlc::pipeline::CompileRequest;

use super::common::fixture;

#[allow(dead_code, reason = "an example has a `main` of its own")]
#[path = "../../examples/compile.rs"]
mod compile;
#[allow(dead_code, reason = "an example has a `main` of its own")]
#[path = "../../runtime/examples/decode.rs"]
mod decode;
#[allow(dead_code, reason = "an example has a `main` of its own")]
#[path = "../../examples/pass.rs"]
mod pass;
#[allow(dead_code, reason = "an example has a `main` of its own")]
#[path = "../../runtime/examples/sample.rs"]
mod sample;

#[test]
fn a_checkpoint_is_compiled_and_decoded_with_its_draft() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let manifest = compile::with_draft(&fixture("tiny-llama"), &bundle).unwrap();
    let graphs: Vec<&str> = manifest.graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(graphs, ["target", "draft"]);
    let text = decode::decode(&bundle, "And it came to pass in those days, that").unwrap();
    assert!(text.starts_with(" the LORD said unto Moses"), "{text}");
}

#[test]
fn an_image_is_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let request = CompileRequest::new(fixture("digits-dit"), &bundle);
    dlc::pipeline::compile(&request, None, &()).unwrap();
    let samples = sample::sample(&bundle, 7).unwrap();
    assert_eq!(samples.shape, [1, 1, 8, 8]);
    assert!(samples.data.iter().all(|x| x.is_finite()));
}

#[test]
fn a_pass_of_ones_own_drops_a_block() {
    let [before, after] = pass::drop_block(&fixture("tiny-llama"), "layers.3.mlp").unwrap();
    assert!(after < before, "{after} of {before}");
    let error = pass::drop_block(&fixture("tiny-llama"), "layers.99.mlp").unwrap_err();
    assert!(error.to_string().contains("layers.99.mlp"), "{error}");
}
