//! What images are compared as: pictures, after the decoder of a latent diffusion model (DiP-GO,
//! arXiv 2410.16942, section 3.3), or as the sampler leaves them.

use dlc_eval::{Array, Segment, Values, Wanted};
use dlc_ir::cost::{Sizes, image_sizes, length};
use dlc_ir::{Diffusion, Graph, ValueId, WeightTable};
use serde::{Deserialize, Serialize};

use super::NAME;
use super::loss::{COLOURS, Distance, Loss};
use crate::error::PassError;

/// Where images are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// As pictures: decoded, if the sampler leaves latents.
    Image,
    /// As the sampler leaves them.
    Latent,
}

/// What samples are compared as, and how.
pub(super) struct View<'m> {
    decoder: Option<Decoder<'m>>,
    pub loss: Loss,
}

/// A view without the decoder's weights.
pub(super) struct ViewPlan<'m> {
    weights: &'m WeightTable,
    ports: Option<Ports<'m>>,
    loss: Loss,
}

/// The graph that makes a picture of latents, with its weights.
struct Decoder<'m> {
    segment: Segment<'m>,
    ports: Ports<'m>,
}

/// What a decoder takes and makes, of one image.
struct Ports<'m> {
    graph: &'m Graph,
    latents: ValueId,
    images: ValueId,
    /// `[1, channels, height, width]` of the latents, and of the picture.
    from: [usize; 4],
    to: [usize; 4],
}

impl<'m> ViewPlan<'m> {
    /// The space that is asked for; else pictures where there is a `decoder`.
    pub fn new(
        decoder: Option<&'m Graph>,
        weights: &'m WeightTable,
        diffusion: &Diffusion,
        space: Option<Space>,
        distance: Option<Distance>,
    ) -> Result<Self, PassError> {
        let fail = |problem: &str| PassError::Options {
            pass: NAME,
            problem: problem.into(),
        };
        let asked = space == Some(Space::Image);
        if asked && decoder.is_none() && diffusion.channels > COLOURS {
            return Err(fail(
                "loss=image compares pictures, and the model comes without a decoder: compile the folder of the whole pipeline, or leave loss out",
            ));
        }
        let decoder = decoder.filter(|_| space != Some(Space::Latent));
        let ports = decoder
            .map(|graph| Ports::find(graph, diffusion))
            .transpose()?;
        let [_, channels, height, width] = ports
            .as_ref()
            .map_or(own_shape(diffusion), |ports| ports.to);
        let loss = Loss::new(distance, [channels, height, width])
            .ok_or_else(|| fail("distance=ssim needs images of 11 pixels or more; leave it out"))?;
        Ok(Self {
            weights,
            ports,
            loss,
        })
    }

    /// The view, with the decoder's weights.
    pub fn load(self) -> Result<View<'m>, PassError> {
        let load = |ports: Ports<'m>| {
            let nodes = ports.graph.nodes().map(|(id, _)| id).collect();
            let segment = Segment::new(ports.graph, self.weights, nodes)?;
            Ok::<_, PassError>(Decoder { segment, ports })
        };
        Ok(View {
            decoder: self.ports.map(load).transpose()?,
            loss: self.loss,
        })
    }
}

impl View<'_> {
    /// What is minimised.
    pub fn name(&self) -> String {
        let of = if self.decoder.is_some() {
            " of pictures"
        } else {
            ""
        };
        format!("{}{of}", self.loss.name())
    }

    /// A sample as it is compared.
    pub fn of(&self, sample: &[f32]) -> Result<Vec<f32>, PassError> {
        match &self.decoder {
            Some(decoder) => decoder.picture(sample),
            None => Ok(sample.to_vec()),
        }
    }

    /// The gradient with respect to the sample, where `adjoint` makes that of what it is compared as.
    pub fn back(
        &self,
        sample: &[f32],
        adjoint: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<Vec<f32>, PassError> {
        match &self.decoder {
            Some(decoder) => decoder.back(sample, adjoint),
            None => Ok(adjoint(sample)),
        }
    }
}

fn own_shape(diffusion: &Diffusion) -> [usize; 4] {
    [1, diffusion.channels, diffusion.height, diffusion.width]
}

impl<'m> Ports<'m> {
    fn find(graph: &'m Graph, diffusion: &Diffusion) -> Result<Self, PassError> {
        let unsupported = |problem: &str| PassError::Unsupported {
            pass: NAME,
            problem: problem.into(),
        };
        let input = graph.inputs().iter().find(|i| i.name == Diffusion::LATENTS);
        let output = graph.outputs().iter().find(|o| o.name == Diffusion::IMAGES);
        let (Some(input), Some(output)) = (input, output) else {
            return Err(unsupported(
                "the decoder takes no latents, or makes no images",
            ));
        };
        let sizes = image_sizes(Some(diffusion));
        Ok(Self {
            graph,
            latents: input.value,
            images: output.value,
            from: own_shape(diffusion),
            to: shape(graph, output.value, &sizes)
                .ok_or_else(|| unsupported("the decoder's pictures have no size"))?,
        })
    }
}

impl Decoder<'_> {
    fn known(&self, sample: &[f32]) -> Result<Values, PassError> {
        let latents = Array::f32(self.ports.from, sample.to_vec())?;
        Ok(Values::from_iter([(self.ports.latents, latents)]))
    }

    fn picture(&self, sample: &[f32]) -> Result<Vec<f32>, PassError> {
        let made = self
            .segment
            .forward(&self.known(sample)?, &[self.ports.images])?;
        let picture = made.get(&self.ports.images).and_then(Array::as_f32);
        Ok(picture.unwrap_or_default().to_vec())
    }

    fn back(
        &self,
        sample: &[f32],
        adjoint: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<Vec<f32>, PassError> {
        let (latents, images) = (self.ports.latents, self.ports.images);
        let trace = self.segment.trace(&self.known(sample)?)?;
        let picture = trace.value(images)?;
        let adjoint = adjoint(picture.as_f32().unwrap_or_default());
        let seeds = [(images, Array::f32(self.ports.to, adjoint)?)];
        let wanted = Wanted {
            values: vec![latents],
            weights: vec![],
        };
        let gradients = trace.vjp(&seeds, &wanted)?;
        let gradient = gradients.values.get(&latents).and_then(Array::as_f32);
        Ok(gradient.unwrap_or_default().to_vec())
    }
}

/// The lengths of a value's four axes for one image.
fn shape(graph: &Graph, value: ValueId, sizes: &Sizes) -> Option<[usize; 4]> {
    let dims = graph.value(value).ty.shape.0.iter();
    let lengths = dims.map(|dim| usize::try_from(length(dim, sizes)?).ok());
    <[usize; 4]>::try_from(lengths.collect::<Option<Vec<usize>>>()?).ok()
}
