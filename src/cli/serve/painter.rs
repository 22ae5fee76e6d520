//! Pictures for `dlc serve`: a pipeline that stays loaded.

use std::ops::ControlFlow;

use dlc_errors::Fault;
use dlc_runtime::{
    Bundle, Conditions, DiffusionSession, ImageDecoder, Negative, PromptEncoder, SampleRequest,
    SamplerChoice, SamplerWishes, Samples, choose_sampler,
};

use crate::cli::diffusion::DiffusionModel;
use crate::cli::failure::{Context, Failure, Result, bail};
use crate::report::{Layout, Picture};
use crate::serve::{Order, Paint, PaintError, Painted};

/// A pipeline with all of its sessions.
#[derive(Debug)]
pub(super) struct Painter {
    bundle: Bundle,
    encoder: PromptEncoder,
    session: DiffusionSession,
    decoder: ImageDecoder,
    /// Pixels for each entry of the latents.
    scale: usize,
}

impl Painter {
    pub fn open(model: DiffusionModel) -> Result<Self> {
        let place = model.bundle.folder().display().to_string();
        if model.bundle.manifest().model.prompts.is_none() {
            bail!("{place}: the model makes no images of texts; use `dlc sample`");
        }
        let decoder = model.image_decoder()?.with_context(|| {
            format!("{place}: the bundle has no decoder for latents; use `dlc sample`")
        })?;
        let mut session = model.session()?;
        session.load(true)?;
        Ok(Self {
            encoder: model.prompt_encoder()?,
            scale: ImageDecoder::scale(&model.bundle)?.unwrap_or(1),
            bundle: model.bundle,
            session,
            decoder,
        })
    }

    fn pictures(&mut self, order: &Order, is_awaited: &dyn Fn() -> bool) -> Result<Painted> {
        let wishes = SamplerWishes {
            steps: order.steps,
            guidance: order.guidance,
            ..SamplerWishes::default()
        };
        let choice = choose_sampler(&self.bundle, &wishes)?;
        let size = self.latents(order.size)?;
        let (conditions, mut notes) = self.conditions(order, &choice, size)?;
        notes.extend(choice.note.clone());
        let watch = || {
            if is_awaited() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let (mut files, mut sides) = (Vec::with_capacity(order.count), [0, 0]);
        // One by one: a batch takes many times the memory.
        for image in 0..order.count as u64 {
            let request = SampleRequest {
                plan: &choice.plan,
                guidance: choice.guidance,
                seeds: &[order.seed.wrapping_add(image)],
                noise: None,
                image: None,
                classes: &[],
                size,
                conditions: Some(&conditions),
                prune: choice.prune,
            };
            let latents = self.session.sample(&request, &mut |_| watch())?;
            let latents = latents.context("nobody waits for the pictures")?;
            let picture = self.decoder.decode(&latents, &mut |_, _| watch())?;
            let picture = picture.context("nobody waits for the pictures")?;
            sides = [picture.shape[3], picture.shape[2]];
            files.push(file(&picture)?);
        }
        Ok(Painted {
            files,
            size: sides,
            notes,
        })
    }

    /// Height and width of the latents of pictures of this width and height.
    fn latents(&self, size: Option<[usize; 2]>) -> Result<Option<[usize; 2]>> {
        let Some([width, height]) = size else {
            return Ok(None);
        };
        if !width.is_multiple_of(self.scale) || !height.is_multiple_of(self.scale) {
            bail!(
                "`size`: the pipeline makes pictures whose sides are multiples of {} pixels",
                self.scale
            );
        }
        Ok(Some([height / self.scale, width / self.scale]))
    }

    fn conditions(
        &mut self,
        order: &Order,
        choice: &SamplerChoice,
        size: Option<[usize; 2]>,
    ) -> Result<(Conditions, Vec<String>)> {
        let negative = match &order.negative_prompt {
            Some(_) if !choice.is_guided() => {
                bail!("`negative_prompt` has no effect without guidance: give `guidance_scale`")
            }
            _ if !choice.is_guided() => Negative::None,
            None => Negative::Usual,
            Some(text) => Negative::Text(text),
        };
        let encoded = self.encoder.encode(&[&order.prompt], negative, size)?;
        let (conditions, notes): (Vec<Conditions>, Vec<Vec<String>>) = encoded
            .into_iter()
            .map(|prompt| (prompt.conditions, prompt.notes))
            .unzip();
        Ok((Conditions::of_each(&conditions, 1)?, notes.concat()))
    }
}

impl Paint for Painter {
    fn paint(
        &mut self,
        order: &Order,
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<Painted, PaintError> {
        let painted = self.pictures(order, is_awaited);
        painted.map_err(|failure: Failure| match failure.fault {
            Fault::BadInput | Fault::Unsupported => PaintError::Order(failure.message()),
            Fault::Model | Fault::Bug | Fault::Interrupted => PaintError::Failed(failure.message()),
        })
    }
}

/// A picture as a PNG file.
fn file(picture: &Samples) -> Result<Vec<u8>> {
    let [_, channels, height, width] = picture.shape;
    let layout = Layout::new(1, None, [height, width], Some(1));
    Picture::grid(picture.images(), [channels, height, width], layout)
        .and_then(|picture| picture.to_png(&[]))
        .context("the picture would be too large: ask for a smaller `size`")
}
