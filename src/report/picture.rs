//! Pictures as PNG: samples of a diffusion model, side by side.

use std::fmt::Write;

/// The short side that small images are enlarged to, at least.
const SHORTEST: usize = 64;
/// The level of the gaps between images: white.
const GAP: u8 = 255;
/// The most pixels of a picture.
const MOST_PIXELS: usize = 1 << 28;

/// An 8-bit image of 1 (gray) or 3 (RGB) channels, rows of pixels from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Numbers in a pixel.
    pub channels: usize,
    /// All pixels.
    pub data: Vec<u8>,
}

/// How images are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Images in a row.
    pub columns: usize,
    /// Pixels that each pixel of an image becomes, in both directions.
    pub scale: usize,
}

impl Layout {
    /// A nearly square grid of `images` images, or with `columns`; each enlarged, unless `scale` is
    /// given, so that its short side has at least 64 pixels.
    pub fn new(
        images: usize,
        columns: Option<usize>,
        [height, width]: [usize; 2],
        scale: Option<usize>,
    ) -> Self {
        let square = (images as f64).sqrt().ceil() as usize;
        let scale = scale.unwrap_or_else(|| SHORTEST.div_ceil(height.min(width).max(1)));
        Self {
            columns: columns.unwrap_or(square).max(1),
            scale: scale.max(1),
        }
    }
}

impl Picture {
    /// Images `[channels, height, width]` of -1 to 1 in a grid, one pixel apart. One with 4 or more
    /// channels shows its first three, each stretched over the range of all images: latents, which
    /// only their decoder makes sense of. None if that is more than a picture should be.
    pub fn grid<'i>(
        images: impl Iterator<Item = &'i [f32]> + Clone,
        [channels, height, width]: [usize; 3],
        layout: Layout,
    ) -> Option<Self> {
        let count = images.clone().count();
        let shown = if channels >= 3 { 3 } else { 1 };
        let (rows, columns) = (count.div_ceil(layout.columns), layout.columns.min(count));
        let side = |images: usize, pixels: usize| {
            images
                .checked_mul(pixels.checked_mul(layout.scale)?.checked_add(1)?)?
                .checked_sub(1)
        };
        let (whole_height, whole_width) = (side(rows, height)?, side(columns, width)?);
        let size = whole_height
            .checked_mul(whole_width)
            .filter(|n| *n <= MOST_PIXELS)?
            * shown;
        let plane = height * width;
        let ranges: Vec<[f32; 2]> = (0..shown)
            .map(|c| {
                if channels > 3 {
                    range(images.clone(), c * plane, plane)
                } else {
                    [-1.0, 1.0]
                }
            })
            .collect();
        let mut picture = Self {
            width: whole_width,
            height: whole_height,
            channels: shown,
            data: vec![GAP; size],
        };
        for (index, image) in images.enumerate() {
            let top = (index / layout.columns) * (height * layout.scale + 1);
            let left = (index % layout.columns) * (width * layout.scale + 1);
            for y in 0..height * layout.scale {
                for x in 0..width * layout.scale {
                    let at = (y / layout.scale) * width + x / layout.scale;
                    let pixel = ((top + y) * whole_width + left + x) * shown;
                    for (c, range) in ranges.iter().enumerate() {
                        picture.data[pixel + c] =
                            level(image.get(c * plane + at).copied().unwrap_or(0.0), *range);
                    }
                }
            }
        }
        Some(picture)
    }

    /// The picture for a terminal of 24-bit colours: two pixels in each character, one above the
    /// other, and at most so many characters in a line. Larger pictures lose pixels.
    pub fn to_half_blocks(&self, columns: usize) -> String {
        let step = self.width.div_ceil(columns.max(1)).max(1);
        let mut text = String::new();
        for y in (0..self.height).step_by(2 * step) {
            for x in (0..self.width).step_by(step) {
                let [r, g, b] = self.colour(x, y);
                let _ = write!(text, "\x1b[38;2;{r};{g};{b}m");
                if y + step < self.height {
                    let [r, g, b] = self.colour(x, y + step);
                    let _ = write!(text, "\x1b[48;2;{r};{g};{b}m");
                }
                text.push('▀');
            }
            text.push_str("\x1b[0m\n");
        }
        text
    }

    /// Red, green and blue of a pixel.
    fn colour(&self, x: usize, y: usize) -> [u8; 3] {
        let pixel = (y * self.width + x) * self.channels;
        let level = |c: usize| self.data.get(pixel + c.min(self.channels - 1));
        [0, 1, 2].map(|c| level(c).copied().unwrap_or(GAP))
    }

    /// The picture as a PNG file with texts about it, by keyword. None if it has no pixels, or more
    /// than PNG can count.
    pub fn to_png(&self, texts: &[(&str, String)]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (width, height) = (
            u32::try_from(self.width).ok()?,
            u32::try_from(self.height).ok()?,
        );
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(if self.channels == 3 {
            png::ColorType::Rgb
        } else {
            png::ColorType::Grayscale
        });
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in texts {
            let (keyword, text) = ((*keyword).to_owned(), text.clone());
            encoder.add_itxt_chunk(keyword, text).ok()?;
        }
        let mut writer = encoder.write_header().ok()?;
        writer.write_image_data(&self.data).ok()?;
        writer.finish().ok()?;
        Some(bytes)
    }
}

/// `x` of a range as one of 256 levels; what lies outside is cut off.
fn level(x: f32, [low, high]: [f32; 2]) -> u8 {
    ((x - low) / (high - low).max(f32::MIN_POSITIVE) * 255.0)
        .round()
        .clamp(0.0, 255.0) as u8
}

/// The smallest and the largest number of one channel over all images.
fn range<'i>(images: impl Iterator<Item = &'i [f32]>, from: usize, plane: usize) -> [f32; 2] {
    let all = images.flat_map(|image| image.get(from..from + plane).unwrap_or_default());
    all.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], x| {
        [low.min(*x), high.max(*x)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pixels_share_a_character() {
        let gray = Picture {
            width: 2,
            height: 3,
            channels: 1,
            data: vec![1, 2, 3, 4, 5, 6],
        };
        let (on, off) = ("\x1b[38;2;", "\x1b[48;2;");
        let cell = |top: u8, bottom: u8| {
            format!("{on}{top};{top};{top}m{off}{bottom};{bottom};{bottom}m▀")
        };
        let lines = format!(
            "{}{}\x1b[0m\n{on}5;5;5m▀{on}6;6;6m▀\x1b[0m\n",
            cell(1, 3),
            cell(2, 4)
        );
        assert_eq!(gray.to_half_blocks(80), lines);
        assert_eq!(gray.to_half_blocks(1), format!("{}\x1b[0m\n", cell(1, 5)));
    }

    #[test]
    fn images_stand_in_a_grid_a_pixel_apart() {
        let images = [[-1.0f32, 1.0], [0.0, 3.0], [-7.0, 0.5]];
        let layout = Layout::new(3, None, [1, 2], Some(1));
        assert_eq!(
            layout,
            Layout {
                columns: 2,
                scale: 1
            }
        );
        let picture =
            Picture::grid(images.iter().map(<[f32; 2]>::as_slice), [1, 1, 2], layout).unwrap();
        assert_eq!((picture.width, picture.height, picture.channels), (5, 3, 1));
        assert_eq!(
            picture.data,
            [
                0, 255, GAP, 128, 255, GAP, GAP, GAP, GAP, GAP, 0, 191, GAP, GAP, GAP
            ]
        );
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_left_alone() {
        assert_eq!(Layout::new(1, None, [8, 8], None).scale, 8);
        assert_eq!(Layout::new(1, None, [30, 80], None).scale, 3);
        assert_eq!(Layout::new(1, None, [512, 512], None).scale, 1);
        assert_eq!(
            Layout::new(7, Some(7), [8, 8], Some(2)),
            Layout {
                columns: 7,
                scale: 2
            }
        );
        let image = [1.0f32, -1.0];
        let picture = Picture::grid(
            std::iter::once(&image[..]),
            [1, 1, 2],
            Layout {
                columns: 1,
                scale: 2,
            },
        )
        .unwrap();
        assert_eq!(
            (picture.width, picture.height, picture.data),
            (4, 2, vec![255, 255, 0, 0, 255, 255, 0, 0])
        );
    }

    #[test]
    fn latents_are_stretched_to_their_own_range() {
        let image = [0.0f32, 4.0, 1.0, 1.0, -2.0, 2.0, 9.0, 9.0];
        let picture = Picture::grid(
            std::iter::once(&image[..]),
            [4, 1, 2],
            Layout {
                columns: 1,
                scale: 1,
            },
        )
        .unwrap();
        assert_eq!(
            (picture.channels, picture.data),
            (3, vec![0, 0, 0, 255, 0, 255])
        );
        assert_eq!(
            Picture::grid(
                std::iter::once(&image[..]),
                [1, 1 << 20, 1 << 20],
                Layout {
                    columns: 1,
                    scale: 1
                }
            ),
            None
        );
    }
}
