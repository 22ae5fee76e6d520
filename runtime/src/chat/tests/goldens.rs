//! Against `fixtures/chat.json`, which transformers recorded.

use dlc_tokenizer::TokenizerFiles;
use serde_json::Value;

use super::*;

/// What is rare in templates and not as in Python: printing views, ranges and large floats in
/// lists, `%r`, less than undefined, and filters for web pages. All but the first four are errors,
/// so nothing is wrong without a word.
const UNLIKE_PYTHON: [&str; 16] = [
    "d.keys()",
    "d.items()",
    "range(0)",
    "range(3)",
    "[1.0, 2e20]",
    "nothing < 1",
    "'%r' % 'a'",
    "'a b' | urlencode",
    "s | wordwrap(5)",
    "1000 | filesizeformat",
    "l | random is number",
    "'<p>x</p>' | striptags",
    "d | xmlattr",
    "cycler('a', 'b').next()",
    "joiner(', ')",
    "lipsum",
];

fn recorded() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn talk(value: &Value) -> Vec<ChatMessage> {
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|turn| ChatMessage::new(text(turn, "role"), text(turn, "content")))
        .collect()
}

/// What is wrong with a rendering, if anything.
fn difference(
    golden: &Value,
    source: &str,
    talk: &[ChatMessage],
    reply: bool,
    expected: &Value,
) -> Option<String> {
    let now = UNIX_EPOCH + Duration::from_secs(golden["now"].as_u64().unwrap());
    let found = template(source).and_then(|template| template.render(talk, reply, now));
    match (&found, expected["text"].as_str()) {
        (Ok(text), Some(expected)) if text == expected => None,
        (Err(_), None) => None,
        _ => Some(format!("{found:?}\ninstead of {expected}")),
    }
}

#[test]
fn templates_of_models_render_as_in_transformers() {
    let golden = recorded();
    for case in golden["templates"].as_array().unwrap() {
        let talk = talk(&golden["talks"][case["talk"].as_str().unwrap()]);
        let wrong = difference(
            &golden,
            case["template"].as_str().unwrap(),
            &talk,
            case["reply"].as_bool().unwrap(),
            case,
        );
        assert_eq!(wrong, None, "{} {}", case["name"], case["talk"]);
    }
}

#[test]
fn expressions_print_as_in_transformers() {
    let golden = recorded();
    let talk = talk(&golden["talks"]["one"]);
    let mut unlike = Vec::new();
    for case in golden["expressions"].as_array().unwrap() {
        let expression = case["expression"].as_str().unwrap();
        let source = format!(
            "{}{{{{ {expression} }}}}",
            golden["setup"].as_str().unwrap()
        );
        if let Some(wrong) = difference(&golden, &source, &talk, true, case) {
            assert!(UNLIKE_PYTHON.contains(&expression), "{expression}: {wrong}");
            unlike.push(expression);
        }
    }
    assert!(unlike.len() < UNLIKE_PYTHON.len(), "{unlike:?}");
}

#[test]
fn special_tokens_are_those_that_transformers_passes() {
    for case in recorded()["tokens"].as_array().unwrap() {
        let object = |key: &str| case[key].as_object().cloned().unwrap_or_default();
        let files = TokenizerFiles {
            model: object("config"),
            config: object("tokenizer_config"),
            map: object("special_tokens_map"),
        };
        let found = files.named(|| case["byte_level"].as_bool().unwrap());
        assert_eq!(
            serde_json::to_value(&found).unwrap(),
            case["tokens"],
            "{case}"
        );
    }
}

#[test]
fn what_transformers_passes_is_there() {
    let config = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "image_token": "<i>", "extra_special_tokens": {"video_token": "<v>"}}"#;
    let map = r#"{"bos_token": {"content": "<b>", "lstrip": false}, "additional_special_tokens": ["<x>"]}"#;
    let source = "{{ bos_token }}{{ pad_token }}{{ image_token }}{{ video_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ unknown }}";
    let template = load(&[
        (CONFIG_FILE, config),
        ("special_tokens_map.json", map),
        (TEMPLATE_FILE, source),
    ])
    .unwrap();
    assert_eq!(
        template.render(&[], false, UNIX_EPOCH).unwrap(),
        "<b><pad><i><v>TrueTrueFalse"
    );
}
