//! What stands after `ModernBERT`'s last norm: a linear layer, an activation and a norm, then what
//! the task asks for.

use dlc_ir::{Attention, IrError, Op, Operand, Scores, Task, ValueId};

use super::Norm;
use crate::import::activation::Activation;
use crate::import::config::{ConfigReader, show};
use crate::import::heads::{first_token, labels, require_two_labels, scores, span_outputs};
use crate::import::net::Net;

/// What a head stands behind.
pub(super) struct Body {
    pub(super) mask: ValueId,
    /// The tensor of the words' embedding.
    pub(super) embedding: String,
    pub(super) vocab_size: usize,
    pub(super) heads: usize,
}

/// A head.
pub(super) struct Head {
    kind: Kind,
    norm: Norm,
    activation: Activation,
    /// Whether the linear layer before the norm has a bias.
    bias: bool,
}

enum Kind {
    Bare,
    MaskedLm {
        bias: bool,
        tied: bool,
    },
    Text {
        /// Whether all tokens count, not the first alone.
        mean: bool,
        labels: Vec<String>,
        scores: Scores,
    },
    Tokens {
        labels: Vec<String>,
    },
    Span,
}

impl Head {
    /// The head for `task`.
    pub(super) fn read(config: &mut ConfigReader<'_>, task: Task, norm: Norm) -> Self {
        let mean = mean(config);
        let (bias, tied) = (
            config.flag("decoder_bias"),
            config.flag("tie_word_embeddings"),
        );
        let kind = match task {
            Task::FillMask => Kind::MaskedLm { bias, tied },
            Task::TextClassification => {
                let labels = labels(config);
                let scores = scores(config, &labels);
                Kind::Text {
                    mean,
                    labels,
                    scores,
                }
            }
            Task::TokenClassification => Kind::Tokens {
                labels: labels(config),
            },
            Task::QuestionAnswering => {
                require_two_labels(config);
                Kind::Span
            }
            Task::TextGeneration | Task::FeatureExtraction | Task::ImageGeneration => Kind::Bare,
        };
        Self {
            kind,
            norm,
            activation: Activation::read(config, "classifier_activation"),
            bias: config.flag("classifier_bias"),
        }
    }

    /// The names of the classes.
    pub(super) fn labels(&self) -> Vec<String> {
        match &self.kind {
            Kind::Text { labels, .. } | Kind::Tokens { labels } => labels.clone(),
            Kind::Bare | Kind::MaskedLm { .. } | Kind::Span => Vec::new(),
        }
    }

    /// What the scores mean.
    pub(super) fn scores(&self) -> Scores {
        match self.kind {
            Kind::Text { scores, .. } => scores,
            _ => Scores::OneClass,
        }
    }

    /// Adds the head after `hidden [batch, seq, width]`, and the output.
    pub(super) fn build(
        &self,
        body: &Body,
        net: &mut Net<'_>,
        hidden: ValueId,
    ) -> Result<(), IrError> {
        let (width, rows) = (self.norm.width, body.vocab_size);
        let logits = match &self.kind {
            Kind::Bare => {
                net.leave_out("head.");
                net.leave_out("decoder.");
                return net.output(Task::FeatureExtraction.output(), hidden);
            }
            Kind::MaskedLm { bias, tied } => {
                let x = self.transform(net, hidden)?;
                let table = net.head("decoder.weight", &body.embedding, [rows, width], *tied)?;
                if *bias {
                    let bias = net.weight("decoder.bias", &[rows])?;
                    net.graph.add(Op::Linear, [x.into(), table, bias])?
                } else {
                    net.graph.add(Op::Linear, [x.into(), table])?
                }
            }
            Kind::Text { mean, labels, .. } => {
                let pooled = if *mean {
                    mean_token(body, net, hidden, width)?
                } else {
                    first_token(net, hidden, width)?
                };
                let x = self.transform(net, pooled)?;
                net.linear(x, "classifier", [labels.len(), width], true)?
            }
            Kind::Tokens { labels } => {
                let x = self.transform(net, hidden)?;
                net.linear(x, "classifier", [labels.len(), width], true)?
            }
            Kind::Span => {
                let x = self.transform(net, hidden)?;
                let both = net.linear(x, "classifier", [2, width], true)?;
                return span_outputs(net, both);
            }
        };
        net.output("logits", logits)
    }

    fn transform(&self, net: &mut Net<'_>, x: ValueId) -> Result<ValueId, IrError> {
        let width = self.norm.width;
        let x = net.linear(x, "head.dense", [width, width], self.bias)?;
        let x = net.activate(x, self.activation)?;
        self.norm.add(net, x, "head.norm")
    }
}

/// Whether classes are made of the mean of the tokens.
fn mean(config: &mut ConfigReader<'_>) -> bool {
    const KEY: &str = "classifier_pooling";
    match config.text(KEY) {
        Some("mean") => true,
        Some("cls") | None => false,
        Some(other) => {
            let problem = format!("is {}; dlc knows cls and mean", show(&other.into()));
            config.unsupported(KEY, problem);
            false
        }
    }
}

/// The mean of the tokens, `[batch, width]`: what attention gives whose query is 0, so that each
/// head sees all tokens alike, and no padding.
fn mean_token(
    body: &Body,
    net: &mut Net<'_>,
    hidden: ValueId,
    width: usize,
) -> Result<ValueId, IrError> {
    let first = Op::Slice {
        axis: 1,
        start: 0,
        len: 1,
    };
    let first = net.graph.add(first, [hidden.into()])?;
    let nothing = net.graph.add(Op::Scale { factor: 0.0 }, [first.into()])?;
    // Twice, as tract doesn't run attention of a single query.
    let twice = Op::Concat { axis: 1 };
    let nothing = net.graph.add(twice, [nothing.into(), nothing.into()])?;
    let attention = Attention {
        heads: body.heads,
        kv_heads: body.heads,
        scale: 1.0,
        window: None,
        softcap: None,
        causal: false,
    };
    let inputs = [nothing, hidden, hidden, body.mask].map(Operand::from);
    let mean = net.graph.add(Op::Attention(attention), inputs)?;
    first_token(net, mean, width)
}
