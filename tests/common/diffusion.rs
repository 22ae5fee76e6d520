//! Goldens of diffusion models: one step, fed as diffusers fed it, and its sample.

use std::collections::BTreeMap;

use dlc_bundle::Profile;
use dlc_eval::{Array, ArrayData};
use dlc_ir::DType;
use dlc_runtime::{Backend, BackendKind, Bundle, HostData, HostTensor, Session, SessionOptions};

use super::fixture;
use super::golden::{module, recorded};
use super::session::export;

/// The goldens of diffusion models.
pub const DIFFUSION: &[&str] = &[
    "dit",
    "pixart",
    "unet-ddpm",
    "unet-sd15",
    "unet-sdxl",
    "dit-geglu",
    "pixart-sizes",
    "unet-ddpm-classes",
    "unet-stages",
];

/// What a model was fed, by boundary name, and the sample that it returned.
pub struct DiffusionGolden {
    pub name: &'static str,
    pub inputs: BTreeMap<String, Array>,
    sample: Array,
}

impl DiffusionGolden {
    /// Noise levels become one float for each image. A text without a mask is all tokens.
    pub fn read(name: &'static str) -> Self {
        let mut recorded = recorded(&fixture(&format!("goldens/{name}/golden.safetensors")));
        let sample = recorded.remove("output.sample").unwrap();
        let batch = sample.shape()[0];
        let mut inputs: BTreeMap<String, Array> = recorded
            .into_iter()
            .filter_map(|(k, a)| Some((k.strip_prefix("input.")?.to_owned(), a)))
            .collect();
        let timesteps: Vec<f32> = match inputs["timestep"].data() {
            ArrayData::I64(levels) => levels.iter().map(|&t| t as f32).collect(),
            ArrayData::F32(levels) => levels.clone(),
        };
        inputs.insert(
            "timestep".into(),
            Array::f32([batch], timesteps.into_iter().cycle().take(batch).collect()).unwrap(),
        );
        if name == "pixart" {
            let text = inputs["encoder_hidden_states"].shape()[1];
            inputs.insert(
                "encoder_attention_mask".into(),
                Array::i64([batch, text], vec![1; batch * text]).unwrap(),
            );
        }
        Self {
            name,
            inputs,
            sample,
        }
    }

    /// The same model fed samples of other heights and widths, if some were recorded.
    pub fn other_sizes(&self) -> Vec<Self> {
        let path = fixture(&format!("goldens/{}/sizes.safetensors", self.name));
        if !path.exists() {
            return vec![];
        }
        let mut recorded = recorded(&path);
        let sizes: Vec<String> = recorded
            .keys()
            .filter_map(|key| key.strip_suffix(".input.sample"))
            .map(str::to_owned)
            .collect();
        let mut part = |size: &str, part: &str| recorded.remove(&format!("{size}.{part}")).unwrap();
        let golden = |size: &String| {
            let mut inputs = self.inputs.clone();
            inputs.insert("sample".into(), part(size, "input.sample"));
            Self {
                name: self.name,
                inputs,
                sample: part(size, "output.sample"),
            }
        };
        sizes.iter().map(golden).collect()
    }

    /// Fails unless the sample is within `tolerance` of the reference.
    pub fn check(&self, found: &[f32], tolerance: f32) -> Result<(), String> {
        let expected = self.sample.as_f32().unwrap();
        if found.len() != expected.len() {
            return Err(format!(
                "{}: {} numbers, not {}",
                self.name,
                found.len(),
                expected.len()
            ));
        }
        let errors = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
        let worst = errors.fold(0f32, |worst, e| {
            if e.is_nan() {
                f32::INFINITY
            } else {
                worst.max(e)
            }
        });
        if worst <= tolerance {
            Ok(())
        } else {
            Err(format!(
                "{}: largest error {worst:e}, allowed {tolerance:e}",
                self.name
            ))
        }
    }
}

/// Exports a golden and compares its sample with what `backend` computes.
pub fn check_diffusion(
    backend: &Backend,
    name: &'static str,
    profile: Profile,
    dtype: DType,
    tolerance: f32,
) -> Result<(), String> {
    let golden = DiffusionGolden::read(name);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    export(&module(name, dtype), profile, &out);
    let bundle = Bundle::open(&out).map_err(|e| e.to_string())?;
    let mut session = Session::load(backend, &bundle, "target", None, &SessionOptions::default())
        .map_err(|e| e.to_string())?;
    check_step(&mut session, &golden, tolerance)?;
    for other in golden.other_sizes() {
        let size = other.inputs["sample"].shape()[2..].to_vec();
        check_step(&mut session, &other, tolerance).map_err(|e| format!("{size:?}: {e}"))?;
    }
    check_one_level(&mut session, name, tensors(&golden))?;
    // tract ends the whole process instead.
    if backend.kind() == BackendKind::OnnxRuntime {
        check_other_levels(&mut session, name, &tensors(&golden))?;
    }
    Ok(())
}

fn check_step(
    session: &mut Session,
    golden: &DiffusionGolden,
    tolerance: f32,
) -> Result<(), String> {
    let outputs = session
        .run_host(&tensors(golden))
        .map_err(|e| e.to_string())?;
    let found = outputs
        .iter()
        .find(|(n, _)| n == "out_sample")
        .ok_or("the sample is missing")?;
    golden.check(
        &found.1.to_f32().ok_or("the sample is no floats")?,
        tolerance,
    )
}

/// Fails unless the graph refuses numbers of noise levels that are neither one nor that of the
/// images, of all images and of one alone.
fn check_other_levels(
    session: &mut Session,
    name: &str,
    inputs: &[(&str, HostTensor)],
) -> Result<(), String> {
    let images = inputs
        .iter()
        .find(|(n, _)| *n == "sample" || *n == "hidden_states")
        .map_or(0, |(_, sample)| sample.shape[0]);
    for few in [images, 1] {
        let mut fed: Vec<(&str, HostTensor)> = inputs
            .iter()
            .map(|(n, tensor)| (*n, first_rows(tensor, images, few)))
            .collect();
        for levels in (0..=images + 2).filter(|levels| *levels != 1 && *levels != few) {
            for (n, tensor) in &mut fed {
                if *n == "timestep" {
                    *tensor = HostTensor::f32([levels], vec![321.0; levels]);
                }
            }
            if session.run_host(&fed).is_ok() {
                return Err(format!(
                    "{name}: {levels} noise levels of {few} images are taken"
                ));
            }
        }
    }
    Ok(())
}

/// The first `few` rows of a tensor with one row for each of `images` images.
fn first_rows(tensor: &HostTensor, images: usize, few: usize) -> HostTensor {
    let mut shape = tensor.shape.clone();
    if shape.first() != Some(&images) {
        return tensor.clone();
    }
    shape[0] = few;
    let n = shape.iter().product();
    let data = match &tensor.data {
        HostData::F32(data) => HostData::F32(data[..n].to_vec()),
        HostData::F16(data) => HostData::F16(data[..n].to_vec()),
        HostData::I64(data) => HostData::I64(data[..n].to_vec()),
    };
    HostTensor { shape, data }
}

fn tensors(golden: &DiffusionGolden) -> Vec<(&str, HostTensor)> {
    let tensor = |array: &Array| match array.data() {
        ArrayData::I64(data) => HostTensor::i64(array.shape(), data.clone()),
        ArrayData::F32(data) => HostTensor::f32(array.shape(), data.clone()),
    };
    golden
        .inputs
        .iter()
        .map(|(n, a)| (n.as_str(), tensor(a)))
        .collect()
}

/// Fails unless one noise level for all images is as good as the same for each.
fn check_one_level(
    session: &mut Session,
    name: &str,
    mut inputs: Vec<(&str, HostTensor)>,
) -> Result<(), String> {
    let at = inputs
        .iter()
        .position(|(n, _)| *n == "timestep")
        .ok_or("there is no timestep")?;
    let images = inputs[at].1.shape[0];
    let mut sample = |levels: Vec<f32>| {
        inputs[at].1 = HostTensor::f32([levels.len()], levels);
        let outputs = session
            .run_host(&inputs)
            .map_err(|e| format!("{name}: {e}"))?;
        Ok::<_, String>(
            outputs
                .into_iter()
                .find(|(n, _)| n == "out_sample")
                .map(|(_, sample)| (sample.shape.clone(), sample.to_f32())),
        )
    };
    let (each, all) = (sample(vec![321.0; images])?, sample(vec![321.0])?);
    if each == all {
        Ok(())
    } else {
        Err(format!(
            "{name}: one noise level for {images} images isn't the same for each"
        ))
    }
}
