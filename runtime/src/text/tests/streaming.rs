//! Tokens as they come: pieces of text add up to the whole.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// One token per byte, as in GPT-2's alphabet, and one for `é` as a whole.
fn byte_level() -> TextTokenizer {
    let mut vocab = serde_json::Map::new();
    let printable =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut extra = 256;
    for byte in 0..256u32 {
        let symbol = if printable(byte) {
            byte
        } else {
            extra += 1;
            extra - 1
        };
        vocab.insert(char::from_u32(symbol).unwrap().to_string(), json!(byte));
    }
    vocab.insert("Ã©".to_owned(), json!(256));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": ["Ã ©"]});
    let special = json!([{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level, "model": model});
    load(&file)
}

/// A sentencepiece-like tokenizer: `▁` for spaces, the first one stripped.
fn metaspace() -> TextTokenizer {
    let words = ["<unk>", "▁the", "▁cat", "s", "▁", ",", "<0xC3>", "<0xA9>"];
    let vocab: serde_json::Map<String, serde_json::Value> = words
        .iter()
        .enumerate()
        .map(|(i, word)| ((*word).to_owned(), json!(i)))
        .collect();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []});
    let decoders = json!([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    load(
        &json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "model": model}),
    )
}

fn load(file: &serde_json::Value) -> TextTokenizer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    TextTokenizer::load(&path).unwrap()
}

fn pieces(tokenizer: &TextTokenizer, tokens: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = tokens
        .iter()
        .map(|&token| stream.push(&[token]).unwrap())
        .collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_add_up_to_the_text(text in "[a-zé€😀 ,.]{0,40}") {
        let tokenizer = byte_level();
        let tokens = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text.clone());
        let pieces = pieces(&tokenizer, &tokens);
        let whole = pieces.iter().all(|piece| !piece.contains('\u{FFFD}'));
        prop_assert!(whole, "{:?}", pieces);
        prop_assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn any_tokens_add_up_to_what_decoding_them_at_once_gives(tokens in prop::collection::vec(0u32..257, 0..40)) {
        let tokenizer = byte_level();
        prop_assert_eq!(pieces(&tokenizer, &tokens).concat(), tokenizer.decode(&tokens).unwrap());
    }
}

#[test]
fn a_character_of_several_tokens_comes_out_whole() {
    let tokenizer = byte_level();
    assert_eq!(
        pieces(&tokenizer, &[97, 0xE2, 0x82, 0xAC, 98]),
        ["a", "", "", "€", "b", ""]
    );
}

#[test]
fn an_unfinished_character_is_flushed_at_the_end() {
    assert_eq!(
        pieces(&byte_level(), &[97, 0xE2, 0x82]).concat(),
        "a\u{FFFD}"
    );
}

#[test]
fn special_tokens_are_no_text() {
    assert_eq!(pieces(&byte_level(), &[97, 257, 98]), ["a", "", "b", ""]);
}

#[test]
fn spaces_between_words_survive_streaming() {
    let tokenizer = metaspace();
    assert_eq!(
        pieces(&tokenizer, &[1, 2, 3, 5, 1, 2]).concat(),
        "the cats, the cat"
    );
    assert_eq!(pieces(&tokenizer, &[2, 6, 7, 3]), ["cat", "", "é", "s", ""]);
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "{}").unwrap();
    assert!(
        TextTokenizer::load(&path)
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
}

#[test]
fn of_a_text_far_beyond_the_context_only_a_part_is_tokenized() {
    let tokenizer = byte_level();
    let error = tokenizer
        .encode_within(&"é".repeat(32 << 20), true, 100)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the model's context 100"), "{error}");
    let text = "a".repeat(5000);
    assert_eq!(
        tokenizer.encode_within(&text, true, 4900).unwrap(),
        tokenizer.encode(&text, true).unwrap()
    );
}
