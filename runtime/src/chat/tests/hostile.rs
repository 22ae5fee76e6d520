//! Templates made to take all the time, memory or stack there is:
//! `fixtures/hostile/templates.json`. Each ends soon, with an error or rightly.

use std::time::Instant;

use dlc_errors::Faulty;
use serde_json::Value;

use super::*;

/// Beyond what any of them takes in a debug build on a busy machine; without limits they take
/// hours, or end the process.
const LONGEST: Duration = Duration::from_secs(30);

#[test]
fn hostile_templates_end() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/hostile/templates.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 150, "{}", cases.len());
    let mut rendered = Vec::new();
    for case in &cases {
        let parts = case["parts"].as_array().unwrap().iter();
        let source: String = parts
            .map(|part| {
                part[0]
                    .as_str()
                    .unwrap()
                    .repeat(part[1].as_u64().unwrap() as usize)
            })
            .collect();
        let (start, name) = (Instant::now(), case["name"].as_str().unwrap());
        let found = render(&source, &[("user", "hi")]);
        assert!(
            start.elapsed() < LONGEST,
            "{name} takes {:?}",
            start.elapsed()
        );
        match (found, case["text"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}"),
            (Ok(_), None) => rendered.push(name),
            (Err(error), expected) => {
                assert_eq!(
                    (error.fault(), expected),
                    (dlc_errors::Fault::BadInput, None),
                    "{name}: {error}"
                );
                assert!(error.to_string().contains(TEMPLATE_FILE), "{error}");
            }
        }
    }
    // Small after all: views of views, which are made into lists, and functions that bound what
    // they make.
    let harmless = [
        "deep-data-map",
        "deep-data-slice",
        "deep-data-reverse",
        "deep-data-repeat",
        "round",
        "sum",
        "unique",
        "autoescape",
        "lipsum(n=1000000)",
    ];
    let surprising: Vec<_> = rendered
        .into_iter()
        .filter(|name| !harmless.contains(name))
        .collect();
    assert_eq!(surprising, [""; 0]);
}
