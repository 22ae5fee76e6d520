//! Texts that a grammar rules: JSON schemas, regular expressions and Lark grammars, by the crate
//! `llguidance`, whose types stay here.
//!
//! A reader goes back as well as forth: drafts are read under the same grammar as the target's own
//! tokens, and forgotten where they are rejected.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use dlc_files::guard::contain_panics;
use dlc_methods::MethodError;
use dlc_methods::speculation::{Constraint, Grammar};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::{Result, RuntimeError, TextTokenizer};

/// The longest grammar, in bytes.
const LONGEST: usize = 1 << 20;
/// Masks of the latest places that are kept, more than a round has.
const MASKS_KEPT: usize = 32;

/// What a text may be.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// A JSON value of this schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A text of this grammar in Lark's notation.
    Lark(String),
}

/// Makes grammars for one model's tokens.
#[derive(Clone)]
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

/// A tokenizer and the bytes of its tokens.
struct Tokens {
    trie: TokTrie,
    tokenizer: TextTokenizer,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode(text, false);
            tokens.unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

impl GrammarCompiler {
    /// For a model that writes `vocab` tokens and ends texts by one of `ends`.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a model that names no token that ends texts, and for a
    /// tokenizer whose tokens' bytes can't be told.
    pub fn new(tokenizer: &TextTokenizer, vocab: usize, ends: &[u32]) -> Result<Self> {
        let refused = |reason: String| {
            RuntimeError::unsupported("a grammar", reason, "Ask for a text without one")
        };
        let Some((&end, others)) = ends.split_first() else {
            let reason = "the model names no token that ends texts";
            return Err(refused(reason.to_owned()));
        };
        let mut bytes = tokenizer.token_bytes().map_err(refused)?;
        bytes.resize(vocab, Vec::new());
        let info = TokRxInfo::new(vocab as u32, end);
        let trie = TokTrie::from(&info, &bytes);
        let trie = trie.with_eos_tokens(&[&[end], others].concat());
        let tokens: TokEnv = Arc::new(Tokens {
            trie,
            tokenizer: tokenizer.clone(),
        });
        let mut factory =
            ParserFactory::new_simple(&tokens).map_err(|error| refused(error.to_string()))?;
        factory.quiet();
        Ok(Self {
            factory: Arc::new(factory),
        })
    }

    /// Prepares a grammar.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for one that can't be read, or is too large.
    pub fn compile(&self, source: &GrammarSource) -> Result<TextGrammar> {
        let bad = |problem: &str| RuntimeError::Input(format!("the grammar {problem}"));
        let grammar = match source {
            GrammarSource::JsonSchema(schema) => json(schema.clone()),
            GrammarSource::JsonObject => json(json!({"type": "object"})),
            GrammarSource::Regex(regex) => TopLevelGrammar::from_regex(regex),
            GrammarSource::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let length = match source {
            GrammarSource::JsonSchema(schema) => schema.to_string().len(),
            GrammarSource::JsonObject => 0,
            GrammarSource::Regex(text) | GrammarSource::Lark(text) => text.len(),
        };
        if length > LONGEST {
            return Err(bad(&format!("has more than {LONGEST} bytes")));
        }
        let factory = Arc::clone(&self.factory);
        let matcher = contain_panics("the grammar's parser", move || {
            Matcher::new(factory.create_parser(grammar))
        })
        .map_err(|problem| bad(&problem))?;
        match matcher.get_error() {
            Some(problem) => Err(bad(&format!("can't be used: {}", reason(&problem)))),
            None => Ok(TextGrammar { matcher }),
        }
    }
}

/// JSON as Python writes it, which models have read most: where any space may stand, small models
/// write spaces without end.
fn json(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(keys) = &mut schema {
        let spaces =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        keys.entry("x-guidance").or_insert(spaces);
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Letters of a reason that are told.
const QUOTED: usize = 300;

/// The reason at the start of a message, which may go on with the parser's state: its first line, and
/// what follows where that only announces it.
fn reason(text: &str) -> String {
    let announces = |line: &str| line.trim_end().ends_with(':');
    let end = text.lines().next().filter(|line| !announces(line));
    let whole = text.split_whitespace().collect::<Vec<_>>().join(" ");
    end.map_or_else(|| whole.chars().take(QUOTED).collect(), str::to_owned)
}

/// A grammar for the tokens of a model.
#[derive(Clone)]
pub struct TextGrammar {
    /// Has read nothing.
    matcher: Matcher,
}

impl fmt::Debug for TextGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextGrammar").finish_non_exhaustive()
    }
}

impl Grammar for TextGrammar {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Reader {
            matcher: self.matcher.deep_clone(),
            read: Vec::new(),
            masks: BTreeMap::new(),
        })
    }
}

/// A text as far as it is read.
struct Reader {
    matcher: Matcher,
    read: Vec<u32>,
    /// Which tokens may follow, by how many are read, where that was asked lately: a round asks for
    /// the draft, and again for the target.
    masks: BTreeMap<usize, SimpleVob>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("read", &self.read.len())
            .finish_non_exhaustive()
    }
}

fn broken(problem: &impl fmt::Display) -> MethodError {
    let problem = problem.to_string();
    MethodError::Input(format!("the grammar: {}", reason(&problem)))
}

impl Reader {
    /// Reads on, or back, to `text`; says whether to its end. A round goes on guessing behind the end
    /// of a text: what stands there is read by nobody.
    fn go_to(&mut self, text: &[u32]) -> Result<bool, MethodError> {
        let alike = self
            .read
            .iter()
            .zip(text)
            .take_while(|(a, b)| a == b)
            .count();
        if alike < self.read.len() {
            let back = self.read.len() - alike;
            self.matcher
                .rollback(back)
                .map_err(|error| broken(&error))?;
            self.read.truncate(alike);
            self.masks.split_off(&(alike + 1));
        }
        for &token in &text[alike..] {
            if let Some(problem) = self.matcher.get_error() {
                return Err(broken(&problem));
            }
            if self.matcher.is_stopped() {
                break;
            }
            self.matcher
                .consume_token(token)
                .map_err(|error| broken(&error))?;
            self.read.push(token);
        }
        Ok(self.read.len() == text.len())
    }
}

impl Constraint for Reader {
    fn mask(&mut self, text: &[u32], logits: &mut [f32]) -> Result<(), MethodError> {
        if !self.go_to(text)? {
            return Ok(());
        }
        let mask = match self.masks.entry(text.len()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mask = self.matcher.compute_mask_or_eos();
                place.insert(mask.map_err(|error| broken(&error))?)
            }
        };
        let words = mask.as_slice().iter().copied();
        let words = words.chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        while self.masks.len() > MASKS_KEPT {
            self.masks.pop_first();
        }
        Ok(())
    }

    fn forced(&mut self, text: &[u32], tokens: &mut Vec<u32>) -> Result<(), MethodError> {
        if self.go_to(text)? {
            tokens.extend(self.matcher.compute_ff_tokens());
        }
        Ok(())
    }

    fn is_complete(&mut self, text: &[u32]) -> Result<bool, MethodError> {
        self.go_to(text)?;
        Ok(self.matcher.is_stopped())
    }
}
