//! Vocabularies that are cut, changed or made to be large: each is refused or converted.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use dlc_tokenizer::{ConvertError, Sources, VOCABULARIES, convert};
use proptest::prelude::*;

const KINDS: [(&str, &str); 7] = [
    ("bert", "vocab.txt"),
    ("gpt2", "vocab.json"),
    ("gpt2", "merges.txt"),
    ("llama-legacy", "tokenizer.model"),
    ("gemma", "tokenizer.model"),
    ("xlm-roberta", "sentencepiece.bpe.model"),
    ("deberta-v2", "spm.model"),
];

fn sources(name: &str) -> Sources {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tokenizers");
    let folder = folder.join(name);
    let mut sources = Sources::default();
    let config = fs::read(folder.join("config.json")).unwrap();
    sources.files.model = serde_json::from_slice(&config).unwrap();
    for name in VOCABULARIES {
        if let Ok(bytes) = fs::read(folder.join(name)) {
            sources.vocabulary.insert(name.to_owned(), bytes);
        }
    }
    sources
}

/// A model of `SentencePiece` with these fields.
fn message(fields: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, content) in fields {
        bytes.push(tag << 3 | 2);
        let mut length = content.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(content);
    }
    bytes
}

fn piece(text: &str) -> (u8, Vec<u8>) {
    (1, message(&[(1, text.as_bytes().to_vec())]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn changed_vocabularies_are_refused_or_converted(
        kind in 0..KINDS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let (name, file) = KINDS[kind];
        let mut sources = sources(name);
        let bytes = sources.vocabulary.get_mut(file).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(end.index(bytes.len()));
        }
        let _ = convert(&sources);
    }
}

#[test]
fn models_with_impossible_numbers_are_refused() {
    let infinite = vec![0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x7f];
    for (why, model) in [
        ("no pieces", vec![]),
        ("no last byte", vec![0x0a, 5, b'a']),
        ("the same twice", message(&[piece("a"), piece("a")])),
        ("empty", message(&[piece("")])),
        ("infinite", message(&[(1, infinite)])),
        ("no UTF-8", message(&[(1, vec![0x0a, 1, 0xff])])),
        ("of words", message(&[piece("a"), (2, vec![0x18, 3])])),
        (
            "unknown is far",
            message(&[piece("a"), (2, vec![0xc0, 0x02, 0x7f])]),
        ),
        (
            "spaces after",
            message(&[piece("a"), (2, vec![0xc0, 0x01, 1])]),
        ),
        (
            "a long piece",
            message(&[piece(&"a".repeat(600)), (2, vec![0x18, 2])]),
        ),
    ] {
        let mut sources = sources("llama-legacy");
        sources
            .vocabulary
            .insert("tokenizer.model".to_owned(), model);
        let error = convert(&sources).expect_err(why);
        let refused = matches!(
            error,
            ConvertError::Unsupported(_) | ConvertError::Damaged { .. }
        );
        assert!(refused, "{why}");
    }
}

#[test]
fn what_a_model_says_and_its_class_does_not_do_is_named() {
    let mut sources = sources("llama-legacy");
    let model = &sources.vocabulary["tokenizer.model"];
    let normalizer = (3, vec![0x18, 0, 0x20, 1, 0x28, 0, 0x12, 1, 0]);
    let changed = [model.clone(), message(&[normalizer])].concat();
    sources
        .vocabulary
        .insert("tokenizer.model".to_owned(), changed);
    let notes = convert(&sources).unwrap().notes;
    let named = [
        "add_dummy_prefix: false",
        "remove_extra_whitespaces: true",
        "escape_whitespaces: false",
        "precompiled_charsmap: true",
    ];
    for key in named {
        assert!(
            notes.iter().any(|note| note.contains(key)),
            "{key}: {notes:?}"
        );
    }
}
