//! The tensors that a decoder needs, checked against those that the checkpoint has: missing, misshapen, of a wrong type, left over.

use std::collections::BTreeSet;

use dlc_ir::{DType, WeightTable};

use super::error::ImportError;
use super::spec::DecoderSpec;
use crate::checkpoint::{Checkpoint, shown};

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// Ends of the names of buffers that older versions of transformers saved, and no version reads.
const LEFTOVERS: [&str; 3] = [".rotary_emb.inv_freq", ".attention.masked_bias", ".attn.masked_bias"];

/// Name and shape of every weight, in the order in which the graph reads them.
pub(super) fn expected(spec: &DecoderSpec) -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp) = (spec.hidden_size, spec.mlp_size);
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let mut list = vec![(EMBEDDING.to_owned(), vec![spec.vocab_size, hidden])];
    for layer in 0..spec.layers {
        let mut add = |name: &str, shape: &[usize]| list.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        let linear = |add: &mut dyn FnMut(&str, &[usize]), name: &str, [out, inner]: [usize; 2], bias: bool| {
            add(&format!("{name}.weight"), &[out, inner]);
            if bias {
                add(&format!("{name}.bias"), &[out]);
            }
        };
        add("input_layernorm.weight", &[hidden]);
        linear(&mut add, "self_attn.q_proj", [q, hidden], spec.bias.qkv);
        linear(&mut add, "self_attn.k_proj", [kv, hidden], spec.bias.qkv);
        linear(&mut add, "self_attn.v_proj", [kv, hidden], spec.bias.qkv);
        if spec.qk_norm {
            add("self_attn.q_norm.weight", &[spec.head_dim]);
            add("self_attn.k_norm.weight", &[spec.head_dim]);
        }
        linear(&mut add, "self_attn.o_proj", [hidden, q], spec.bias.output);
        add("post_attention_layernorm.weight", &[hidden]);
        linear(&mut add, "mlp.gate_proj", [mlp, hidden], spec.bias.mlp);
        linear(&mut add, "mlp.up_proj", [mlp, hidden], spec.bias.mlp);
        linear(&mut add, "mlp.down_proj", [hidden, mlp], spec.bias.mlp);
    }
    list.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !spec.tied {
        list.push((HEAD.to_owned(), vec![spec.vocab_size, hidden]));
    }
    list
}

/// The weights of `spec` as elements of type `dtype`, under the checkpoint's names.
pub(super) fn collect(checkpoint: &Checkpoint, spec: &DecoderSpec, dtype: DType) -> Result<WeightTable, ImportError> {
    let mut table = WeightTable::default();
    let mut problems = Problems::default();
    let expected = expected(spec);
    for (name, shape) in &expected {
        let Some(record) = checkpoint.tensor(name) else {
            problems.missing.push(name.clone());
            continue;
        };
        if record.shape != *shape {
            problems.wrong.push(format!("`{name}` has shape {:?}, expected {shape:?}", record.shape));
            continue;
        }
        match record.expr() {
            Some(data) => _ = table.add(name, shape, data.cast(dtype))?,
            None => problems.wrong.push(format!("`{name}` is {}; dlc reads f32, f16 and bf16", record.dtype)),
        }
    }
    if spec.tied && heads_differ(checkpoint) {
        problems.wrong.push(format!(
            "`{HEAD}` differs from `{EMBEDDING}` although `tie_word_embeddings` is true: transformers 4 takes the embedding, transformers 5 \
             the head. Remove the tensor, or set `tie_word_embeddings` to false"
        ));
    }
    let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).chain(spec.tied.then_some(HEAD)).collect();
    let leftover = |name: &str| LEFTOVERS.iter().any(|end| name.ends_with(end));
    problems.unused = checkpoint.tensor_names().filter(|name| !known.contains(name) && !leftover(name)).map(shown).collect();
    problems.into_result(checkpoint).map(|()| table)
}

/// Whether the checkpoint has a head of its own besides the embedding that the head is tied to.
fn heads_differ(checkpoint: &Checkpoint) -> bool {
    match (checkpoint.tensor(HEAD), checkpoint.tensor(EMBEDDING)) {
        (Some(head), Some(embedding)) => {
            head.dtype != embedding.dtype || head.shape != embedding.shape || head.blob.as_ref() != embedding.blob.as_ref()
        }
        _ => false,
    }
}

#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    wrong: Vec<String>,
    unused: Vec<String>,
}

impl Problems {
    fn into_result(self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let hint = self.hint(checkpoint).map(|hint| format!("\n{hint}"));
        // What is wrong first: a list is cut at its end, and one wrong prefix makes hundreds of names missing and unknown.
        let missing = self.missing.iter().map(|name| format!("`{name}` is missing"));
        let unused = self.unused.iter().map(|name| format!("`{name}` is not part of the model"));
        let mut problems = self.wrong;
        problems.extend(missing);
        problems.extend(unused);
        if problems.is_empty() { Ok(()) } else { Err(ImportError::Tensors { path: checkpoint.folder().to_owned(), problems, hint }) }
    }

    /// What the reason may be, as far as names tell.
    fn hint(&self, checkpoint: &Checkpoint) -> Option<String> {
        if self.missing.len() == 1 && self.missing[0] == HEAD {
            return Some("If the head is the embedding, set `tie_word_embeddings` to true in config.json.".into());
        }
        if !self.missing.is_empty() {
            let bare = |name: &str| name.strip_prefix("model.").is_some_and(|bare| checkpoint.tensor(bare).is_some());
            if self.missing.iter().any(|name| bare(name)) {
                return Some("The tensors' names lack the prefix `model.`: save the model with its head, as AutoModelForCausalLM.".into());
            }
            let prefixed = |long: &String| Some(long.strip_suffix(self.missing[0].as_str())?.to_owned()).filter(|p| p.ends_with('.'));
            if let Some(prefix) = self.unused.iter().find_map(prefixed) {
                return Some(format!("The tensors' names begin with `{prefix}`: save the language model by itself."));
            }
            return Some("Download or save the checkpoint again; a single file of several shards holds only some of the tensors.".into());
        }
        let ends = |end: &str| self.unused.iter().any(|name| name.contains(end));
        if ends(".lora_") || ends(".base_layer.") {
            return Some("The checkpoint has an adapter inside: merge it, or save it by itself and name it with `--adapter`.".into());
        }
        (!self.unused.is_empty()).then(|| "The configuration and the weights are of different models: take both from one place.".into())
    }
}
