//! Templates as models carry them, and hostile ones.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn template(source: &str) -> ChatTemplate {
    let config = serde_json::json!({"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    load(&[(CONFIG_FILE, &config.to_string())]).unwrap()
}

fn load(files: &[(&str, &str)]) -> Result<ChatTemplate> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    ChatTemplate::load(folder.path())
}

fn render(source: &str, messages: &[(&str, &str)]) -> Result<String> {
    let messages: Vec<ChatMessage> = messages.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect();
    template(source).render(&messages, true, UNIX_EPOCH + Duration::from_secs(1_735_689_599))
}

#[test]
fn chatml_renders_as_in_transformers() {
    let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let expected = "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi & <b><|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(source, &[("user", "Hi & <b>")]).unwrap(), expected);
}

#[test]
fn pythons_methods_and_special_tokens_work() {
    let source = "{{ bos_token }}\n{%- for m in messages %}\n    {%- if m.content.startswith(' ') %}\n        {{- m['content'].strip().upper() + eos_token }}\n    {%- endif %}\n{%- endfor %}";
    assert_eq!(render(source, &[("user", " hi ")]).unwrap(), "<s>HI</s>");
}

#[test]
fn json_and_dates_are_pythons() {
    assert_eq!(render("{{ messages | tojson }}", &[("user", "a<b é")]).unwrap(), r#"[{"role": "user", "content": "a<b é"}]"#);
    assert_eq!(render("{{ {'a': 1} | tojson(indent=2) }}", &[]).unwrap(), "{\n  \"a\": 1\n}");
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &[]).unwrap(), "31 Dec 2024");
}

#[test]
fn a_templates_refusal_is_the_error() {
    let error = render("{{ raise_exception('Conversation roles must alternate') }}", &[]).unwrap_err().to_string();
    assert!(error.contains("Conversation roles must alternate"), "{error}");
}

#[test]
fn hostile_templates_end() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        assert!(render(source, &[]).is_err(), "{source}");
    }
}

#[test]
fn the_file_of_its_own_comes_first_and_named_ones_have_a_default() {
    let config = r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "talk"}]}"#;
    assert_eq!(load(&[(CONFIG_FILE, config)]).unwrap().source, "talk");
    assert_eq!(load(&[(CONFIG_FILE, config), (TEMPLATE_FILE, "own")]).unwrap().source, "own");
}

#[test]
fn a_model_without_a_template_is_for_prompts() {
    for files in [&[][..], &[(CONFIG_FILE, "{}")]] {
        let error = load(files).unwrap_err();
        assert_eq!(error.fault(), dlc_ir::Fault::Unsupported);
        assert!(error.to_string().contains("--prompt"), "{error}");
    }
}

#[test]
fn broken_files_are_named() {
    assert!(load(&[(CONFIG_FILE, "{")]).unwrap_err().to_string().contains(CONFIG_FILE));
    assert!(load(&[(TEMPLATE_FILE, "{% if %}")]).is_err());
}
