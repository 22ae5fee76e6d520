//! Prompts that are read in pieces, and logits of their last tokens alone, against what transformers
//! computes of the whole at once.

use std::ops::ControlFlow;

use dlc_bundle::Profile;
use dlc_methods::MethodError;
use dlc_methods::speculation::{DecodeOptions, Decoder, Logits, Reading, TokenModel};
use dlc_runtime::{Backend, Bundle, DecoderOptions, DecoderSession};

use super::decoding::{compile_quietly, compile_request};
use super::fixture;
use super::golden::{TOLERANCE, recorded};
use super::lengths::{GOLDEN, TRAINED};
use super::session::{same_length, within, worst_error};

/// Texts within and beyond the length trained on, where the rotation changes: as the decoding loop
/// reads them, and by calls of [`TokenModel`]. Graphs that can't be told the length read a text
/// beyond it at once.
pub fn check_pieces(backend: &Backend, profile: Profile) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = folder.path().join("bundle");
    let model = fixture(&format!("goldens/{GOLDEN}"));
    compile_quietly(&compile_request(model, profile, output.clone())).unwrap();
    let bundle = Bundle::open(&output).unwrap();
    let options = DecoderOptions::default();
    let mut session = DecoderSession::open(backend, &bundle, "target", None, &options).unwrap();
    let recorded = recorded(&fixture(&format!("goldens/{GOLDEN}/lengths.safetensors")));
    let ids = recorded["input.input_ids"].as_i64().unwrap().to_vec();
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    for length in TRAINED..=TRAINED + 2 {
        let all = recorded[&format!("output.logits_{length}")]
            .as_f32()
            .unwrap()
            .to_vec();
        let vocab = session.vocab_size();
        let (text, wanted) = (&ids[..length], &all[..length * vocab]);
        for piece in 1..=length {
            let last = after(&mut session, text, piece)?;
            compare(&last, &wanted[(length - 1) * vocab..], 1)
                .map_err(|error| format!("{length} tokens, {piece} at a time: {error}"))?;
            for want in 1..=piece {
                let logits = read(&mut session, text, piece, want)?;
                compare(&logits, &wanted[(length - want) * vocab..], want).map_err(|error| {
                    format!("{length} tokens, {piece} at a time, logits of {want}: {error}")
                })?;
            }
        }
    }
    Ok(())
}

fn compare(logits: &Logits<'_>, wanted: &[f32], rows: usize) -> Result<(), String> {
    let found: Vec<f32> = (0..rows).flat_map(|i| logits.row(i).to_vec()).collect();
    same_length("logits", &found, wanted)?;
    within("logits", worst_error(found.iter().zip(wanted)), TOLERANCE)
}

/// Logits after a text, as the decoding loop has them.
fn after(
    session: &mut DecoderSession,
    text: &[u32],
    piece: usize,
) -> Result<Logits<'static>, String> {
    let mut watched = Watched {
        session,
        last: Logits::new(0, Vec::new()),
    };
    let options = DecodeOptions {
        max_tokens: 1,
        prefill_chunk: piece,
        ..DecodeOptions::default()
    };
    Decoder::new(&mut watched, None, options)
        .and_then(|mut decoder| decoder.generate(text, &mut |_| ControlFlow::Continue(())))
        .map_err(|error| error.to_string())?;
    Ok(watched.last)
}

/// Logits of a text, read so many tokens at a time with wrong guesses in between, are the same bit by
/// bit.
pub fn check_pairs(session: &mut DecoderSession) -> Result<(), String> {
    let text: Vec<u32> = (0..40).map(|i| (i * 7919) % 512).collect();
    let (prompt, text) = text.split_at(4);
    let mut read = |width: usize| -> Result<Vec<u32>, MethodError> {
        session.rollback(0);
        session.extend(prompt, 0)?;
        let mut bits = Vec::new();
        for part in text.chunks(width) {
            let logits = session.extend(part, part.len())?;
            let rows = (0..part.len()).flat_map(|i| logits.row(i));
            bits.extend(rows.map(|x| x.to_bits()));
            let decided = session.len();
            session.extend(&[5, 6, 7], 3)?;
            session.rollback(decided);
        }
        Ok(bits)
    };
    let alone = read(1).map_err(|error| error.to_string())?;
    for width in [2, 3, 5, 8, 16] {
        if read(width).map_err(|error| error.to_string())? != alone {
            return Err(format!(
                "{width} tokens at a time say something else than one"
            ));
        }
    }
    Ok(())
}

/// A model that keeps the logits that it gave last.
struct Watched<'s> {
    session: &'s mut DecoderSession,
    last: Logits<'static>,
}

impl TokenModel for Watched<'_> {
    fn vocab_size(&self) -> usize {
        self.session.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.session.context_length()
    }

    fn len(&self) -> usize {
        self.session.len()
    }

    fn extend(&mut self, tokens: &[u32], want: usize) -> Result<Logits<'_>, MethodError> {
        self.last = self.session.extend(tokens, want)?.into_owned();
        Ok(self.last.clone())
    }

    fn expect(&mut self, len: usize, piece: usize) -> Reading {
        self.session.expect(len, piece)
    }

    fn guesses(&self, pending: usize, most: usize) -> usize {
        self.session.guesses(pending, most)
    }

    fn rollback(&mut self, len: usize) {
        self.session.rollback(len);
    }
}

/// Logits of the last `want` tokens of a text whose last piece is as long as that.
fn read<'s>(
    session: &'s mut DecoderSession,
    text: &[u32],
    piece: usize,
    want: usize,
) -> Result<Logits<'s>, String> {
    session.rollback(0);
    let reading = session.expect(text.len(), piece);
    let last = match reading {
        Reading::Pieces(_) => want,
        Reading::Whole => text.len(),
    };
    let (first, last) = text.split_at(text.len() - last);
    for part in first.chunks(reading.piece(text.len())) {
        session.extend(part, 0).map_err(|error| error.to_string())?;
    }
    session
        .extend(last, want)
        .map_err(|error| error.to_string())
}
