//! What a pass is fed beside its caches: tensors that are made once for a number of tokens, and
//! written over by each pass.

use std::borrow::Cow;

use dlc_bundle::{LOGITS_TO_KEEP, PROMPT_LENGTH};
use ort::session::SessionInputValue;
use ort::value::{Tensor, TensorRef};

use super::ports::{Asked, IDS, MASK, POSITIONS, Ports};
use crate::Result;

/// Inputs of one run.
pub(super) type Inputs<'f> = Vec<(Cow<'f, str>, SessionInputValue<'f>)>;

/// Tokens and what is said of them.
#[derive(Debug)]
pub(super) struct Feeds {
    count: usize,
    tensors: Vec<(&'static str, Tensor<i64>)>,
}

impl Feeds {
    /// For passes over `count` tokens of each of so many rows.
    pub fn new(ports: &Ports, rows: usize, count: usize) -> Result<Self> {
        let row = [rows as i64, count as i64];
        let wanted: [(_, &[i64], _); 4] = [
            (IDS, &row, true),
            (POSITIONS, &row, ports.position_ids),
            (LOGITS_TO_KEEP, &[], ports.logits_to_keep),
            (PROMPT_LENGTH, &[], ports.prompt_length),
        ];
        let tensors = wanted
            .into_iter()
            .filter(|(.., is_taken)| *is_taken)
            .map(|(name, shape, _)| {
                let elements = shape.iter().product::<i64>() as usize;
                let tensor = Tensor::from_array((shape, vec![0; elements]));
                Ok((name, tensor.map_err(|error| ports.failed(name, &error))?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { count, tensors })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Writes down as many tokens as it is for, row by row, and where they stand.
    pub fn fill(
        &mut self,
        ports: &Ports,
        tokens: &(impl Iterator<Item = u32> + Clone),
        positions: &(impl Iterator<Item = usize> + Clone),
        asked: Asked,
    ) -> Result<()> {
        for (name, tensor) in &mut self.tensors {
            let (_, data) = tensor
                .try_extract_tensor_mut::<i64>()
                .map_err(|error| ports.failed(name, &error))?;
            match *name {
                IDS => write(data, tokens.clone().map(i64::from)),
                POSITIONS => write(data, positions.clone().map(|place| place as i64)),
                LOGITS_TO_KEEP => data.fill(ports.kept(self.count, asked) as i64),
                _ => data.fill(asked.length as i64),
            }
        }
        Ok(())
    }

    /// All inputs but the caches, with room for them. `mask` has an element for each token of
    /// caches and pass, row by row.
    pub fn inputs<'f>(
        &'f self,
        ports: &'f Ports,
        rows: usize,
        mask: &'f [i64],
    ) -> Result<Inputs<'f>> {
        let mut inputs = Vec::with_capacity(self.tensors.len() + 1 + ports.caches.len());
        inputs.extend(
            self.tensors
                .iter()
                .map(|(name, tensor)| (Cow::Borrowed(*name), tensor.into())),
        );
        let mask = TensorRef::from_array_view(([rows, mask.len() / rows.max(1)], mask))
            .map_err(|error| ports.failed(MASK, &error))?;
        inputs.push((Cow::Borrowed(MASK), mask.into()));
        Ok(inputs)
    }
}

fn write(data: &mut [i64], values: impl Iterator<Item = i64>) {
    for (to, value) in data.iter_mut().zip(values) {
        *to = value;
    }
}
