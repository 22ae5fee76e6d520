//! Goldens of diffusion models: one step, fed as diffusers fed it, and its sample.

use std::collections::BTreeMap;

use dlc_eval::{Array, ArrayData};
use dlc_ir::DType;
use dlc_runtime::BackendKind;

use super::fixture;
use super::golden::{module, recorded};
use super::session::{Arrays, Engine, Runner, close};

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
        close(self.name, found, self.sample.as_f32().unwrap(), tolerance)
    }
}

/// Compares a golden's sample with what `engine` computes, and the same for other sizes. A backend
/// takes one noise level for all images too, and no other number of them.
pub fn check_diffusion(
    engine: &Engine,
    name: &'static str,
    dtype: DType,
    tolerance: f32,
) -> Result<(), String> {
    let golden = DiffusionGolden::read(name);
    let module = module(name, dtype);
    let is_free = module.model.diffusion.as_ref().unwrap().size_step.is_some();
    let sizes = golden.other_sizes();
    assert_eq!(!sizes.is_empty(), is_free, "{name}");
    let mut runner = engine.load(module)?;
    for golden in [&golden].into_iter().chain(&sizes) {
        let found = sample_of(runner.run(&golden.inputs)?)?;
        golden
            .check(found.as_f32().unwrap(), tolerance)
            .map_err(|e| format!("{:?}: {e}", golden.sample.shape()))?;
    }
    if let Engine::Backend(backend, _) = engine {
        check_one_level(&mut runner, &golden)?;
        // tract ends the whole process instead.
        if backend.kind() == BackendKind::OnnxRuntime {
            check_other_levels(&mut runner, &golden)?;
        }
    }
    Ok(())
}

fn sample_of(mut outputs: Arrays) -> Result<Array, String> {
    outputs
        .remove("out_sample")
        .ok_or_else(|| "the sample is missing".to_owned())
}

/// `inputs` with these noise levels.
fn at_levels(inputs: &Arrays, levels: Vec<f32>) -> Arrays {
    let mut inputs = inputs.clone();
    let levels = Array::f32([levels.len()], levels).unwrap();
    inputs.insert("timestep".into(), levels);
    inputs
}

/// Fails unless the graph refuses numbers of noise levels that are neither one nor that of the
/// images, of all images and of one alone.
fn check_other_levels(runner: &mut Runner, golden: &DiffusionGolden) -> Result<(), String> {
    let images = golden.sample.shape()[0];
    for few in [images, 1] {
        let inputs = golden.inputs.iter();
        let fed: Arrays = inputs
            .map(|(name, array)| (name.clone(), first_rows(array, images, few)))
            .collect();
        for levels in (0..=images + 2).filter(|levels| *levels != 1 && *levels != few) {
            if runner.run(&at_levels(&fed, vec![321.0; levels])).is_ok() {
                let name = golden.name;
                return Err(format!(
                    "{name}: {levels} noise levels of {few} images are taken"
                ));
            }
        }
    }
    Ok(())
}

/// The first `few` rows of an array with one row for each of `images` images.
fn first_rows(array: &Array, images: usize, few: usize) -> Array {
    let mut shape = array.shape().to_vec();
    if shape.first() != Some(&images) {
        return array.clone();
    }
    shape[0] = few;
    let n = shape.iter().product();
    match array.data() {
        ArrayData::F32(data) => Array::f32(shape, data[..n].to_vec()),
        ArrayData::I64(data) => Array::i64(shape, data[..n].to_vec()),
    }
    .unwrap()
}

/// Fails unless one noise level for all images is as good as the same for each.
fn check_one_level(runner: &mut Runner, golden: &DiffusionGolden) -> Result<(), String> {
    let images = golden.sample.shape()[0];
    let mut sample = |levels: usize| {
        let inputs = at_levels(&golden.inputs, vec![321.0; levels]);
        runner
            .run(&inputs)
            .and_then(sample_of)
            .map_err(|e| format!("{}: {e}", golden.name))
    };
    if sample(images)? == sample(1)? {
        Ok(())
    } else {
        let name = golden.name;
        Err(format!(
            "{name}: one noise level for {images} images isn't the same for each"
        ))
    }
}
