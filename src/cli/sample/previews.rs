//! Pictures of a run under way, in the terminal.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use dlc_runtime::{ImageDecoder, SampleProgress, Samples};

use super::TERMINAL_COLUMNS;
use crate::cli::diffusion::DiffusionModel;
use crate::cli::failure::Result;
use crate::cli::output::{note, show};
use crate::report::{Layout, Picture};

/// Pictures of a run under way.
#[derive(Debug)]
pub(super) struct Previews {
    decoder: Option<ImageDecoder>,
    every: usize,
}

impl Previews {
    /// Previews after `every` evaluations; none, and a note, where no terminal shows them.
    pub fn new(model: &DiffusionModel, every: u16) -> Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            note("stdout is no terminal: previews aren't shown")?;
            return Ok(None);
        }
        Ok(Some(Self {
            decoder: model.image_decoder()?,
            every: usize::from(every),
        }))
    }

    /// The first image of the batch, if it is its turn.
    pub fn show(&mut self, run: &SampleProgress<'_>) -> Result<()> {
        let [_, channels, height, width] = run.shape;
        let numbers = channels * height * width;
        let Some(first) = run.input.get(..numbers) else {
            return Ok(());
        };
        if run.done == 0 || !run.done.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut shown = Samples {
            shape: [1, channels, height, width],
            data: first.to_vec(),
        };
        if let Some(decoder) = &mut self.decoder {
            let decoded = decoder.decode(&shown, &mut |_, _| ControlFlow::Continue(()))?;
            shown = decoded.unwrap_or(shown);
        }
        let [_, channels, height, width] = shown.shape;
        let layout = Layout::new(1, None, [height, width], None);
        let picture = Picture::grid(shown.images(), [channels, height, width], layout);
        let text = picture.map(|picture| picture.to_half_blocks(TERMINAL_COLUMNS));
        show(&text.unwrap_or_default()).map(drop)
    }

    /// The decoder of the bundle, if it has one.
    pub fn into_decoder(self) -> Option<ImageDecoder> {
        self.decoder
    }
}
