//! What stands after an encoder's last layer.

use dlc_ir::{IrError, Op, Operand, Scores, Shape, Task, ValueId, sym};
use serde_json::Value;

use super::activation::Activation;
use super::config::{ConfigReader, show};
use super::net::Net;

/// Most classes.
const MOST_LABELS: usize = 1 << 16;

/// What a head stands on.
pub(super) struct Body<'a> {
    /// What names of its tensors begin with.
    pub(super) prefix: &'a str,
    /// The tensor of the words' embedding, and its width.
    pub(super) embedding: String,
    pub(super) embedding_size: usize,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) eps: f32,
}

/// A head.
pub(super) enum Head {
    /// None: the hidden states are the output.
    Bare,
    /// A linear layer, an activation and a norm, then the embedding; which tensors these are
    /// differs.
    MaskedLm(MaskedLm),
    /// For the first token a linear layer, an activation and a linear layer.
    Text {
        pooler: &'static str,
        activation: Activation,
        classifier: &'static str,
        labels: Vec<String>,
        scores: Scores,
    },
    /// A linear layer for each token.
    Tokens { labels: Vec<String> },
    /// A linear layer for each token to two numbers: how much an answer begins and ends there.
    Span,
    /// For each token a linear layer, this activation, and a linear layer to how likely the token
    /// was replaced.
    Replaced(Activation),
}

/// The tensors of a head for masked tokens.
pub(super) struct MaskedLm {
    pub(super) dense: &'static str,
    pub(super) norm: &'static str,
    pub(super) activation: Activation,
    /// Tensor of the vocabulary's rows, if it isn't the embedding.
    pub(super) decoder: &'static str,
    pub(super) bias: &'static str,
    pub(super) tied: bool,
}

/// What the heads of a family are made of.
pub(super) struct Heads {
    pub(super) masked: MaskedLm,
    /// The layer before the classes of a text, with what follows it.
    pub(super) pooler: (&'static str, Activation),
    pub(super) classifier: &'static str,
}

/// The names of the classes, from `id2label`, or `num_labels` of them.
pub(super) fn labels(config: &mut ConfigReader<'_>) -> Vec<String> {
    let plain = |n: usize| (0..n).map(|i| format!("LABEL_{i}")).collect();
    match config.get("id2label") {
        Some(Value::Object(map)) if (1..=MOST_LABELS).contains(&map.len()) => {
            let named = (0..map.len()).map(|i| {
                map.get(&i.to_string())
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            });
            named.collect::<Option<Vec<_>>>().unwrap_or_else(|| {
                config.bad(
                    "id2label",
                    "must give a name to each number from 0 on".into(),
                );
                plain(map.len())
            })
        }
        Some(_) => {
            config.bad(
                "id2label",
                "must be an object with the name of each class".into(),
            );
            plain(1)
        }
        None => plain(config.size("num_labels", MOST_LABELS).unwrap_or(2)),
    }
}

/// What the scores of a text's `labels` mean; of one alone there is no probability to make.
pub(super) fn scores(config: &mut ConfigReader<'_>, labels: &[String]) -> Scores {
    match config.text("problem_type") {
        Some("multi_label_classification") => Scores::AnyClasses,
        Some("regression") => Scores::Numbers,
        None | Some("single_label_classification") => {
            if labels.len() == 1 {
                Scores::Numbers
            } else {
                Scores::OneClass
            }
        }
        Some(other) => {
            config.unsupported(
                "problem_type",
                format!("is {}; dlc knows single_label_classification, multi_label_classification and regression", show(&other.into())),
            );
            Scores::OneClass
        }
    }
}

impl Head {
    /// The head for `task`.
    pub(super) fn read(config: &mut ConfigReader<'_>, task: Task, heads: Heads) -> Self {
        match task {
            Task::FillMask => Self::MaskedLm(heads.masked),
            Task::TextClassification => {
                let labels = labels(config);
                let scores = scores(config, &labels);
                let (pooler, activation) = heads.pooler;
                Self::Text {
                    pooler,
                    activation,
                    classifier: heads.classifier,
                    labels,
                    scores,
                }
            }
            Task::TokenClassification => Self::Tokens {
                labels: labels(config),
            },
            Task::QuestionAnswering => {
                require_two_labels(config);
                Self::Span
            }
            Task::TextGeneration | Task::FeatureExtraction | Task::ImageGeneration => Self::Bare,
        }
    }

    /// What the scores mean.
    pub(super) fn scores(&self) -> Scores {
        match self {
            Self::Text { scores, .. } => *scores,
            Self::Replaced(_) => Scores::AnyClasses,
            Self::Bare | Self::MaskedLm(_) | Self::Tokens { .. } | Self::Span => Scores::OneClass,
        }
    }

    pub(super) fn labels(&self) -> Vec<String> {
        match self {
            Self::Text { labels, .. } | Self::Tokens { labels } => labels.clone(),
            Self::Replaced(_) => vec!["replaced".to_owned()],
            Self::Bare | Self::MaskedLm(_) | Self::Span => Vec::new(),
        }
    }

    /// Adds the head after `hidden [batch, seq, hidden_size]`, and the output.
    pub(super) fn build(
        &self,
        body: &Body<'_>,
        net: &mut Net<'_>,
        hidden: ValueId,
    ) -> Result<(), IrError> {
        let width = body.hidden_size;
        match self {
            Self::Bare => {
                // Tasks take the hidden states; the pooler was trained for another.
                net.ignore("pooler.");
                net.output(Task::FeatureExtraction.output(), hidden)
            }
            Self::MaskedLm(head) => {
                net.ignore(&format!("{}pooler.", body.prefix));
                net.ignore("cls.seq_relationship.");
                let logits = head.build(body, net, hidden)?;
                net.output("logits", logits)
            }
            Self::Text {
                pooler,
                activation,
                classifier,
                labels,
                ..
            } => {
                let first = first_token(net, hidden, width)?;
                let pooled = net.linear(first, pooler, [width, width], true)?;
                let pooled = net.activate(pooled, *activation)?;
                let logits = net.linear(pooled, classifier, [labels.len(), width], true)?;
                net.output("logits", logits)
            }
            Self::Tokens { labels } => {
                net.ignore(&format!("{}pooler.", body.prefix));
                let logits = net.linear(hidden, "classifier", [labels.len(), width], true)?;
                net.output("logits", logits)
            }
            Self::Span => {
                net.ignore(&format!("{}pooler.", body.prefix));
                let both = net.linear(hidden, "qa_outputs", [2, width], true)?;
                span_outputs(net, both)
            }
            Self::Replaced(activation) => {
                let name = "discriminator_predictions";
                let x = net.linear(hidden, &format!("{name}.dense"), [width, width], true)?;
                let x = net.activate(x, *activation)?;
                let last = format!("{name}.dense_prediction");
                let logits = net.linear(x, &last, [1, width], true)?;
                net.output("logits", logits)
            }
        }
    }
}

/// Reports labels that aren't two: the class splits what it computes in that many.
pub(super) fn require_two_labels(config: &mut ConfigReader<'_>) {
    let found = labels(config).len();
    if config.is_clean() && found != 2 {
        let problem = format!("gives {found} labels; an answer has a beginning and an end");
        config.bad("id2label", problem);
    }
}

/// The outputs of `both [batch, seq, 2]`: how much an answer begins and ends at each token.
pub(super) fn span_outputs(net: &mut Net<'_>, both: ValueId) -> Result<(), IrError> {
    for (column, name) in Task::QuestionAnswering.outputs().iter().enumerate() {
        let one = net.columns(both, column, 1)?;
        let shape = Shape(vec![sym("batch"), sym("seq")]);
        let one = net.graph.add(Op::Reshape { shape }, [one.into()])?;
        net.output(name, one)?;
    }
    Ok(())
}

/// The state of the first token, `[batch, width]`.
pub(super) fn first_token(
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
    let shape = Shape(vec![sym("batch"), width.into()]);
    net.graph.add(Op::Reshape { shape }, [first.into()])
}

impl MaskedLm {
    fn build(
        &self,
        body: &Body<'_>,
        net: &mut Net<'_>,
        hidden: ValueId,
    ) -> Result<ValueId, IrError> {
        let (width, vocab) = (body.embedding_size, body.vocab_size);
        let x = net.linear(hidden, self.dense, [width, body.hidden_size], true)?;
        let x = net.activate(x, self.activation)?;
        let x = net.layer_norm(x, self.norm, width, body.eps)?;
        let table = net.head(
            &format!("{}.weight", self.decoder),
            &body.embedding,
            [vocab, width],
            self.tied,
        )?;
        // The same vector under two names, of which checkpoints hold one or both.
        let decoder_bias = format!("{}.bias", self.decoder);
        let (name, copy) = if net.has(self.bias) || !net.has(&decoder_bias) {
            (self.bias, &*decoder_bias)
        } else {
            (&*decoder_bias, self.bias)
        };
        let bias: Operand = net.weight(name, &[vocab])?;
        net.note_copy(copy, name, "tie_word_embeddings");
        net.graph.add(Op::Linear, [x.into(), table, bias])
    }
}
