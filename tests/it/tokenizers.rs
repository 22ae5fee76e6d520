//! Checkpoints without `tokenizer.json`: what is made of their vocabularies, against transformers.

use std::fs;
use std::path::Path;

use dlc_runtime::TextTokenizer;
use dlc_tokenizer::{Converted, Sources, TokenizerFiles, VOCABULARIES, convert};
use serde_json::{Map, Value};

use crate::command::{Shell, snapshot};
use crate::common::fixture;

const SETTINGS: [&str; 3] = [
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

fn object(path: &Path) -> Map<String, Value> {
    let bytes = fs::read(path).unwrap_or_else(|_| b"{}".to_vec());
    serde_json::from_slice(&bytes).unwrap()
}

/// What a folder and its base have.
fn sources(folder: &Path) -> Sources {
    let [model, config, map] = SETTINGS.map(|name| object(&folder.join(name)));
    let base = fs::read_to_string(folder.join("base")).unwrap_or_default();
    let base = folder.parent().unwrap().join(base);
    let vocabulary = VOCABULARIES.iter().filter_map(|name| {
        let bytes = fs::read(folder.join(name)).or_else(|_| fs::read(base.join(name)));
        Some(((*name).to_owned(), bytes.ok()?))
    });
    Sources {
        files: TokenizerFiles { model, config, map },
        added: object(&folder.join("added_tokens.json")),
        vocabulary: vocabulary.collect(),
    }
}

/// The tokenizer that is made of a folder, loaded as a bundle's is.
fn load(name: &str, sources: &Sources) -> TextTokenizer {
    let made: Converted = convert(sources).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(made.notes.len(), 1, "{name}: {:?}", made.notes);
    let place = tempfile::tempdir().unwrap();
    let files = &sources.files;
    for (name, object) in SETTINGS
        .iter()
        .zip([&files.model, &files.config, &files.map])
    {
        fs::write(place.path().join(name), serde_json::to_vec(object).unwrap()).unwrap();
    }
    let path = place.path().join("tokenizer.json");
    fs::write(&path, serde_json::to_vec(&made.tokenizer).unwrap()).unwrap();
    TextTokenizer::load(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn made_tokenizers_give_the_ids_of_transformers() {
    let recorded = object(&fixture("tokenizers/texts.json"));
    let of = |value: &Value| -> Vec<Vec<u32>> { serde_json::from_value(value.clone()).unwrap() };
    let texts: Vec<String> = serde_json::from_value(recorded["texts"].clone()).unwrap();
    let pairs: Vec<[String; 2]> = serde_json::from_value(recorded["pairs"].clone()).unwrap();
    let mut wrong = Vec::new();
    for (name, ids) in recorded.iter().filter(|(_, ids)| ids.is_object()) {
        let tokenizer = load(name, &sources(&fixture(&format!("tokenizers/{name}"))));
        for (text, expected) in texts.iter().zip(of(&ids["texts"])) {
            let found = tokenizer.encode(text, true).unwrap();
            if found != expected {
                wrong.push(format!("{name}: {text:?}: {found:?}, not {expected:?}"));
            }
        }
        for ([a, b], expected) in pairs.iter().zip(of(&ids["pairs"])) {
            let found = tokenizer.analyse_pair(a, b, usize::MAX).unwrap().tokens.ids;
            if found != expected {
                wrong.push(format!("{name}: {a:?}, {b:?}: {found:?}, not {expected:?}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A sentence encoder whose `tokenizer.json` is taken away for its vocabulary.
fn without_tokenizer(shell: &Shell, to: &str) {
    shell.copy(&fixture("cases/sentence-max-seq-length"), to);
    let own = shell.path(to).join("tokenizer.json");
    let tokens = object(&own)["model"]["vocab"].as_object().unwrap().clone();
    fs::remove_file(own).unwrap();
    let mut tokens: Vec<(String, Value)> = tokens.into_iter().collect();
    tokens.sort_by_key(|(_, id)| id.as_u64());
    let lines: String = tokens.into_iter().map(|(token, _)| token + "\n").collect();
    shell.write(&format!("{to}/vocab.txt"), lines);
    shell.write(
        &format!("{to}/tokenizer_config.json"),
        r#"{"tokenizer_class": "BertTokenizer", "model_max_length": 64}"#,
    );
}

#[test]
fn a_vocabulary_is_compiled_and_run_as_its_tokenizer_is() {
    let shell = Shell::new();
    let own = fixture("cases/sentence-max-seq-length");
    shell.copy(&own, "own");
    without_tokenizer(&shell, "bare");
    shell.ok(&["compile", "own", "-o", "own-bundle"]);
    let compiled = shell.ok(&["compile", "bare", "-o", "bare-bundle"]);
    assert_eq!(
        shell.listing(),
        ["bare", "bare-bundle", "own", "own-bundle"]
    );
    assert!(shell.path("bare-bundle/tokenizer.json").is_file());
    let run = |bundle: &str| {
        let text = "the cat sat on the mat";
        shell.ok(&["run", bundle, "--text", text, "--json"]).json()
    };
    assert_eq!(run("own-bundle")["vectors"], run("bare-bundle")["vectors"]);
    snapshot!("made_tokenizer", compiled.transcript());
}

#[test]
fn vocabularies_that_cannot_be_followed_are_named() {
    let shell = Shell::new();
    let transcripts: Vec<String> = [
        ("class", r#"{"tokenizer_class": "FunnelTokenizer"}"#),
        ("files", r#"{"tokenizer_class": "GPT2Tokenizer"}"#),
        ("split", r#"{"tokenizer_class": "BertTokenizer", "never_split": ["x"]}"#),
        ("flag", r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": 1}"#),
        ("id", r#"{"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"99": {"content": "<x>"}}}"#),
        ("model", r#"{"tokenizer_class": "XLMRobertaTokenizer"}"#),
    ]
    .map(|(name, settings)| {
        without_tokenizer(&shell, name);
        shell.write(&format!("{name}/tokenizer_config.json"), settings);
        shell.write(&format!("{name}/sentencepiece.bpe.model"), "\x0a\x05ab");
        let outcome = shell.ok(&["compile", name, "-o", &format!("{name}-bundle")]);
        assert!(!shell.path(&format!("{name}-bundle/tokenizer.json")).exists());
        let warning = outcome.stderr.lines().find(|line| line.starts_with("warning: "));
        format!("{settings}\n  {}\n", warning.unwrap())
    })
    .into();
    snapshot!("made_tokenizer_refused", transcripts.join("\n"));
}
