//! The file of one shard's scores: safetensors with an F64 tensor `[numbers, 2]` for each entry (sums
//! and what rounding left of them), and a description of what they are of. Files may come from
//! anyone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use dlc_files::read_input;
use dlc_passes::PassError;
use dlc_passes::sums::{FisherSums, ScoreRequest, Shard, ShardScores, Sum};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The key of the description in the file's metadata: one, as several have no order.
const KEY: &str = "dlc.scores";
/// The version of the format.
const FORMAT: u32 = 1;
/// Largest file: some 500 000 tensors.
const CAP: u64 = 128 << 20;
/// Bytes of a sum.
const BYTES: usize = 16;

/// What the scores of a file are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    /// Version of the format.
    pub format: u32,
    /// Version of dlc.
    pub dlc: String,
    /// Name of the checkpoint.
    pub model: String,
    /// SHA-256 of what identifies the module: the hashes of checkpoint and adapters, the element
    /// type, the passes that ran before.
    pub module_sha256: String,
    /// The loss whose gradients are squared.
    pub objective: String,
    /// How many samples all shards have.
    pub samples: usize,
    /// SHA-256 of the tokens of these.
    pub samples_sha256: String,
    /// Which shard this is, `2/4`.
    pub shard: String,
}

impl Description {
    /// Of the scores of a shard of what `request` asks for.
    pub fn new(model: &str, request: &ScoreRequest, shard: Shard) -> Self {
        let mut tokens = Sha256::new();
        for sample in &request.samples {
            tokens.update((sample.len() as u64).to_le_bytes());
            for token in sample {
                tokens.update(token.to_le_bytes());
            }
        }
        Self {
            format: FORMAT,
            dlc: env!("CARGO_PKG_VERSION").to_owned(),
            model: model.to_owned(),
            module_sha256: format!("{:x}", Sha256::digest(request.module_key.as_bytes())),
            objective: request.objective.to_owned(),
            samples: request.samples.len(),
            samples_sha256: format!("{:x}", tokens.finalize()),
            shard: shard.to_string(),
        }
    }
}

/// What a description of any version says.
#[derive(Debug, Deserialize)]
struct Version {
    format: u32,
}

/// The scores of a shard as they were read.
#[derive(Debug)]
pub(super) struct ScoreFile {
    /// The file, for messages.
    pub place: String,
    pub description: Description,
    pub shard: Shard,
    pub sums: FisherSums,
}

/// The bytes of the file with these scores.
pub(super) fn encode(
    description: &Description,
    scores: &ShardScores,
) -> Result<Vec<u8>, PassError> {
    let bytes = |sums: &[Sum]| -> Vec<u8> {
        let numbers = sums.iter().flat_map(|sum| [sum.rounded, sum.rest]);
        numbers.flat_map(f64::to_le_bytes).collect()
    };
    let entries = scores.sums.entries.iter();
    let tensors: Vec<(&String, usize, Vec<u8>)> = entries
        .map(|(name, sums)| (name, sums.len(), bytes(sums)))
        .collect();
    let views = tensors.iter().map(|(name, count, bytes)| {
        let view = TensorView::new(Dtype::F64, vec![*count, 2], bytes);
        view.map(|view| (*name, view))
    });
    let failed = |problem: String| PassError::Scores {
        place: "the scores".into(),
        problem,
    };
    let views: Vec<_> = views
        .collect::<Result<_, _>>()
        .map_err(|e| failed(e.to_string()))?;
    let text = serde_json::to_string(description).map_err(|e| failed(e.to_string()))?;
    let metadata = HashMap::from([(KEY.to_owned(), text)]);
    serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))
}

/// Reads the scores of a shard.
pub(super) fn read(path: &Path) -> Result<ScoreFile, PassError> {
    let place = path.display().to_string();
    let fail = |problem: String| PassError::Scores {
        place: place.clone(),
        problem,
    };
    let bytes = read_input(path, CAP).map_err(|e| fail(e.problem.to_string()))?;
    let (description, sums) = decode(&bytes).map_err(fail)?;
    let problem = format!(
        "is of shard `{}`, which there isn't; run `dlc score` again",
        description.shard
    );
    let shard: Shard = description.shard.parse().map_err(|_| fail(problem))?;
    Ok(ScoreFile {
        sums: FisherSums {
            samples: shard.size(description.samples),
            entries: sums,
        },
        place,
        description,
        shard,
    })
}

fn decode(bytes: &[u8]) -> Result<(Description, BTreeMap<String, Vec<Sum>>), String> {
    const OTHER: &str = "is no file of scores; name files that `dlc score` wrote";
    let damaged =
        |e| format!("is no whole safetensors file ({e}); copy it again, or run `dlc score` again");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let text = header.metadata().as_ref().and_then(|all| all.get(KEY));
    let text = text.ok_or(OTHER)?;
    let version: Version = serde_json::from_str(text).map_err(|e| format!("{OTHER} ({e})"))?;
    if version.format != FORMAT {
        return Err(format!(
            "has format {}, and this dlc reads format {FORMAT}; run `dlc score` of this version",
            version.format
        ));
    }
    let description = serde_json::from_str(text).map_err(|e| format!("{OTHER} ({e})"))?;
    let mut entries = BTreeMap::new();
    for (name, view) in file.iter() {
        let &[_, 2] = view.shape() else {
            return Err(format!(
                "tensor {name} has shape {:?}, not [numbers, 2]; run `dlc score` again",
                view.shape()
            ));
        };
        if view.dtype() != Dtype::F64 {
            return Err(format!(
                "tensor {name} is {}, not F64; run `dlc score` again",
                view.dtype()
            ));
        }
        let (sums, _) = view.data().as_chunks::<BYTES>();
        entries.insert(name.to_owned(), sums.iter().map(sum).collect());
    }
    Ok((description, entries))
}

fn sum(bytes: &[u8; BYTES]) -> Sum {
    let (numbers, _) = bytes.as_chunks::<8>();
    Sum {
        rounded: f64::from_le_bytes(numbers[0]),
        rest: f64::from_le_bytes(numbers[1]),
    }
}
