//! Rotary position embedding in a configuration: `rope_parameters` (transformers 5), or
//! `rope_theta` and `rope_scaling` (before).

use dlc_ir::{Rope, RopeScaling};
use serde_json::Value;

use super::config::{ConfigReader, show};

/// What transformers takes where a configuration names no base.
const DEFAULT_THETA: f64 = 10_000.0;
const LONGEST_CONTEXT: usize = 1 << 30;

/// How queries and keys are rotated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotary {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// Entries at the start of each head that are rotated, if not all are.
    pub(super) dim: Option<usize>,
}

impl Rotary {
    pub(super) fn rope(self, heads: usize) -> Rope {
        Rope {
            heads,
            rotary_dim: self.dim,
            theta: self.theta,
            scaling: self.scaling,
        }
    }
}

/// How much of each head a family rotates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Share {
    Whole,
    /// What the configuration says, else `default`.
    Partial {
        default: f64,
    },
}

/// The rotation of heads `head_dim` wide. Both spellings may be there if they agree.
pub(super) fn read(config: &mut ConfigReader<'_>, head_dim: usize, share: Share) -> Rotary {
    let default = match share {
        Share::Whole => None,
        Share::Partial { default } => Some(default),
    };
    let old_keys = [
        config.factor("rope_theta"),
        config.factor("rotary_emb_base"),
    ];
    let old_shares = ["partial_rotary_factor", "rotary_pct"]
        .map(|key| default.and_then(|_| read_share(config, key)));
    let new = spelling(config, "rope_parameters", default.is_some());
    let old = spelling(config, "rope_scaling", default.is_some());
    if let (Some(new), Some(old)) = (new, old)
        && new.scaling != old.scaling
    {
        config.bad(
            "rope_scaling",
            "and `rope_parameters` differ. Keep the one that is right".into(),
        );
    }
    let spellings = || [new, old].into_iter().flatten();
    let theta = one_of(
        config,
        "rope_theta",
        old_keys
            .into_iter()
            .flatten()
            .chain(spellings().filter_map(|s| s.theta)),
    );
    let share = one_of(
        config,
        "partial_rotary_factor",
        old_shares
            .into_iter()
            .flatten()
            .chain(spellings().filter_map(|s| s.share)),
    );
    let rotated = share
        .or(default)
        .map_or(head_dim, |share| (head_dim as f64 * share) as usize);
    if config.is_clean() && rotated == 0 {
        config.bad(
            "partial_rotary_factor",
            format!("leaves none of {head_dim} entries of a head to rotate"),
        );
    }
    let scaling = spellings().next().map_or(RopeScaling::None, |s| s.scaling);
    let dim = Some(rotated.max(1)).filter(|n| *n < head_dim);
    Rotary {
        theta: theta.unwrap_or(DEFAULT_THETA),
        scaling,
        dim,
    }
}

/// The share of a head that `key` says is rotated.
fn read_share(config: &mut ConfigReader<'_>, key: &'static str) -> Option<f64> {
    config.number(key, "above 0, at most 1", |x| x > 0.0 && x <= 1.0)
}

/// What all of `numbers` are; `key` is reported if they differ.
fn one_of(
    config: &mut ConfigReader<'_>,
    key: &'static str,
    numbers: impl Iterator<Item = f64>,
) -> Option<f64> {
    let numbers: Vec<f64> = numbers.collect();
    if numbers
        .windows(2)
        .any(|pair| pair[0].to_bits() != pair[1].to_bits())
    {
        config.bad(
            key,
            format!(
                "has different values in different places: {numbers:?}. Keep the one that is right"
            ),
        );
    }
    numbers.first().copied()
}

/// What one of the two objects says.
#[derive(Debug, Clone, Copy)]
struct Spelling {
    theta: Option<f64>,
    share: Option<f64>,
    scaling: RopeScaling,
}

fn spelling(config: &mut ConfigReader<'_>, key: &'static str, partial: bool) -> Option<Spelling> {
    let context = config.size("max_position_embeddings", LONGEST_CONTEXT);
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
        Some("llama3") => llama3(&mut rope),
        Some("dynamic") => RopeScaling::Dynamic {
            factor: rope.required_factor("factor"),
            original: context.unwrap_or(1),
        },
        Some(other) => {
            rope.unsupported(
                "rope_type",
                format!(
                    "is {}; dlc knows default, linear, dynamic and llama3",
                    show(&Value::from(other))
                ),
            );
            // Its parameters are beyond dlc as well; naming them one by one would help nobody.
            config.absorb_reported(rope);
            return None;
        }
    };
    // transformers doesn't read these under the types above either.
    for unread in [
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "attention_factor",
    ] {
        rope.get(unread);
    }
    config.absorb(rope);
    Some(Spelling {
        theta,
        share,
        scaling,
    })
}

fn llama3(rope: &mut ConfigReader<'_>) -> RopeScaling {
    let factor = rope.required_factor("factor");
    let low = rope.required_factor("low_freq_factor");
    let high = rope.required_factor("high_freq_factor");
    let original = rope.required_size("original_max_position_embeddings", LONGEST_CONTEXT);
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
