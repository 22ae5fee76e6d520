//! Pictures of latents, and latents of pictures, by the autoencoder of a bundle.

use std::ops::ControlFlow;
use std::sync::Arc;

use dlc_bundle::PortRecord;
use dlc_ir::Diffusion;

use super::Samples;
use crate::{
    Backend, Bundle, HostTensor, Result, RuntimeError, Session, SessionOptions, SharedWeights,
};

const GRAPH: &str = Diffusion::IMAGE_DECODER;
const ENCODER: &str = Diffusion::IMAGE_ENCODER;

/// What makes pictures of latents.
#[derive(Debug)]
pub struct ImageDecoder(Half);

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
        let load = || Half::load(backend, bundle, GRAPH, weights, options);
        let half = bundle.has_graph(GRAPH).then(load).transpose()?;
        Ok(half.map(Self))
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
        Ok(height.and_then(|height| Diffusion::pixels(height)))
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
            let latents = image.iter().map(|x| x / self.0.divisor).collect();
            let made = self.0.run([1, channels, height, width], latents)?;
            let [_, channels, height, width] = made.shape;
            pictures.shape = [done + 1, channels, height, width];
            pictures.data.extend(made.data);
        }
        Ok(Some(pictures))
    }
}

/// What makes latents of pictures.
#[derive(Debug)]
pub struct ImageEncoder {
    half: Half,
    /// Channels of pictures.
    channels: usize,
}

impl ImageEncoder {
    /// Loads the encoder of a bundle.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for a bundle without one, [`RuntimeError::Port`] for one whose
    /// boundary isn't an encoder's; else as [`Session::load`].
    pub fn open(
        backend: &Backend,
        bundle: &Bundle,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        if !bundle.has_graph(ENCODER) {
            let place = bundle.folder().display().to_string();
            let reason = "the bundle has no encoder of images, so none can be started from";
            let fix = "Compile the folder of the whole pipeline, with an autoencoder in it";
            return Err(RuntimeError::unsupported(place, reason, fix));
        }
        let input = bundle.graph(ENCODER)?.inputs.first();
        let channels = input.and_then(|port| port.shape.get(1)?.parse().ok());
        let fail = || RuntimeError::port(ENCODER, Diffusion::IMAGES, "has no number of channels");
        Ok(Self {
            half: Half::load(backend, bundle, ENCODER, weights, options)?,
            channels: channels.ok_or_else(fail)?,
        })
    }

    /// Channels of the pictures that it takes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The latents of one picture, the mean of their distribution: row-major, its numbers within -1
    /// and 1.
    ///
    /// # Errors
    /// [`RuntimeError::Port`] for latents that aren't finite, and what the backend says.
    pub fn encode(&mut self, picture: Vec<f32>, [height, width]: [usize; 2]) -> Result<Samples> {
        let shape = [1, self.channels, height, width];
        let mut latents = self.half.run(shape, picture)?;
        for x in &mut latents.data {
            *x *= self.half.divisor;
        }
        Ok(latents)
    }
}

/// Half of an autoencoder: one input, one output.
#[derive(Debug)]
struct Half {
    session: Session,
    graph: &'static str,
    /// Its input and its output.
    ports: [String; 2],
    /// What latents are divided by beside the graph.
    divisor: f32,
}

impl Half {
    fn load(
        backend: &Backend,
        bundle: &Bundle,
        graph: &'static str,
        weights: Option<&Arc<SharedWeights>>,
        options: &SessionOptions,
    ) -> Result<Self> {
        let record = bundle.graph(graph)?;
        let port = |ports: &[PortRecord]| ports.first().map(|port| port.name.clone());
        let ports = port(&record.inputs).zip(port(&record.outputs));
        let missing = || RuntimeError::port(graph, "the boundary", "has no input or no output");
        let (input, output) = ports.ok_or_else(missing)?;
        Ok(Self {
            session: Session::load(backend, bundle, graph, weights, options)?,
            graph,
            ports: [input, output],
            divisor: record.latents_divisor.unwrap_or(1.0),
        })
    }

    /// One image.
    fn run(&mut self, shape: [usize; 4], image: Vec<f32>) -> Result<Samples> {
        let [from, to] = &self.ports;
        let outputs = self
            .session
            .run_host(&[(from, HostTensor::f32(shape, image))])?;
        let fail = |problem: &str| RuntimeError::port(self.graph, to, problem);
        let found = outputs.into_iter().find(|(name, _)| name == to);
        let made = found.and_then(|(_, tensor)| {
            Some(Samples {
                shape: tensor.shape.as_slice().try_into().ok()?,
                data: tensor.to_f32()?,
            })
        });
        let made = made.ok_or_else(|| fail("the backend gave no image"))?;
        if made.data.iter().all(|x| x.is_finite()) {
            return Ok(made);
        }
        Err(fail(
            "isn't finite: in f16 the autoencoder may pass the largest number there is; compile with `--dtype f32`, or check the weights with `dlc verify`",
        ))
    }
}
