//! The encoder of T5 (Raffel et al., 2020; Shazeer, 2020), as `PixArt` reads prompts with it:
//! `T5EncoderModel` of transformers.

use dlc_ir::{Attention, BlockKind, BucketedBias, IrError, Op, Operand, TextEncoder, ValueId};
use serde_json::Value;

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps,
};
use super::{Architecture, Facts, PartFamily};
use crate::checkpoint::Role;

pub(super) const FAMILY: PartFamily = PartFamily {
    class: "T5EncoderModel",
    keys: KEYS,
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(32_128)),
    key("d_model", Whole(512)),
    key("d_kv", Whole(64)),
    key("d_ff", Whole(2048)),
    key("num_layers", Whole(6)),
    optional("num_decoder_layers", Nothing),
    key("num_heads", Whole(8)),
    key("relative_attention_num_buckets", Whole(32)),
    key("relative_attention_max_distance", Whole(128)),
    key("layer_norm_epsilon", Real(1e-6)),
    key("feed_forward_proj", Text("relu")),
    optional("pad_token_id", Whole(0)),
    optional("eos_token_id", Whole(1)),
    key("is_encoder_decoder", Flag(true)),
    optional("tie_word_embeddings", Flag(true)),
];

/// The embedding, and the name that it has in the encoder as well.
const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];
const WIDEST_HEAD: usize = 1 << 12;

struct T5 {
    vocab_size: usize,
    hidden_size: usize,
    mlp_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    buckets: BucketedBias,
    activation: Activation,
    /// Whether one half of the first projection is a gate for the other.
    gated: bool,
    eps: f32,
}

fn read(config: &mut ConfigReader<'_>, _: Role) -> Box<dyn Architecture> {
    // Of the decoder, of other tasks, of tokens, and of training.
    for unread in [
        "num_decoder_layers",
        "is_encoder_decoder",
        "tie_word_embeddings",
        "dropout_rate",
        "classifier_dropout",
        "n_positions",
        "output_past",
        "scale_decoder_outputs",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ] {
        config.get(unread);
    }
    let (activation, gated) = feed_forward(config);
    let buckets = BucketedBias {
        buckets: config.required_size("relative_attention_num_buckets", WIDEST),
        until: config.required_size("relative_attention_max_distance", LONGEST_CONTEXT),
    };
    if config.is_clean() && !buckets.buckets.is_multiple_of(4) {
        let problem = format!("is {}; dlc knows multiples of 4", buckets.buckets);
        config.unsupported("relative_attention_num_buckets", problem);
    }
    if config.is_clean() && buckets.until <= buckets.buckets / 4 {
        let (until, exact) = (buckets.until, buckets.buckets / 4);
        let problem = format!("is {until}, and distances up to {exact} have buckets of their own");
        config.bad("relative_attention_max_distance", problem);
    }
    Box::new(T5 {
        vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
        hidden_size: config.required_size("d_model", WIDEST),
        mlp_size: config.required_size("d_ff", WIDEST_MLP),
        layers: config.required_size("num_layers", MOST_LAYERS),
        heads: config.required_size("num_heads", MOST_HEADS),
        head_dim: config.required_size("d_kv", WIDEST_HEAD),
        buckets,
        activation,
        gated,
        eps: eps(config, "layer_norm_epsilon"),
    })
}

/// The activation, and whether it is a gate: `relu`, `gated-gelu` ...; and what the class derives of
/// it, which files may repeat.
fn feed_forward(config: &mut ConfigReader<'_>) -> (Activation, bool) {
    const KEY: &str = "feed_forward_proj";
    let name = config.text(KEY).unwrap_or("relu");
    let gated = name.strip_prefix("gated-");
    // Google's checkpoints have the approximation under this name.
    let own = match gated {
        Some("gelu") => "gelu_new",
        Some(other) => other,
        None => name,
    };
    let repeated = [
        ("dense_act_fn", Value::from(own)),
        ("is_gated_act", gated.is_some().into()),
    ];
    for (key, derived) in repeated {
        if let Some(found) = config.get(key).filter(|found| **found != derived) {
            let problem = format!("is {}, and `{KEY}` makes it {derived}", show(found));
            config.unsupported(key, problem);
        }
    }
    let activation = Activation::named(own);
    if activation.is_none() {
        config.unsupported(KEY, format!("is {}", show(&name.into())));
    }
    (activation.unwrap_or(Activation::Relu), gated.is_some())
}

impl Architecture for T5 {
    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            context_length: LONGEST_CONTEXT,
            ..Facts::default()
        }
    }

    /// Inputs: `input_ids` and `attention_mask`. Output: `last_hidden_state`, after the last norm.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        net.ignore("decoder.");
        let ids = net.token_input("input_ids")?;
        let mask = net.token_input("attention_mask")?;
        let [own, copy] = EMBEDDINGS;
        let [own, copy] = if net.has(own) {
            [own, copy]
        } else {
            [copy, own]
        };
        let table = net.weight(own, &[self.vocab_size, self.hidden_size])?;
        net.note_copy(copy, own, "tie_word_embeddings");
        let mut residual = net.graph.add(Op::Gather, [table, ids.into()])?;
        // The first layer's distances are those of all.
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let distances = net.weight(name, &[self.buckets.buckets, self.heads])?;
        let bias = Op::BucketedBias(self.buckets);
        let bias = net.graph.add(bias, [residual.into(), distances])?;
        for layer in 0..self.layers {
            residual = self.attention(net, layer, residual, [mask, bias])?;
            residual = self.mlp(net, layer, residual)?;
        }
        let states = self.norm(net, residual, "encoder.final_layer_norm")?;
        net.output(TextEncoder::LAST, states)
    }
}

impl T5 {
    fn norm(&self, net: &mut Net<'_>, x: ValueId, name: &str) -> Result<ValueId, IrError> {
        let scale = net.weight(&format!("{name}.weight"), &[self.hidden_size])?;
        let norm = Op::RmsNorm { eps: self.eps };
        net.graph.add(norm, [Operand::Value(x), scale])
    }

    /// The block `layers.N.attn`: its residual output. Scores aren't scaled.
    fn attention(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        [mask, bias]: [ValueId; 2],
    ) -> Result<ValueId, IrError> {
        let (kind, number) = (BlockKind::Attention, layer as u32);
        let block = format!("layers.{layer}.attn");
        net.graph.open_block(&block, kind, number, residual)?;
        let tensors = format!("encoder.block.{layer}.layer.0");
        let x = self.norm(net, residual, &format!("{tensors}.layer_norm"))?;
        let inner = self.heads * self.head_dim;
        let name = |part: &str| format!("{tensors}.SelfAttention.{part}");
        let shape = [inner, self.hidden_size];
        let q = net.linear(x, &name("q"), shape, false)?;
        let k = net.linear(x, &name("k"), shape, false)?;
        let v = net.linear(x, &name("v"), shape, false)?;
        let op = Op::Attention(Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale: 1.0,
            window: None,
            softcap: None,
            causal: false,
        });
        let mixed = net.graph.add(op, [q, k, v, mask, bias].map(Into::into))?;
        let mixed = net.linear(mixed, &name("o"), [self.hidden_size, inner], false)?;
        let output = net.add(residual, mixed)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    /// The block `layers.N.mlp`: its residual output.
    fn mlp(&self, net: &mut Net<'_>, layer: usize, residual: ValueId) -> Result<ValueId, IrError> {
        let (kind, number) = (BlockKind::Mlp, layer as u32);
        let block = format!("layers.{layer}.mlp");
        net.graph.open_block(&block, kind, number, residual)?;
        let tensors = format!("encoder.block.{layer}.layer.1");
        let x = self.norm(net, residual, &format!("{tensors}.layer_norm"))?;
        let name = |part: &str| format!("{tensors}.DenseReluDense.{part}");
        let shape = [self.mlp_size, self.hidden_size];
        let inner = if self.gated {
            let gate = net.linear(x, &name("wi_0"), shape, false)?;
            let gate = net.activate(gate, self.activation)?;
            let up = net.linear(x, &name("wi_1"), shape, false)?;
            net.graph.add(Op::Mul, [gate.into(), up.into()])?
        } else {
            let up = net.linear(x, &name("wi"), shape, false)?;
            net.activate(up, self.activation)?
        };
        let down = net.linear(inner, &name("wo"), [shape[1], shape[0]], false)?;
        let output = net.add(residual, down)?;
        net.graph.close_block(output)?;
        Ok(output)
    }
}
