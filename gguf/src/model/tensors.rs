//! The tensors of a file under transformers' names, laid out as transformers has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dlc_errors::printable::shown;
use dlc_ir::{Blob, CodedPart, Expr};
use serde_json::{Map, Value as Json};

use super::ModelTensor;
use super::architecture::{Architecture, Bias};
use super::config::Shape;
use super::names::Role;
use crate::coded::BlockMatrix;
use crate::file::{Gguf, GgufTensor};
use crate::keys::Keys;
use crate::kind::TensorKind;

/// The most factors of a rotation that are read: half a head.
const MOST_DIVISORS: usize = 1 << 12;

/// What the tensors are and tell.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub tensors: Vec<ModelTensor>,
    /// Keys of `config.json` that the tensors tell.
    pub config: Map<String, Json>,
    /// The elements of `rope_freqs.weight`.
    pub divisors: Option<Vec<f32>>,
    /// Rows of the embedding.
    pub vocabulary: Option<usize>,
}

/// Finds the tensors; what is unknown, unread or missing goes to the problems of `keys`.
pub(super) fn find(
    gguf: &Gguf,
    architecture: &'static Architecture,
    shape: &Shape,
    keys: &mut Keys<'_>,
) -> Found {
    let mut found = Found::default();
    let mut unread: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let (mut unknown, mut names) = (Vec::new(), BTreeSet::new());
    for tensor in gguf.tensors() {
        let role = Role::of(&tensor.name, architecture).filter(|role| match role {
            Role::Layer { layer, .. } => *layer < shape.layers,
            _ => true,
        });
        let Some(role) = role else {
            unknown.push(tensor.name.as_str());
            continue;
        };
        names.insert(tensor.name.as_str());
        let (Some(blob), Some(data)) = (gguf.blob(tensor), gguf.expr(tensor)) else {
            let kind = tensor.kind.to_string();
            unread.entry(kind).or_default().push(&tensor.name);
            continue;
        };
        let laid_out = lay_out(role, tensor, (data, &blob), architecture, shape);
        match (laid_out, role.hugging_face()) {
            (Err(problem), _) => keys.problems.push(problem),
            (Ok(data), None) => found.divisors = divisors(tensor, &data, keys),
            (Ok(data), Some(name)) => {
                if matches!(role, Role::Embedding) {
                    found.vocabulary = tensor.shape.first().copied();
                }
                found.tensors.push(ModelTensor {
                    name,
                    shape: tensor.shape.clone(),
                    kind: tensor.kind,
                    blob,
                    data,
                });
            }
        }
    }
    for (kind, names) in unread {
        keys.problems.push(format!(
            "dlc doesn't read {kind}, the type of {}. Take a file in Q4_K, Q8_0 or F16, or the original checkpoint",
            patterns(&names)
        ));
    }
    if !unknown.is_empty() {
        keys.problems.push(format!(
            "dlc knows no use of {} in {}",
            patterns(&unknown),
            architecture.name
        ));
    }
    check_complete(architecture, shape, &names, keys);
    found.tell(architecture, &names, keys);
    found.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// A tensor's elements in the order in which transformers has them.
fn lay_out(
    role: Role,
    tensor: &GgufTensor,
    (data, blob): (Expr, &Blob),
    architecture: &Architecture,
    shape: &Shape,
) -> Result<Expr, String> {
    let coded = |rows: Option<Arc<[u32]>>| match tensor.kind {
        TensorKind::Packed(packing) => {
            let matrix = BlockMatrix::new(packing, blob.clone(), &tensor.shape, rows)?;
            Some(Expr::Coded {
                matrix: Arc::new(matrix),
                part: CodedPart::Entries,
            })
        }
        TensorKind::Float(_) | TensorKind::Other(_) => None,
    };
    if architecture.norms_plus_one && role.is_norm() {
        return Ok(data.offset(-1.0));
    }
    let heads = match role {
        Role::Layer { part, .. } if architecture.interleaved => match part.gguf {
            "attn_q" => shape.heads,
            "attn_k" => shape.kv_heads,
            _ => return Ok(coded(None).unwrap_or(data)),
        },
        _ => return Ok(coded(None).unwrap_or(data)),
    };
    let rows = tensor.shape.first().copied().unwrap_or_default();
    let columns = tensor.shape.iter().skip(1).product::<usize>().max(1);
    if !rows.is_multiple_of(2 * heads) || u32::try_from(rows).is_err() {
        return Err(format!(
            "tensor `{}` has {rows} rows, which aren't {heads} heads of pairs",
            shown(&tensor.name)
        ));
    }
    let order = halves(rows, heads);
    Ok(
        coded(Some(Arc::clone(&order))).unwrap_or_else(|| Expr::Rows {
            input: Arc::new(data),
            columns,
            rows: order,
        }),
    )
}

/// Which row comes where when the pairs of each head become two halves: the inverse of
/// `LlamaModel.permute` in llama.cpp's `convert_hf_to_gguf.py`.
fn halves(rows: usize, heads: usize) -> Arc<[u32]> {
    let pairs = rows / heads / 2;
    (0..heads)
        .flat_map(|head| (0..2).map(move |side| (head, side)))
        .flat_map(|(head, side)| (0..pairs).map(move |pair| 2 * (head * pairs + pair) + side))
        .map(|row| row as u32)
        .collect()
}

fn divisors(tensor: &GgufTensor, data: &Expr, keys: &mut Keys<'_>) -> Option<Vec<f32>> {
    let count = data.elements();
    if count > MOST_DIVISORS || !matches!(tensor.kind, TensorKind::Float(_)) {
        keys.problems.push(format!(
            "tensor `{}` isn't half a head of floats",
            shown(&tensor.name)
        ));
        return None;
    }
    let mut divisors = vec![0.0; count];
    data.read_f32(0, &mut divisors);
    Some(divisors)
}

/// Names, those of layers that differ by the layer only as one.
fn patterns(names: &[&str]) -> String {
    let mut layers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names {
        let layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'));
        let pattern = match layer {
            Some((layer, rest)) if layer.bytes().all(|b| b.is_ascii_digit()) => {
                format!("blk.N.{rest}")
            }
            _ => (*name).to_owned(),
        };
        layers.entry(pattern).or_default().push(name);
    }
    let all: Vec<String> = layers
        .iter()
        .map(|(pattern, names)| match names.as_slice() {
            [one] => format!("`{}`", shown(one)),
            _ => format!("`{}` ({} layers)", shown(pattern), names.len()),
        })
        .collect();
    all.join(", ")
}

/// Names every tensor that the model needs and the file hasn't.
fn check_complete(
    architecture: &Architecture,
    shape: &Shape,
    names: &BTreeSet<&str>,
    keys: &mut Keys<'_>,
) {
    let mut missing: Vec<String> = ["token_embd.weight", "output_norm.weight"]
        .into_iter()
        .filter(|name| !names.contains(name))
        .map(str::to_owned)
        .collect();
    // More layers than the file has tensors are named once, not one by one.
    if shape.layers > names.len() {
        keys.problems.push(format!(
            "has tensors of fewer than its {} layers. Download it again",
            shape.layers
        ));
        return;
    }
    for layer in 0..shape.layers {
        for part in architecture.layer {
            let ends: &[&str] = if part.bias == Bias::Always {
                &["weight", "bias"]
            } else {
                &["weight"]
            };
            let wanted = ends
                .iter()
                .map(|end| format!("blk.{layer}.{}.{end}", part.gguf));
            missing.extend(wanted.filter(|name| !names.contains(name.as_str())));
        }
    }
    if !missing.is_empty() {
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        keys.problems
            .push(format!("lacks {}. Download it again", patterns(&missing)));
    }
}

impl Found {
    /// Notes what the tensors that are there say of the configuration.
    fn tell(&mut self, architecture: &Architecture, names: &BTreeSet<&str>, keys: &mut Keys<'_>) {
        let mut put = |key: &str, value: Json| _ = self.config.insert(key.to_owned(), value);
        put(
            "tie_word_embeddings",
            (!names.contains("output.weight")).into(),
        );
        if let Some(rows) = self.vocabulary {
            put("vocab_size", rows.into());
            let key = keys.full("vocab_size");
            if let Some(told) = keys.size(&key).filter(|told| *told != rows) {
                keys.problems.push(format!(
                    "key `{key}` is {told}, but the embedding has {rows} rows"
                ));
            }
        }
        let optional = |group: &'static str| {
            architecture
                .layer
                .iter()
                .filter(move |p| p.bias == Bias::Maybe && p.gguf.starts_with(group))
        };
        for (group, key) in [("attn_", "attention_bias"), ("ffn_", "mlp_bias")] {
            let parts = optional(group).count();
            if parts == 0 {
                continue;
            }
            let has = |name: &&&str| {
                name.strip_suffix(".bias")
                    .and_then(|name| name.rsplit_once('.'))
                    .is_some_and(|(_, gguf)| optional(group).any(|part| part.gguf == gguf))
            };
            let there = names.iter().filter(has).count();
            let layers = names
                .iter()
                .filter(|n| n.ends_with(".attn_norm.weight"))
                .count();
            if there != 0 && there != layers * parts {
                keys.problems.push(format!(
                    "has biases at {there} of the {} matrices `{group}*`; transformers has them at all or none",
                    layers * parts
                ));
            }
            put(key, (there != 0).into());
        }
    }
}
