//! The text encoder of CLIP (Radford et al., 2021), as Stable Diffusion reads prompts with it:
//! `CLIPTextModel` and `CLIPTextModelWithProjection` of transformers.

use dlc_ir::{Attention, BlockKind, IrError, Op, TextEncoder, ValueId};

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::defaults::Absent::{Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};
use super::{Architecture, Facts, PartFamily};
use crate::checkpoint::Role;

pub(super) const FAMILY: PartFamily = PartFamily {
    class: "CLIPTextModel",
    keys: KEYS,
    read,
};

/// The same with a projected state of the whole text.
pub(super) const PROJECTED: PartFamily = PartFamily {
    class: "CLIPTextModelWithProjection",
    keys: KEYS,
    read: read_projected,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(49_408)),
    key("hidden_size", Whole(512)),
    key("intermediate_size", Whole(2048)),
    key("num_hidden_layers", Whole(12)),
    key("num_attention_heads", Whole(8)),
    key("max_position_embeddings", Whole(77)),
    key("hidden_act", Text("quick_gelu")),
    key("layer_norm_eps", Real(1e-5)),
    key("projection_dim", Whole(512)),
    optional("pad_token_id", Whole(1)),
    optional("bos_token_id", Whole(49_406)),
    optional("eos_token_id", Whole(49_407)),
];

/// What names of the model's tensors begin with, unless transformers 5 saved them.
const BODY: &str = "text_model.";

/// The end of a text in older configurations, which isn't its id: transformers then takes the
/// largest id of the text.
const WRONG_END: u32 = 2;

struct ClipText {
    vocab_size: usize,
    hidden_size: usize,
    mlp_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    context_length: usize,
    activation: Activation,
    eps: f32,
    /// The output for the states: after the last layer and norm, or before the last layer.
    states: &'static str,
    pooled: Option<Pooled>,
}

/// The projected state of the token that ends a text.
#[derive(Clone, Copy)]
struct Pooled {
    width: usize,
    /// Its id; none for the largest id of a text.
    end: Option<u32>,
}

fn read(config: &mut ConfigReader<'_>, role: Role) -> Box<dyn Architecture> {
    // The head that isn't here, and the token that only the pooled output looks for.
    for unread in ["projection_dim", "eos_token_id"] {
        config.get(unread);
    }
    Box::new(ClipText::read(config, role, None))
}

fn read_projected(config: &mut ConfigReader<'_>, role: Role) -> Box<dyn Architecture> {
    const END: &str = "eos_token_id";
    let end = config
        .get(END)
        .and_then(|id| u32::try_from(id.as_u64()?).ok());
    if end.is_none() {
        let found = config.get(END).map_or_else(|| "missing".to_owned(), show);
        config.bad(
            END,
            format!("is {found}; it must be the token that ends a text"),
        );
    }
    let pooled = Pooled {
        width: config.required_size("projection_dim", WIDEST),
        end: end.filter(|end| *end != WRONG_END),
    };
    Box::new(ClipText::read(config, role, Some(pooled)))
}

impl ClipText {
    fn read(config: &mut ConfigReader<'_>, role: Role, pooled: Option<Pooled>) -> Self {
        if config.flag("use_attention_mask") {
            let problem =
                "is true; dlc reads the padding of prompts as tokens, as Stable Diffusion does";
            config.unsupported("use_attention_mask", problem.into());
        }
        // Dropout, and tokens that nothing looks for.
        for unread in ["dropout", "bos_token_id", "pad_token_id"] {
            config.get(unread);
        }
        let hidden_size = config.required_size("hidden_size", WIDEST);
        let heads = config.required_size("num_attention_heads", MOST_HEADS);
        Self {
            vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
            hidden_size,
            mlp_size: config.required_size("intermediate_size", WIDEST_MLP),
            layers: config.required_size("num_hidden_layers", MOST_LAYERS),
            heads,
            head_dim: head_dim(config, "hidden_size", hidden_size, heads),
            context_length: config.required_size("max_position_embeddings", LONGEST_CONTEXT),
            activation: Activation::read(config, "hidden_act"),
            eps: eps(config, "layer_norm_eps"),
            states: match role {
                Role::Text(text) => text.states,
                Role::Decoder(_) | Role::Encoder(_) => TextEncoder::LAST,
            },
            pooled,
        }
    }
}

impl Architecture for ClipText {
    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            context_length: self.context_length,
            pooled: self.pooled.as_ref().map(|pooled| pooled.width),
            ..Facts::default()
        }
    }

    fn base(&self) -> &'static str {
        BODY
    }

    /// Inputs: `input_ids` and `attention_mask`. Outputs: the states, and `text_embeds` where the
    /// text as a whole has one.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let ids = net.token_input("input_ids")?;
        let mask = net.token_input("attention_mask")?;
        let mut residual = self.embed(net, ids)?;
        let before = self.layers.saturating_sub(1);
        for layer in 0..before {
            residual = self.layer(net, layer, residual, mask)?;
        }
        let (last, norm) = (
            format!("{BODY}encoder.layers.{before}"),
            format!("{BODY}final_layer_norm"),
        );
        let early = self.states == TextEncoder::PENULTIMATE;
        if early {
            net.output(self.states, residual)?;
        }
        if early && self.pooled.is_none() {
            net.ignore(&format!("{last}."));
            net.ignore(&format!("{norm}."));
            return Ok(());
        }
        residual = self.layer(net, before, residual, mask)?;
        let states = net.layer_norm(residual, &norm, self.hidden_size, self.eps)?;
        if !early {
            net.output(self.states, states)?;
        }
        let Some(Pooled { width, end }) = self.pooled else {
            return Ok(());
        };
        let pool = Op::FirstToken { id: end };
        let pooled = net.graph.add(pool, [states.into(), ids.into()])?;
        let shape = [width, self.hidden_size];
        let pooled = net.linear(pooled, "text_projection", shape, false)?;
        net.output(TextEncoder::POOLED, pooled)
    }
}

impl ClipText {
    fn embed(&self, net: &mut Net<'_>, ids: ValueId) -> Result<ValueId, IrError> {
        let name = |table: &str| format!("{BODY}embeddings.{table}_embedding.weight");
        let tokens = net.weight(&name("token"), &[self.vocab_size, self.hidden_size])?;
        let tokens = net.graph.add(Op::Gather, [tokens, ids.into()])?;
        let shape = [self.context_length, self.hidden_size];
        let table = net.weight(&name("position"), &shape)?;
        let places = Op::Positions { padding: None };
        let places = net.graph.add(places, [ids.into()])?;
        let places = net.graph.add(Op::Gather, [table, places.into()])?;
        net.add(tokens, places)
    }

    /// The blocks `layers.N.attn` and `layers.N.mlp`.
    fn layer(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        mask: ValueId,
    ) -> Result<ValueId, IrError> {
        let tensors = format!("{BODY}encoder.layers.{layer}");
        let block = |part: &str| format!("layers.{layer}.{part}");
        let hidden = self.hidden_size;
        let (kind, number) = (BlockKind::Attention, layer as u32);
        net.graph
            .open_block(&block("attn"), kind, number, residual)?;
        let name = format!("{tensors}.layer_norm1");
        let normed = net.layer_norm(residual, &name, hidden, self.eps)?;
        let mixed = self.attend(net, normed, mask, &format!("{tensors}.self_attn"))?;
        let between = net.add(residual, mixed)?;
        net.graph.close_block(between)?;

        let kind = BlockKind::Mlp;
        net.graph.open_block(&block("mlp"), kind, number, between)?;
        let name = format!("{tensors}.layer_norm2");
        let normed = net.layer_norm(between, &name, hidden, self.eps)?;
        let (up, down) = (format!("{tensors}.mlp.fc1"), format!("{tensors}.mlp.fc2"));
        let inner = net.linear(normed, &up, [self.mlp_size, hidden], true)?;
        let inner = net.activate(inner, self.activation)?;
        let fed = net.linear(inner, &down, [hidden, self.mlp_size], true)?;
        let output = net.add(between, fed)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    /// Each token sees itself and those before it.
    fn attend(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        mask: ValueId,
        name: &str,
    ) -> Result<ValueId, IrError> {
        let shape = [self.hidden_size; 2];
        let mut project = |x, part: &str| net.linear(x, &format!("{name}.{part}"), shape, true);
        let (q, k) = (project(x, "q_proj")?, project(x, "k_proj")?);
        let v = project(x, "v_proj")?;
        let op = Op::Attention(Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
            window: None,
            softcap: None,
            causal: true,
        });
        let inputs = [q, k, v, mask].map(Into::into);
        let mixed = net.graph.add(op, inputs)?;
        net.linear(mixed, &format!("{name}.out_proj"), shape, true)
    }
}
