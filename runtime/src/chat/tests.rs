//! Templates as models carry them, against what transformers makes of them; and hostile ones.

mod goldens;
mod hostile;

use std::time::{Duration, UNIX_EPOCH};

use dlc_errors::Faulty;

use super::*;

/// A template whose files say that its tokens are `<s>` and `</s>`.
fn template(source: &str) -> Result<ChatTemplate> {
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "tokenizer_class": "PreTrainedTokenizerFast"});
    load(&[(CONFIG_FILE, &config.to_string()), (TEMPLATE_FILE, source)])
}

fn load(files: &[(&str, &str)]) -> Result<ChatTemplate> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    ChatTemplate::load(folder.path())
}

fn render(source: &str, messages: &[(&str, &str)]) -> Result<String> {
    let messages: Vec<ChatMessage> = messages
        .iter()
        .map(|(role, content)| ChatMessage::new(*role, *content))
        .collect();
    template(source)?.render(
        &messages,
        true,
        UNIX_EPOCH + Duration::from_secs(1_735_689_599),
    )
}

#[test]
fn a_templates_refusal_is_the_error_and_names_its_file() {
    let error = render(
        "{{ raise_exception('Conversation roles must alternate') }}",
        &[],
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("Conversation roles must alternate") && error.contains(TEMPLATE_FILE),
        "{error}"
    );
}

#[test]
fn the_file_of_its_own_comes_first_and_named_ones_have_a_default() {
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "talk"}]}"#;
    let object = r#"{"chat_template": {"default": "processor"}}"#;
    assert_eq!(load(&[(CONFIG_FILE, list)]).unwrap().source, "talk");
    assert_eq!(
        load(&[
            (CONFIG_FILE, list),
            (TEMPLATE_FILE, "own"),
            (PROCESSOR_FILE, object)
        ])
        .unwrap()
        .source,
        "own"
    );
    assert_eq!(
        load(&[(PROCESSOR_FILE, object)]).unwrap().source,
        "processor"
    );
    assert_eq!(
        load(&[
            (CONFIG_FILE, "{}"),
            (PROCESSOR_FILE, r#"{"chat_template": "text"}"#)
        ])
        .unwrap()
        .source,
        "text"
    );
}

#[test]
fn a_model_without_a_template_is_for_prompts() {
    for files in [
        &[][..],
        &[(CONFIG_FILE, "{}")],
        &[(CONFIG_FILE, r#"{"chat_template": null}"#)],
    ] {
        let error = load(files).unwrap_err();
        assert_eq!(error.fault(), dlc_errors::Fault::Unsupported);
        assert!(error.to_string().contains("--prompt"), "{error}");
    }
}

#[test]
fn broken_files_are_named() {
    for (name, content) in [
        (CONFIG_FILE, "{"),
        (CONFIG_FILE, "[]"),
        ("special_tokens_map.json", "{"),
        (TEMPLATE_FILE, "{% if %}"),
        (TEMPLATE_FILE, "{{ 'x }}"),
    ] {
        let error = load(&[(name, content), ("config.json", "{}")]).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.fault(), dlc_errors::Fault::BadInput);
    }
}

#[test]
fn long_conversations_are_rendered() {
    let source =
        "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content | trim + '</>' }}{% endfor %}";
    let long = "word ".repeat(100_000);
    let messages: Vec<(&str, &str)> = (0..2000)
        .map(|i| ("user", if i == 0 { long.as_str() } else { "hello" }))
        .collect();
    let text = render(source, &messages).unwrap();
    assert_eq!(text.matches("</>").count(), 2000);
}
