//! ONNX files against each other, and against modules, by their constants: whose values aren't the
//! same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dlc_ir::{IrError, Module, Weight};
use dlc_onnx::{OnnxConstant, hash_constants};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::bundle_module::OnnxModule;
use super::error::PipelineError;

/// Bytes that are hashed at a time, a multiple of every element's size.
const PIECE: usize = 1 << 20;
/// What stands after the type of a matrix whose rows and columns are exchanged.
const TRANSPOSED: &str = " transposed";

/// A constant that isn't the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConstantDifference {
    /// Its name.
    pub weight: String,
    /// Its type on the first side; none if it isn't there.
    pub before: Option<String>,
    /// Its type on the second side. Where both are equal, the values differ.
    pub after: Option<String>,
}

/// Constants by name, each with its type and the hash of its values.
#[derive(Debug)]
pub struct Constants {
    all: BTreeMap<String, OnnxConstant>,
    /// Whether they are the weights of a graph of dlc's, which lists their names.
    is_listed: bool,
}

/// Names of matrices that an ONNX file has with rows and columns exchanged.
pub type Transposed = BTreeSet<String>;

impl Constants {
    /// Those of an ONNX file; of one that dlc wrote, the weights of its graph.
    ///
    /// # Errors
    /// See [`hash_constants`].
    pub fn of_onnx(path: &Path, onnx: &OnnxModule) -> Result<Self, PipelineError> {
        let mut all = hash_constants(path)?;
        for (name, constant) in &mut all {
            if onnx.summary.transposed.contains(name) {
                constant.ty.push_str(TRANSPOSED);
            }
        }
        if let Some((graph, weights)) = &onnx.graph {
            let names: BTreeSet<&str> = graph
                .weights()
                .into_iter()
                .map(|id| weights[id].name.as_str())
                .collect();
            all.retain(|name, _| names.contains(name.as_str()));
        }
        Ok(Self {
            all,
            is_listed: onnx.graph.is_some(),
        })
    }

    /// The weights of a module, as an ONNX file has them that exchanges rows and columns of
    /// `transposed`. Runs on rayon's current pool.
    ///
    /// # Errors
    /// What the IR says of a weight that can't be read.
    pub fn of_module(module: &Module, transposed: &Transposed) -> Result<Self, PipelineError> {
        let weights: Vec<&Weight> = module
            .weights
            .entries()
            .map(|(_, weight)| weight)
            .filter(|weight| weight.expr().is_some())
            .collect();
        let all = weights
            .par_iter()
            .map(|weight| Ok((weight.name.clone(), hash_as_stored(weight, transposed)?)))
            .collect::<Result<_, IrError>>()?;
        Ok(Self {
            all,
            is_listed: true,
        })
    }

    /// Those that differ, by name. Where graphs list their weights, that one of them lacks a weight
    /// is said by the graphs.
    pub fn differences(&self, other: &Self) -> Vec<ConstantDifference> {
        let names: BTreeSet<&String> = self.all.keys().chain(other.all.keys()).collect();
        let listed = self.is_listed || other.is_listed;
        let pairs = names
            .into_iter()
            .map(|name| (name, self.all.get(name), other.all.get(name)));
        let differing =
            pairs.filter(|(_, a, b)| a != b && !(listed && (a.is_none() || b.is_none())));
        let ty = |constant: Option<&OnnxConstant>| constant.map(|constant| constant.ty.clone());
        differing
            .map(|(name, a, b)| ConstantDifference {
                weight: name.clone(),
                before: ty(a),
                after: ty(b),
            })
            .collect()
    }
}

fn hash_as_stored(weight: &Weight, transposed: &Transposed) -> Result<OnnxConstant, IrError> {
    if !transposed.contains(&weight.name) || weight.shape.len() != 2 {
        return hash(weight);
    }
    let mut constant = hash(&weight.transposed()?)?;
    constant.ty.push_str(TRANSPOSED);
    Ok(constant)
}

fn hash(weight: &Weight) -> Result<OnnxConstant, IrError> {
    let size = weight.dtype.size();
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE.min(weight.bytes())];
    for from in (0..weight.elements()).step_by(PIECE / size) {
        let piece = &mut piece[..size * (PIECE / size).min(weight.elements() - from)];
        weight.write_bytes(from, piece)?;
        hasher.update(piece);
    }
    let dims: Vec<String> = weight.shape.iter().map(ToString::to_string).collect();
    Ok(OnnxConstant {
        ty: format!("{}[{}]", weight.dtype, dims.join(", ")),
        sha256: format!("{:x}", hasher.finalize()),
    })
}
