//! The text form: one line a value, complete enough to be parsed back, stable enough to be diffed.
//!
//! ```text
//! graph target {
//!   input input_ids: i64[batch, seq]
//!   %0 = gather @model.embed_tokens.weight, %input_ids : f32[batch, seq, 48]
//!   block layers.0.mlp (mlp layer=0) from %0 {
//!     %layers.0.mlp.0 = rms_norm %0, @model.layers.0.input_layernorm.weight eps=1e-6 : f32[batch, seq, 48]
//!   } to %layers.0.mlp.0
//!   output logits = %layers.0.mlp.0
//! }
//! weight @model.embed_tokens.weight: f32[99, 48]
//! ```

use std::fmt::Write;

use crate::graph::{Graph, Node, Operand, ValueNames};
use crate::index::BlockId;
use crate::op::{DisentangledBias, GroupFormat, Op, RopeScaling};
use crate::weight::WeightTable;

impl Graph {
    /// The graph in text form, with the types of the weights that it uses.
    pub fn to_text(&self, weights: &WeightTable) -> String {
        let mut text = self.body_text(weights);
        for id in self.weights() {
            let weight = &weights[id];
            let _ = writeln!(text, "weight @{}: {}", weight.name, weight.ty());
        }
        text
    }

    /// The graph in text form without the table of weights.
    pub fn body_text(&self, weights: &WeightTable) -> String {
        let mut printer = Printer {
            graph: self,
            weights,
            names: self.value_names(),
            text: String::new(),
        };
        printer.graph();
        printer.text
    }
}

struct Printer<'a> {
    graph: &'a Graph,
    weights: &'a WeightTable,
    names: ValueNames,
    text: String,
}

/// Writing to a `String` can't fail.
macro_rules! line {
    ($printer:expr, $($format:tt)*) => {{
        let _ = writeln!($printer.text, $($format)*);
    }};
}

impl Printer<'_> {
    fn graph(&mut self) {
        let graph = self.graph;
        line!(self, "graph {} {{", graph.name);
        for input in &graph.inputs {
            let role = input.cache.map(|c| format!(" ({c})")).unwrap_or_default();
            line!(
                self,
                "  input {}: {}{role}",
                input.name,
                graph.values[input.value].ty
            );
        }
        let mut open = None;
        for node in &graph.nodes {
            if node.block != open {
                self.close(open);
                self.open(node.block);
                open = node.block;
            }
            self.node(node);
        }
        self.close(open);
        for output in &graph.outputs {
            let role = output.cache.map(|c| format!(" ({c})")).unwrap_or_default();
            line!(
                self,
                "  output {} = %{}{role}",
                output.name,
                &self.names[output.value]
            );
        }
        line!(self, "}}");
    }

    fn open(&mut self, block: Option<BlockId>) {
        if let Some(id) = block {
            let block = &self.graph.blocks[id];
            line!(
                self,
                "  block {} ({} layer={}) from %{} {{",
                block.name,
                block.kind.name(),
                block.layer,
                &self.names[block.input]
            );
        }
    }

    fn close(&mut self, block: Option<BlockId>) {
        if let Some(id) = block {
            line!(
                self,
                "  }} to %{}",
                &self.names[self.graph.blocks[id].output]
            );
        }
    }

    fn node(&mut self, node: &Node) {
        let indent = if node.block.is_some() { "    " } else { "  " };
        let outputs: Vec<String> = node
            .outputs
            .iter()
            .map(|v| format!("%{}", &self.names[*v]))
            .collect();
        let inputs: Vec<String> = node.inputs.iter().map(|o| self.operand(*o)).collect();
        let types: Vec<String> = node
            .outputs
            .iter()
            .map(|v| self.graph.values[*v].ty.to_string())
            .collect();
        let attributes = attributes(&node.op)
            .iter()
            .fold(String::new(), |text, (k, v)| format!("{text} {k}={v}"));
        line!(
            self,
            "{indent}{} = {} {}{attributes} : {}",
            outputs.join(", "),
            node.op.name(),
            inputs.join(", "),
            types.join(", ")
        );
    }

    fn operand(&self, operand: Operand) -> String {
        match operand {
            Operand::Value(v) => format!("%{}", &self.names[v]),
            Operand::Weight(w) => format!("@{}", self.weights[w].name),
        }
    }
}

/// What the text form says of an op besides its name; [`crate::parse`] reads it back. Shapes come
/// from the node's type.
fn attributes(op: &Op) -> Vec<(&'static str, String)> {
    match op {
        Op::Gather
        | Op::GatherColumns
        | Op::Linear
        | Op::Silu
        | Op::Tanh
        | Op::Relu
        | Op::Mul
        | Op::Add
        | Op::Modulate
        | Op::Reshape { .. }
        | Op::Cast { .. } => vec![],
        Op::QuantizedLinear(format) | Op::QuantizedGather(format) => group_format(format).to_vec(),
        Op::Experts(experts) => {
            let mut list = vec![
                ("top", experts.top.to_string()),
                ("normalized", experts.normalized.to_string()),
            ];
            list.extend(experts.format.iter().flat_map(group_format));
            list
        }
        Op::RmsNorm { eps } | Op::LayerNorm { eps } => vec![("eps", format!("{eps:?}"))],
        Op::GroupNorm { groups, eps } => {
            vec![("groups", groups.to_string()), ("eps", format!("{eps:?}"))]
        }
        Op::Conv2d { stride, padding } => {
            vec![("stride", stride.to_string()), ("padding", list(padding))]
        }
        Op::Upsample { factor } => vec![("factor", factor.to_string())],
        Op::Concat { axis } => vec![("axis", axis.to_string())],
        Op::Transpose { axes } => vec![("axes", list(axes))],
        Op::TimestepEmbedding(t) => {
            vec![
                ("dim", t.dim.to_string()),
                ("flip_sin_to_cos", t.flip_sin_to_cos.to_string()),
                ("shift", format!("{:?}", t.shift)),
            ]
        }
        Op::LastToken { padding } => vec![("padding", padding.to_string())],
        Op::FirstToken { id } => id.iter().map(|id| ("id", id.to_string())).collect(),
        Op::Positions { padding } => padding.iter().map(|p| ("padding", p.to_string())).collect(),
        Op::Gelu { tanh } => vec![("by", if *tanh { "tanh" } else { "erf" }.to_owned())],
        Op::Scale { factor } => vec![("factor", format!("{factor:?}"))],
        Op::Clip { limit } => vec![("limit", format!("{limit:?}"))],
        Op::Slice { axis, start, len } => vec![
            ("axis", axis.to_string()),
            ("start", start.to_string()),
            ("len", len.to_string()),
        ],
        Op::DisentangledBias(bias) => disentangled_bias(bias),
        Op::BucketedBias(bias) => vec![
            ("buckets", bias.buckets.to_string()),
            ("until", bias.until.to_string()),
        ],
        Op::Rope(rope) => {
            let mut list = vec![
                ("heads", rope.heads.to_string()),
                ("theta", format!("{:?}", rope.theta)),
            ];
            list.extend(rope.rotary_dim.map(|n| ("rotary_dim", n.to_string())));
            list.extend(scaling(&rope.scaling));
            list
        }
        Op::Attention(a) => {
            let mut list = vec![
                ("heads", a.heads.to_string()),
                ("kv_heads", a.kv_heads.to_string()),
                ("scale", format!("{:?}", a.scale)),
            ];
            list.extend(a.window.map(|w| ("window", w.to_string())));
            list.extend(a.softcap.map(|c| ("softcap", format!("{c:?}"))));
            if !a.causal {
                list.push(("causal", "false".to_owned()));
            }
            list
        }
    }
}

fn group_format(format: &GroupFormat) -> [(&'static str, String); 2] {
    [
        ("bits", format.bits.to_string()),
        ("group_size", format.group_size.to_string()),
    ]
}

fn disentangled_bias(bias: &DisentangledBias) -> Vec<(&'static str, String)> {
    let mut list = vec![
        ("heads", bias.heads.to_string()),
        ("scale", format!("{:?}", bias.scale)),
        ("span", bias.span.to_string()),
    ];
    list.extend(bias.log_until.map(|until| ("log_until", until.to_string())));
    list.extend([("c2p", bias.c2p.to_string()), ("p2c", bias.p2c.to_string())]);
    list
}

fn scaling(scaling: &RopeScaling) -> Vec<(&'static str, String)> {
    let number = |x: &f64| format!("{x:?}");
    match scaling {
        RopeScaling::None => vec![],
        RopeScaling::Linear { factor } => {
            vec![("scaling", "linear".into()), ("factor", number(factor))]
        }
        RopeScaling::Dynamic { factor, original } => vec![
            ("scaling", "dynamic".into()),
            ("factor", number(factor)),
            ("original", original.to_string()),
        ],
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => vec![
            ("scaling", "llama3".into()),
            ("factor", number(factor)),
            ("low", number(low)),
            ("high", number(high)),
            ("original", original.to_string()),
        ],
        RopeScaling::Yarn {
            factor,
            fast,
            slow,
            original,
            truncate,
            attention,
        } => vec![
            ("scaling", "yarn".into()),
            ("factor", number(factor)),
            ("fast", number(fast)),
            ("slow", number(slow)),
            ("original", original.to_string()),
            ("truncate", truncate.to_string()),
            ("attention", number(attention)),
        ],
        RopeScaling::LongRope {
            short,
            long,
            original,
            attention,
        } => vec![
            ("scaling", "longrope".into()),
            ("original", original.to_string()),
            ("attention", number(attention)),
            ("short", list(short)),
            ("long", list(long)),
        ],
    }
}

/// Numbers with commas between them.
fn list<T: std::fmt::Debug>(numbers: &[T]) -> String {
    let texts: Vec<String> = numbers.iter().map(|number| format!("{number:?}")).collect();
    texts.join(",")
}
