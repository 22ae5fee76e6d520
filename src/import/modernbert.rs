//! `ModernBERT` (Warner et al., 2024): norms before attention and MLP, rotated queries and keys, a
//! gated MLP, and in most layers a window in both directions.

mod head;

use dlc_ir::{Attention, BlockKind, IrError, Op, Rope, RopeScaling, Task, ValueId};

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::defaults::Absent::{Flag, Nothing, Real, Text, Whole};
use super::defaults::{Key, key, optional};
use super::net::Net;
use super::spec::{
    LARGEST_VOCABULARY, LONGEST_CONTEXT, MOST_HEADS, MOST_LAYERS, WIDEST, WIDEST_MLP, eps, head_dim,
};
use super::windows::sliding_layers;
use super::{Architecture, Facts, Family};
use head::{Body, Head};

pub(super) const FAMILY: Family = Family {
    model_type: "modernbert",
    architectures: &[
        ("ModernBertModel", Task::FeatureExtraction),
        ("ModernBertForMaskedLM", Task::FillMask),
        (
            "ModernBertForSequenceClassification",
            Task::TextClassification,
        ),
        (
            "ModernBertForTokenClassification",
            Task::TokenClassification,
        ),
        ("ModernBertForQuestionAnswering", Task::QuestionAnswering),
    ],
    summary: "ModernBERT base and large, gte-modernbert, modernbert-embed",
    keys: |_| KEYS,
    aliases: &[],
    read,
};

/// The keys of its class that are read here.
const KEYS: &[Key] = &[
    key("vocab_size", Whole(50_368)),
    key("hidden_size", Whole(768)),
    key("intermediate_size", Whole(1152)),
    key("num_hidden_layers", Whole(22)),
    key("num_attention_heads", Whole(12)),
    key("hidden_activation", Text("gelu")),
    key("max_position_embeddings", Whole(8192)),
    key("norm_eps", Real(1e-5)),
    key("norm_bias", Flag(false)),
    optional("pad_token_id", Whole(50_283)),
    optional("eos_token_id", Whole(50_282)),
    optional("bos_token_id", Whole(50_281)),
    key("attention_bias", Flag(false)),
    optional("layer_types", Nothing),
    key("global_attn_every_n_layers", Whole(3)),
    optional("rope_parameters", Nothing),
    key("global_rope_theta", Real(160_000.0)),
    key("local_rope_theta", Real(10_000.0)),
    key("local_attention", Whole(128)),
    key("mlp_bias", Flag(false)),
    key("decoder_bias", Flag(true)),
    key("classifier_pooling", Text("cls")),
    key("classifier_bias", Flag(false)),
    key("classifier_activation", Text("gelu")),
    key("deterministic_flash_attn", Flag(false)),
    key("sparse_prediction", Flag(false)),
    key("sparse_pred_ignore_index", Real(-100.0)),
    key("tie_word_embeddings", Flag(true)),
];

/// Keys that change how it was trained or is run, and what the class of another encoder reads.
const UNREAD: [&str; 11] = [
    "deterministic_flash_attn",
    "sparse_prediction",
    "sparse_pred_ignore_index",
    "embedding_dropout",
    "mlp_dropout",
    "classifier_dropout",
    "initializer_cutoff_factor",
    "reference_compile",
    "repad_logits_with_grad",
    "position_embedding_type",
    "layer_norm_eps",
];

struct ModernBert {
    /// What names of the body begin with; nothing without a head.
    body: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    mlp_size: usize,
    heads: usize,
    head_dim: usize,
    context_length: usize,
    activation: Activation,
    norm: Norm,
    attention_bias: bool,
    mlp_bias: bool,
    /// For each layer the base of its rotation and its window.
    layers: Vec<(f64, Option<usize>)>,
    head: Head,
}

/// The layer norms over the hidden width.
#[derive(Debug, Clone, Copy)]
struct Norm {
    width: usize,
    eps: f32,
    bias: bool,
}

impl Norm {
    fn add(self, net: &mut Net<'_>, x: ValueId, name: &str) -> Result<ValueId, IrError> {
        let Self { width, eps, bias } = self;
        if bias {
            return net.layer_norm(x, name, width, eps);
        }
        let scale = net.weight(&format!("{name}.weight"), &[width])?;
        net.graph.add(Op::LayerNorm { eps }, [x.into(), scale])
    }
}

fn read(config: &mut ConfigReader<'_>, task: Task) -> Box<dyn Architecture> {
    for unread in UNREAD {
        config.get(unread);
    }
    let hidden_size = config.required_size("hidden_size", WIDEST);
    let heads = config.required_size("num_attention_heads", MOST_HEADS);
    let head_dim = head_dim(config, "hidden_size", hidden_size, heads);
    if config.is_clean() && !head_dim.is_multiple_of(2) {
        config.bad(
            "hidden_size",
            format!("makes heads {head_dim} wide; rotation needs an even width"),
        );
    }
    let norm = Norm {
        width: hidden_size,
        eps: eps(config, "norm_eps"),
        bias: config.flag("norm_bias"),
    };
    Box::new(ModernBert {
        body: if task == Task::FeatureExtraction {
            ""
        } else {
            "model."
        },
        vocab_size: config.required_size("vocab_size", LARGEST_VOCABULARY),
        hidden_size,
        mlp_size: config.required_size("intermediate_size", WIDEST_MLP),
        heads,
        head_dim,
        context_length: config.required_size("max_position_embeddings", LONGEST_CONTEXT),
        activation: Activation::read(config, "hidden_activation"),
        norm,
        attention_bias: config.flag("attention_bias"),
        mlp_bias: config.flag("mlp_bias"),
        layers: layers(config),
        head: Head::read(config, task, norm),
    })
}

/// For each layer the base of its rotation and its window.
fn layers(config: &mut ConfigReader<'_>) -> Vec<(f64, Option<usize>)> {
    let layers = config.required_size("num_hidden_layers", MOST_LAYERS);
    let every = config.required_size("global_attn_every_n_layers", MOST_LAYERS);
    // A token sees half of it on each side, and itself.
    let window = config.required_size("local_attention", LONGEST_CONTEXT) / 2 + 1;
    let sliding = sliding_layers(config, layers)
        .unwrap_or_else(|| (0..layers).map(|layer| layer % every != 0).collect());
    let [global, local] = thetas(config);
    let layer = |sliding: bool| {
        if sliding {
            (local, Some(window))
        } else {
            (global, None)
        }
    };
    sliding.into_iter().map(layer).collect()
}

/// The bases of the rotations in layers without and with a window: those of `rope_parameters`, else
/// under their older names.
fn thetas(config: &mut ConfigReader<'_>) -> [f64; 2] {
    let older = ["global_rope_theta", "local_rope_theta"].map(|key| config.required_factor(key));
    let Some(mut both) = config.object("rope_parameters") else {
        return older;
    };
    let newer = ["full_attention", "sliding_attention"].map(|key| {
        let mut rope = both.object(key)?;
        if let Some(kind) = rope.text("rope_type")
            && kind != "default"
        {
            let problem = format!("is {}; dlc knows default here", show(&kind.into()));
            rope.unsupported("rope_type", problem);
        }
        let theta = rope.factor("rope_theta");
        both.absorb(rope);
        theta
    });
    config.absorb(both);
    [newer[0].unwrap_or(older[0]), newer[1].unwrap_or(older[1])]
}

impl ModernBert {
    /// The blocks `layers.N.attn` and `layers.N.mlp`.
    fn layer(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        residual: ValueId,
        [ids, mask]: [ValueId; 2],
    ) -> Result<ValueId, IrError> {
        let prefix = format!("{}layers.{layer}", self.body);
        let open = |net: &mut Net<'_>, part: &str, kind: BlockKind, residual: ValueId| {
            let name = format!("layers.{layer}.{part}");
            net.graph.open_block(&name, kind, layer as u32, residual)
        };
        open(net, "attn", BlockKind::Attention, residual)?;
        // The embedding's norm stands right before the first layer.
        let x = if layer == 0 {
            residual
        } else {
            self.norm
                .add(net, residual, &format!("{prefix}.attn_norm"))?
        };
        let mixed = self.attend(net, layer, x, [ids, mask])?;
        let between = net.add(residual, mixed)?;
        net.graph.close_block(between)?;

        open(net, "mlp", BlockKind::Mlp, between)?;
        let x = self.norm.add(net, between, &format!("{prefix}.mlp_norm"))?;
        let (hidden, width, bias) = (self.hidden_size, self.mlp_size, self.mlp_bias);
        let both = net.linear(x, &format!("{prefix}.mlp.Wi"), [2 * width, hidden], bias)?;
        let up = net.columns(both, 0, width)?;
        let up = net.activate(up, self.activation)?;
        let gate = net.columns(both, width, width)?;
        let gated = net.graph.add(Op::Mul, [up.into(), gate.into()])?;
        let down = net.linear(gated, &format!("{prefix}.mlp.Wo"), [hidden, width], bias)?;
        let output = net.add(between, down)?;
        net.graph.close_block(output)?;
        Ok(output)
    }

    /// What attention makes of `x`.
    fn attend(
        &self,
        net: &mut Net<'_>,
        layer: usize,
        x: ValueId,
        [ids, mask]: [ValueId; 2],
    ) -> Result<ValueId, IrError> {
        let prefix = format!("{}layers.{layer}.attn", self.body);
        let (hidden, bias) = (self.hidden_size, self.attention_bias);
        let (theta, window) = self.layers[layer];
        let qkv = net.linear(x, &format!("{prefix}.Wqkv"), [3 * hidden, hidden], bias)?;
        // In each block anew, so that blocks stay independent; lowering computes them once.
        let counted = Op::Positions { padding: None };
        let positions = net.graph.add(counted, [ids.into()])?;
        let rope = Rope {
            heads: self.heads,
            rotary_dim: None,
            theta,
            scaling: RopeScaling::None,
        };
        let rotated = |net: &mut Net<'_>, start: usize| {
            let part = net.columns(qkv, start, hidden)?;
            net.graph
                .add(Op::Rope(rope.clone()), [part.into(), positions.into()])
        };
        let (q, k) = (rotated(net, 0)?, rotated(net, hidden)?);
        let v = net.columns(qkv, 2 * hidden, hidden)?;
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.heads,
            scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
            window,
            softcap: None,
            causal: false,
        };
        let inputs = [q, k, v, mask].map(Into::into);
        let mixed = net.graph.add(Op::Attention(attention), inputs)?;
        net.linear(mixed, &format!("{prefix}.Wo"), [hidden, hidden], bias)
    }

    /// The name of the words' embedding.
    fn embedding(&self) -> String {
        format!("{}embeddings.tok_embeddings.weight", self.body)
    }
}

impl Architecture for ModernBert {
    fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            context_length: self.context_length,
            labels: self.head.labels(),
            scores: self.head.scores(),
            ..Facts::default()
        }
    }

    fn base(&self) -> &'static str {
        "model."
    }

    /// Inputs: `input_ids` and `attention_mask`. Output: `logits`, or `last_hidden_state` without a
    /// head.
    fn build(&self, net: &mut Net<'_>) -> Result<(), IrError> {
        let input_ids = net.token_input("input_ids")?;
        let mask = net.token_input("attention_mask")?;
        let table = net.weight(&self.embedding(), &[self.vocab_size, self.hidden_size])?;
        let words = net.graph.add(Op::Gather, [table, input_ids.into()])?;
        let name = format!("{}embeddings.norm", self.body);
        let mut residual = self.norm.add(net, words, &name)?;
        for layer in 0..self.layers.len() {
            residual = self.layer(net, layer, residual, [input_ids, mask])?;
        }
        let hidden = self
            .norm
            .add(net, residual, &format!("{}final_norm", self.body))?;
        let body = Body {
            mask,
            embedding: self.embedding(),
            vocab_size: self.vocab_size,
            heads: self.heads,
        };
        self.head.build(&body, net, hidden)
    }
}
