//! The tokens that are found in a text before it is split: those of the vocabulary itself, those
//! that were added to it, and the special ones that files or the class name.

use std::collections::{BTreeMap, HashMap};

use dlc_errors::printable::shown;
use serde_json::{Map, Value as Json};

use crate::ConvertError;
use crate::parts::AddedToken;
use crate::special::{NAMES, TokenizerFiles, text};

/// Most tokens beside the vocabulary.
const MOST_ADDED: usize = 1 << 17;
const CONFIG: &str = "tokenizer_config.json";
const DECODER: &str = "added_tokens_decoder";
pub(crate) const ADDED: &str = "added_tokens.json";
/// Special tokens without a name.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// What a class makes of special tokens that files give as a text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Marks {
    /// The names of those that are looked for in the normalised text.
    pub normalized: &'static [&'static str],
    /// Whether the mask takes the spaces before it along.
    pub mask_takes_spaces: bool,
    /// The names of those that only a vocabulary can have.
    pub of_vocabulary: &'static [&'static str],
}

/// All added tokens with their ids.
#[derive(Debug)]
pub(crate) struct Added {
    tokens: Vec<(u32, AddedToken)>,
    /// The special tokens' texts by their names.
    named: BTreeMap<String, String>,
    ids: HashMap<String, u32>,
}

/// What added tokens are made of.
pub(crate) struct Origin<'s> {
    pub files: &'s TokenizerFiles,
    /// `added_tokens.json`.
    pub added: &'s Map<String, Json>,
    /// The texts of special tokens by name, defaults of the class included.
    pub named: BTreeMap<String, String>,
    pub marks: Marks,
}

/// Tokens in order, each text once.
#[derive(Debug, Default)]
struct Tokens {
    tokens: Vec<AddedToken>,
    places: HashMap<String, usize>,
}

impl Tokens {
    fn has(&self, content: &str) -> bool {
        self.places.contains_key(content)
    }

    /// Puts a token in the place of the one with the same text, or last. What is found in a text as
    /// it stands stays so: transformers adds such a token beside the other.
    fn put(&mut self, token: AddedToken) {
        if let Some(place) = self.places.get(&token.content) {
            let old = &mut self.tokens[*place];
            let normalized = token.normalized && old.normalized;
            *old = AddedToken {
                normalized,
                ..token
            };
        } else {
            self.places.insert(token.content.clone(), self.tokens.len());
            self.tokens.push(token);
        }
    }
}

impl Added {
    /// Adds to the `own` tokens of a vocabulary, whose ids are in `ids`.
    pub fn gather(
        origin: Origin<'_>,
        own: Vec<AddedToken>,
        ids: &HashMap<String, u32>,
    ) -> Result<Self, ConvertError> {
        let given = origin.files.given();
        let listed = listed(origin.files);
        let mut named = origin.named;
        named.retain(|name, text| {
            ids.contains_key(text) || !origin.marks.of_vocabulary.contains(&name.as_str())
        });
        let is_special = |text: &str| listed.has(text) || named.values().any(|n| n == text);
        let written = match given.get(DECODER) {
            Some(decoder) => decoded(decoder)?,
            None => plain(origin.added, &given, &listed)?,
        };
        let mut tokens = Tokens::default();
        for token in own {
            tokens.put(token);
        }
        for (_, token) in &written {
            let special = token.special || is_special(&token.content);
            tokens.put(AddedToken {
                special,
                ..token.clone()
            });
        }
        for name in NAMES {
            let Some(content) = named.get(name) else {
                continue;
            };
            let settings = given.get(name).filter(|value| value.is_object());
            let is_written = written.iter().any(|(_, token)| token.content == *content);
            let token = match settings.filter(|_| !is_written) {
                Some(settings) => AddedToken {
                    special: true,
                    ..with_settings(content, settings)
                },
                None if tokens.has(content) => continue,
                None => AddedToken {
                    normalized: origin.marks.normalized.contains(&name),
                    lstrip: name == "mask_token" && origin.marks.mask_takes_spaces,
                    ..AddedToken::new(content, true)
                },
            };
            tokens.put(token);
        }
        for token in listed.tokens {
            if !tokens.has(&token.content) {
                tokens.put(token);
            }
        }
        Self::numbered(tokens.tokens, named, ids, &written)
    }

    /// Gives the tokens ids: those of the vocabulary, and the next ones.
    fn numbered(
        tokens: Vec<AddedToken>,
        named: BTreeMap<String, String>,
        ids: &HashMap<String, u32>,
        written: &[(u32, AddedToken)],
    ) -> Result<Self, ConvertError> {
        if tokens.len() > MOST_ADDED {
            let problem = format!("{} tokens are added, more than {MOST_ADDED}", tokens.len());
            return Err(ConvertError::Unsupported(problem));
        }
        let mut next = ids.len() as u32;
        let mut of_added = HashMap::new();
        let mut numbered = Vec::with_capacity(tokens.len());
        for token in tokens {
            let id = ids.get(&token.content).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            of_added.insert(token.content.clone(), id);
            numbered.push((id, token));
        }
        let other = |(wanted, token): &&(u32, AddedToken)| of_added[&token.content] != *wanted;
        if let Some((wanted, token)) = written.iter().find(other) {
            return Err(ConvertError::Unsupported(format!(
                "the added token `{}` has the id {wanted}, and the vocabulary and the tokens before it make it {}",
                shown(&token.content),
                of_added[&token.content]
            )));
        }
        numbered.sort_by_key(|(id, _)| *id);
        Ok(Self {
            tokens: numbered,
            named,
            ids: of_added,
        })
    }

    /// `added_tokens`.
    pub fn entries(&self) -> Vec<Json> {
        let tokens = self.tokens.iter();
        tokens.map(|(id, token)| token.entry(*id)).collect()
    }

    /// The text and the id of a special token.
    pub fn special(&self, name: &str) -> Result<(&str, u32), ConvertError> {
        let text = self.named.get(name).ok_or_else(|| {
            ConvertError::Unsupported(format!("the tokenizer's files name no `{name}`"))
        })?;
        Ok((text, self.ids[text]))
    }
}

/// The tokens of `added_tokens_decoder`, by id.
fn decoded(decoder: &Json) -> Result<Vec<(u32, AddedToken)>, ConvertError> {
    let entry = |(id, token): (&String, &Json)| {
        let id: u32 = id.parse().ok()?;
        Some((id, with_settings(&text(token)?, token)))
    };
    let tokens = decoder.as_object().and_then(|object| {
        let tokens: Option<Vec<_>> = object.iter().map(entry).collect();
        tokens
    });
    let mut tokens = tokens.ok_or_else(|| {
        ConvertError::damaged(CONFIG, format!("`{DECODER}` isn't one token for each id"))
    })?;
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// The tokens of `added_tokens.json`, by id.
fn plain(
    added: &Map<String, Json>,
    given: &Map<String, Json>,
    listed: &Tokens,
) -> Result<Vec<(u32, AddedToken)>, ConvertError> {
    let named = given
        .iter()
        .filter(|(name, _)| NAMES.contains(&name.as_str()))
        .filter_map(|(_, value)| text(value));
    let named: Vec<String> = named.collect();
    let entry = |(token, id): (&String, &Json)| {
        let special = listed.has(token) || named.contains(token);
        let id = u32::try_from(id.as_u64()?).ok()?;
        let token = AddedToken {
            normalized: !special,
            ..AddedToken::new(token, special)
        };
        Some((id, token))
    };
    let tokens: Option<Vec<_>> = added.iter().map(entry).collect();
    let mut tokens =
        tokens.ok_or_else(|| ConvertError::damaged(ADDED, "isn't one id for each token"))?;
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// The special tokens that files list without a name.
fn listed(files: &TokenizerFiles) -> Tokens {
    let map = (!files.config.contains_key(DECODER)).then_some(&files.map);
    let mut tokens = Tokens::default();
    for object in [Some(&files.config), map].into_iter().flatten() {
        for list in LISTS.iter().filter_map(|key| object.get(*key)) {
            let of_list = list.as_array().into_iter().flatten();
            let of_names = list.as_object().into_iter().flat_map(Map::values);
            let texts = of_list.chain(of_names);
            for (content, token) in texts.filter_map(|token| Some((text(token)?, token))) {
                tokens.put(AddedToken {
                    special: true,
                    ..with_settings(&content, token)
                });
            }
        }
    }
    tokens
}

/// A token with what an object says of it.
fn with_settings(content: &str, settings: &Json) -> AddedToken {
    let flag = |key: &str, usual: bool| settings.get(key).and_then(Json::as_bool).unwrap_or(usual);
    let special = flag("special", false);
    AddedToken {
        normalized: flag("normalized", settings.is_object() && !special),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        single_word: flag("single_word", false),
        ..AddedToken::new(content, special)
    }
}
