//! Text to tokens and back, through the bundle's `tokenizer.json`.
//!
//! The file is untrusted: it is measured and checked before the `tokenizers` crate reads it, see
//! [`checks`], and every call of the crate is contained, see [`trial`].
//!
//! [`TextStream`] turns tokens into text as they come. It never takes back what it gave out and
//! never cuts a character.

mod checks;
mod pair;
mod patterns;
mod settings;
mod shape;
mod trial;

use std::borrow::Borrow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checks::Growth;
use dlc_files::guard::contain_panics;
use dlc_files::read_input;
pub use pair::TokenizedPair;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{
    AddedToken, Encoding, ModelWrapper, NormalizerWrapper, Tokenizer, TruncationDirection,
};

use super::special_tokens::{named, read_files};
use super::{Bundle, Result, RuntimeError};

const TOKENIZER_FILE: &str = "tokenizer.json";
/// The largest `tokenizer.json` that is read; those of 250 000 tokens have 20 to 40 MB.
const FILE_CAP: u64 = 128 << 20;

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Arc<Tokenizer>,
    growth: Growth,
    /// The token `pad_token`, if files or the class name one that is there.
    padding: Option<u32>,
    longest: Option<usize>,
    unheeded: Vec<String>,
}

impl TextTokenizer {
    /// The tokenizer of a bundle, if it has one.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn of_bundle(bundle: &Bundle) -> Result<Option<Self>> {
        Self::in_folder(bundle, "")
    }

    /// The tokenizer whose files a bundle has in `folder`, empty for those in the bundle itself; if
    /// there is one.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn in_folder(bundle: &Bundle, folder: &str) -> Result<Option<Self>> {
        Self::among(folder, |name| bundle.side_file(name))
    }

    /// The tokenizer among files that `find` gives by name, those in `folder`, empty for those
    /// beside the rest; none if there is none.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn among(folder: &str, find: impl Fn(&str) -> Option<PathBuf>) -> Result<Option<Self>> {
        let find = |name: &str| match folder {
            "" => find(name),
            folder => find(&format!("{folder}/{name}")),
        };
        find(TOKENIZER_FILE)
            .map(|path| Self::read(&path, find))
            .transpose()
    }

    /// The tokenizer of a checkpoint: its `tokenizer.json`, and beside it the files that name
    /// special tokens. Truncation and padding that it may ask for are switched off.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a file that can't be read, is no tokenizer, or fails on a trial.
    pub fn load(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::read(path, |name| {
            Some(folder.join(name)).filter(|path| path.is_file())
        })
    }

    /// `find` gives the files that are there.
    fn read(path: &Path, find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let fail = |problem: String| RuntimeError::file(path, problem);
        let bytes = read_input(path, FILE_CAP)?;
        shape::check(&bytes).map_err(|error| fail(format!("isn't a tokenizer: {error}")))?;
        let file: checks::File = serde_json::from_slice(&bytes)
            .map_err(|error| fail(format!("isn't a tokenizer: {error}")))?;
        let growth = checks::check(&file)
            .map_err(|problem| fail(format!("isn't a tokenizer that can be used: {problem}")))?;
        let parsed = contain_panics("the tokenizer's parser", || Tokenizer::from_bytes(&bytes))
            .map_err(fail)?;
        let mut tokenizer = parsed.map_err(|error| fail(format!("isn't a tokenizer: {error}")))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| fail(format!("its truncation can't be switched off: {error}")))?;
        let files = read_files(&find)?;
        let named = named(&files, &find);
        let special: Vec<String> = named.values().cloned().chain(files.nameless()).collect();
        contain_panics("the tokenizer", || add_special(&mut tokenizer, &special)).map_err(fail)?;
        tokenizer.set_encode_special_tokens(files.splits_special());
        let tokenizer = Arc::new(tokenizer);
        trial::try_out(&tokenizer).map_err(|problem| {
            fail(format!(
                "can't be used as a tokenizer: a trial with a few words {problem}"
            ))
        })?;
        let mut loaded = Self {
            path: path.to_path_buf(),
            tokenizer,
            growth,
            padding: None,
            longest: files
                .config
                .get("model_max_length")
                .and_then(serde_json::Value::as_u64)
                .and_then(|n| usize::try_from(n).ok()),
            unheeded: vec![],
        };
        loaded.padding = named
            .get("pad_token")
            .and_then(|text| loaded.token_id(text));
        let ids = loaded.encode("a", true)?;
        let edge = |name: &str, id: Option<&u32>| {
            let token = named.get(name).cloned();
            let does = token
                .as_ref()
                .is_some_and(|token| loaded.token_id(token).as_ref() == id);
            (token, does)
        };
        let ((bos, begins), (eos, ends)) = (
            edge("bos_token", ids.first()),
            edge("eos_token", ids.last()),
        );
        let behaviour = settings::Behaviour {
            edges: [("add_bos_token", bos, begins), ("add_eos_token", eos, ends)],
            steps: [&file.normalizer, &file.pre_tokenizer],
            bpe: matches!(loaded.tokenizer.get_model(), ModelWrapper::BPE(_)),
        };
        loaded.unheeded = settings::unheeded(&files.config, &behaviour);
        Ok(loaded)
    }

    /// A sentence for each setting of `tokenizer_config.json` that isn't heeded and would matter.
    pub fn unheeded_settings(&self) -> &[String] {
        &self.unheeded
    }

    /// The token that fills texts up, if the files beside `tokenizer.json`, or their class, name one.
    pub fn pad_token(&self) -> Option<u32> {
        self.padding
    }

    /// The longest text in tokens, as `tokenizer_config.json` has it.
    pub fn model_max_length(&self) -> Option<usize> {
        self.longest
    }

    /// The tokens of `text`; `special` adds what the tokenizer puts around a text, such as a bos
    /// token. A rendered chat has them already.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(self.encoding(text, special)?.get_ids().to_vec())
    }

    /// The tokens of `text` for a model that takes `most`: of a text that is far too long only a
    /// part is looked at.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] as for [`Self::encode`], and for a beginning of the text that has
    /// more tokens than the model takes.
    pub fn encode_within(&self, text: &str, special: bool, most: usize) -> Result<Vec<u32>> {
        // Of most texts a quarter as many tokens as bytes. The tokens at the end of a part may
        // become fewer in the whole.
        let mut part = most.saturating_mul(16).max(1 << 12);
        while part < text.len() {
            let tokens = self
                .encode(&text[..text.floor_char_boundary(part)], special)?
                .len();
            if tokens > most + most / 8 + 64 {
                return Err(RuntimeError::Input(format!(
                    "the text has over {tokens} tokens, the model's context {most}: shorten the text"
                )));
            }
            part = part.saturating_mul(8);
        }
        self.encode(text, special)
    }

    /// The tokens of a prompt as [`Self::encode_within`] `context` tokens; of one without any, `bos`,
    /// the token that texts begin with.
    ///
    /// # Errors
    /// As [`Self::encode_within`]; [`RuntimeError::Input`] without tokens where there is no `bos`.
    pub fn encode_prompt(
        &self,
        text: &str,
        special: bool,
        context: usize,
        bos: Option<u32>,
    ) -> Result<Vec<u32>> {
        let tokens = self.encode_within(text, special, context)?;
        if !tokens.is_empty() {
            return Ok(tokens);
        }
        bos.map(|bos| vec![bos]).ok_or_else(|| {
            RuntimeError::Input(
                "the prompt has no token, and the model names none that texts begin with; give it some text".to_owned(),
            )
        })
    }

    /// The tokens of `text` with all that encoders and their readers want to know of them.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on the text.
    pub fn analyse(&self, text: &str) -> Result<TokenizedText> {
        Ok(TokenizedText::of(&self.encoding(text, true)?))
    }

    /// As [`analyse`](Self::analyse), with the tokens at the end, or at the start, left out that
    /// make it longer than `most` tokens, those that the tokenizer puts around a text included; and
    /// how many tokens the whole text has.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on the text.
    pub fn analyse_cut(
        &self,
        text: &str,
        most: usize,
        at_start: bool,
    ) -> Result<(TokenizedText, usize)> {
        let whole = self.analyse(text)?;
        let n = whole.ids.len();
        if n <= most {
            return Ok((whole, n));
        }
        let mut encoding = self.encoding(text, false)?;
        let room = most.saturating_sub(n.saturating_sub(encoding.len()));
        let side = if at_start {
            TruncationDirection::Left
        } else {
            TruncationDirection::Right
        };
        encoding.truncate(room, 0, side);
        encoding.take_overflowing();
        let completed = contain_panics("the tokenizer", || {
            self.tokenizer
                .post_process(encoding, None, true)
                .map_err(|error| error.to_string())
        });
        let encoding = completed
            .and_then(|encoding| encoding)
            .map_err(|problem| self.failed(&problem))?;
        Ok((TokenizedText::of(&encoding), n))
    }

    /// Reads texts in lower case from now on; tokens that the tokenizer finds in texts as they are
    /// stay as they are.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a tokenizer that can't.
    pub fn lower_case(&mut self) -> Result<()> {
        let lower = NormalizerWrapper::Lowercase(Lowercase);
        let old = self.tokenizer.get_normalizer().cloned();
        let all = [lower].into_iter().chain(old).collect();
        let tokenizer = Arc::make_mut(&mut self.tokenizer);
        let changed =
            tokenizer.with_normalizer(Some(NormalizerWrapper::Sequence(Sequence::new(all))));
        changed.map(|_| ()).map_err(|error| {
            RuntimeError::Input(format!(
                "the tokenizer can't read texts in lower case: {error}"
            ))
        })
    }

    /// Whether this is one of the tokens that are no text, such as `[SEP]`.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    fn encoding(&self, text: &str, special: bool) -> Result<Encoding> {
        let encoding = trial::encode(&self.tokenizer, text, special, self.growth.encoding);
        encoding.map_err(|problem| self.failed(&problem))
    }

    fn failed(&self, problem: &str) -> RuntimeError {
        RuntimeError::file(
            &self.path,
            format!("the text can't be tokenized: {problem}"),
        )
    }

    /// The text of `tokens`, without special tokens.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for a tokenizer that fails on the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = trial::decode(&self.tokenizer, tokens);
        text.map_err(|problem| {
            RuntimeError::file(
                &self.path,
                format!("the tokens can't be turned into text: {problem}"),
            )
        })
    }

    /// The id of a token by its text, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Number of entries, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The bytes of every token, by its id; those of special tokens begin with 0xFF.
    ///
    /// # Errors
    /// Why they can't be told.
    pub(crate) fn token_bytes(&self) -> Result<Vec<Vec<u8>>, String> {
        let text = self
            .tokenizer
            .to_string(false)
            .map_err(|error| error.to_string())?;
        let file = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        llguidance::token_bytes_from_tokenizer_json(&file).map_err(|error| error.to_string())
    }

    /// The tokens that any text may need: special ones, and those of a single byte, as byte-level
    /// vocabularies write it or as `<0x0A>`.
    pub fn basic_tokens(&self) -> Vec<u32> {
        // Byte-level vocabularies write the bytes that can't be printed as the characters from
        // U+0100 on.
        const END_OF_BYTES: u32 = 0x144;
        let single_byte = |text: &str| {
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (Some(only), None) => u32::from(only) < END_OF_BYTES,
                _ => text.len() == 6 && text.starts_with("<0x") && text.ends_with('>'),
            }
        };
        let mut tokens: Vec<u32> = self
            .tokenizer
            .get_vocab(true)
            .into_iter()
            .filter(|(text, _)| single_byte(text))
            .map(|(_, id)| id)
            .collect();
        tokens.extend(
            self.tokenizer
                .get_added_tokens_decoder()
                .into_iter()
                .filter(|(_, token)| token.special)
                .map(|(id, _)| id),
        );
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// Decodes tokens as they come.
    pub fn stream(&self) -> TextStream<&Self> {
        TextStream::new(self)
    }
}

/// Makes tokens special that only the files beside `tokenizer.json` name, as transformers does,
/// where the vocabulary has them.
fn add_special(tokenizer: &mut Tokenizer, special: &[String]) {
    let added = tokenizer.get_added_tokens_decoder();
    let known = |token: &String| added.values().any(|added| added.content == *token);
    let missing = special
        .iter()
        .filter(|token| !known(token) && tokenizer.token_to_id(token).is_some());
    let missing: Vec<AddedToken> = missing
        .map(|token| AddedToken::from(token.as_str(), true))
        .collect();
    if !missing.is_empty() {
        // What can't be added stays as it is in the vocabulary.
        let _ = tokenizer.add_special_tokens(missing);
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
            special: encoding
                .get_special_tokens_mask()
                .iter()
                .map(|&m| m == 1)
                .collect(),
            pieces: encoding.get_tokens().to_vec(),
        }
    }
}

/// Turns tokens into text piece by piece; the pieces, [`TextStream::finish`]'s included, add up to
/// the text of all tokens.
#[derive(Debug)]
pub struct TextStream<T> {
    tokenizer: T,
    /// The tokens still needed: the last ones given out, as context for what follows, and those
    /// that aren't text yet.
    tokens: Vec<u32>,
    /// How many of `tokens` are given out.
    given: usize,
}

impl<T: Borrow<TextTokenizer>> TextStream<T> {
    /// With a tokenizer, or a handle on one.
    pub fn new(tokenizer: T) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            given: 0,
        }
    }

    /// Takes further tokens and returns the text that is certain by now; possibly none.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
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
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let rest = self.pending()?;
        self.tokens.clear();
        Ok(rest)
    }

    /// The text that the tokens after the given ones add.
    fn pending(&self) -> Result<String> {
        let tokenizer = self.tokenizer.borrow();
        let given = tokenizer.decode(&self.tokens[..self.given])?;
        let all = tokenizer.decode(&self.tokens)?;
        // A decoder may yet change what the last tokens mean; then the text waits for more.
        Ok(all
            .strip_prefix(given.as_str())
            .unwrap_or_default()
            .to_owned())
    }
}

#[cfg(test)]
mod tests;
