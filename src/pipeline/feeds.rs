//! What a graph is fed: of a model of text tokens, their places, and caches; of any other random
//! numbers.

mod random;

use std::collections::BTreeMap;
use std::ops::Range;

use dlc_bundle::GraphRecord;
use dlc_eval::{Array, ArrayData};
use dlc_ir::{DType, Graph};
use dlc_runtime::{HostTensor, Session};

pub(super) use self::random::{own_size, random_feeds, takes_any_size};
use super::error::PipelineError;

/// Where random feeds begin.
pub(super) const SEED: u64 = 7;

/// The inputs of one run of a model of text.
#[derive(Debug, Clone)]
pub(super) struct Feeds {
    pub batch: usize,
    pub length: usize,
    pub ids: Vec<i64>,
    pub mask: Vec<i64>,
    pub positions: Vec<i64>,
    pub segments: Vec<i64>,
    pub caches: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Feeds {
    pub fn prefix(graph: &Graph, batch: usize, length: usize, ids: &[i64]) -> Self {
        let caches = graph
            .inputs()
            .iter()
            .filter(|i| i.cache.is_some())
            .map(|i| {
                let dims = &graph.value(i.value).ty.shape.0;
                let width = |axis: usize| dims.get(axis).and_then(dlc_ir::Dim::known).unwrap_or(0);
                (i.name.clone(), (vec![batch, width(1), 0, width(3)], vec![]))
            });
        let positions = (0..batch).flat_map(|_| 0..length as i64).collect();
        let (mask, segments) = (vec![1; batch * length], vec![0; batch * length]);
        Self {
            batch,
            length,
            ids: ids.to_vec(),
            mask,
            positions,
            segments,
            caches: caches.collect(),
        }
    }

    /// Makes some places of a sequence padding.
    pub fn pad(&mut self, row: usize, places: Range<usize>) {
        self.mask[row * self.length..][places].fill(0);
        self.positions = self.counted();
    }

    /// The position of each of this run's tokens: how many come before it. Padding has any.
    pub fn counted(&self) -> Vec<i64> {
        let total = self.mask.len() / self.batch;
        let counted = self.mask.chunks(total).flat_map(|row| {
            let counts = row.iter().scan(0, |count, m| {
                *count += m;
                Some((*count - 1).max(0))
            });
            counts.skip(total - self.length).collect::<Vec<_>>()
        });
        counted.collect()
    }

    /// What comes after these prefixes, on the caches that they made.
    pub fn continued(&self, graph: &Graph, made: &BTreeMap<String, Array>, ids: &[i64]) -> Self {
        let mut caches = BTreeMap::new();
        for input in graph.inputs() {
            let output = graph
                .outputs()
                .iter()
                .find(|o| o.cache.is_some() && o.cache == input.cache);
            if let Some(array) = output.and_then(|o| made.get(&o.name)) {
                caches.insert(
                    input.name.clone(),
                    (
                        array.shape().to_vec(),
                        array.as_f32().unwrap_or_default().to_vec(),
                    ),
                );
            }
        }
        let length = ids.len() / self.batch;
        let mask = self
            .mask
            .chunks(self.mask.len() / self.batch)
            .flat_map(|row| [row, &vec![1; length]].concat())
            .collect();
        let mut feeds = Self {
            batch: self.batch,
            length,
            ids: ids.to_vec(),
            mask,
            positions: vec![],
            segments: vec![0; ids.len()],
            caches,
        };
        feeds.positions = feeds.counted();
        feeds
    }

    /// The same after the caches that a backend made.
    pub fn with_caches(&self, record: &GraphRecord, made: &[(String, HostTensor)]) -> Self {
        let mut feeds = self.clone();
        for port in &record.inputs {
            let present = port.name.replace("past_key_values.", "present.");
            if let (Some(cache), Some((_, tensor))) = (
                feeds.caches.get_mut(&port.name),
                made.iter().find(|(name, _)| *name == present),
            ) {
                *cache = (tensor.shape.clone(), tensor.to_f32().unwrap_or_default());
            }
        }
        feeds
    }

    /// What a backend makes of them.
    pub fn run(
        &self,
        session: &mut Session,
        record: &GraphRecord,
    ) -> Result<Vec<(String, HostTensor)>, PipelineError> {
        let ports = self.tensors(record);
        let inputs: Vec<(&str, HostTensor)> =
            ports.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        Ok(session.run_host(&inputs)?)
    }

    pub fn integers(&self) -> [(&'static str, Vec<usize>, &Vec<i64>); 4] {
        let total = self.mask.len() / self.batch;
        [
            (
                "token_type_ids",
                vec![self.batch, self.length],
                &self.segments,
            ),
            ("input_ids", vec![self.batch, self.length], &self.ids),
            ("attention_mask", vec![self.batch, total], &self.mask),
            (
                "position_ids",
                vec![self.batch, self.length],
                &self.positions,
            ),
        ]
    }

    /// The inputs that the graph has.
    pub fn arrays(&self, graph: &Graph) -> Result<BTreeMap<String, Array>, PipelineError> {
        let mut arrays = BTreeMap::new();
        for (name, shape, data) in self
            .integers()
            .into_iter()
            .filter(|(name, ..)| graph.find_input(name).is_some())
        {
            arrays.insert(name.to_owned(), Array::i64(shape, data.clone())?);
        }
        for (name, (shape, data)) in &self.caches {
            arrays.insert(name.clone(), Array::f32(shape.clone(), data.clone())?);
        }
        Ok(arrays)
    }

    /// The inputs that the graph's file has, in the types that it wants.
    pub fn tensors(&self, record: &GraphRecord) -> Vec<(String, HostTensor)> {
        let mut tensors = Vec::new();
        for port in &record.inputs {
            if let Some((_, shape, data)) = self
                .integers()
                .into_iter()
                .find(|(name, ..)| *name == port.name)
            {
                tensors.push((port.name.clone(), HostTensor::i64(shape, data.clone())));
            } else if let Some((shape, data)) = self.caches.get(&port.name) {
                tensors.push((
                    port.name.clone(),
                    HostTensor::floats(port.dtype, shape.clone(), data),
                ));
            }
        }
        tensors
    }

    /// Whether a row of logits belongs to a token, not to padding.
    pub fn is_token(&self, row: usize) -> bool {
        let total = self.mask.len() / self.batch;
        let (sequence, position) = (row / self.length, row % self.length);
        self.mask[sequence * total + total - self.length + position] == 1
    }
}

/// A text of one sequence on empty caches.
pub(super) fn text_feeds(
    graph: &Graph,
    ids: &[i64],
) -> Result<BTreeMap<String, Array>, PipelineError> {
    Feeds::prefix(graph, 1, ids.len(), ids).arrays(graph)
}

/// The arrays that a graph's file has inputs for, in the types that it wants.
pub(super) fn host_inputs<'r>(
    record: &'r GraphRecord,
    arrays: &BTreeMap<String, Array>,
) -> Vec<(&'r str, HostTensor)> {
    let tensor = |dtype: DType, array: &Array| match array.data() {
        ArrayData::I64(data) => HostTensor::i64(array.shape(), data.clone()),
        ArrayData::F32(data) => HostTensor::floats(dtype, array.shape(), data),
    };
    let ports = record
        .inputs
        .iter()
        .filter_map(|port| Some((port, arrays.get(&port.name)?)));
    ports
        .map(|(port, array)| (port.name.as_str(), tensor(port.dtype, array)))
        .collect()
}
