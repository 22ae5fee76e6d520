//! Classifier-free guidance (Ho and Salimans, *Classifier-Free Diffusion Guidance*, equation 6),
//! and networks that predict a variance beside the noise.

use super::arithmetic::{Arithmetic, Numbers};
use crate::{MethodError, Result};

/// `unconditional + scale * (conditional - unconditional)`, of outputs for the same latents.
///
/// # Errors
/// Those of the sums.
pub fn guided<A: Arithmetic>(
    arithmetic: &mut A,
    conditional: &A::Term,
    unconditional: &A::Term,
    scale: f64,
) -> Result<A::Value, A::Error> {
    let difference = arithmetic.sum_of([(1.0, conditional), (-1.0, unconditional)], None)?;
    arithmetic.sum_of([(1.0, unconditional), (scale, A::term(&difference))], None)
}

/// How a network's output is laid out: `[batch, channels, height, width]`, of whose channels the
/// first ones are the prediction and the rest, if any, a learned variance (Nichol and Dhariwal, *Improved
/// Denoising Diffusion Probabilistic Models*), which deterministic samplers drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLayout {
    /// Channels of the output.
    pub channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Numbers in one channel: height times width.
    pub plane: usize,
}

impl OutputLayout {
    /// Makes of `conditional` what is [`guided`], in the channels of the latents. A learned
    /// variance stays the conditional one (Peebles and Xie, *Scalable Diffusion Models with
    /// Transformers*). Scale 1 changes nothing.
    ///
    /// Both are outputs for the same latents, with the wanted class or text and without.
    ///
    /// # Errors
    /// [`MethodError::Input`] for outputs that differ in length, or aren't whole images of these
    /// channels.
    pub fn guide(&self, conditional: &mut [f32], unconditional: &[f32], scale: f32) -> Result<()> {
        let image = self.image(conditional.len())?;
        if conditional.len() != unconditional.len() {
            let (with, without) = (conditional.len(), unconditional.len());
            return Err(MethodError::Input(format!(
                "the guided outputs differ in length: {with} with the condition, {without} without"
            )));
        }
        if scale.to_bits() == 1f32.to_bits() {
            return Ok(());
        }
        let length = self.latent_channels * self.plane;
        for (with, without) in conditional
            .chunks_exact_mut(image)
            .zip(unconditional.chunks_exact(image))
        {
            let (with, without) = (&mut with[..length], &without[..length]);
            let sum = guided(&mut Numbers(length), with, without, f64::from(scale))?;
            with.copy_from_slice(&sum);
        }
        Ok(())
    }

    /// Moves the channels of the latents of every image of a batch to the front of `output` and
    /// returns them: what [`advance`](super::SamplerState::advance) takes.
    ///
    /// # Errors
    /// [`MethodError::Input`] for an output that isn't whole images of these channels.
    pub fn without_variance<'a>(&self, output: &'a mut [f32]) -> Result<&'a [f32]> {
        let image = self.image(output.len())?;
        let kept = self.latent_channels * self.plane;
        let batch = output.len() / image;
        for index in 1..batch {
            output.copy_within(index * image..index * image + kept, index * kept);
        }
        Ok(&output[..batch * kept])
    }

    /// Numbers of one image, if `length` is a batch of whole images.
    fn image(&self, length: usize) -> Result<usize> {
        let image = self
            .channels
            .checked_mul(self.plane)
            .filter(|image| *image > 0 && self.latent_channels <= self.channels);
        image.filter(|image| length.is_multiple_of(*image)).ok_or_else(|| {
            let Self { channels, latent_channels, plane } = self;
            let expected = format!("{channels} channels of {plane} numbers with {latent_channels} channels of latents");
            MethodError::Input(format!("the network's output has {length} numbers, which aren't images of {expected}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIT: OutputLayout = OutputLayout {
        channels: 4,
        latent_channels: 2,
        plane: 1,
    };

    #[test]
    fn guidance_leaves_the_learned_variance_alone() {
        let mut conditional = [1.0, 2.0, 3.0, 4.0, -1.0, 0.0, 7.0, 8.0];
        DIT.guide(
            &mut conditional,
            &[0.0, 1.0, 9.0, 9.0, 1.0, 0.0, 9.0, 9.0],
            3.0,
        )
        .unwrap();
        assert_eq!(&conditional[..], [3.0, 4.0, 3.0, 4.0, -5.0, 0.0, 7.0, 8.0]);
        assert_eq!(
            DIT.without_variance(&mut conditional).unwrap(),
            [3.0, 4.0, -5.0, 0.0]
        );
    }

    #[test]
    fn scale_one_is_the_conditional_output_bit_by_bit() {
        let mut conditional = [0.1, 1e30, 0.3, 0.4];
        DIT.guide(&mut conditional, &[1e30, 0.1, 0.0, 0.0], 1.0)
            .unwrap();
        assert_eq!(&conditional[..], [0.1, 1e30, 0.3, 0.4]);
    }

    #[test]
    fn outputs_of_another_shape_are_refused() {
        let error = DIT
            .guide(&mut [0.0; 6], &[0.0; 6], 2.0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("6 numbers") && error.contains("4 channels of 1 numbers"),
            "{error}"
        );
        let error = DIT
            .guide(&mut [0.0; 8], &[0.0; 4], 2.0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("8 with the condition, 4 without"), "{error}");
        let wrong = OutputLayout {
            channels: 1,
            latent_channels: 2,
            plane: 1,
        };
        assert!(wrong.without_variance(&mut [0.0; 2]).is_err());
    }
}
