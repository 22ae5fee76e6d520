//! Text to tokens and back, through the bundle's `tokenizer.json`.
//!
//! [`TextStream`] turns tokens into text as they come. It never takes back what it gave out and never cuts a character.

use std::path::Path;

use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{Encoding, NormalizerWrapper, Tokenizer, TruncationDirection};

use super::{Result, RuntimeError};
use crate::files::read_input;

/// The largest `tokenizer.json` that is read; those of 250 000 tokens have 20 to 40 MB.
const FILE_CAP: u64 = 512 << 20;

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
}

impl TextTokenizer {
    /// Loads a `tokenizer.json`. Truncation and padding that it may ask for are switched off.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_input(path, FILE_CAP)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| RuntimeError::file(path, format!("isn't a tokenizer: {error}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| RuntimeError::file(path, format!("its truncation can't be switched off: {error}")))?;
        Ok(Self { tokenizer })
    }

    /// The tokens of `text`; `special` adds what the tokenizer puts around a text, such as a bos token. A rendered chat has them already.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding =
            self.tokenizer.encode_fast(text, special).map_err(|error| RuntimeError::Input(format!("the text can't be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of `text` for a model that takes `most`: of a text that is far too long only a part is looked at.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] as for [`Self::encode`], and for a beginning of the text that has more tokens than the model takes.
    pub fn encode_within(&self, text: &str, special: bool, most: usize) -> Result<Vec<u32>> {
        // Of most texts a quarter as many tokens as bytes. The tokens at the end of a part may become fewer in the whole.
        let mut part = most.saturating_mul(16).max(1 << 12);
        while part < text.len() {
            let tokens = self.encode(&text[..text.floor_char_boundary(part)], special)?.len();
            if tokens > most + most / 8 + 64 {
                return Err(RuntimeError::Input(format!("more than {tokens} tokens don't fit the context of {most}: shorten the text")));
            }
            part = part.saturating_mul(8);
        }
        self.encode(text, special)
    }

    /// The tokens of `text` with all that encoders and their readers want to know of them.
    pub fn analyse(&self, text: &str) -> Result<TokenizedText> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| RuntimeError::Input(format!("the text can't be tokenized: {error}")))?;
        Ok(TokenizedText::of(&encoding))
    }

    /// As [`analyse`](Self::analyse), with the tokens at the end, or at the start, left out that make it longer than `most` tokens, those that
    /// the tokenizer puts around a text included; and how many tokens the whole text has.
    pub fn analyse_cut(&self, text: &str, most: usize, at_start: bool) -> Result<(TokenizedText, usize)> {
        let whole = self.analyse(text)?;
        let n = whole.ids.len();
        if n <= most {
            return Ok((whole, n));
        }
        let failed = |error: tokenizers::Error| RuntimeError::Input(format!("the text can't be tokenized: {error}"));
        let mut encoding = self.tokenizer.encode(text, false).map_err(failed)?;
        let room = most.saturating_sub(n.saturating_sub(encoding.len()));
        let side = if at_start { TruncationDirection::Left } else { TruncationDirection::Right };
        encoding.truncate(room, 0, side);
        encoding.take_overflowing();
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(failed)?;
        Ok((TokenizedText::of(&encoding), n))
    }

    /// Reads texts in lower case from now on; tokens that the tokenizer finds in texts as they are stay as they are.
    pub fn lower_case(&mut self) -> Result<()> {
        let lower = NormalizerWrapper::Lowercase(Lowercase);
        let old = self.tokenizer.get_normalizer().cloned();
        let all = [lower].into_iter().chain(old).collect();
        let changed = self.tokenizer.with_normalizer(Some(NormalizerWrapper::Sequence(Sequence::new(all))));
        changed.map(|_| ()).map_err(|error| RuntimeError::Input(format!("the tokenizer can't read texts in lower case: {error}")))
    }

    /// Whether this is one of the tokens that are no text, such as `[SEP]`.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// The text of `tokens`, without special tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| RuntimeError::Input(format!("the tokens can't be turned into text: {error}")))
    }

    /// The id of a token by its text, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Number of entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The tokens that any text may need: special ones, and those of a single byte, as byte-level vocabularies write it or as `<0x0A>`.
    pub fn basic_tokens(&self) -> Vec<u32> {
        // Byte-level vocabularies write the bytes that can't be printed as the characters from U+0100 on.
        const END_OF_BYTES: u32 = 0x144;
        let single_byte = |text: &str| {
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (Some(only), None) => u32::from(only) < END_OF_BYTES,
                _ => text.len() == 6 && text.starts_with("<0x") && text.ends_with('>'),
            }
        };
        let mut tokens: Vec<u32> = self.tokenizer.get_vocab(true).into_iter().filter(|(text, _)| single_byte(text)).map(|(_, id)| id).collect();
        tokens.extend(self.tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id));
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// Decodes tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, tokens: Vec::new(), given: 0 }
    }
}

/// A text as an encoder reads it; one entry for each token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizedText {
    /// Ids.
    pub ids: Vec<u32>,
    /// Segments.
    pub types: Vec<u32>,
    /// Whether the tokenizer put the token there, as `[CLS]`.
    pub special: Vec<bool>,
    /// The tokens as the vocabulary writes them.
    pub pieces: Vec<String>,
}

impl TokenizedText {
    fn of(encoding: &Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            special: encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect(),
            pieces: encoding.get_tokens().to_vec(),
        }
    }
}

/// Turns tokens into text piece by piece; the pieces, [`TextStream::finish`]'s included, add up to the text of all tokens.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    /// The tokens still needed: the last ones given out, as context for what follows, and those that aren't text yet.
    tokens: Vec<u32>,
    /// How many of `tokens` are given out.
    given: usize,
}

impl TextStream<'_> {
    /// Takes further tokens and returns the text that is certain by now; possibly none.
    pub fn push(&mut self, tokens: &[u32]) -> Result<String> {
        let mut text = String::new();
        for &token in tokens {
            self.tokens.push(token);
            let piece = self.pending()?;
            // U+FFFD at the end is most likely a character of which more bytes are to come.
            if !piece.is_empty() && !piece.ends_with('\u{FFFD}') {
                text.push_str(&piece);
                self.tokens.drain(..self.given);
                self.given = self.tokens.len();
            }
        }
        Ok(text)
    }

    /// The rest: what was held back as unfinished.
    pub fn finish(mut self) -> Result<String> {
        let rest = self.pending()?;
        self.tokens.clear();
        Ok(rest)
    }

    /// The text that the tokens after the given ones add.
    fn pending(&self) -> Result<String> {
        let given = self.tokenizer.decode(&self.tokens[..self.given])?;
        let all = self.tokenizer.decode(&self.tokens)?;
        // A decoder may yet change what the last tokens mean; then the text waits for more.
        Ok(all.strip_prefix(given.as_str()).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// One token per byte, as in GPT-2's alphabet, and one for `é` as a whole.
    fn byte_level() -> TextTokenizer {
        let mut vocab = serde_json::Map::new();
        let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
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
        let special =
            json!([{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
        let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level, "model": model});
        load(&file)
    }

    /// A sentencepiece-like tokenizer: `▁` for spaces, the first one stripped.
    fn metaspace() -> TextTokenizer {
        let words = ["<unk>", "▁the", "▁cat", "s", "▁", ",", "<0xC3>", "<0xA9>"];
        let vocab: serde_json::Map<String, serde_json::Value> = words.iter().enumerate().map(|(i, word)| ((*word).to_owned(), json!(i))).collect();
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
        let mut pieces: Vec<String> = tokens.iter().map(|&token| stream.push(&[token]).unwrap()).collect();
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
        assert_eq!(pieces(&tokenizer, &[97, 0xE2, 0x82, 0xAC, 98]), ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn an_unfinished_character_is_flushed_at_the_end() {
        assert_eq!(pieces(&byte_level(), &[97, 0xE2, 0x82]).concat(), "a\u{FFFD}");
    }

    #[test]
    fn special_tokens_are_no_text() {
        assert_eq!(pieces(&byte_level(), &[97, 257, 98]), ["a", "", "b", ""]);
    }

    #[test]
    fn spaces_between_words_survive_streaming() {
        let tokenizer = metaspace();
        assert_eq!(pieces(&tokenizer, &[1, 2, 3, 5, 1, 2]).concat(), "the cats, the cat");
        assert_eq!(pieces(&tokenizer, &[2, 6, 7, 3]), ["cat", "", "é", "s", ""]);
    }

    #[test]
    fn of_a_text_far_beyond_the_context_only_a_part_is_tokenized() {
        let tokenizer = byte_level();
        let start = std::time::Instant::now();
        let error = tokenizer.encode_within(&"é".repeat(32 << 20), true, 100).unwrap_err().to_string();
        assert!(error.contains("don't fit the context of 100") && start.elapsed().as_secs() < 2, "{error}");
        let text = "a".repeat(5000);
        assert_eq!(tokenizer.encode_within(&text, true, 4900).unwrap(), tokenizer.encode(&text, true).unwrap());
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(TextTokenizer::load(&path).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
