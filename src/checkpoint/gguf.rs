//! A GGUF file as a checkpoint: configuration and tokenizer are made of its metadata.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlc_files::IoError;
use dlc_files::temporary::Temporary;
use dlc_gguf::{Gguf, Model, ModelTensor, TensorKind};
use serde_json::{Map, Value};

use super::pipeline::Pipeline;
use super::quantized::Unpacked;
use super::sentence::SentenceModules;
use super::tensors::{StoredType, TensorRecord};
use super::{CONFIG, Checkpoint, CheckpointError, CheckpointFile, GENERATION_CONFIG};

/// The files that a checkpoint has beside its weights, made of a GGUF file's metadata.
#[derive(Debug)]
pub(super) struct Derived {
    files: Vec<(&'static str, Vec<u8>)>,
    /// Where they were written.
    place: Option<Temporary>,
}

impl Derived {
    fn of(model: &Model) -> Self {
        let json = |value: &Value| serde_json::to_vec_pretty(value).unwrap_or_default();
        let object = |object: &Map<String, Value>| json(&Value::from(object.clone()));
        let mut files = vec![
            (CONFIG, object(&model.config)),
            (GENERATION_CONFIG, object(&model.generation_config)),
        ];
        if let Some(tokenizer) = &model.tokenizer {
            files.push(("tokenizer.json", json(&tokenizer.tokenizer)));
            files.push(("tokenizer_config.json", object(&tokenizer.config)));
        }
        Self { files, place: None }
    }

    pub fn files(&self) -> &[(&'static str, Vec<u8>)] {
        &self.files
    }

    pub fn is_written(&self) -> bool {
        self.place.is_some()
    }

    /// Writes the files into a temporary folder in `parent`, and returns it.
    pub fn write(&mut self, parent: &Path) -> Result<PathBuf, IoError> {
        let place = Temporary::scratch(parent, "gguf")?;
        for (name, bytes) in &self.files {
            let path = place.path().join(name);
            fs::write(&path, bytes).map_err(IoError::of("write", &path))?;
        }
        let folder = place.path().to_owned();
        self.place = Some(place);
        Ok(folder)
    }
}

/// Opens `path`, which lies in `folder`.
pub(super) fn open(folder: PathBuf, path: PathBuf) -> Result<Checkpoint, CheckpointError> {
    let (model, file) = CheckpointFile::read(path, |path| {
        let gguf = Gguf::open(path)?;
        Ok((Model::of(&gguf)?, gguf.size()))
    })?;
    let derived = Derived::of(&model);
    let home: Arc<Path> = Arc::from(file.path.as_path());
    let tensors = model
        .tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), record(tensor, &home)))
        .collect();
    Ok(Checkpoint {
        sentence: SentenceModules::default(),
        folder,
        config: model.config,
        generation_config: Some(model.generation_config),
        scheduler: None,
        pipeline: None,
        whole: Pipeline::default(),
        tensors,
        absent: BTreeMap::new(),
        overlaid: false,
        files: vec![file],
        notes: model.notes,
        derived: Some(derived),
        made: Vec::new(),
        not_made: Vec::new(),
        retargeted: None,
        unpacked: Unpacked::default(),
    })
}

fn record(tensor: ModelTensor, file: &Arc<Path>) -> TensorRecord {
    let dtype = match tensor.kind {
        TensorKind::Float(dtype) => StoredType::Float(dtype),
        TensorKind::Packed(packing) => StoredType::Packed(packing.name),
        // The model is refused as a whole.
        TensorKind::Other(_) => StoredType::Packed("unknown"),
    };
    TensorRecord {
        dtype,
        shape: tensor.shape,
        blob: tensor.blob,
        laid_out: Some(tensor.data),
        file: Arc::clone(file),
    }
}
