//! From vocabulary files to `tokenizer.json`, one file for each kind of tokenizer. The class that
//! the files declare decides how they are read.

mod bytes;
mod spm;
mod words;

use std::collections::{BTreeMap, HashMap};

use dlc_errors::printable::shown;
use serde_json::{Map, Value as Json};

use crate::ConvertError;
use crate::added::{Added, Marks, Origin};
use crate::parts::{AddedToken, Tokenizer};
use crate::special::{TokenizerFiles, registered, special_tokens};

/// The files that a vocabulary may be in.
pub const VOCABULARIES: [&str; 7] = [
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "spiece.model",
];

/// What a tokenizer is made of.
#[derive(Debug, Default)]
pub struct Sources {
    /// The files that say how.
    pub files: TokenizerFiles,
    /// `added_tokens.json`.
    pub added: Map<String, Json>,
    /// Those of [`VOCABULARIES`] that are there.
    pub vocabulary: BTreeMap<String, Vec<u8>>,
}

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Converted {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// What it was made of, and what dlc left out, a line each.
    pub notes: Vec<String>,
}

/// A class of tokenizers of transformers.
struct Class {
    names: &'static [&'static str],
    files: &'static [&'static str],
    marks: Marks,
    convert: fn(&mut Input<'_>) -> Result<Tokenizer, ConvertError>,
}

/// What most classes make of special tokens.
const PLAIN: Marks = Marks {
    normalized: &[],
    mask_takes_spaces: false,
    of_vocabulary: &[],
};
/// The same, with a mask that stands for a word and the space before it.
const MASKED: Marks = Marks {
    mask_takes_spaces: true,
    ..PLAIN
};

static CLASSES: [Class; 12] = [
    Class {
        names: &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"],
        files: &[words::FILE],
        marks: PLAIN,
        convert: words::bert,
    },
    Class {
        names: &["MPNetTokenizer"],
        files: &[words::FILE],
        marks: MASKED,
        convert: words::mpnet,
    },
    Class {
        names: &["GPT2Tokenizer"],
        files: &bytes::FILES,
        marks: PLAIN,
        convert: bytes::gpt2,
    },
    Class {
        names: &["Qwen2Tokenizer"],
        files: &bytes::FILES,
        marks: PLAIN,
        convert: bytes::qwen2,
    },
    Class {
        names: &["RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"],
        files: &bytes::FILES,
        marks: MASKED,
        convert: bytes::roberta,
    },
    Class {
        names: &["DebertaTokenizer"],
        files: &bytes::FILES,
        marks: MASKED,
        convert: bytes::deberta,
    },
    Class {
        names: &["CLIPTokenizer"],
        files: &bytes::FILES,
        marks: Marks {
            normalized: &["bos_token", "eos_token", "unk_token"],
            ..PLAIN
        },
        convert: bytes::clip,
    },
    Class {
        names: &["LlamaTokenizer"],
        files: &[spm::FILE],
        marks: PLAIN,
        convert: spm::llama,
    },
    Class {
        names: &["GemmaTokenizer"],
        files: &[spm::FILE],
        marks: Marks {
            // A default of transformers 5, which Gemma's vocabulary has.
            of_vocabulary: &["mask_token"],
            ..PLAIN
        },
        convert: spm::gemma,
    },
    Class {
        names: &["XLMRobertaTokenizer"],
        files: &["sentencepiece.bpe.model"],
        marks: MASKED,
        convert: spm::xlm_roberta,
    },
    Class {
        names: &["T5Tokenizer"],
        files: &["spiece.model"],
        marks: PLAIN,
        convert: spm::t5,
    },
    Class {
        names: &["DebertaV2Tokenizer"],
        files: &["spm.model"],
        marks: Marks {
            normalized: &["unk_token"],
            ..PLAIN
        },
        convert: spm::deberta_v2,
    },
];

/// The classes of types of models for which transformers 5 registers none.
const OF_MODELS: [(&[&str], &str); 2] = [
    (&["llama", "mistral", "mixtral", "phi3"], "LlamaTokenizer"),
    (&["granite"], "GPT2Tokenizer"),
];

/// What the converters of the classes read and find.
struct Input<'s> {
    sources: &'s Sources,
    class: &'static Class,
    /// The name under which the class was asked for.
    name: &'static str,
    notes: Vec<String>,
}

/// Makes `tokenizer.json` of what a checkpoint has instead.
///
/// # Errors
/// [`ConvertError`] for a class that isn't known, files that it needs and that aren't there or are
/// damaged, and settings that dlc doesn't follow.
pub fn convert(sources: &Sources) -> Result<Converted, ConvertError> {
    let (class, name) = class(&sources.files)?;
    let mut input = Input {
        sources,
        class,
        name,
        notes: vec![format!(
            "tokenizer.json is made of {}, as {name} of transformers 4.57 reads {}",
            class.files.join(" and "),
            if class.files.len() > 1 { "them" } else { "it" }
        )],
    };
    let tokenizer = (class.convert)(&mut input)?;
    Ok(Converted {
        tokenizer: tokenizer.into_json(),
        notes: input.notes,
    })
}

/// The class of a tokenizer: the declared one, or that of the type of the model.
fn class(files: &TokenizerFiles) -> Result<(&'static Class, &'static str), ConvertError> {
    let of_model = || {
        let model_type = files.model_type();
        let named = |(types, class): &(&[&str], &'static str)| {
            types.contains(&model_type).then_some(*class)
        };
        OF_MODELS.iter().find_map(named).or(registered(model_type))
    };
    let find = |name: &str| {
        let named = |class: &'static Class| {
            let name = class.names.iter().find(|known| **known == name)?;
            Some((class, *name))
        };
        CLASSES.iter().find_map(named)
    };
    let name = files.declared().or_else(of_model);
    name.and_then(find).ok_or_else(|| {
        let known: Vec<&str> = CLASSES
            .iter()
            .flat_map(|class| class.names)
            .copied()
            .collect();
        let what = match name {
            Some(name) => format!("the tokenizer's class is `{}`", shown(name)),
            None => "no file names the tokenizer's class".to_owned(),
        };
        ConvertError::Unsupported(format!(
            "{what}; without tokenizer.json dlc reads {}",
            known.join(", ")
        ))
    })
}

impl<'s> Input<'s> {
    /// The content of one of the class's files.
    fn file(&self, name: &str) -> Result<&'s [u8], ConvertError> {
        let file = self.sources.vocabulary.get(name);
        file.map(Vec::as_slice).ok_or_else(|| {
            ConvertError::Unsupported(format!("{name}, which {} needs, is missing", self.name))
        })
    }

    /// A setting that is true or false, or what the class has by default.
    fn flag(&self, key: &str, usual: bool) -> Result<bool, ConvertError> {
        Ok(self.told(key)?.unwrap_or(usual))
    }

    /// A setting that is true, false or not there.
    fn told(&self, key: &str) -> Result<Option<bool>, ConvertError> {
        match self.sources.files.config.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(ConvertError::Unsupported(format!(
                "tokenizer_config.json: `{key}` is {}, neither true nor false",
                shown(&other.to_string())
            ))),
        }
    }

    /// A setting that is a whole number, or what the class has by default.
    fn count(&self, key: &str, usual: usize) -> Result<usize, ConvertError> {
        /// The largest.
        const MOST: usize = 1 << 16;
        let Some(value) = self.sources.files.config.get(key) else {
            return Ok(usual);
        };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.filter(|n| *n <= MOST).ok_or_else(|| {
            ConvertError::Unsupported(format!(
                "tokenizer_config.json: `{key}` is {}; dlc follows whole numbers up to {MOST}",
                shown(&value.to_string())
            ))
        })
    }

    /// Refuses a setting that isn't empty.
    fn refuse(&self, key: &str) -> Result<(), ConvertError> {
        let is_empty = |value: &Json| match value {
            Json::Null => true,
            Json::Array(list) => list.is_empty(),
            Json::Object(object) => object.is_empty(),
            _ => false,
        };
        let set = self.sources.files.config.get(key).filter(|v| !is_empty(v));
        set.map_or(Ok(()), |value| {
            Err(ConvertError::Unsupported(format!(
                "tokenizer_config.json: `{key}: {}` isn't followed where there is no tokenizer.json",
                shown(&value.to_string())
            )))
        })
    }

    /// The added tokens of a vocabulary.
    fn added(
        &self,
        own: Vec<AddedToken>,
        ids: &HashMap<String, u32>,
    ) -> Result<Added, ConvertError> {
        let origin = Origin {
            files: &self.sources.files,
            added: &self.sources.added,
            named: special_tokens(&self.sources.files, Some(self.name)),
            marks: self.class.marks,
        };
        Added::gather(origin, own, ids)
    }
}

/// A vocabulary as a table.
fn table(ids: &HashMap<String, u32>) -> Json {
    let mut tokens: Vec<(&String, &u32)> = ids.iter().collect();
    tokens.sort_by_key(|(_, id)| **id);
    let entries = tokens.into_iter();
    let entries = entries.map(|(token, id)| (token.clone(), Json::from(*id)));
    entries.collect::<Map<_, _>>().into()
}
