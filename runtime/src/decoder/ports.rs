//! What a decoder graph's boundary is called and typed, read from its manifest record and checked
//! once.

use dlc_bundle::{GraphRecord, LOGITS_TO_KEEP, PROMPT_LENGTH, PortRecord};
use dlc_ir::DType;
use dlc_methods::speculation::{LengthRotation, Logits};
use ort::value::{DynValue, TensorElementType};

use crate::weights::element_type;
use crate::{Result, RuntimeError};

/// The boundary of a decoder graph.
#[derive(Debug)]
pub(super) struct Ports {
    pub graph: String,
    pub vocab: usize,
    pub position_ids: bool,
    /// Whether logits can be had of the last tokens alone.
    pub logits_to_keep: bool,
    pub rotates_by_length: Option<LengthRotation>,
    /// Whether the graph can be told how long the text is.
    pub prompt_length: bool,
    pub logits_element: TensorElementType,
    /// Keys and values of all slots, in the order of the graph's inputs.
    pub caches: Vec<CachePort>,
}

/// One cached tensor, `[1, heads, length, head_dim]`.
#[derive(Debug, Clone)]
pub(super) struct CachePort {
    pub past: String,
    pub present: String,
    /// The checkpoint's layer that it belongs to.
    pub layer: u32,
    pub is_key: bool,
    pub heads: usize,
    pub head_dim: usize,
    pub element: TensorElementType,
}

/// What a run is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Logits of so many of the last tokens, fillers aside.
    pub want: usize,
    /// Tokens after them that are read for company alone.
    pub fillers: usize,
    /// Whether the head is to read an even number of rows.
    pub evenly: bool,
    /// The length of the text that the tokens are part of, as far as it is known.
    pub length: usize,
}

pub(super) const IDS: &str = "input_ids";
pub(super) const MASK: &str = "attention_mask";
pub(super) const POSITIONS: &str = "position_ids";
pub(super) const LOGITS: &str = "logits";

impl Ports {
    pub fn read(graph: &GraphRecord, vocab: usize) -> Result<Self> {
        let fail = |port: &str, problem: String| RuntimeError::port(&graph.name, port, problem);
        let missing = |port: &str| {
            fail(
                port,
                "the graph has no such port, so it isn't a decoder that dlc can run".to_owned(),
            )
        };
        let output = |name: &str| {
            graph
                .outputs
                .iter()
                .find(|port| port.name == name)
                .ok_or_else(|| missing(name))
        };
        for name in [IDS, MASK] {
            if !graph.inputs.iter().any(|port| port.name == name) {
                return Err(missing(name));
            }
        }
        let takes = |name: &str| graph.optional_inputs.iter().any(|port| port.name == name);
        let logits = output(LOGITS)?;
        let logits_element = float_element(logits)
            .ok_or_else(|| fail(LOGITS, format!("logits can't be {}", logits.dtype)))?;
        let mut ports = Self {
            graph: graph.name.clone(),
            vocab,
            position_ids: false,
            logits_to_keep: takes(LOGITS_TO_KEEP),
            rotates_by_length: graph.rotates_by_length.map(|rule| LengthRotation {
                trained: rule.trained,
                grows: rule.grows,
            }),
            prompt_length: takes(PROMPT_LENGTH),
            logits_element,
            caches: Vec::new(),
        };
        for port in &graph.inputs {
            if let Some(rest) = port.name.strip_prefix("past_key_values.") {
                let (slot, kind) = rest.split_once('.').unwrap_or_default();
                let record = graph.caches.iter().find(|cache| {
                    cache.slot.to_string() == slot && matches!(kind, "key" | "value")
                });
                let record = record.ok_or_else(|| {
                    fail(
                        &port.name,
                        "the manifest lists no cache of this slot".to_owned(),
                    )
                })?;
                let present = format!("present.{rest}");
                if output(&present)?.dtype != port.dtype {
                    return Err(fail(
                        &present,
                        format!("isn't {} as {} is", port.dtype, port.name),
                    ));
                }
                let element = float_element(port)
                    .ok_or_else(|| fail(&port.name, format!("a cache can't be {}", port.dtype)))?;
                let (layer, heads, head_dim) = (record.layer, record.heads, record.head_dim);
                ports.caches.push(CachePort {
                    past: port.name.clone(),
                    present,
                    layer,
                    is_key: kind == "key",
                    heads,
                    head_dim,
                    element,
                });
            } else if matches!(port.name.as_str(), IDS | MASK | POSITIONS) {
                if port.dtype != DType::I64 {
                    return Err(fail(&port.name, format!("must be i64, not {}", port.dtype)));
                }
                ports.position_ids |= port.name == POSITIONS;
            } else {
                return Err(fail(
                    &port.name,
                    "dlc doesn't know what to put here".to_owned(),
                ));
            }
        }
        if ports.caches.len() != 2 * graph.caches.len() {
            return Err(fail(
                "past_key_values",
                format!(
                    "{} ports for {} caches",
                    ports.caches.len(),
                    graph.caches.len()
                ),
            ));
        }
        Ok(ports)
    }

    /// For each cache its number among `others`, if all of them are there: the same layers, widths
    /// and types.
    pub fn among(&self, others: &[CachePort]) -> Option<Vec<usize>> {
        let what = |port: &CachePort| {
            (
                port.layer,
                port.is_key,
                port.heads,
                port.head_dim,
                port.element,
            )
        };
        self.caches
            .iter()
            .map(|port| others.iter().position(|other| what(other) == what(port)))
            .collect()
    }

    /// How many of `count` tokens get logits where those that are asked for are read.
    pub fn kept(&self, count: usize, asked: Asked) -> usize {
        if self.logits_to_keep {
            let kept = (asked.want + asked.fillers).max(1);
            kept + usize::from(asked.evenly && kept % 2 == 1 && kept < count)
        } else {
            count
        }
    }

    /// The backend's error at the port `name`.
    pub fn failed(&self, name: &str, error: &ort::Error) -> RuntimeError {
        RuntimeError::port(&self.graph, name, error.message())
    }

    /// Those of the logits `[rows, kept, vocab]` that are asked for, as 32-bit floats: where they
    /// are, or in `converted`.
    pub fn logits<'v>(
        &self,
        value: &'v DynValue,
        [rows, kept]: [usize; 2],
        asked: Asked,
        converted: &'v mut Vec<f32>,
    ) -> Result<Logits<'v>> {
        let backend = |error: ort::Error| self.failed(LOGITS, &error);
        let fail = |problem: String| RuntimeError::port(&self.graph, LOGITS, problem);
        let tensor = value
            .downcast_ref::<ort::value::DynTensorValueType>()
            .map_err(backend)?;
        let expected = [rows as i64, kept as i64, self.vocab as i64];
        if tensor.shape()[..] != expected {
            return Err(fail(format!(
                "has the shape {:?} instead of {expected:?}",
                tensor.shape()
            )));
        }
        let end = (rows * kept).saturating_sub(asked.fillers);
        let wanted = end.saturating_sub(asked.want) * self.vocab..end * self.vocab;
        converted.clear();
        match tensor.data_type() {
            TensorElementType::Float32 => {
                let (_, data) = value.try_extract_tensor::<f32>().map_err(backend)?;
                return Ok(Logits::new(self.vocab, &data[wanted]));
            }
            TensorElementType::Float16 => {
                let (_, data) = value.try_extract_tensor::<half::f16>().map_err(backend)?;
                converted.extend(data[wanted].iter().map(|x| x.to_f32()));
            }
            TensorElementType::Bfloat16 => {
                let (_, data) = value.try_extract_tensor::<half::bf16>().map_err(backend)?;
                converted.extend(data[wanted].iter().map(|x| x.to_f32()));
            }
            other => return Err(fail(format!("logits can't be {other}"))),
        }
        Ok(Logits::new(self.vocab, converted.as_slice()))
    }
}

fn float_element(port: &PortRecord) -> Option<TensorElementType> {
    port.dtype.is_float().then(|| element_type(port.dtype))
}

#[cfg(test)]
mod tests {
    use dlc_bundle::CacheRecord;

    use super::*;

    fn graph(inputs: &[(&str, &str)], outputs: &[(&str, &str)]) -> GraphRecord {
        let ports = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(name, dtype)| PortRecord {
                    name: (*name).to_owned(),
                    dtype: DType::from_name(dtype).unwrap(),
                    shape: Vec::new(),
                })
                .collect()
        };
        let caches = vec![CacheRecord {
            slot: 0,
            layer: 3,
            heads: 2,
            head_dim: 4,
        }];
        GraphRecord {
            name: "draft".to_owned(),
            file: "draft.onnx".to_owned(),
            weights_file: None,
            latents_divisor: None,
            parameters: 0,
            inputs: ports(inputs),
            optional_inputs: Vec::new(),
            outputs: ports(outputs),
            caches,
            rotates_by_length: None,
        }
    }

    const INPUTS: [(&str, &str); 4] = [
        ("input_ids", "i64"),
        ("attention_mask", "i64"),
        ("past_key_values.0.key", "f16"),
        ("past_key_values.0.value", "f16"),
    ];
    const OUTPUTS: [(&str, &str); 3] = [
        ("logits", "f32"),
        ("present.0.key", "f16"),
        ("present.0.value", "f16"),
    ];

    #[test]
    fn a_decoders_boundary_is_read() {
        let ports = Ports::read(&graph(&INPUTS, &OUTPUTS), 8).unwrap();
        assert!(!ports.position_ids && ports.caches.len() == 2);
        assert_eq!(
            ports.among(&[ports.caches[1].clone(), ports.caches[0].clone()]),
            Some(vec![1, 0])
        );
        assert_eq!(
            ports.among(&[
                CachePort {
                    layer: 2,
                    ..ports.caches[0].clone()
                },
                ports.caches[1].clone()
            ]),
            None
        );
        assert_eq!(
            (
                ports.caches[1].present.as_str(),
                ports.caches[1].heads,
                ports.caches[1].element
            ),
            ("present.0.value", 2, TensorElementType::Float16)
        );
    }

    #[test]
    fn rows_are_kept_where_the_graph_takes_how_many() {
        let mut graph = graph(&INPUTS, &OUTPUTS);
        let evenly = |graph: &GraphRecord, want, fillers, evenly| {
            let asked = Asked {
                want,
                fillers,
                evenly,
                length: 0,
            };
            Ports::read(graph, 8).unwrap().kept(5, asked)
        };
        let kept = |graph: &GraphRecord, want, fillers| evenly(graph, want, fillers, false);
        assert_eq!([kept(&graph, 0, 0), kept(&graph, 2, 1)], [5, 5]);
        graph.optional_inputs.push(PortRecord {
            name: LOGITS_TO_KEEP.to_owned(),
            dtype: DType::I64,
            shape: Vec::new(),
        });
        assert_eq!([kept(&graph, 0, 0), kept(&graph, 2, 1)], [1, 3]);
        let evenly = |want, fillers| evenly(&graph, want, fillers, true);
        assert_eq!([evenly(1, 0), evenly(2, 1), evenly(5, 0)], [2, 4, 5]);
    }

    #[test]
    fn other_boundaries_are_refused_with_the_port() {
        let with = |extra| [&INPUTS[..], &[extra]].concat();
        let cases = [
            (INPUTS[1..].to_vec(), OUTPUTS.to_vec(), "input_ids"),
            (
                with(("pixel_values", "f32")),
                OUTPUTS.to_vec(),
                "pixel_values",
            ),
            (
                with(("past_key_values.1.key", "f16")),
                OUTPUTS.to_vec(),
                "past_key_values.1.key",
            ),
            (INPUTS[..3].to_vec(), OUTPUTS.to_vec(), "past_key_values"),
            (INPUTS.to_vec(), OUTPUTS[1..].to_vec(), "logits"),
            (INPUTS.to_vec(), OUTPUTS[..2].to_vec(), "present.0.value"),
            (
                with(("position_ids", "f32")),
                OUTPUTS.to_vec(),
                "position_ids",
            ),
        ];
        for (inputs, outputs, port) in cases {
            let error = Ports::read(&graph(&inputs, &outputs), 8)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("`draft`") && error.contains(port),
                "{port}: {error}"
            );
        }
    }
}
