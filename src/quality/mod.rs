//! How good images are: how near to others, what a classifier sees in them, and how their numbers
//! are spread. Pure: numbers in, numbers out.

mod frechet;

use std::path::Path;

pub use self::frechet::Statistics;
use dlc_runtime::{FloatTensor, Result, RuntimeError, read_tensors};

/// The peak signal-to-noise ratio in decibels, of numbers from -1 to 1: infinite for equal ones.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    const RANGE: f64 = 2.0;
    let squares: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    let mean = squares / a.len().max(1) as f64;
    if mean > 0.0 {
        10.0 * (RANGE * RANGE / mean).log10()
    } else {
        f64::INFINITY
    }
}

/// The mean of [`psnr`] over pairs of images; equal pairs, of which there's no telling, aside. None
/// if all are equal.
pub fn mean_psnr<'i>(
    a: impl Iterator<Item = &'i [f32]>,
    b: impl Iterator<Item = &'i [f32]>,
) -> Option<f64> {
    let ratios: Vec<f64> = a
        .zip(b)
        .map(|(a, b)| psnr(a, b))
        .filter(|ratio| ratio.is_finite())
        .collect();
    (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
}

/// A multi-layer perceptron over the numbers of an image: linear layers, and between them `relu`.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq)]
struct Layer {
    width: usize,
    /// A row for each output.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Classifier {
    /// Reads `layers.N.weight [out, in]` and `layers.N.bias [out]` from a safetensors file. N may
    /// leave numbers out, as a torch `Sequential` does.
    ///
    /// # Errors
    /// [`RuntimeError::File`] for tensors that are missing, or don't fit each other.
    pub fn read(path: &Path) -> Result<Self> {
        let tensors = read_tensors(path)?;
        let number = |name: &str| {
            name.strip_prefix("layers.")?
                .strip_suffix(".weight")?
                .parse::<u32>()
                .ok()
        };
        let mut numbers: Vec<u32> = tensors.keys().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        let mut layers: Vec<Layer> = Vec::new();
        for number in numbers {
            let tensor = |part: &str| tensors.get(&format!("layers.{number}.{part}"));
            let layer = tensor("weight")
                .zip(tensor("bias"))
                .and_then(|(weight, bias)| layer(weight, bias, layers.last()));
            layers.push(layer.ok_or_else(|| {
                RuntimeError::file(
                    path,
                    format!("`layers.{number}` isn't a weight [out, in] with a bias [out]"),
                )
            })?);
        }
        if layers.is_empty() {
            Err(RuntimeError::file(
                path,
                "holds no `layers.N.weight`, so it is no classifier",
            ))
        } else {
            Ok(Self { layers })
        }
    }

    /// How many numbers an image has.
    pub fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.width)
    }

    /// The likeliest class; none for an image with other than [`inputs`](Self::inputs) numbers.
    pub fn classify(&self, image: &[f32]) -> Option<usize> {
        if image.len() != self.inputs() {
            return None;
        }
        let mut values = image.to_vec();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                for x in &mut values {
                    *x = x.max(0.0);
                }
            }
            let dot = |row: &[f32]| row.iter().zip(&values).map(|(w, x)| w * x).sum::<f32>();
            values = layer
                .weight
                .chunks_exact(layer.width)
                .zip(&layer.bias)
                .map(|(row, bias)| dot(row) + bias)
                .collect();
        }
        // The first of equals.
        values
            .iter()
            .enumerate()
            .rev()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(class, _)| class)
    }
}

/// A layer after `before`, if the shapes fit.
fn layer(weight: &FloatTensor, bias: &FloatTensor, before: Option<&Layer>) -> Option<Layer> {
    let [out, width] = weight.shape[..] else {
        return None;
    };
    let fits = width > 0
        && out > 0
        && bias.shape == [out]
        && before.is_none_or(|before| before.bias.len() == width);
    fits.then(|| Layer {
        width,
        weight: weight.data.clone(),
        bias: bias.data.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_counts_decibels_below_the_range() {
        assert!((psnr(&[0.0, 0.2], &[0.2, 0.0]) - 20.0).abs() < 1e-6);
        assert!(psnr(&[0.5], &[0.5]).is_infinite());
    }

    fn classifier(tensors: &[(&str, &[usize], &[f32])]) -> Result<Classifier> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classifier.safetensors");
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(.., data)| data.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let view = |(i, (name, shape, _)): (usize, &(&str, &[usize], &[f32]))| {
            (
                (*name).to_owned(),
                safetensors::tensor::TensorView::new(
                    safetensors::Dtype::F32,
                    shape.to_vec(),
                    &bytes[i],
                )
                .unwrap(),
            )
        };
        std::fs::write(
            &path,
            safetensors::serialize(tensors.iter().enumerate().map(view), None).unwrap(),
        )
        .unwrap();
        Classifier::read(&path)
    }

    #[test]
    fn a_perceptron_bends_between_its_layers_alone() {
        let (first, second): (&[f32], &[f32]) =
            (&[1.0, 0.0, 0.0, 1.0], &[1.0, 1.0, -1.0, -1.0, 0.0, 0.0]);
        let read = classifier(&[
            ("layers.0.weight", &[2, 2], first),
            ("layers.0.bias", &[2], &[0.0, 0.0]),
            ("layers.2.weight", &[3, 2], second),
            ("layers.2.bias", &[3], &[0.0, 0.0, -0.5]),
        ]);
        let read = read.unwrap();
        // relu(x) = (0, 2), (0, 0): without it the first sum would be -1 for the first image.
        assert_eq!(
            [
                read.classify(&[-3.0, 2.0]),
                read.classify(&[-3.0, -2.0]),
                read.classify(&[1.0])
            ],
            [Some(0), Some(0), None]
        );
    }

    #[test]
    fn layers_that_do_not_fit_are_refused_by_name() {
        let (weight, bias): ((&str, &[usize], &[f32]), _) = (
            ("layers.0.weight", &[1, 2], &[1.0, 1.0]),
            ("layers.0.bias", &[1usize][..], &[0.0f32][..]),
        );
        for (tensors, reason) in [
            (&[("w", &[1usize][..], &[1.0f32][..])][..], "no classifier"),
            (&[weight], "`layers.0`"),
            (
                &[weight, ("layers.0.bias", &[2], &[0.0, 0.0])],
                "`layers.0`",
            ),
            (
                &[
                    weight,
                    bias,
                    ("layers.1.weight", &[1, 2], &[1.0, 1.0]),
                    ("layers.1.bias", &[1], &[0.0]),
                ],
                "`layers.1`",
            ),
        ] {
            assert!(
                classifier(tensors)
                    .unwrap_err()
                    .to_string()
                    .contains(reason),
                "{reason}"
            );
        }
    }
}
