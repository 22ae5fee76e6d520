//! GPT-2: learned positions, layer norms, projections stored `[in, out]`, one of them for queries,
//! keys and values.

use dlc_ir::{Attention, BlockKind, IrError, Op, Storage, Task, ValueId};

use super::activation::Activation;
use super::causal::Causal;
use super::config::ConfigReader;
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};
use super::{Architecture, Facts, Family};

const EMBEDDING: &str = "transformer.wte.weight";

pub(super) const FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &[("GPT2LMHeadModel", Task::TextGeneration)],
    summary: "GPT-2 of all sizes, DistilGPT2",
    keys: |_| KEYS,
    aliases: &[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(50_257)),
    key("n_embd", Whole(768)),
    key("n_layer", Whole(12)),
    key("n_head", Whole(12)),
    key("n_positions", Whole(1024)),
    optional("n_inner", Nothing),
    key("activation_function", Text("gelu_new")),
    key("layer_norm_epsilon", Real(1e-5)),
    key("scale_attn_weights", Flag(true)),
    key("scale_attn_by_inverse_layer_idx", Flag(false)),
    key("add_cross_attention", Flag(false)),
    optional("bos_token_id", Whole(50_256)),
    optional("eos_token_id", Whole(50_256)),
    key("tie_word_embeddings", Flag(true)),
];

struct Gpt2 {
    vocab_size: usize,
    hidden_size: usize,
    mlp_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    context_length: usize,
    eps: f32,
    activation: Activation,
    /// Factor on the dot products of each layer.
    scales: Vec<f32>,
    tied: bool,
}

fn read(config: &mut ConfigReader<'_>, _: Task) -> Box<dyn Architecture> {
    let hidden_size = config.required_size("n_embd", WIDEST);
    let layers = config.required_size("n_layer", MOST_LAYERS);
    let heads = config.required_size("n_head", MOST_HEADS);
    let head_dim = head_dim(config, "n_embd", hidden_size, heads);
    let scale = if config.flag("scale_attn_weights") {
        (1.0 / (head_dim as f64).sqrt()) as f32
    } else {
        1.0
    };
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx");
    // How half precision is computed, and what classifiers take from the body: nothing of the
    // function here.
    for unread in [
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "n_ctx",
    ] {
        config.get(unread);
    }
    config.get("summary_first_dropout");
    Box::new(Gpt2 {
        vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
        hidden_size,
        mlp_size: config
            .size("n_inner", WIDEST_MLP)
            .unwrap_or(4 * hidden_size),
        layers,
        heads,
        head_dim,
        context_length: config.required_size("n_positions", LONGEST_CONTEXT),
        eps: eps(config, "layer_norm_epsilon"),
        activation: Activation::read(config, "activation_function"),
        scales: (1..=layers)
            .map(|layer| {
                if by_layer {
                    scale / layer as f32
                } else {
                    scale
                }
            })
            .collect(),
        tied: config.flag("tie_word_embeddings"),
    })
}

impl Architecture for Gpt2 {
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

    fn base(&self) -> &'static str {
        "transformer."
    }

    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let hidden = self.hidden_size;
        let mut causal = Causal::open(net, self.layers, [self.heads, self.head_dim])?;
        let (words, positions) = (
            net.weight(EMBEDDING, &[self.vocab_size, hidden])?,
            net.weight("transformer.wpe.weight", &[self.context_length, hidden])?,
        );
        let words = net
            .graph
            .add(Op::Gather, [words, causal.input_ids.into()])?;
        let positions = net
            .graph
            .add(Op::Gather, [positions, causal.positions.into()])?;
        let mut residual = net.add(words, positions)?;
        for layer in 0..self.layers {
            residual = self.attention(net, &mut causal, layer, residual)?;
            residual = self.mlp(net, layer, residual)?;
        }
        let normed = net.layer_norm(residual, "transformer.ln_f", hidden, self.eps)?;
        let head = net.head(
            "lm_head.weight",
            EMBEDDING,
            [self.vocab_size, hidden],
            self.tied,
        )?;
        let logits = net.graph.add(Op::Linear, [normed.into(), head])?;
        causal.close(net, logits)
    }
}

impl Gpt2 {
    fn attention(
        &self,
        net: &mut Net<'_>,
        causal: &mut Causal,
        layer: usize,
        residual: ValueId,
    ) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (format!("transformer.h.{layer}"), self.hidden_size);
        net.graph.open_block(
            &format!("layers.{layer}.attn"),
            BlockKind::Attention,
            layer as u32,
            residual,
        )?;
        let x = net.layer_norm(residual, &format!("{prefix}.ln_1"), hidden, self.eps)?;
        let all = conv1d(
            net,
            x,
            &format!("{prefix}.attn.c_attn"),
            [3 * hidden, hidden],
        )?;
        let qkv = [
            net.columns(all, 0, hidden)?,
            net.columns(all, hidden, hidden)?,
            net.columns(all, 2 * hidden, hidden)?,
        ];
        let scale = self.scales.get(layer).copied().unwrap_or(1.0);
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale,
            window: None,
            softcap: None,
            causal: true,
        };
        let mixed = causal.attend(net, attention, qkv)?;
        let projected = conv1d(
            net,
            mixed,
            &format!("{prefix}.attn.c_proj"),
            [hidden, hidden],
        )?;
        let output = net.add(residual, projected)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    fn mlp(&self, net: &mut Net<'_>, layer: usize, residual: ValueId) -> Result<ValueId, IrError> {
        let (prefix, hidden) = (format!("transformer.h.{layer}"), self.hidden_size);
        net.graph.open_block(
            &format!("layers.{layer}.mlp"),
            BlockKind::Mlp,
            layer as u32,
            residual,
        )?;
        let x = net.layer_norm(residual, &format!("{prefix}.ln_2"), hidden, self.eps)?;
        let up = conv1d(
            net,
            x,
            &format!("{prefix}.mlp.c_fc"),
            [self.mlp_size, hidden],
        )?;
        let activated = net.activate(up, self.activation)?;
        let down = conv1d(
            net,
            activated,
            &format!("{prefix}.mlp.c_proj"),
            [hidden, self.mlp_size],
        )?;
        let output = net.add(residual, down)?;
        net.graph.close_block(output)?;
        Ok(output)
    }
}

/// A projection that the checkpoint stores `[in, out]`.
fn conv1d(
    net: &mut Net<'_>,
    x: ValueId,
    name: &str,
    shape: [usize; 2],
) -> Result<ValueId, IrError> {
    net.stored_linear(x, name, shape, true, Storage::Transposed)
}
