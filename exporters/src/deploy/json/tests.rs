//! Where entries go, and that nothing else moves.

use super::*;

fn put(text: &str) -> String {
    with_entries(text, &["js"], &[("a", "1".into()), ("b", "\"x\"".into())]).unwrap()
}

#[test]
fn an_object_that_is_missing_comes_last() {
    let lines = "{\n  \"x\": 1.0,\n  \"y\": [1e5, {\"js\": {}}]\n}\n";
    let expected =
        "{\n  \"x\": 1.0,\n  \"y\": [1e5, {\"js\": {}}],\n  \"js\": {\"a\": 1, \"b\": \"x\"}\n}\n";
    assert_eq!(put(lines), expected);
    assert_eq!(
        put(r#"{"x": 10E-1}"#),
        r#"{"x": 10E-1, "js": {"a": 1, "b": "x"}}"#
    );
    assert_eq!(put(" { } "), r#" {"js": {"a": 1, "b": "x"} } "#);
}

#[test]
fn entries_of_an_object_that_is_there_are_replaced_and_added_in_place() {
    let text = "{\"js\" : { \"b\":[true , null], \"c\":\"}{\\\"\" } ,\t\"é\": -0.50}";
    assert_eq!(
        put(text),
        "{\"js\" : { \"b\":\"x\", \"c\":\"}{\\\"\", \"a\": 1 } ,\t\"é\": -0.50}"
    );
    // As readers do, the last of equal keys counts.
    assert_eq!(
        put(r#"{"js": {}, "js": {"a": 0, "b": 0}}"#),
        r#"{"js": {}, "js": {"a": 1, "b": "x"}}"#
    );
    // A key may be written otherwise.
    assert_eq!(
        put(r#"{"\u006as": {"a": 0, "b": 0}}"#),
        r#"{"\u006as": {"a": 1, "b": "x"}}"#
    );
}

#[test]
fn what_is_no_object_is_refused() {
    for text in ["", "[]", "{", "{\"x\" 1}", "{\"js\": 1}", "{\"js\": null}"] {
        let error = with_entries(text, &["js"], &[("a", "1".into())]).unwrap_err();
        assert!(error.ends_with("is no object"), "{text}: {error}");
    }
}
