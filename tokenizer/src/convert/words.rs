//! `WordPiece` (`vocab.txt`): BERT, `DistilBERT`, ELECTRA, `MPNet`.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{Input, table};
use crate::ConvertError;
use crate::added::Added;
use crate::parts::{Part, Tokenizer, template};

pub(super) const FILE: &str = "vocab.txt";
/// Most lines: four times what the largest vocabularies have.
const MOST_TOKENS: usize = 1 << 20;

pub(super) fn bert(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    words(input, 1)
}

pub(super) fn mpnet(input: &mut Input<'_>) -> Result<Tokenizer, ConvertError> {
    words(input, 2)
}

/// `between` is how many separators stand between two texts.
fn words(input: &mut Input<'_>, between: usize) -> Result<Tokenizer, ConvertError> {
    input.refuse("never_split")?;
    if !input.flag("do_basic_tokenize", true)? {
        return Err(ConvertError::Unsupported(
            "tokenizer_config.json: `do_basic_tokenize: false` isn't followed".into(),
        ));
    }
    let ids = vocabulary(input.file(FILE)?)?;
    let added = input.added(vec![], &ids)?;
    let unknown = added.special("unk_token")?.0;
    if !ids.contains_key(unknown) {
        let problem = format!("has no `{unknown}`, the token for unknown words");
        return Err(ConvertError::damaged(FILE, problem));
    }
    Ok(Tokenizer {
        added_tokens: added.entries(),
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": input.flag("tokenize_chinese_chars", true)?,
            "strip_accents": input.told("strip_accents")?,
            "lowercase": input.flag("do_lower_case", true)?,
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        post_processor: around(&added, between)?,
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        model: json!({
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": table(&ids),
        }),
    })
}

/// Puts `cls_token` before a text and `sep_token` after it and, `between` times, between two.
pub(super) fn around(added: &Added, between: usize) -> Result<Json, ConvertError> {
    let ((cls, cls_id), (sep, sep_id)) = (added.special("cls_token")?, added.special("sep_token")?);
    let end = Part::Token(sep, sep_id, 0);
    let start = [Part::Token(cls, cls_id, 0), Part::Text("A", 0)];
    let second = [Part::Text("B", 1), Part::Token(sep, sep_id, 1)];
    let single = [&start[..], &[end]].concat();
    let pair = [&start[..], &vec![end; between], &second].concat();
    Ok(template(&single, &pair))
}

/// The tokens, a line each; of the same ones the last counts.
fn vocabulary(bytes: &[u8]) -> Result<HashMap<String, u32>, ConvertError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ConvertError::damaged(FILE, "is no text in UTF-8"))?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    let ids: HashMap<String, u32> = lines
        .take(MOST_TOKENS + 1)
        .map(str::to_owned)
        .zip(0..)
        .collect();
    if ids.len() > MOST_TOKENS {
        let problem = format!("has more than {MOST_TOKENS} lines");
        return Err(ConvertError::damaged(FILE, problem));
    }
    Ok(ids)
}
