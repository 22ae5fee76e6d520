//! Pictures of latents, by the decoder of a bundle.

use std::ops::ControlFlow;
use std::sync::Arc;

use dlc_bundle::PortRecord;
use dlc_ir::Diffusion;

use super::Samples;
use crate::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
};

const GRAPH: &str = Diffusion::IMAGE_DECODER;

/// What makes pictures of latents.
#[derive(Debug)]
pub struct ImageDecoder {
    session: Session,
    /// Its input and its output.
    ports: [String; 2],
    /// What latents are divided by before.
    divisor: f32,
}

impl ImageDecoder {
    /// Loads the decoder of a bundle; none if the bundle has none.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Option<Self>> {
        if !bundle.has_graph(GRAPH) {
            return Ok(None);
        }
        let record = bundle.graph(GRAPH)?;
        let port = |ports: &[PortRecord], usual: &str| {
            let first = ports.first().map(|port| port.name.clone());
            first.unwrap_or_else(|| usual.to_owned())
        };
        Ok(Some(Self {
            session: Session::load(backend, bundle, GRAPH, weights, options)?,
            ports: [
                port(&record.inputs, Diffusion::LATENTS),
                port(&record.outputs, Diffusion::IMAGES),
            ],
            divisor: record.latents_divisor.unwrap_or(1.0),
        }))
    }

    /// Pixels of a picture for each entry of the latents, in both directions; none for a bundle
    /// without a decoder.
    ///
    /// # Errors
    /// As [`Bundle::graph`].
    pub fn scale(bundle: &Bundle) -> Result<Option<usize>> {
        if !bundle.has_graph(GRAPH) {
            return Ok(None);
        }
        let ports = &bundle.graph(GRAPH)?.outputs;
        let height = ports.first().and_then(|port| port.shape.get(2));
        let factor = height.and_then(|height| height.strip_suffix(Diffusion::HEIGHT));
        Ok(factor.and_then(|factor| match factor {
            "" => Some(1),
            factor => factor.strip_suffix('*')?.parse().ok(),
        }))
    }

    /// The pictures, made one by one, as a whole batch takes many times its memory. Calls
    /// `progress` before each with how many were made and how many there are; none if it breaks.
    ///
    /// # Errors
    /// [`RuntimeError::Port`] for pictures that aren't finite, and what the backend says.
    pub fn decode(
        &mut self,
        latents: &Samples,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Samples>> {
        let [total, channels, height, width] = latents.shape;
        let mut pictures = Samples {
            shape: [0; 4],
            data: Vec::new(),
        };
        for (done, image) in latents.images().enumerate() {
            if progress(done, total).is_break() {
                return Ok(None);
            }
            let input = image.iter().map(|x| x / self.divisor).collect();
            let input = HostTensor::f32([1, channels, height, width], input);
            let (shape, data) = self.picture(input)?;
            pictures.shape = [done + 1, shape[1], shape[2], shape[3]];
            pictures.data.extend(data);
        }
        Ok(Some(pictures))
    }

    fn picture(&mut self, input: HostTensor) -> Result<([usize; 4], Vec<f32>)> {
        let [latents, images] = &self.ports;
        let outputs = self.session.run_host(&[(latents, input)])?;
        let fail = |problem: &str| RuntimeError::port(GRAPH, images, problem);
        let found = outputs.into_iter().find(|(name, _)| name == images);
        let picture = found.and_then(|(_, tensor)| {
            Some((
                <[usize; 4]>::try_from(tensor.shape.as_slice()).ok()?,
                tensor.to_f32()?,
            ))
        });
        let (shape, data) = picture.ok_or_else(|| fail("the backend gave no picture"))?;
        if data.iter().all(|x| x.is_finite()) {
            Ok((shape, data))
        } else {
            Err(fail(
                "isn't finite: in f16 the decoder may pass the largest number there is; compile with `--dtype f32`, or check the weights with `dlc verify`",
            ))
        }
    }
}
