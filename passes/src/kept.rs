//! What a long computation has found so far, in the cache under names that a later run finds again:
//! it goes on from there, and what is kept goes away when the computation is whole.

use dlc_eval::Array;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::ScoreCache;

/// The parts of one computation; without a cache nothing is kept.
#[derive(Clone, Copy)]
pub(crate) struct Kept<'c> {
    cache: Option<&'c dyn ScoreCache>,
    /// Identifies the computation: module, data and options.
    key: &'c str,
}

impl<'c> Kept<'c> {
    pub fn new(cache: Option<&'c dyn ScoreCache>, key: &'c str) -> Self {
        Self { cache, key }
    }

    fn name(&self, part: &str) -> String {
        format!("{} part {part}", self.key)
    }

    /// What an earlier run kept, which may be anything.
    pub fn get<T: DeserializeOwned>(&self, part: &str) -> Option<T> {
        self.cache?.read(&self.name(part))
    }

    pub fn put(&self, part: &str, value: &impl Serialize) {
        if let Some(cache) = self.cache {
            cache.write(&self.name(part), value);
        }
    }

    /// Arrays of numbers that an earlier run kept, if there are so many.
    pub fn arrays(&self, part: &str, count: usize) -> Option<Vec<Array>> {
        let bytes = self.cache?.get_bytes(&self.name(part))?;
        let mut rest = bytes.as_slice();
        let arrays: Option<Vec<Array>> = (0..count).map(|_| decode(&mut rest)).collect();
        arrays.filter(|_| rest.is_empty())
    }

    pub fn put_arrays<'a>(&self, part: &str, arrays: impl IntoIterator<Item = &'a Array>) {
        if let Some(cache) = self.cache {
            let mut bytes = Vec::new();
            arrays
                .into_iter()
                .for_each(|array| encode(array, &mut bytes));
            cache.put_bytes(&self.name(part), &bytes);
        }
    }

    pub fn remove(&self, part: &str) {
        if let Some(cache) = self.cache {
            cache.remove(&self.name(part));
        }
    }
}

/// Number of axes, their sizes, the numbers.
fn encode(array: &Array, into: &mut Vec<u8>) {
    let sizes = [array.shape().len()]
        .into_iter()
        .chain(array.shape().iter().copied());
    into.extend(sizes.flat_map(|size| (size as u64).to_le_bytes()));
    into.extend(
        array
            .as_f32()
            .unwrap_or_default()
            .iter()
            .flat_map(|x| x.to_le_bytes()),
    );
}

fn decode(rest: &mut &[u8]) -> Option<Array> {
    const MOST_AXES: usize = 8;
    let mut size = || {
        let (bytes, after) = rest.split_first_chunk::<8>()?;
        *rest = after;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let axes = size().filter(|axes| *axes <= MOST_AXES)?;
    let shape: Vec<usize> = (0..axes).map(|_| size()).collect::<Option<_>>()?;
    let length = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d))?;
    let (numbers, after) = rest.split_at_checked(length)?;
    *rest = after;
    let (numbers, _) = numbers.as_chunks::<4>();
    Array::f32(
        shape,
        numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_as_they_were_written_and_nothing_else_is_read() {
        let arrays = [
            Array::f32(
                [2, 3],
                vec![0.1, -0.0, f32::MIN_POSITIVE, 1e30, f32::NAN, 2.0],
            )
            .unwrap(),
            Array::f32([1, 0, 4], vec![]).unwrap(),
        ];
        let mut bytes = Vec::new();
        for array in &arrays {
            encode(array, &mut bytes);
        }
        let mut rest = bytes.as_slice();
        for array in &arrays {
            let read = decode(&mut rest).unwrap();
            assert_eq!(read.shape(), array.shape());
            let bits = |a: &Array| {
                a.as_f32()
                    .unwrap()
                    .iter()
                    .map(|x| x.to_bits())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(&read), bits(array));
        }
        assert!(rest.is_empty());
        for cut in 0..bytes.len() - 32 {
            assert!(decode(&mut &bytes[..cut.min(24 + 23)]).is_none());
        }
        assert!(decode(&mut &[0xff; 64][..]).is_none());
    }
}
