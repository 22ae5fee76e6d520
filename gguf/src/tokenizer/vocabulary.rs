//! The tokens of a tokenizer, with what they are.

use std::collections::HashMap;

use dlc_tokenizer::parts::AddedToken;
use serde_json::Value as Json;

use super::ENDS_OF_TURNS;
use crate::keys::Keys;
use crate::metadata::Value;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
/// The most tokens that are read: four times what the largest tokenizers have.
const MOST_TOKENS: usize = 1 << 20;

/// What a token is (`llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn of(value: Value<'_>) -> Option<Self> {
        Some(match value.size()? {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'b> {
    pub text: &'b str,
    pub kind: TokenType,
}

/// All tokens.
#[derive(Debug)]
pub(super) struct Vocabulary<'b> {
    /// By id.
    pub tokens: Vec<Token<'b>>,
    ids: HashMap<&'b str, u32>,
}

impl<'b> Vocabulary<'b> {
    pub fn read(keys: &mut Keys<'b>) -> Option<Self> {
        let Some(texts) = keys.array(TOKENS) else {
            keys.problems.push(format!("key `{TOKENS}` is missing"));
            return None;
        };
        let kinds = keys.array(TYPES);
        let count = texts.len();
        if count > MOST_TOKENS || kinds.is_some_and(|kinds| kinds.len() != count) {
            keys.problems.push(format!(
                "the tokenizer has {count} tokens; dlc reads up to {MOST_TOKENS}, with a type each"
            ));
            return None;
        }
        let mut kinds = kinds.map(|kinds| kinds.iter().map(TokenType::of));
        let (mut tokens, mut ids) = (Vec::with_capacity(count), HashMap::with_capacity(count));
        for (id, text) in texts.iter().enumerate() {
            let kind = match &mut kinds {
                None => Some(TokenType::Normal),
                Some(kinds) => kinds.next().flatten(),
            };
            let (Some(text), Some(kind)) = (text.text(), kind) else {
                keys.problems.push(format!(
                    "token {id} is no text in UTF-8 with a type from 1 to 6"
                ));
                return None;
            };
            // As llama.cpp has it, whatever the file calls them.
            let kind = if ENDS_OF_TURNS.contains(&text) && kind != TokenType::Unused {
                TokenType::Control
            } else {
                kind
            };
            tokens.push(Token { text, kind });
            if kind != TokenType::Unused && ids.insert(text, id as u32).is_some() {
                keys.problems
                    .push(format!("token {id} has the text of another one"));
                return None;
            }
        }
        Some(Self { tokens, ids })
    }

    /// The id of a token in use.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The id of a control token.
    pub fn control(&self, text: &str) -> Option<u32> {
        let id = self.id(text)?;
        (self.tokens.get(id as usize)?.kind == TokenType::Control).then_some(id)
    }

    /// Ids and tokens in use.
    pub fn used(&self) -> impl Iterator<Item = (u32, Token<'b>)> {
        let all = (0..).zip(self.tokens.iter().copied());
        all.filter(|(_, token)| token.kind != TokenType::Unused)
    }

    /// `vocab` of `tokenizer.json`.
    pub fn table(&self) -> Json {
        self.used()
            .map(|(id, token)| (token.text.to_owned(), Json::from(id)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// `added_tokens` of `tokenizer.json`: what is found in a text before it is split.
    pub fn added(&self) -> Vec<Json> {
        let added = self.used().filter_map(|(id, token)| {
            let special = match token.kind {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                TokenType::Normal | TokenType::Byte | TokenType::Unused => return None,
            };
            Some(AddedToken::new(token.text, special).entry(id))
        });
        added.collect()
    }
}
