//! Prompts that are read in pieces, and logits of their last tokens alone, against what transformers
//! computes of the whole at once.

use dlc_bundle::Profile;
use dlc_methods::speculation::{Logits, TokenModel};
use dlc_runtime::{Backend, Bundle, DecoderOptions, DecoderSession};

use super::decoding::{compile_quietly, compile_request};
use super::fixture;
use super::golden::{TOLERANCE, recorded};
use super::lengths::{GOLDEN, TRAINED};
use super::session::worst_error;

/// Texts within and beyond the length trained on, where the rotation changes. Graphs that can't be
/// told the length read all but the last token of a text at once, and so take the shortest text
/// beyond for one within.
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
    let is_told = profile == Profile::Ort;
    let beyond = if is_told { 1 } else { 2 };
    for length in [TRAINED, TRAINED + beyond] {
        let all = recorded[&format!("output.logits_{length}")]
            .as_f32()
            .unwrap()
            .to_vec();
        let vocab = session.vocab_size();
        let (text, wanted) = (&ids[..length], &all[..length * vocab]);
        for piece in 1..=length {
            let most = if is_told || length == TRAINED {
                piece
            } else {
                1
            };
            for want in 1..=most {
                let logits = read(&mut session, text, piece, want)?;
                let found: Vec<f32> = (0..want).flat_map(|i| logits.row(i).to_vec()).collect();
                let error = worst_error(found.iter().zip(&wanted[(length - want) * vocab..]));
                if found.len() != want * vocab || error > TOLERANCE {
                    return Err(format!(
                        "{length} tokens, {piece} at a time, logits of {want}: off by {error:e}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Logits of the last `want` tokens of a text whose last piece is as long as that.
fn read(
    session: &mut DecoderSession,
    text: &[u32],
    piece: usize,
    want: usize,
) -> Result<Logits, String> {
    session.rollback(0);
    let piece = session.expect(text.len(), piece);
    let (first, last) = text.split_at(text.len() - want);
    for part in first.chunks(piece) {
        session.extend(part, 0).map_err(|error| error.to_string())?;
    }
    session
        .extend(last, want)
        .map_err(|error| error.to_string())
}
