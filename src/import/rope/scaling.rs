//! What one object of a configuration says of a rotation: its type and that type's parameters.

use dlc_ir::RopeScaling;
use serde_json::Value;

use super::super::config::{ConfigReader, show};

pub(super) const LONGEST_CONTEXT: usize = 1 << 30;

/// The share of a head that `key` says is rotated.
pub(super) fn read_share(config: &mut ConfigReader<'_>, key: &'static str) -> Option<f64> {
    config.number(key, "above 0, at most 1", |x| x > 0.0 && x <= 1.0)
}

/// What one of the two objects says.
#[derive(Debug, Clone)]
pub(super) struct Spelling {
    pub(super) key: &'static str,
    /// Whether the type is called `rope_type`.
    pub(super) by_rope_type: bool,
    pub(super) theta: Option<f64>,
    pub(super) share: Option<f64>,
    pub(super) scaling: RopeScaling,
}

/// What the object under `key` says, where `partial` also of the share of a head.
pub(super) fn spelling(
    config: &mut ConfigReader<'_>,
    key: &'static str,
    partial: bool,
    lengths: Lengths,
) -> Option<Spelling> {
    let mut rope = config.object(key)?;
    let share = if partial {
        read_share(&mut rope, "partial_rotary_factor")
    } else {
        None
    };
    let theta = rope.factor("rope_theta");
    let names = [rope.text("rope_type"), rope.text("type")];
    if let [Some(a), Some(b)] = names
        && a != b
    {
        rope.bad(
            "type",
            format!(
                "is {}, but `rope_type` is {}. Keep the one that is right",
                show(&Value::from(b)),
                show(&Value::from(a))
            ),
        );
    }
    let scaling = match names.into_iter().flatten().next() {
        None if key == "rope_scaling" => {
            rope.bad("rope_type", "is missing".into());
            RopeScaling::None
        }
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: rope.required_factor("factor"),
        },
        Some("llama3") => llama3(&mut rope, lengths),
        Some("dynamic") => RopeScaling::Dynamic {
            factor: rope.required_factor("factor"),
            original: lengths.context.unwrap_or(1),
        },
        Some("yarn") => yarn(&mut rope, lengths),
        Some("longrope") => longrope(&mut rope, lengths),
        Some(other) => {
            rope.unsupported(
                "rope_type",
                format!(
                    "is {}; dlc knows default, linear, dynamic, llama3, yarn and longrope",
                    show(&Value::from(other))
                ),
            );
            // Its parameters are beyond dlc as well; naming them one by one would help nobody.
            config.absorb_reported(rope);
            return None;
        }
    };
    // transformers doesn't read these under types that aren't theirs either.
    for parameter in PARAMETERS {
        rope.get(parameter);
    }
    config.absorb(rope);
    Some(Spelling {
        key,
        by_rope_type: names[0].is_some(),
        theta,
        share,
        scaling,
    })
}

pub(super) const ORIGINAL: &str = "original_max_position_embeddings";

/// The parameters of all types.
const PARAMETERS: [&str; 12] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    ORIGINAL,
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
];

/// The lengths that the configuration itself states.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    pub(super) context: Option<usize>,
    pub(super) original: Option<usize>,
}

impl Lengths {
    pub(super) fn of_context(config: &mut ConfigReader<'_>) -> Self {
        Self {
            context: config.size("max_position_embeddings", LONGEST_CONTEXT),
            original: None,
        }
    }

    /// The length trained on, as transformers resolves it: the configuration's own word goes before
    /// that of its object, and the context length stands for both.
    fn original(self, rope: &mut ConfigReader<'_>) -> usize {
        let inner = rope.size(ORIGINAL, LONGEST_CONTEXT);
        self.original.or(inner).or(self.context).unwrap_or(1)
    }

    /// By how much the context is longer than what was trained on.
    fn ratio(self, original: usize) -> f64 {
        self.context.unwrap_or(original) as f64 / original as f64
    }
}

fn llama3(rope: &mut ConfigReader<'_>, lengths: Lengths) -> RopeScaling {
    let factor = rope.required_factor("factor");
    let low = rope.required_factor("low_freq_factor");
    let high = rope.required_factor("high_freq_factor");
    let original = lengths.original(rope);
    if low > high {
        rope.bad(
            "low_freq_factor",
            format!("is {low}, more than `high_freq_factor`, which is {high}"),
        );
    }
    RopeScaling::Llama3 {
        factor,
        low,
        high,
        original,
    }
}

/// As `_compute_yarn_parameters` of transformers reads it: 0 stands for the default.
fn yarn(rope: &mut ConfigReader<'_>, lengths: Lengths) -> RopeScaling {
    let original = lengths.original(rope);
    let mut set = |key| {
        rope.number(key, "from 0 to 1e6", |x| (0.0..=1e6).contains(&x))
            .filter(|x| *x != 0.0)
    };
    let [fast, slow, scale, scale_all] =
        ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"].map(&mut set);
    let factor = if rope.is_written("factor") {
        rope.factor("factor")
            .unwrap_or_else(|| lengths.ratio(original))
    } else {
        rope.required_factor("factor")
    };
    let grown = |scale: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * scale * factor.ln() + 1.0
        }
    };
    let implied = match (scale, scale_all) {
        (Some(scale), Some(all)) => grown(scale) / grown(all),
        _ => grown(1.0),
    };
    RopeScaling::Yarn {
        factor,
        fast: fast.unwrap_or(32.0),
        slow: slow.unwrap_or(1.0),
        original,
        truncate: !rope.is_written("truncate") || rope.flag("truncate"),
        attention: rope.factor("attention_factor").unwrap_or(implied),
    }
}

/// As `_compute_longrope_parameters` of transformers reads it.
fn longrope(rope: &mut ConfigReader<'_>, lengths: Lengths) -> RopeScaling {
    let original = lengths.original(rope);
    let factor = rope
        .factor("factor")
        .unwrap_or_else(|| lengths.ratio(original));
    let given = rope.factor("attention_factor");
    if original == 1 && factor > 1.0 && given.is_none() {
        rope.bad(
            ORIGINAL,
            "is 1, of which no attention factor follows".into(),
        );
    }
    let implied = if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / (original as f64).ln()).sqrt()
    };
    let [short, long] = ["short_factor", "long_factor"].map(|key| rope.factors(key).into());
    RopeScaling::LongRope {
        short,
        long,
        original,
        attention: given.unwrap_or(implied),
    }
}
