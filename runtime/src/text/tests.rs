//! Hostile and broken `tokenizer.json` files: each is refused by its name, or works.

mod streaming;

use std::time::{Duration, Instant};

use dlc_errors::Faulty;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use super::*;

fn load(file: &str) -> Result<TextTokenizer> {
    load_beside(file, &[])
}

fn load_beside(file: &str, files: &[(&str, &Value)]) -> Result<TextTokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(TOKENIZER_FILE);
    std::fs::write(&path, file).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    TextTokenizer::load(&path)
}

/// A small tokenizer of bytes with a step of each kind that nothing depends on.
fn base() -> Value {
    let vocab: serde_json::Map<String, Value> = ["a", "b", "ab", "Ġ", "h", "i", "<s>", "</s>"]
        .iter()
        .zip(0..)
        .map(|(token, id)| ((*token).to_owned(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 6, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}, {"type": "Prepend", "prepend": "a"}, {"type": "Strip", "strip_left": true, "strip_right": false}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false}, {"type": "Digits", "individual_digits": true}, byte_level.clone()]},
        "post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}}}, byte_level.clone()]},
        "decoder": {"type": "Sequence", "decoders": [byte_level, {"type": "Replace", "pattern": {"Regex": "q+"}, "content": "q"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "a", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": ["a b"]}
    })
}

/// `base` with the value at `pointer` replaced.
fn with(pointer: &str, value: Value) -> String {
    let mut file = base();
    *file.pointer_mut(pointer).unwrap() = value;
    file.to_string()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn traps_are_refused_by_the_files_name() {
    let replace =
        |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    let bomb = json!({"type": "Sequence", "normalizers": vec![replace(&"a".repeat(1000)); 10]});
    let nested = (0..200).fold(
        json!({"type": "NFC"}),
        |inner, _| json!({"type": "Sequence", "normalizers": [inner]}),
    );
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    let table = |base64: &str| json!({"type": "Precompiled", "precompiled_charsmap": base64});
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let added = json!({"id": 8, "content": "x".repeat(5000), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let pieces = |count: usize, length: usize| {
        let piece = |i: usize| json!([format!("{i:08}{}", "x".repeat(length - 8)), -1.0]);
        let vocab: Vec<Value> = [json!(["<unk>", 0.0])]
            .into_iter()
            .chain((0..count).map(piece))
            .collect();
        json!({"type": "Unigram", "unk_id": 0, "vocab": vocab})
    };
    let added_of = |length: usize| {
        move |i: usize| {
            let mut token = json!({"id": 8 + i, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true});
            token["content"] = format!("{i:08}{}", "x".repeat(length - 8)).into();
            token
        }
    };
    for (what, file) in [
        (
            "a piece that is deep as a tree",
            with("/model", pieces(1, 300_000)),
        ),
        ("pieces of many bytes", with("/model", pieces(8000, 1000))),
        (
            "added tokens of many bytes",
            with("/added_tokens", (0..3000).map(added_of(1000)).collect()),
        ),
        ("no JSON", "{".to_owned()),
        ("no tokenizer", "{}".to_owned()),
        ("another kind of JSON", "[]".to_owned()),
        ("brackets", "[".repeat(100_000)),
        ("a replacement bomb", with("/normalizer", bomb)),
        (
            "a bomb of patterns",
            with(
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaa"}); 12]}),
            ),
        ),
        (
            "a bomb in the decoder",
            with(
                "/decoder",
                json!({"type": "Sequence", "decoders": vec![replace(&"a".repeat(1000)); 4]}),
            ),
        ),
        (
            "a bomb of prefixes",
            with(
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "Prepend", "prepend": "a".repeat(1000)}); 100]}),
            ),
        ),
        ("steps in steps", with("/normalizer", nested)),
        (
            "many steps",
            with(
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 10_000]}),
            ),
        ),
        (
            "an empty pattern",
            with(
                "/normalizer",
                json!({"type": "Replace", "pattern": {"String": ""}, "content": "abc"}),
            ),
        ),
        ("a table too short", with("/normalizer", table("AAAA"))),
        (
            "a table that claims 4 GB",
            with("/normalizer", table("/////wAAAAA=")),
        ),
        (
            "a table that leads nowhere",
            with("/normalizer", table("CAAAAP//////////YWJj")),
        ),
        (
            "no length",
            with(
                "/pre_tokenizer",
                json!({"type": "FixedLength", "length": 0}),
            ),
        ),
        (
            "the text twice",
            with("/post_processor", template(json!([a, a]))),
        ),
        (
            "the text often",
            with("/post_processor", template(json!(vec![a.clone(); 10_000]))),
        ),
        ("no text", with("/post_processor", template(json!([])))),
        (
            "a second text",
            with(
                "/post_processor",
                template(json!([{"Sequence": {"id": "B", "type_id": 0}}])),
            ),
        ),
        (
            "a token from nowhere",
            with(
                "/post_processor",
                template(json!([{"SpecialToken": {"id": "q", "type_id": 0}}, a])),
            ),
        ),
        (
            "a slow pattern",
            with("/pre_tokenizer", split("(?:(?=a)a|(?=a)a)*c")),
        ),
        (
            "a slow pattern of blanks",
            with("/pre_tokenizer", split("(?:(?= )\\s|(?= )\\s)*x")),
        ),
        (
            "a slow pattern that looks ahead",
            with("/pre_tokenizer", split("(?:(?=.).|(?=.).)*!!")),
        ),
        ("no pattern", with("/pre_tokenizer", split("("))),
        (
            "a pattern without end",
            with("/pre_tokenizer", split(&"a".repeat(10_000))),
        ),
        (
            "a prefix that tokens lack",
            with("/model/continuing_subword_prefix", json!("####")),
        ),
        ("a merge of nothing", with("/model/merges", json!(["q r"]))),
        (
            "long words",
            with(
                "/model",
                json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 4_000_000_000_u64, "vocab": {"a": 0}}),
            ),
        ),
        (
            "an unknown token out of range",
            with(
                "/model",
                json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]], "byte_fallback": false}),
            ),
        ),
        ("a long token", with("/added_tokens", json!([added]))),
    ] {
        let start = Instant::now();
        let Err(error) = load(&file) else {
            panic!("{what} is taken")
        };
        assert!(
            error.to_string().contains(TOKENIZER_FILE)
                && error.fault() == dlc_errors::Fault::BadInput,
            "{what}: {error}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what} takes {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_plain_tokenizer_is_taken() {
    let tokenizer = load(&base().to_string()).unwrap();
    assert_eq!(tokenizer.encode("ab hi", true).unwrap()[0], 6);
    assert_eq!(tokenizer.unheeded_settings(), [""; 0]);
    for regex in [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s+",
        r"[0-9][0-9][0-9]|\p{N}| {2,}|(?:\r?\n)+(?!\r?\n)",
    ] {
        assert_eq!(patterns::check(regex), Ok(()), "{regex}");
    }
}

#[test]
fn tokens_that_only_other_files_call_special_are_not_split() {
    let file = base().to_string();
    let text = "ab</s>";
    assert_ne!(
        load(&file).unwrap().encode(text, false).unwrap().last(),
        Some(&7)
    );
    for (name, content) in [
        ("tokenizer_config.json", json!({"eos_token": "</s>"})),
        (
            "special_tokens_map.json",
            json!({"eos_token": {"content": "</s>"}}),
        ),
        (
            "tokenizer_config.json",
            json!({"extra_special_tokens": ["</s>"]}),
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"7": {"content": "</s>", "special": true}}}),
        ),
    ] {
        let tokenizer = load_beside(&file, &[(name, &content)]).unwrap();
        assert_eq!(
            tokenizer.encode(text, false).unwrap().last(),
            Some(&7),
            "{content}"
        );
    }
    // One that the vocabulary lacks would have an id that the model lacks.
    let tokenizer = load_beside(
        &file,
        &[("tokenizer_config.json", &json!({"pad_token": "[PAD]"}))],
    )
    .unwrap();
    assert_eq!(tokenizer.token_id("[PAD]"), None);
}

#[test]
fn settings_that_are_not_heeded_are_named() {
    let unheeded = |config: Value| {
        load_beside(&base().to_string(), &[("tokenizer_config.json", &config)])
            .unwrap()
            .unheeded_settings()
            .join("\n")
    };
    for (key, value) in [
        ("add_bos_token", false),
        ("add_eos_token", true),
        ("add_prefix_space", true),
        ("fix_mistral_regex", true),
    ] {
        let found = unheeded(json!({"bos_token": "<s>", "eos_token": "</s>", key: value}));
        assert!(
            found.contains(&format!("`{key}: {value}` isn't heeded")) && found.lines().count() == 1,
            "{found}"
        );
    }
    let agreeing = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": false, "add_prefix_space": false, "clean_up_tokenization_spaces": true, "model_max_length": 512});
    assert_eq!(unheeded(agreeing), "");
}

/// Replaces, removes or repeats one of the values.
fn mutate(value: &mut Value, at: &mut usize, change: &Change) {
    if *at == 0 {
        match change {
            Change::Set(new) => *value = new.clone(),
            Change::Remove => *value = Value::Null,
            Change::Repeat(times) => {
                *value = match &*value {
                    Value::String(text) => json!(text.repeat(*times)),
                    Value::Array(items) => items
                        .iter()
                        .cycle()
                        .take(items.len() * times)
                        .cloned()
                        .collect(),
                    other => json!(vec![other.clone(); *times]),
                }
            }
        }
    }
    *at = at.wrapping_sub(1);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| mutate(item, at, change)),
        Value::Object(object) => object
            .values_mut()
            .for_each(|item| mutate(item, at, change)),
        _ => {}
    }
}

#[derive(Debug, Clone)]
enum Change {
    Set(Value),
    Remove,
    Repeat(usize),
}

fn changes() -> impl Strategy<Value = Change> {
    let base = base();
    let mut values = vec![
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(4_000_000_000_u64),
        json!(1e300),
        json!(true),
        json!(""),
        json!("a"),
        json!("é"),
        json!("\u{0}"),
        json!([]),
        json!({}),
        json!([[]]),
        json!(["a", "b"]),
    ];
    for kind in [
        "NFKD",
        "Lowercase",
        "StripAccents",
        "BertNormalizer",
        "Nmt",
        "ByteLevel",
        "Metaspace",
        "Whitespace",
        "WhitespaceSplit",
        "BertPreTokenizer",
        "CharDelimiterSplit",
        "Punctuation",
        "UnicodeScripts",
        "FixedLength",
        "WordPiece",
        "ByteFallback",
        "CTC",
        "BPEDecoder",
        "BertProcessing",
        "RobertaProcessing",
        "Unigram",
        "WordLevel",
    ] {
        values.push(json!(kind));
        values.push(json!({"type": kind, "length": 1, "delimiter": "a", "replacement": "▁", "prepend_scheme": "always", "split": true, "sep": ["</s>", 7], "cls": ["<s>", 6], "trim_offsets": true, "add_prefix_space": true, "use_regex": true, "prefix": "##", "cleanup": true, "suffix": "</w>", "pad_token": "a", "word_delimiter_token": "b", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true, "behavior": "Isolated", "vocab": {"a": 0, "": 1}, "unk_token": "a", "unk_id": 0, "max_input_chars_per_word": 100, "continuing_subword_prefix": "a"}));
    }
    for pointer in [
        "/normalizer",
        "/pre_tokenizer",
        "/post_processor",
        "/decoder",
        "/model",
        "/model/vocab",
    ] {
        values.push(base.pointer(pointer).unwrap().clone());
    }
    prop_oneof![
        prop::sample::select(values).prop_map(Change::Set),
        Just(Change::Remove),
        (2_usize..300).prop_map(Change::Repeat)
    ]
}

/// Some changed files; the fuzz target `tokenizer` tries many more.
#[test]
fn mutated_files_are_refused_or_work() {
    let runner = Config {
        cases: 300,
        failure_persistence: None,
        max_shrink_iters: 64,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(runner, TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]));
    let mutations = prop::collection::vec((0_usize..140, changes()), 1..4);
    let outcome = runner.run(&mutations, |mutations| {
        let mut file = base();
        for (at, change) in &mutations {
            mutate(&mut file, &mut at.clone(), change);
        }
        let start = Instant::now();
        match load(&file.to_string()) {
            Err(error) => prop_assert!(error.to_string().contains(TOKENIZER_FILE), "{}", error),
            Ok(tokenizer) => {
                for text in [
                    "aaaa hi",
                    "",
                    "ab\n\n  é中 12345 <s></s>",
                    "ﬁ\u{301}\u{0}xq",
                ] {
                    if let Ok(tokens) = tokenizer.encode(text, true) {
                        let mut stream = tokenizer.stream();
                        let _ = stream.push(&tokens);
                    }
                    let _ = tokenizer.analyse(text);
                }
                let _ = tokenizer.basic_tokens();
            }
        }
        prop_assert!(
            start.elapsed() < Duration::from_secs(10),
            "took {:?}",
            start.elapsed()
        );
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}
