//! What the boundary of a denoising step's graph is for, read from its manifest record and checked
//! once.

use dlc_bundle::GraphRecord;
use dlc_ir::schedule::{SAMPLER_INPUT, SAMPLER_OUTPUT, memory};
use dlc_ir::{DType, Task};
use dlc_methods::diffusion::{DenoiserInput, inputs};

use crate::{Result, RuntimeError};

/// The boundary of one graph.
#[derive(Debug, Clone)]
pub(super) struct StepPorts {
    pub graph: String,
    pub inputs: Vec<StepInput>,
    /// The output that says what is noise; of an unrolled sampler the sample.
    pub output: &'static str,
    /// The blocks whose values it gives, with the outputs that do.
    pub remembered: Vec<(String, String)>,
}

/// One input.
#[derive(Debug, Clone)]
pub(super) struct StepInput {
    pub name: String,
    /// Its element type, by the manifest's name.
    pub dtype: DType,
    /// Its axes: numbers, and names of what isn't fixed.
    pub shape: Vec<String>,
    pub feed: Feed,
}

/// What an input takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Feed {
    /// The noisy images.
    Image,
    /// The noise that an unrolled sampler starts from.
    Noise,
    /// The noise level.
    Timestep,
    /// The class of each image.
    Class,
    /// The `age`-th last value of `block`.
    Memory { block: String, age: usize },
    /// The weights of what is remembered.
    Forecast,
    /// What the image is conditioned on beside its class: states of a text, sizes.
    Condition,
}

impl Feed {
    /// What the input called `name` takes.
    fn of(name: &str) -> Self {
        if let Some((block, age)) = memory::parse_input(name) {
            let block = block.to_owned();
            return Self::Memory { block, age };
        }
        match (name, DenoiserInput::of(name)) {
            (SAMPLER_INPUT, _) => Self::Noise,
            (memory::FORECAST, _) => Self::Forecast,
            (_, DenoiserInput::Image) => Self::Image,
            (_, DenoiserInput::Timestep) => Self::Timestep,
            (_, DenoiserInput::Class) => Self::Class,
            (_, DenoiserInput::Conditioning) => Self::Condition,
        }
    }
}

impl StepPorts {
    /// Reads the boundary; [`RuntimeError::Port`] for a graph that is no denoising step.
    pub fn read(graph: &GraphRecord) -> Result<Self> {
        let inputs = graph.inputs.iter().map(|port| {
            let feed = Feed::of(&port.name);
            let floats = !matches!(feed, Feed::Class | Feed::Condition);
            if (feed == Feed::Class && port.dtype != DType::I64)
                || (floats && !port.dtype.is_float())
            {
                return Err(RuntimeError::port(
                    &graph.name,
                    &port.name,
                    format!("can't be {}", port.dtype),
                ));
            }
            Ok(StepInput {
                name: port.name.clone(),
                dtype: port.dtype,
                shape: port.shape.clone(),
                feed,
            })
        });
        let inputs: Vec<StepInput> = inputs.collect::<Result<_>>()?;
        let is_sampler = inputs.iter().any(|input| input.feed == Feed::Noise);
        let ports = Self {
            graph: graph.name.clone(),
            inputs,
            output: if is_sampler {
                SAMPLER_OUTPUT
            } else {
                Task::ImageGeneration.output()
            },
            remembered: graph
                .outputs
                .iter()
                .filter_map(|port| {
                    Some((
                        memory::parse_output(&port.name)?.to_owned(),
                        port.name.clone(),
                    ))
                })
                .collect(),
        };
        let missing = |port: &str| {
            RuntimeError::port(
                &graph.name,
                port,
                "the graph has no such port, so it isn't a step that dlc can sample with",
            )
        };
        // What comes from memory may be all that a step needs.
        if !ports
            .inputs
            .iter()
            .any(|input| matches!(input.feed, Feed::Image | Feed::Noise | Feed::Memory { .. }))
        {
            return Err(missing(inputs::HIDDEN_STATES));
        }
        if graph.outputs.iter().any(|port| port.name == ports.output) {
            Ok(ports)
        } else {
            Err(missing(ports.output))
        }
    }

    /// Blocks and ages of what it takes from memory, in the order of its inputs.
    pub fn memories(&self) -> impl Iterator<Item = (&str, usize)> {
        self.inputs.iter().filter_map(|input| {
            if let Feed::Memory { block, age } = &input.feed {
                Some((block.as_str(), *age))
            } else {
                None
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use dlc_bundle::PortRecord;

    use super::*;

    fn graph(inputs: &[(&str, &str)], outputs: &[&str]) -> GraphRecord {
        let port = |name: &str, dtype: &str| PortRecord {
            name: name.to_owned(),
            dtype: DType::from_name(dtype).unwrap(),
            shape: vec![],
        };
        GraphRecord {
            name: "step.1".into(),
            file: "step.1.onnx".into(),
            weights_file: None,
            latents_divisor: None,
            parameters: 0,
            inputs: inputs
                .iter()
                .map(|(name, dtype)| port(name, dtype))
                .collect(),
            optional_inputs: Vec::new(),
            outputs: outputs.iter().map(|name| port(name, "f32")).collect(),
            caches: vec![],
            rotates_by_length: None,
        }
    }

    #[test]
    fn a_steps_boundary_is_read() {
        let inputs = [
            ("sample", "f32"),
            ("timestep", "f32"),
            ("memory.up.0.attn.1", "f16"),
            ("forecast", "f16"),
            ("time_ids", "f32"),
        ];
        let ports = StepPorts::read(&graph(&inputs, &["out_sample", "remember.mid"])).unwrap();
        assert_eq!(ports.memories().collect::<Vec<_>>(), [("up.0.attn", 1)]);
        assert_eq!(
            ports.remembered,
            [("mid".to_owned(), "remember.mid".to_owned())]
        );
        assert_eq!(
            ports
                .inputs
                .iter()
                .filter(|i| i.feed == Feed::Condition)
                .map(|i| i.name.as_str())
                .collect::<Vec<_>>(),
            ["time_ids"]
        );
    }

    #[test]
    fn other_boundaries_are_refused_with_the_port() {
        for (inputs, outputs, port) in [
            (
                &[("timestep", "f32")][..],
                &["out_sample"][..],
                "hidden_states",
            ),
            (&[("sample", "f32")], &["logits"], "out_sample"),
            (&[("sample", "i64")], &["out_sample"], "sample"),
            (
                &[("sample", "f32"), ("class_labels", "f32")],
                &["out_sample"],
                "class_labels",
            ),
            (
                &[("sample", "f32"), ("memory.a.0", "i64")],
                &["out_sample"],
                "memory.a.0",
            ),
        ] {
            let error = StepPorts::read(&graph(inputs, outputs))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("`step.1`") && error.contains(port),
                "{port}: {error}"
            );
        }
    }
}
