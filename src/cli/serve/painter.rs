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
        let seeds = (0..order.count as u64).map(|image| order.seed.wrapping_add(image));
        let request = SampleRequest {
            plan: &choice.plan,
            guidance: choice.guidance,
            seeds: &seeds.collect::<Vec<_>>(),
            noise: None,
            image: None,
            classes: &[],
            size,
            conditions: Some(&conditions),
            prune: choice.prune,
        };
        let watch = || {
            if is_awaited() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let latents = self.session.sample(&request, &mut |_| watch())?;
        let latents = latents.context("nobody waits for the pictures")?;
        let pictures = self.decoder.decode(&latents, &mut |_, _| watch())?;
        let pictures = pictures.context("nobody waits for the pictures")?;
        let [_, _, height, width] = pictures.shape;
        Ok(Painted {
            files: files(&pictures)?,
            size: [width, height],
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
        Ok((
            Conditions::of_each(&conditions, order.count)?,
            notes.concat(),
        ))
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
            Fault::Bug | Fault::Interrupted => PaintError::Failed(failure.message()),
        })
    }
}

/// Each picture as a PNG file.
fn files(pictures: &Samples) -> Result<Vec<Vec<u8>>> {
    let [_, channels, height, width] = pictures.shape;
    let file = |image| {
        let layout = Layout::new(1, None, [height, width], Some(1));
        let picture = Picture::grid(std::iter::once(image), [channels, height, width], layout);
        picture.and_then(|picture| picture.to_png(&[]))
    };
    let files = pictures.images().map(file).collect::<Option<_>>();
    files.context("the picture would be too large: ask for a smaller `size`")
}
