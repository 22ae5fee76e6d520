//! The models of `SentencePiece` (`sentencepiece_model.proto`), field by field.

use std::collections::HashMap;

use dlc_errors::printable::shown;
use dlc_files::wire::{Fields, Payload};

/// Most pieces: four times what the largest vocabularies have.
const MOST_PIECES: usize = 1 << 20;

/// What a piece is (`SentencePiece.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Control,
    UserDefined,
    /// Normal pieces, the unknown one, unused ones, and single bytes.
    Other,
}

/// A piece with its score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'b> {
    pub text: &'b str,
    pub score: f64,
    pub kind: PieceKind,
}

/// How pieces are found (`TrainerSpec.ModelType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Unigram,
    Bpe,
}

/// A model.
#[derive(Debug)]
pub(crate) struct Proto<'b> {
    pub pieces: Vec<Piece<'b>>,
    pub algorithm: Algorithm,
    pub unknown: usize,
    pub unknown_piece: &'b str,
    pub byte_fallback: bool,
    pub space_after: bool,
    /// The table that rewrites characters; empty where there is none.
    pub charsmap: &'b [u8],
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl<'b> Proto<'b> {
    /// Reads a file.
    pub fn read(bytes: &'b [u8]) -> Result<Self, String> {
        let mut proto = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            unknown: 0,
            unknown_piece: "<unk>",
            byte_fallback: false,
            space_after: false,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields::new(bytes) {
            match field? {
                (1, Payload::Bytes(piece)) => {
                    if proto.pieces.len() == MOST_PIECES {
                        return Err(format!("it has more than {MOST_PIECES} pieces"));
                    }
                    proto.pieces.push(read_piece(piece)?);
                }
                (2, Payload::Bytes(trainer)) => proto.read_trainer(trainer)?,
                (3, Payload::Bytes(normalizer)) => proto.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        proto.check()?;
        Ok(proto)
    }

    fn read_trainer(&mut self, message: &'b [u8]) -> Result<(), String> {
        for field in Fields::new(message) {
            match field? {
                (3, Payload::Number(1)) => self.algorithm = Algorithm::Unigram,
                (3, Payload::Number(2)) => self.algorithm = Algorithm::Bpe,
                (3, Payload::Number(kind)) => {
                    return Err(format!(
                        "it is a model of type {kind}; dlc reads Unigram (1) and BPE (2)"
                    ));
                }
                (24, Payload::Number(flag)) => self.space_after = flag != 0,
                (35, Payload::Number(flag)) => self.byte_fallback = flag != 0,
                (40, Payload::Number(id)) => {
                    self.unknown = usize::try_from(id).unwrap_or(usize::MAX);
                }
                (45, Payload::Bytes(piece)) => self.unknown_piece = text(piece)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, message: &'b [u8]) -> Result<(), String> {
        for field in Fields::new(message) {
            match field? {
                (2, Payload::Bytes(table)) => self.charsmap = table,
                (3, Payload::Number(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Payload::Number(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Payload::Number(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.unknown >= self.pieces.len() {
            return Err(format!(
                "its unknown piece is number {}, and it has {} pieces",
                self.unknown,
                self.pieces.len()
            ));
        }
        let mut seen = HashMap::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            if !piece.score.is_finite() {
                return Err(format!("the score of piece {id} is no finite number"));
            }
            if let Some(other) = seen.insert(piece.text, id) {
                return Err(format!(
                    "pieces {other} and {id} are both `{}`",
                    shown(piece.text)
                ));
            }
        }
        Ok(())
    }

    /// The id of each piece.
    pub fn ids(&self) -> HashMap<&'b str, u32> {
        let texts = self.pieces.iter().map(|piece| piece.text);
        texts.zip(0..).collect()
    }
}

fn read_piece(message: &[u8]) -> Result<Piece<'_>, String> {
    let mut piece = Piece {
        text: "",
        score: 0.0,
        kind: PieceKind::Other,
    };
    for field in Fields::new(message) {
        match field? {
            (1, Payload::Bytes(bytes)) => piece.text = text(bytes)?,
            (2, Payload::Fixed(&[a, b, c, d])) => {
                piece.score = f64::from(f32::from_le_bytes([a, b, c, d]));
            }
            (3, Payload::Number(kind)) => {
                piece.kind = match kind {
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    _ => PieceKind::Other,
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err("a piece is empty".to_owned());
    }
    Ok(piece)
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a piece is no text in UTF-8".to_owned())
}
