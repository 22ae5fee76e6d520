//! GPT-NeoX and Pythia: attention and MLP side by side, partly rotated heads, queries, keys and
//! values interleaved head by head.

use dlc_ir::{Attention, BlockKind, IrError, Op, Shape, Task, ValueId};

use super::activation::Activation;
use super::causal::Causal;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::net::Net;
use super::rope::{self, Rotary, Share};
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};
use super::{Architecture, Facts, Family};

/// Share of each head that is rotated where the configuration names none.
const ROTARY_SHARE: Share = Share::Partial { default: 0.25 };
const EMBEDDING: &str = "gpt_neox.embed_in.weight";

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &[("GPTNeoXForCausalLM", Task::TextGeneration)],
    summary: "GPT-NeoX-20B, Pythia, Dolly 2",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(50_432)),
    key("hidden_size", Whole(6144)),
    key("intermediate_size", Whole(24_576)),
    key("num_hidden_layers", Whole(44)),
    key("num_attention_heads", Whole(64)),
    key("hidden_act", Text("gelu")),
    key("max_position_embeddings", Whole(2048)),
    key("layer_norm_eps", Real(1e-5)),
    key("rotary_pct", Nothing),
    key("rotary_emb_base", Nothing),
    optional("bos_token_id", Whole(0)),
    optional("eos_token_id", Whole(2)),
    key("tie_word_embeddings", Flag(false)),
    key("use_parallel_residual", Flag(true)),
    key("attention_bias", Flag(true)),
];

struct GptNeoX {
    vocab_size: usize,
    hidden_size: usize,
    mlp_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    context_length: usize,
    eps: f32,
    activation: Activation,
    rotary: Rotary,
    attention_bias: bool,
    /// Attention and MLP of one input.
    parallel: bool,
    tied: bool,
}

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let hidden_size = config.required_size("hidden_size", WIDEST);
    let heads = config.required_size("num_attention_heads", MOST_HEADS);
    let head_dim = head_dim(config, "hidden_size", hidden_size, heads);
    let rotary = rope::read(config, head_dim, ROTARY_SHARE);
    // Dropout of a head that isn't here.
    config.get("classifier_dropout");
    Box::new(GptNeoX {
        vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
        hidden_size,
        mlp_size: config.required_size("intermediate_size", WIDEST_MLP),
        layers: config.required_size("num_hidden_layers", MOST_LAYERS),
        heads,
        head_dim,
        context_length: config.required_size("max_position_embeddings", LONGEST_CONTEXT),
        eps: eps(config, "layer_norm_eps"),
        activation: Activation::read(config, "hidden_act"),
        rotary,
        attention_bias: config.flag("attention_bias"),
        parallel: config.flag("use_parallel_residual"),
        tied: config.flag("tie_word_embeddings"),
    })
}

impl Architecture for GptNeoX {
    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            context_length: self.context_length,
            ..Facts::default()
        }
    }

    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let hidden = self.hidden_size;
        let mut causal = Causal::open(net, self.layers, [self.heads, self.head_dim])?;
        let table = net.weight(EMBEDDING, &[self.vocab_size, hidden])?;
        let mut residual = net
            .graph
            .add(Op::Gather, [table, causal.input_ids.into()])?;
        for layer in 0..self.layers {
            residual = self.layer(net, &mut causal, layer, residual)?;
        }
        let normed = net.layer_norm(residual, "gpt_neox.final_layer_norm", hidden, self.eps)?;
        let head = net.head(
            "embed_out.weight",
            EMBEDDING,
            [self.vocab_size, hidden],
            self.tied,
        )?;
        let logits = net.graph.add(Op::Linear, [normed.into(), head])?;
        causal.close(net, logits)
    }
}

impl GptNeoX {
    /// The block `layers.N.parallel`, or `layers.N.attn` and `layers.N.mlp`: the residual output.
    fn layer(
        &self,
        net: &mut Net<'_>,
        causal: &mut Causal,
        layer: usize,
        residual: ValueId,
    ) -> Result<ValueId, IrError> {
        let open = |net: &mut Net<'_>, kind: BlockKind, input: ValueId| {
            net.graph.open_block(
                &format!("layers.{layer}.{}", kind.name()),
                kind,
                layer as u32,
                input,
            )
        };
        open(
            net,
            if self.parallel {
                BlockKind::Parallel
            } else {
                BlockKind::Attention
            },
            residual,
        )?;
        let attended = self.attention(net, causal, layer, residual)?;
        if self.parallel {
            let mapped = self.mlp(net, layer, residual)?;
            let both = net.add(mapped, attended)?;
            let output = net.add(both, residual)?;
            net.graph.close_block(output)?;
            return Ok(output);
        }
        let between = net.add(attended, residual)?;
        net.graph.close_block(between)?;
        open(net, BlockKind::Mlp, between)?;
        let mapped = self.mlp(net, layer, between)?;
        let output = net.add(mapped, between)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    fn attention(
        &self,
        net: &mut Net<'_>,
        causal: &mut Causal,
        layer: usize,
        residual: ValueId,
    ) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (format!("gpt_neox.layers.{layer}"), self.hidden_size);
        let x = net.layer_norm(
            residual,
            &format!("{prefix}.input_layernorm"),
            hidden,
            self.eps,
        )?;
        let all = net.linear(
            x,
            &format!("{prefix}.attention.query_key_value"),
            [3 * hidden, hidden],
            self.attention_bias,
        )?;
        let [q, k, v] = deinterleaved(net, all, [self.heads, self.head_dim])?;
        let rope = Op::Rope(self.rotary.rope(self.heads));
        let q = net
            .graph
            .add(rope.clone(), [q.into(), causal.positions.into()])?;
        let k = net.graph.add(rope, [k.into(), causal.positions.into()])?;
        let scale = (1.0 / (self.head_dim as f64).sqrt()) as f32;
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale,
            window: None,
            softcap: None,
            causal: true,
        };
        let mixed = causal.attend(net, attention, [q, k, v])?;
        net.linear(
            mixed,
            &format!("{prefix}.attention.dense"),
            [hidden, hidden],
            self.attention_bias,
        )
    }

    fn mlp(&self, net: &mut Net<'_>, layer: usize, residual: ValueId) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (format!("gpt_neox.layers.{layer}"), self.hidden_size);
        let x = net.layer_norm(
            residual,
            &format!("{prefix}.post_attention_layernorm"),
            hidden,
            self.eps,
        )?;
        let up = net.linear(
            x,
            &format!("{prefix}.mlp.dense_h_to_4h"),
            [self.mlp_size, hidden],
            true,
        )?;
        let activated = net.activate(up, self.activation)?;
        net.linear(
            activated,
            &format!("{prefix}.mlp.dense_4h_to_h"),
            [hidden, self.mlp_size],
            true,
        )
    }
}

/// Queries, keys and values of `all [batch, seq, heads * 3 * head_dim]`, in which each head's three
/// stand together.
pub(super) fn deinterleaved(
    net: &mut Net<'_>,
    all: ValueId,
    [heads, head_dim]: [usize; 2],
) -> Result<[ValueId; 3], IrError> {
    let dims = net.graph.value_type(all).shape.0.clone();
    let shape = |tail: &[usize]| {
        Shape(
            dims.iter()
                .take(2)
                .cloned()
                .chain(tail.iter().map(|&n| n.into()))
                .collect(),
        )
    };
    let (split, joined) = (shape(&[heads, 3 * head_dim]), shape(&[heads * head_dim]));
    let all = net.graph.add(Op::Reshape { shape: split }, [all.into()])?;
    let mut part = |at: usize| {
        let part = net.columns(all, at * head_dim, head_dim)?;
        net.graph.add(
            Op::Reshape {
                shape: joined.clone(),
            },
            [part.into()],
        )
    };
    Ok([part(0)?, part(1)?, part(2)?])
}
