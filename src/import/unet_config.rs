//! What the configurations of U-Nets say alike, and how they say it: numbers and names once for all
//! stages, or one for each.

use dlc_ir::TimestepEmbedding;
use serde_json::Value;

use super::config::{ConfigReader, show};
use super::diffusers::{MOST_CHANNELS, ignore_training, require_text, sample_size};
use super::spec::{WIDEST, eps};

/// Most stages: each halves the image.
const MOST_STAGES: usize = 12;
/// Most resnets of a stage on the way down, and most layers of a transformer.
pub(super) const MOST_RESNETS: usize = 16;
pub(super) const MOST_TRANSFORMER_LAYERS: usize = 32;
/// Largest side of a kernel at either end.
const LARGEST_KERNEL: usize = 63;

/// What is read alike.
pub(super) struct Common {
    pub(super) sample: [usize; 2],
    pub(super) channels: [usize; 2],
    pub(super) widths: Vec<usize>,
    pub(super) layers: Vec<usize>,
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) downsample_padding: usize,
    pub(super) sinusoids: TimestepEmbedding,
    pub(super) embedding: usize,
}

impl Common {
    pub(super) fn read(config: &mut ConfigReader<'_>) -> Self {
        ignore_training(config);
        for (key, known) in [
            ("act_fn", "silu"),
            ("resnet_time_scale_shift", "default"),
            ("time_embedding_type", "positional"),
        ] {
            require_text(config, key, known);
        }
        let widths = widths(config);
        let first = widths[0];
        let common = Self {
            sample: sample_size(config),
            channels: [
                config.required_size("in_channels", MOST_CHANNELS),
                config.required_size("out_channels", MOST_CHANNELS),
            ],
            layers: per_stage(config, "layers_per_block", widths.len(), MOST_RESNETS),
            groups: config.required_size("norm_num_groups", MOST_CHANNELS),
            eps: eps(config, "norm_eps"),
            downsample_padding: usize::from(
                config.get("downsample_padding").and_then(Value::as_u64) != Some(0),
            ),
            sinusoids: sinusoids(config, first),
            embedding: config
                .size("time_embedding_dim", WIDEST)
                .unwrap_or(4 * first),
            widths,
        };
        if config
            .get("downsample_padding")
            .is_some_and(|p| !matches!(p.as_u64(), Some(0 | 1)))
        {
            config.unsupported("downsample_padding", "must be 0 or 1".into());
        }
        if config.is_clean() {
            common.check(config);
        }
        common
    }

    /// What heights and widths must be multiples of. With `sized_up`, stages on the way up take
    /// the sizes that those on the way down had, which mends what was rounded up.
    pub(super) fn size_step(&self, sized_up: bool) -> usize {
        if sized_up && self.downsample_padding > 0 {
            1
        } else {
            1 << (self.widths.len() - 1)
        }
    }

    fn check(&self, config: &mut ConfigReader<'_>) {
        let multiple = self.size_step(false);
        if self
            .sample
            .iter()
            .any(|side| !side.is_multiple_of(multiple))
        {
            let [height, width] = self.sample;
            config
                .unsupported("sample_size", format!("is {height} by {width}; dlc wants multiples of {multiple}, so that every stage halves exactly"));
        }
        // On the way up, norms see the channels of two stages.
        if let Some(width) = self
            .widths
            .iter()
            .find(|width| !width.is_multiple_of(self.groups))
        {
            config.bad(
                "norm_num_groups",
                format!(
                    "is {}, which doesn't divide the {width} channels of a stage",
                    self.groups
                ),
            );
        }
        if !self.widths[0].is_multiple_of(2) {
            config.bad(
                "block_out_channels",
                format!(
                    "begins with {}, an odd number, which sinusoids can't fill",
                    self.widths[0]
                ),
            );
        }
    }
}

/// Sinusoids of the noise level, `dim` wide, as `freq_shift` and `flip_sin_to_cos` say.
pub(super) fn sinusoids(config: &mut ConfigReader<'_>, dim: usize) -> TimestepEmbedding {
    let shift = config.number(
        "freq_shift",
        "from 0 to less than half the embedding's width",
        |x| x >= 0.0 && x < (dim as f64 / 2.0),
    );
    TimestepEmbedding {
        dim,
        flip_sin_to_cos: config.flag("flip_sin_to_cos"),
        shift: shift.unwrap_or(0.0) as f32,
    }
}

/// `block_out_channels`: one number for each stage, at least one.
pub(super) fn widths(config: &mut ConfigReader<'_>) -> Vec<usize> {
    channels(config, "block_out_channels")
}

/// The channels of each stage, at least one.
pub(super) fn channels(config: &mut ConfigReader<'_>, key: &'static str) -> Vec<usize> {
    let list: Option<Vec<usize>> = config
        .get(key)
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(width).collect());
    let length = config
        .get(key)
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    match list {
        Some(list) if list.len() == length && (1..=MOST_STAGES).contains(&length) => list,
        _ => {
            let found = config.get(key).map_or_else(|| "missing".to_owned(), show);
            config.bad(key, format!("is {found}; it must be a list of 1 to {MOST_STAGES} whole numbers from 1 to {MOST_CHANNELS}"));
            vec![2]
        }
    }
}

fn width(value: &Value) -> Option<usize> {
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (1..=MOST_CHANNELS).contains(n))
}

/// A whole number up to `cap` for each of `stages`: one for all, or a list.
pub(super) fn per_stage(
    config: &mut ConfigReader<'_>,
    key: &'static str,
    stages: usize,
    cap: usize,
) -> Vec<usize> {
    let size = |value: &Value| {
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=cap).contains(n))
    };
    let found = match config.get(key) {
        Some(Value::Array(list)) => list
            .iter()
            .map(size)
            .collect::<Option<Vec<_>>>()
            .filter(|list| list.len() == stages),
        value => value.and_then(size).map(|n| vec![n; stages]),
    };
    found.unwrap_or_else(|| {
        let shown = config.get(key).map_or_else(|| "missing".to_owned(), show);
        config.bad(key, format!("is {shown}; it must be a whole number from 1 to {cap}, or a list of {stages}, one for each stage"));
        vec![1; stages]
    })
}

/// For each of `stages` which of `known` the list of names says it is.
pub(super) fn stage_kinds(
    config: &mut ConfigReader<'_>,
    key: &'static str,
    stages: usize,
    known: [&str; 2],
) -> Vec<bool> {
    let list = config
        .get(key)
        .and_then(Value::as_array)
        .filter(|list| list.len() == stages);
    let Some(list) = list else {
        let shown = config.get(key).map_or_else(|| "missing".to_owned(), show);
        config.bad(
            key,
            format!("is {shown}; it must be a list of {stages} names, one for each stage"),
        );
        return vec![false; stages];
    };
    let mut kinds = Vec::new();
    for name in list {
        let kind = known.iter().position(|known| name.as_str() == Some(known));
        if kind.is_none() {
            config.unsupported(
                key,
                format!("has {}; dlc knows {}", show(name), known.join(" and ")),
            );
        }
        kinds.push(kind == Some(1));
    }
    kinds
}

/// The side of a kernel at one end: odd.
pub(super) fn kernel(config: &mut ConfigReader<'_>, key: &'static str) -> usize {
    let side = config.required_size(key, LARGEST_KERNEL);
    if side.is_multiple_of(2) {
        config.unsupported(key, format!("is {side}; dlc knows odd kernels here"));
    }
    side
}
