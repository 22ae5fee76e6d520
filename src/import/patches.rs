//! Images as sequences of patches, and back: the two ends of a diffusion transformer.

use dlc_ir::{Diffusion, Dim, IrError, Op, Shape, ValueId, sym};

use super::config::ConfigReader;
use super::diffusers::{LARGEST_SAMPLE, MOST_CHANNELS};
use super::net::Net;
use super::spec::{MOST_HEADS, MOST_LAYERS, WIDEST};

/// The most numbers in the table of positions, which is computed while importing: 256 MiB.
const LARGEST_TABLE: usize = 1 << 26;
const WIDEST_HEAD: usize = 1 << 14;

/// What the configurations of diffusion transformers say alike.
#[derive(Debug, Clone)]
pub(super) struct PatchSpec {
    pub(super) channels: usize,
    pub(super) out_channels: usize,
    /// Height and width of the noisy image.
    pub(super) sample: [usize; 2],
    /// Side of a patch; divides height and width.
    pub(super) patch: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// Whether queries, keys and values have a bias.
    pub(super) attention_bias: bool,
}

impl PatchSpec {
    pub(super) fn read(config: &mut ConfigReader<'_>) -> Self {
        let channels = config.required_size("in_channels", MOST_CHANNELS);
        let sample = [config.required_size("sample_size", LARGEST_SAMPLE); 2];
        let spec = Self {
            channels,
            out_channels: config
                .size("out_channels", 2 * MOST_CHANNELS)
                .unwrap_or(channels),
            sample,
            patch: config.required_size("patch_size", LARGEST_SAMPLE),
            layers: config.required_size("num_layers", MOST_LAYERS),
            heads: config.required_size("num_attention_heads", MOST_HEADS),
            head_dim: config.required_size("attention_head_dim", WIDEST_HEAD),
            attention_bias: config.flag("attention_bias"),
        };
        if config.flag("norm_elementwise_affine") {
            config.unsupported(
                "norm_elementwise_affine",
                "is true; dlc knows norms without parameters here".into(),
            );
        }
        // Of group norms, which these models don't have.
        config.get("norm_num_groups");
        if config.is_clean() {
            spec.check(config);
        }
        spec
    }

    fn check(&self, config: &mut ConfigReader<'_>) {
        let width = self.width();
        if width > WIDEST || !width.is_multiple_of(4) {
            config.bad(
                "attention_head_dim",
                format!("gives a width of {width}; it must be a multiple of 4 up to {WIDEST}"),
            );
        }
        if self
            .sample
            .iter()
            .any(|side| !side.is_multiple_of(self.patch))
        {
            config.bad(
                "sample_size",
                format!(
                    "is {}, which patches of {} don't divide",
                    self.sample[0], self.patch
                ),
            );
        } else if self.patches().saturating_mul(width) > LARGEST_TABLE {
            config.unsupported(
                "sample_size",
                format!("gives {} patches, {width} wide; dlc makes tables of up to {LARGEST_TABLE} numbers", self.patches()),
            );
        }
    }

    /// Width of the residual stream.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Patches along height and width.
    fn grid(&self) -> [usize; 2] {
        self.sample.map(|side| side / self.patch)
    }

    fn patches(&self) -> usize {
        self.grid().iter().product()
    }

    /// What a sampler must know.
    pub(super) fn diffusion(&self) -> Diffusion {
        let [height, width] = self.sample;
        Diffusion {
            channels: self.channels,
            height,
            width,
            // The table of positions is made for one size.
            size_step: None,
            out_channels: self.out_channels,
            classes: None,
            text_width: None,
        }
    }

    /// The axes of the noisy image after the batch.
    pub(super) fn sides(&self) -> [Dim; 3] {
        [self.channels, self.sample[0], self.sample[1]].map(Dim::from)
    }

    /// `image [batch, channels, height, width]` as `[batch, patches, width]`, with sinusoids of the
    /// positions, divided by `stretch`, added.
    pub(super) fn embed(
        &self,
        net: &mut Net<'_>,
        image: ValueId,
        stretch: f32,
    ) -> Result<ValueId, IrError> {
        let (width, [rows, columns]) = (self.width(), self.grid());
        let weight = net.weight(
            "pos_embed.proj.weight",
            &[width, self.channels, self.patch, self.patch],
        )?;
        let bias = net.weight("pos_embed.proj.bias", &[width])?;
        let x = net.graph.add(
            Op::Conv2d {
                stride: self.patch,
                padding: [0, 0],
            },
            [image.into(), weight, bias],
        )?;
        let x = to_sequence(net, x, [width, rows, columns].map(Dim::from))?;
        let table = positions([rows, columns], width, stretch);
        let table = net.table("pos_embed.pos_embed", &[rows * columns, width], &table)?;
        net.add(x, table)
    }

    /// `x [batch, patches, patch * patch * out_channels]` as an image.
    pub(super) fn join(&self, net: &mut Net<'_>, x: ValueId) -> Result<ValueId, IrError> {
        let ([rows, columns], [height, width], patch) = (self.grid(), self.sample, self.patch);
        let x = net.graph.add(
            Op::Reshape {
                shape: batched(&[rows, columns, patch, patch, self.out_channels]),
            },
            [x.into()],
        )?;
        let x = net.graph.add(
            Op::Transpose {
                axes: vec![0, 5, 1, 3, 2, 4],
            },
            [x.into()],
        )?;
        net.graph.add(
            Op::Reshape {
                shape: batched(&[self.out_channels, height, width]),
            },
            [x.into()],
        )
    }
}

/// The shape `[batch, sides...]`.
pub(super) fn batched(sides: &[usize]) -> Shape {
    batched_dims(sides.iter().map(|&n| Dim::from(n)))
}

fn batched_dims(sides: impl IntoIterator<Item = Dim>) -> Shape {
    Shape([sym("batch")].into_iter().chain(sides).collect())
}

/// `image [batch, channels, height, width]` as `[batch, height * width, channels]`.
pub(super) fn to_sequence(
    net: &mut Net<'_>,
    image: ValueId,
    [channels, height, width]: [Dim; 3],
) -> Result<ValueId, IrError> {
    let x = net.graph.add(
        Op::Transpose {
            axes: vec![0, 2, 3, 1],
        },
        [image.into()],
    )?;
    net.graph.add(
        Op::Reshape {
            shape: batched_dims([height.times(&width), channels]),
        },
        [x.into()],
    )
}

/// `[batch, height * width, channels]` as `[batch, channels, height, width]`.
pub(super) fn to_image(
    net: &mut Net<'_>,
    x: ValueId,
    [channels, height, width]: [Dim; 3],
) -> Result<ValueId, IrError> {
    let x = net.graph.add(
        Op::Reshape {
            shape: batched_dims([height, width, channels]),
        },
        [x.into()],
    )?;
    net.graph.add(
        Op::Transpose {
            axes: vec![0, 3, 1, 2],
        },
        [x.into()],
    )
}

/// Sinusoids of the places in a grid, `[rows * columns, width]`, as diffusers computes them: of the
/// column, then of the row, each sines, then cosines. In double precision, rounded at the end.
fn positions([rows, columns]: [usize; 2], width: usize, stretch: f32) -> Vec<f32> {
    let quarter = width / 4;
    let frequencies: Vec<f64> = (0..quarter)
        .map(|i| 1.0 / 10_000f64.powf(i as f64 / quarter as f64))
        .collect();
    let mut table = Vec::with_capacity(rows * columns * width);
    for row in 0..rows {
        for column in 0..columns {
            for place in [column, row] {
                let place = f64::from(place as f32 / stretch);
                table.extend(frequencies.iter().map(|f| (place * f).sin() as f32));
                table.extend(frequencies.iter().map(|f| (place * f).cos() as f32));
            }
        }
    }
    table
}
