//! The picture that images start from.

use std::path::{Path, PathBuf};

use dlc_files::read_input;
use dlc_runtime::{Bundle, ImageDecoder};

use super::picture_file::PictureFile;
use crate::cli::diffusion::DiffusionModel;
use crate::cli::failure::{Context, Failure, Result};
use crate::cli::output::note;

/// The largest file.
const FILE_CAP: u64 = 1 << 28;
/// How much of the steps is taken unless something else is asked for: that of diffusers.
const USUAL_STRENGTH: f64 = 0.8;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct InitImageArgs {
    /// Start from this picture, a PNG or JPEG file, instead of noise alone. It takes the size of the
    /// images; what doesn't fit is cut off
    #[arg(long, value_name = "FILE")]
    init_image: Option<PathBuf>,
    /// How far the images may be from it: the share of the steps that are taken, above 0 and up to 1
    /// [default: 0.8]
    #[arg(long, value_name = "X", requires = "init_image")]
    strength: Option<f64>,
}

/// A picture of the size of the images.
#[derive(Debug)]
pub(super) struct InitImage(PictureFile);

impl InitImageArgs {
    /// The picture's file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.init_image.as_deref()
    }

    /// The share of the steps that are taken; none without a picture.
    pub fn strength(&self) -> Option<f64> {
        self.init_image.as_ref()?;
        Some(self.strength.unwrap_or(USUAL_STRENGTH))
    }

    /// The picture, if there is one, for images of `size` entries of the latents, or the model's own.
    pub fn read(&self, bundle: &Bundle, size: Option<[usize; 2]>) -> Result<Option<InitImage>> {
        let Some(path) = &self.init_image else {
            return Ok(None);
        };
        let model = bundle.manifest().model.diffusion.as_ref();
        let own = model.map_or([1, 1], |model| [model.height, model.width]);
        let scale = ImageDecoder::scale(bundle)?.unwrap_or(1);
        let [height, width] = size.unwrap_or(own).map(|side| side * scale);
        let place = path.display();
        let picture = PictureFile::decode(&read_input(path, FILE_CAP)?).map_err(|problem| {
            Failure::usage(format!("{place} {problem}; give a PNG or JPEG file"))
        })?;
        if picture.width * height != picture.height * width {
            note(&format!(
                "{place} has {} by {} pixels: it is cut to the shape of the images, {width} by {height}",
                picture.width, picture.height
            ))?;
        }
        Ok(Some(InitImage(picture.filling([height, width]))))
    }
}

impl InitImage {
    /// Its latents, by the bundle's encoder.
    pub fn encode(self, model: &DiffusionModel) -> Result<Vec<f32>> {
        let mut encoder = model.image_encoder()?;
        let size = [self.0.height, self.0.width];
        let channels = encoder.channels();
        let numbers = self.0.channels(channels).with_context(|| {
            format!(
                "the bundle's encoder takes pictures of {channels} channels, and files have 1 or 3"
            )
        })?;
        let latents = encoder.encode(numbers, size)?;
        let model = model.bundle.manifest().model.diffusion.as_ref();
        let taken = model.map(|model| model.channels);
        (taken == Some(latents.shape[1])).then_some(latents.data).context(
            "the bundle's encoder makes other latents than its denoiser takes; compile it again",
        )
    }
}
