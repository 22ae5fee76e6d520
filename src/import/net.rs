//! What every architecture is built with: a graph under construction, and the checkpoint's tensors
//! as its weights.
//!
//! A weight is asked for by name and shape when a node needs it; a tensor that is missing,
//! misshapen or of a wrong type is noted, a stand-in takes its place, and [`Net::finish`] lists all
//! that was noted together with the tensors that nobody asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dlc_ir::{
    DType, Expr, Graph, GraphBuilder, IrError, Op, Operand, Storage, ValueId, ValueType, WeightId,
    WeightTable, sym,
};

use super::activation::Activation;
use super::error::ImportError;
use super::tensors::Problems;
use crate::checkpoint::{Checkpoint, TensorRecord, shown};

/// Ends of the names of buffers that older versions of transformers and diffusers saved, and no
/// version reads.
const LEFTOVERS: [&str; 11] = [
    ".rotary_emb.inv_freq",
    ".rotary_emb.original_inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    "embeddings.token_type_ids",
    ".attention.masked_bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attn.bias",
    "embeddings.position_ids",
    "pos_embed.pos_embed",
];

/// Beginnings of the names of what trainers and other tasks leave beside a model: value heads, and
/// heads that it has none of.
const BESIDE: [&str; 23] = [
    "v_head.",
    "value_head.",
    "critic_head.",
    "reward_head.",
    "medusa_head.",
    "score.",
    "classifier.",
    "qa_outputs.",
    "multiple_choice_head.",
    "transformer.multiple_choice_head.",
    "pooler.",
    "cls.",
    "lm_head.",
    "embed_out.",
    "lm_predictions.",
    "mask_predictions.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pre_classifier.",
    "generator_predictions.",
    "generator_lm_head.",
    "discriminator_predictions.",
];

/// Parts of names, and what older versions of diffusers called them.
const OLD_PARTS: [(&str, &str); 4] = [
    (".to_q.", ".query."),
    (".to_k.", ".key."),
    (".to_v.", ".value."),
    (".to_out.0.", ".proj_attn."),
];

/// The tensor of the checkpoint that each weight was made of, by the tensor's name.
pub type Sources = BTreeMap<String, WeightId>;

/// A graph under construction: `target`, or that of a part of a pipeline.
pub(super) struct Net<'a> {
    pub(super) graph: GraphBuilder<WeightTable>,
    pub(super) dtype: DType,
    checkpoint: &'a Checkpoint,
    /// What stands before the names of weights: those of parts aren't to be taken for the target's.
    prefix: String,
    /// What names of the model's body begin with, unless the checkpoint was saved without its head:
    /// `transformer.`
    base: &'static str,
    ids: HashMap<String, WeightId>,
    sources: Sources,
    known: BTreeSet<String>,
    left_out: BTreeSet<String>,
    problems: Problems,
}

impl<'a> Net<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, base: &'static str, dtype: DType) -> Self {
        Self::over(
            GraphBuilder::new("target", WeightTable::default()),
            checkpoint,
            base,
            dtype,
        )
    }

    /// The graph `name` of a part of a pipeline, over the weights of the graphs before it, which is
    /// what the names of its own begin with.
    pub(super) fn of_part(
        name: &str,
        weights: WeightTable,
        checkpoint: &'a Checkpoint,
        base: &'static str,
        dtype: DType,
    ) -> Self {
        Self {
            prefix: format!("{name}."),
            ..Self::over(GraphBuilder::new(name, weights), checkpoint, base, dtype)
        }
    }

    fn over(
        graph: GraphBuilder<WeightTable>,
        checkpoint: &'a Checkpoint,
        base: &'static str,
        dtype: DType,
    ) -> Self {
        Self {
            graph,
            dtype,
            checkpoint,
            prefix: String::new(),
            base,
            ids: HashMap::new(),
            sources: Sources::new(),
            known: BTreeSet::new(),
            left_out: BTreeSet::new(),
            problems: Problems::default(),
        }
    }

    /// The weight `name` of this shape.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Operand, IrError> {
        self.stored_weight(name, shape, Storage::Plain)
    }

    /// The weight `name`, of which graphs see `shape` and the checkpoint holds what `storage` says.
    pub(super) fn stored_weight(
        &mut self,
        name: &str,
        shape: &[usize],
        storage: Storage,
    ) -> Result<Operand, IrError> {
        if let Some(&id) = self.ids.get(name) {
            return Ok(id.into());
        }
        let tensor = self.tensor(name, &storage.shape(shape));
        let own_name = format!("{}{name}", self.prefix);
        let id = if let Some((file_name, data)) =
            tensor.and_then(|(file_name, record)| Some((file_name, self.floats(name, &record)?)))
        {
            let id = self
                .graph
                .weights_mut()
                .add_stored(&own_name, shape, self.dtype, data, storage)?;
            self.sources.insert(file_name, id);
            id
        } else {
            self.graph
                .weights_mut()
                .declare(&own_name, self.dtype, shape)?
        };
        self.ids.insert(name.to_owned(), id);
        Ok(id.into())
    }

    /// The tensor's elements, if they are floats; what is wrong is noted.
    fn floats(&mut self, name: &str, record: &TensorRecord) -> Option<Expr> {
        let data = record.expr();
        if data.is_none() {
            self.problems.wrong.push(format!(
                "`{name}` is {}; dlc reads f32, f16 and bf16",
                record.dtype
            ));
        }
        data
    }

    /// One row of the table `name` of `[rows, width]`, as a weight `[width]` of its own.
    pub(super) fn weight_row(
        &mut self,
        name: &str,
        [rows, width]: [usize; 2],
        row: usize,
    ) -> Result<Operand, IrError> {
        let row_name = format!("{name}.{row}");
        let data = self
            .tensor(name, &[rows, width])
            .and_then(|(_, record)| record.expr());
        let weights = self.graph.weights_mut();
        let id = match data {
            Some(data) => weights.add(
                &row_name,
                &[width],
                data.slice(row * width, width).cast(self.dtype),
            )?,
            None => weights.declare(&row_name, self.dtype, &[width])?,
        };
        Ok(id.into())
    }

    /// A table that no checkpoint holds, because it is computed: a weight `name` of its own.
    pub(super) fn table(
        &mut self,
        name: &str,
        shape: &[usize],
        numbers: &[f32],
    ) -> Result<Operand, IrError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let data = Expr::constant(bytes, DType::F32).cast(self.dtype);
        Ok(self.graph.weights_mut().add(name, shape, data)?.into())
    }

    /// The checkpoint's tensor for `name`, if it has one of this shape; what is wrong is noted.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Option<(String, TensorRecord)> {
        let Some(file_name) = self
            .file_names(name)
            .into_iter()
            .find(|n| self.checkpoint.tensor(n).is_some())
        else {
            match self
                .file_names(name)
                .iter()
                .find_map(|n| self.checkpoint.absent_shard(n))
            {
                Some(shard) => {
                    let way = "Download the index and the shards of one revision";
                    self.problems
                        .wrong
                        .push(format!("`{name}` is not in its shard {shard}. {way}"));
                }
                None => self.problems.missing.push(name.to_owned()),
            }
            return None;
        };
        let record = self.checkpoint.tensor(&file_name)?.clone();
        self.known.insert(file_name.clone());
        if record.shape != shape {
            self.problems.wrong.push(format!(
                "`{file_name}` has shape {:?}, expected {shape:?}",
                record.shape
            ));
            return None;
        }
        Some((file_name, record))
    }

    /// The names under which checkpoints hold the tensor `name`: with or without the body's prefix,
    /// norms as TensorFlow called them, attention as diffusers once did.
    fn file_names(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        if !self.base.is_empty() {
            names.push(
                name.strip_prefix(self.base)
                    .map_or_else(|| format!("{}{name}", self.base), str::to_owned),
            );
        }
        for plain in names.clone() {
            let end =
                |end: &str, old: &str| plain.strip_suffix(end).map(|start| format!("{start}{old}"));
            names.extend(
                end("LayerNorm.weight", "LayerNorm.gamma")
                    .or_else(|| end("LayerNorm.bias", "LayerNorm.beta")),
            );
            names.extend(
                OLD_PARTS
                    .iter()
                    .filter(|(new, _)| plain.contains(new))
                    .map(|(new, old)| plain.replace(new, old)),
            );
        }
        names
    }

    /// Whether the checkpoint has a tensor for `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file_names(name)
            .iter()
            .any(|n| self.checkpoint.tensor(n).is_some())
    }

    /// The matrix of the head: `name` by itself, or with `tied` the embedding.
    pub(super) fn head(
        &mut self,
        name: &str,
        embedding: &str,
        shape: [usize; 2],
        tied: bool,
    ) -> Result<Operand, IrError> {
        if !tied {
            return self.weight(name, &shape);
        }
        self.note_copy(name, embedding, "tie_word_embeddings");
        self.weight(embedding, &shape)
    }

    /// Takes note that `copy`, where the checkpoint has it, is `original` because the key `tie`
    /// says so.
    pub(super) fn note_copy(&mut self, copy: &str, original: &str, tie: &str) {
        let file_name = |net: &Self, name: &str| {
            net.file_names(name)
                .into_iter()
                .find(|n| net.checkpoint.tensor(n).is_some())
        };
        let Some(copy_name) = file_name(self, copy) else {
            return;
        };
        let records = file_name(self, original).and_then(|name| {
            Some([
                self.checkpoint.tensor(&copy_name)?,
                self.checkpoint.tensor(&name)?,
            ])
        });
        if records.is_some_and(|[a, b]| {
            a.dtype != b.dtype || a.shape != b.shape || a.blob.as_ref() != b.blob.as_ref()
        }) {
            self.problems.wrong.push(format!(
                "`{copy}` differs from `{original}` although `{tie}` is true: transformers 4 takes the embedding, transformers 5 the head. \
                 Remove the tensor, or set `{tie}` to false"
            ));
        }
        if let Some(&id) = self.ids.get(original) {
            self.sources.insert(copy_name.clone(), id);
        }
        self.known.insert(copy_name);
    }

    /// Takes note that tensors of the body whose names begin so belong to a part that isn't used
    /// here.
    pub(super) fn ignore(&mut self, prefix: &str) {
        let starts: Vec<String> = self.file_names(prefix);
        let unused = self
            .checkpoint
            .tensor_names()
            .filter(|n| starts.iter().any(|start| n.starts_with(start.as_str())));
        self.known.extend(unused.map(str::to_owned));
    }

    /// The input `name`: a whole number for each token of a batch of texts.
    pub(super) fn token_input(&mut self, name: &str) -> Result<ValueId, IrError> {
        let ty = ValueType::new(DType::I64, [sym("batch"), sym("seq")]);
        self.graph.input(name, ty, None)
    }

    /// Takes note that tensors outside of the body belong to a head that is not used here, if names
    /// tell the body from it; it is named to the user.
    pub(super) fn leave_out_head(&mut self) {
        let of_body = |name: &&str| !self.base.is_empty() && name.starts_with(self.base);
        if self.checkpoint.tensor_names().any(|name| of_body(&name)) {
            self.left_out.extend(
                self.checkpoint
                    .tensor_names()
                    .filter(|name| !of_body(name))
                    .map(str::to_owned),
            );
        }
    }

    /// Takes note that tensors whose names begin so belong to a part that the model does not have;
    /// it is named to the user.
    pub(super) fn leave_out(&mut self, prefix: &str) {
        self.left_out.extend(
            self.checkpoint
                .tensor_names()
                .filter(|n| n.starts_with(prefix))
                .map(str::to_owned),
        );
    }

    /// `x weight' + bias` with the tensors `{name}.weight [out, in]` and, with `bias`,
    /// `{name}.bias [out]`.
    pub(super) fn linear(
        &mut self,
        x: impl Into<Operand>,
        name: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<ValueId, IrError> {
        self.stored_linear(x, name, shape, bias, Storage::Plain)
    }

    /// As [`linear`](Self::linear), the weight stored as `storage` says.
    pub(super) fn stored_linear(
        &mut self,
        x: impl Into<Operand>,
        name: &str,
        shape: [usize; 2],
        bias: bool,
        storage: Storage,
    ) -> Result<ValueId, IrError> {
        let weight = self.stored_weight(&format!("{name}.weight"), &shape, storage)?;
        if bias {
            let bias = self.weight(&format!("{name}.bias"), &shape[..1])?;
            return self.graph.add(Op::Linear, [x.into(), weight, bias]);
        }
        self.graph.add(Op::Linear, [x.into(), weight])
    }

    /// Layer norm over the last axis, `width` long.
    pub(super) fn layer_norm(
        &mut self,
        x: impl Into<Operand>,
        name: &str,
        width: usize,
        eps: f32,
    ) -> Result<ValueId, IrError> {
        let scale = self.weight(&format!("{name}.weight"), &[width])?;
        let bias = self.weight(&format!("{name}.bias"), &[width])?;
        self.graph
            .add(Op::LayerNorm { eps }, [x.into(), scale, bias])
    }

    pub(super) fn activate(
        &mut self,
        x: ValueId,
        activation: Activation,
    ) -> Result<ValueId, IrError> {
        let mut ops = activation.ops().into_iter();
        ops.try_fold(x, |x, op| self.graph.add(op, [x.into()]))
    }

    pub(super) fn add(&mut self, a: ValueId, b: impl Into<Operand>) -> Result<ValueId, IrError> {
        self.graph.add(Op::Add, [a.into(), b.into()])
    }

    /// Entries `start .. start + len` of the last axis.
    pub(super) fn columns(
        &mut self,
        x: ValueId,
        start: usize,
        len: usize,
    ) -> Result<ValueId, IrError> {
        let axis = self.graph.value_type(x).shape.rank().saturating_sub(1);
        self.graph.add(Op::Slice { axis, start, len }, [x.into()])
    }

    /// The output `name`, always in single precision.
    pub(super) fn output(&mut self, name: &str, mut value: ValueId) -> Result<(), IrError> {
        if self.dtype != DType::F32 {
            value = self
                .graph
                .add(Op::Cast { dtype: DType::F32 }, [value.into()])?;
        }
        self.graph.output(name, value, None);
        Ok(())
    }

    /// The graph, its weights, where they came from, and what was left out, after `built`.
    ///
    /// # Errors
    /// Everything that is wrong with the checkpoint's tensors, else what went wrong while building.
    pub(super) fn finish(
        mut self,
        built: Result<(), IrError>,
    ) -> Result<(Graph, WeightTable, Sources, Option<String>), ImportError> {
        for prefix in BESIDE {
            self.leave_out(prefix);
        }
        let zero_biases = self.checkpoint.zero_biases();
        self.left_out.extend(zero_biases.map(str::to_owned));
        let is_leftover = |name: &&str| LEFTOVERS.iter().any(|end| name.ends_with(end));
        let (leftovers, unknown): (Vec<&str>, Vec<&str>) = self
            .checkpoint
            .tensor_names()
            .filter(|name| !self.known.contains(*name))
            .partition(|name| self.left_out.contains(*name) || is_leftover(name));
        self.problems.unused = unknown.into_iter().map(shown).collect();
        self.problems.into_result(self.checkpoint)?;
        built?;
        let (graph, weights) = self.graph.finish_with_weights()?;
        Ok((graph, weights, self.sources, left_out(&leftovers)))
    }
}

/// What the user reads of tensors that were left out: buffers of all layers as one.
fn left_out(names: &[&str]) -> Option<String> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for name in names {
        let kind = LEFTOVERS
            .iter()
            .find(|end| name.ends_with(*end))
            .map_or_else(|| shown(name), |end| format!("*{end}"));
        *kinds.entry(kind).or_default() += 1;
    }
    let list: Vec<String> = kinds
        .into_iter()
        .map(|(kind, n)| if n > 1 { format!("{kind} ({n})") } else { kind })
        .collect();
    (!list.is_empty()).then(|| {
        format!(
            "tensors that are no part of the model are left out: {}",
            list.join(", ")
        )
    })
}
