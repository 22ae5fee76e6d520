//! Rotary position embedding in a configuration: `rope_parameters` (transformers 5), or
//! `rope_theta` and `rope_scaling` (before).

mod scaling;

use dlc_ir::{Rope, RopeScaling};

use super::config::ConfigReader;
use scaling::{LONGEST_CONTEXT, Lengths, ORIGINAL, Spelling, read_share, spelling};

/// What transformers takes where a configuration names no base.
const DEFAULT_THETA: f64 = 10_000.0;

/// How queries and keys are rotated.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rotary {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    /// Entries at the start of each head that are rotated, if not all are.
    pub(super) dim: Option<usize>,
}

impl Rotary {
    pub(super) fn rope(&self, heads: usize) -> Rope {
        Rope {
            heads,
            rotary_dim: self.dim,
            theta: self.theta,
            scaling: self.scaling.clone(),
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
    let old_keys = ["rope_theta", "rotary_emb_base"].map(|key| written_factor(config, key));
    let old_shares = ["partial_rotary_factor", "rotary_pct"]
        .map(|key| default.and_then(|_| read_share(config, key)));
    let lengths = Lengths {
        original: config.size(ORIGINAL, LONGEST_CONTEXT),
        ..Lengths::of_context(config)
    };
    let new = spelling(config, "rope_parameters", default.is_some(), lengths);
    let old = spelling(config, "rope_scaling", default.is_some(), lengths);
    refuse_contradiction(config, new.as_ref(), old.as_ref());
    let spellings = || [&new, &old].into_iter().flatten();
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
    check_lists(config, spellings(), rotated.div_ceil(2));
    let scaling = spellings()
        .next()
        .map_or(RopeScaling::None, |s| s.scaling.clone());
    Rotary {
        theta: theta
            .or_else(|| config.factor("rope_theta"))
            .unwrap_or(DEFAULT_THETA),
        scaling,
        dim: Some(rotated.max(1)).filter(|n| *n < head_dim),
    }
}

/// The rotations of heads `head_dim` wide in layers without a window and in those with one, where
/// each kind has its own; `rope_scaling` is that of layers without. The bases are `thetas` where the
/// configuration has none.
pub(super) fn read_kinds(
    config: &mut ConfigReader<'_>,
    head_dim: usize,
    thetas: [f64; 2],
) -> [Rotary; 2] {
    const OBJECT: &str = "rope_parameters";
    let keys = ["rope_theta", "rope_local_base_freq"];
    let old_keys = keys.map(|key| written_factor(config, key));
    let lengths = Lengths::of_context(config);
    let mut new = [None, None];
    if let Some(mut kinds) = config.object(OBJECT) {
        new = ["full_attention", "sliding_attention"]
            .map(|kind| spelling(&mut kinds, kind, false, lengths));
        check_lists(&mut kinds, new.iter().flatten(), head_dim / 2);
        config.absorb(kinds);
    }
    let old = spelling(config, "rope_scaling", false, lengths);
    if old.as_ref().is_some_and(|old| !old.by_rope_type) {
        config.bad(
            "rope_scaling.type",
            "is not read by transformers for this architecture. Name it `rope_type`".into(),
        );
    }
    check_lists(config, old.iter(), head_dim / 2);
    refuse_contradiction(config, new[0].as_ref(), old.as_ref());
    let [full, sliding] = new;
    let mut rotary = |at: usize, spelling: Option<Spelling>| {
        let inner = spelling.as_ref().and_then(|spelling| spelling.theta);
        let found = one_of(config, keys[at], old_keys[at].into_iter().chain(inner));
        let scaling = spelling.map_or(RopeScaling::None, |spelling| spelling.scaling);
        if let RopeScaling::Yarn {
            truncate: false, ..
        } = scaling
        {
            let problem = "has `truncate`, which transformers doesn't read here";
            config.unsupported(OBJECT, problem.into());
        }
        Rotary {
            theta: found.unwrap_or(thetas[at]),
            scaling,
            dim: None,
        }
    };
    [rotary(0, full.or(old)), rotary(1, sliding)]
}

/// Reports two spellings that scale differently.
fn refuse_contradiction(
    config: &mut ConfigReader<'_>,
    new: Option<&Spelling>,
    old: Option<&Spelling>,
) {
    if let (Some(new), Some(old)) = (new, old)
        && new.scaling != old.scaling
    {
        config.bad(
            "rope_scaling",
            "and `rope_parameters` differ. Keep the one that is right".into(),
        );
    }
}

/// The factor that the file itself gives `key`, not its class.
fn written_factor(config: &mut ConfigReader<'_>, key: &'static str) -> Option<f64> {
    if config.is_written(key) {
        config.factor(key)
    } else {
        None
    }
}

/// Reports lists of factors that don't hold `count`, one for each frequency.
fn check_lists<'a>(
    config: &mut ConfigReader<'_>,
    spellings: impl Iterator<Item = &'a Spelling>,
    count: usize,
) {
    for spelling in spellings {
        let RopeScaling::LongRope { short, long, .. } = &spelling.scaling else {
            continue;
        };
        for (list, name) in [(short, "short_factor"), (long, "long_factor")] {
            if config.is_clean() && list.len() != count {
                config.bad(
                    &format!("{}.{name}", spelling.key),
                    format!(
                        "has {} numbers; it must have {count}, one for two rotated entries of a head",
                        list.len()
                    ),
                );
            }
        }
    }
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
