//! The layouts of GPTQ and AWQ: codes in words of 32 bits.
//!
//! GPTQ (AutoGPTQ, GPTQModel): `qweight i32[inputs * bits / 32, outputs]`, codes of inputs after each
//! other in the words of an output, from the lowest bit up; `qzeros i32[groups, outputs * bits / 32]`,
//! likewise along the outputs. AWQ (AutoAWQ's `gemm`): both along the outputs, `qweight
//! i32[inputs, outputs / 8]`, eight outputs of a word in [`AWQ_ORDER`].

use std::sync::Arc;

use dlc_ir::{Blob, Coded, Expr, Groups};

use super::super::tensors::{StoredType, TensorRecord};
use super::scheme::{Method, Scheme};

/// Bits of a word.
const WORD: usize = 32;
/// Where the codes of eight outputs stand in a word of AWQ: that of output `i` at place
/// `AWQ_ORDER[i]`.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The tensors of a quantised linear layer.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// Codes.
    pub(super) codes: &'a TensorRecord,
    /// Zero points.
    pub(super) zero_points: &'a TensorRecord,
    /// Scales.
    pub(super) scales: &'a TensorRecord,
    /// The group of each input.
    pub(super) groups: Option<&'a TensorRecord>,
}

/// A matrix of GPTQ or AWQ: `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    scheme: Scheme,
    shape: [usize; 2],
    groups: Groups,
    codes: Blob,
    zero_points: Blob,
    scales: Expr,
}

/// What is wrong with one of a layer's tensors: the end of its name, and the rest of a sentence.
pub(super) type Problem = (&'static str, String);

impl PackedMatrix {
    /// The matrix of `parts`, once its tensors fit each other. Reads scales and the groups of
    /// inputs.
    pub(super) fn new(scheme: Scheme, parts: &Parts<'_>) -> Result<Self, Problem> {
        let scale_type = match parts.scales.dtype {
            StoredType::Float(dtype) => dtype,
            other => return Err(("scales", format!("is {other}; scales are floats"))),
        };
        let [words, width] = words_of(parts.codes).map_err(|problem| ("qweight", problem))?;
        let [outputs, inputs] = match (scheme.method, parts.groups) {
            (Method::Awq, _) => [width * WORD / scheme.bits, words],
            (Method::Gptq, None) => [width, words * WORD / scheme.bits],
            (Method::Gptq, Some(groups)) => [width, groups.shape.iter().product()],
        };
        let expected = match scheme.method {
            Method::Gptq => [(inputs * scheme.bits).div_ceil(WORD), outputs],
            Method::Awq => [inputs, outputs * scheme.bits / WORD],
        };
        let fit = |name: &'static str,
                   record: &TensorRecord,
                   expected: &[usize]|
         -> Result<(), Problem> {
            if record.shape == expected {
                return Ok(());
            }
            let problem = format!(
                "has shape {:?}, expected {expected:?} for {outputs} outputs and {inputs} inputs in {} bits",
                record.shape, scheme.bits
            );
            Err((name, problem))
        };
        fit("qweight", parts.codes, &expected)?;
        let size = scheme.group_size.unwrap_or(inputs);
        let count = inputs.div_ceil(size);
        let zero_words = (outputs * scheme.bits).div_ceil(WORD);
        words_of(parts.zero_points).map_err(|problem| ("qzeros", problem))?;
        fit("qzeros", parts.zero_points, &[count, zero_words])?;
        fit("scales", parts.scales, &[count, outputs])?;
        let groups = match parts.groups {
            Some(record) => groups_of(record, size, count).map_err(|problem| ("g_idx", problem))?,
            None => Groups::Runs(size),
        };
        check_scales(parts.scales).map_err(|problem| ("scales", problem))?;
        Ok(Self {
            scheme,
            shape: [outputs, inputs],
            groups,
            codes: parts.codes.blob.clone(),
            zero_points: parts.zero_points.blob.clone(),
            scales: Expr::Mapped {
                blob: parts.scales.blob.clone(),
                dtype: scale_type,
            },
        })
    }

    /// Whether inputs were quantised in another order than they stand in.
    pub(super) fn is_reordered(&self) -> bool {
        matches!(self.groups, Groups::Table { .. })
    }

    /// The word and the bit in it where the code of `output` begins in a line of `words` that holds
    /// all outputs.
    fn along_outputs(&self, output: usize) -> (usize, usize) {
        let bits = self.scheme.bits;
        match self.scheme.method {
            Method::Gptq => (output * bits / WORD, output * bits % WORD),
            Method::Awq => (output / 8, AWQ_ORDER[output % 8] * bits),
        }
    }

    fn mask(&self) -> u8 {
        u8::MAX >> (8 - self.scheme.bits)
    }
}

impl Coded for PackedMatrix {
    fn name(&self) -> &'static str {
        self.scheme.method.name()
    }

    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bits(&self) -> usize {
        self.scheme.bits
    }

    fn groups(&self) -> &Groups {
        &self.groups
    }

    fn codes(&self, row: usize, column: usize, out: &mut [u8]) {
        let (bits, mask) = (self.scheme.bits, self.mask());
        let words = Words(self.codes.as_ref());
        match self.scheme.method {
            Method::Gptq => {
                let stride = self.shape[0];
                for (column, code) in (column..).zip(out) {
                    let (word, bit) = (column * bits / WORD, column * bits % WORD);
                    let at = |word: usize| words.get(word * stride + row);
                    *code = across(at, word, bit, bits) & mask;
                }
            }
            Method::Awq => {
                let stride = self.shape[0] * bits / WORD;
                let (word, bit) = self.along_outputs(row);
                for (column, code) in (column..).zip(out) {
                    *code = (words.get(column * stride + word) >> bit) as u8 & mask;
                }
            }
        }
    }

    fn zero_points(&self, row: usize, group: usize, out: &mut [u8]) {
        let (bits, mask) = (self.scheme.bits, self.mask());
        let stride = (self.shape[0] * bits).div_ceil(WORD);
        let words = Words(self.zero_points.as_ref());
        let (word, bit) = self.along_outputs(row);
        // Codes that share no words were lessened by subtracting from whole words: a zero point of 0
        // borrows from the next, and adding to whole words gives it back.
        let ones = u32::MAX / u32::from(mask);
        let whole = WORD.is_multiple_of(bits);
        for (group, zero_point) in (group..).zip(out) {
            let at = |word: usize| {
                let stored = words.get(group * stride + word);
                if self.scheme.less_one && whole {
                    stored.wrapping_add(ones)
                } else {
                    stored
                }
            };
            let stored = across(at, word, bit, bits);
            let lacks = u8::from(self.scheme.less_one && !whole);
            *zero_point = stored.wrapping_add(lacks) & mask;
        }
    }

    fn scales(&self, row: usize, group: usize, out: &mut [f32]) {
        for (group, scale) in (group..).zip(out) {
            self.scales
                .read_f32(group * self.shape[0] + row, std::slice::from_mut(scale));
        }
    }
}

/// The eight bits from `bit` of `word` on, some of them perhaps in the next word.
fn across(at: impl Fn(usize) -> u32, word: usize, bit: usize, bits: usize) -> u8 {
    let low = at(word) >> bit;
    if bit + bits <= WORD {
        low as u8
    } else {
        (low | at(word + 1) << (WORD - bit)) as u8
    }
}

/// Little-endian words; 0 past the end.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn get(&self, index: usize) -> u32 {
        let bytes = self.0.get(index * 4..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// The two axes of a tensor of words.
fn words_of(record: &TensorRecord) -> Result<[usize; 2], String> {
    match (record.dtype, &record.shape[..]) {
        (StoredType::Other(safetensors::Dtype::I32), &[rows, columns]) => Ok([rows, columns]),
        (dtype, _) => Err(format!(
            "is {dtype} of shape {:?}; packed codes are a matrix of I32",
            record.shape
        )),
    }
}

/// The groups of inputs as a tensor has them: runs of `size` where they are that.
fn groups_of(record: &TensorRecord, size: usize, count: usize) -> Result<Groups, String> {
    let StoredType::Other(safetensors::Dtype::I32) = record.dtype else {
        return Err(format!("is {}; the groups of inputs are I32", record.dtype));
    };
    if record.shape.len() != 1 {
        return Err(format!(
            "has shape {:?}; the groups of inputs are a list",
            record.shape
        ));
    }
    let words = Words(record.blob.as_ref());
    let groups: Vec<u32> = (0..record.shape[0]).map(|i| words.get(i)).collect();
    if let Some(at) = groups.iter().position(|group| *group as usize >= count) {
        return Err(format!(
            "is {} at {at}, and there are {count} groups",
            groups[at].cast_signed()
        ));
    }
    let runs = (0..)
        .zip(&groups)
        .all(|(i, group)| i / size == *group as usize);
    Ok(if runs {
        Groups::Runs(size)
    } else {
        let of = Arc::from(groups);
        Groups::Table { of, count }
    })
}

fn check_scales(record: &TensorRecord) -> Result<(), String> {
    let first = record.expr().and_then(|data| data.first_non_finite());
    first.map_or(Ok(()), |at| {
        Err(format!(
            "is NaN or infinite at element {at}. Download the file again"
        ))
    })
}
