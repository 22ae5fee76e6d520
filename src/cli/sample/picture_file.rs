//! Pictures in files: PNG and JPEG, the way up that their camera says.

use std::io::Cursor;

use dlc_errors::printable::shown;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::resample::resample;

/// The most pixels of a picture.
const MOST_PIXELS: usize = 1 << 27;
/// What a JPEG file begins with.
const JPEG: [u8; 2] = [0xFF, 0xD8];
const PNG: [u8; 4] = [0x89, b'P', b'N', b'G'];

/// Red, green and blue of every pixel, plane by plane, rows from the top, within -1 and 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PictureFile {
    pub height: usize,
    pub width: usize,
    planes: [Vec<f32>; 3],
}

impl PictureFile {
    /// Reads a file; fails with what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (pixels, [height, width], orientation) = if bytes.starts_with(&JPEG) {
            jpeg(bytes)?
        } else if bytes.starts_with(&PNG) {
            png(bytes)?
        } else {
            return Err("is neither a PNG nor a JPEG file".to_owned());
        };
        let level = |level: &u8| f32::from(*level) / 127.5 - 1.0;
        let plane = |c: usize| pixels.iter().skip(c).step_by(3).map(level).collect();
        let picture = Self {
            height,
            width,
            planes: [plane(0), plane(1), plane(2)],
        };
        Ok(picture.turned(orientation))
    }

    /// The picture with so many rows and columns; what doesn't fit their shape is cut off on both
    /// sides.
    pub fn filling(&self, [height, width]: [usize; 2]) -> Self {
        let mut cut = [self.height, self.width];
        if self.width * height > self.height * width {
            cut[1] = (self.height * width / height).max(1);
        } else {
            cut[0] = (self.width * height / width).max(1);
        }
        let from = [(self.height - cut[0]) / 2, (self.width - cut[1]) / 2];
        let whole = [self.height, self.width];
        let planes = self.planes.each_ref();
        Self {
            height,
            width,
            planes: planes.map(|plane| resample(plane, whole, (from, cut), [height, width])),
        }
    }

    /// The numbers as an encoder of so many channels takes them: colours, or one of the brightness
    /// (ITU-R BT.601).
    pub fn channels(self, channels: usize) -> Option<Vec<f32>> {
        match channels {
            3 => Some(self.planes.concat()),
            1 => {
                let [red, green, blue] = self.planes;
                let pixels = red.iter().zip(&green).zip(&blue);
                let bright = |((r, g), b): ((&f32, &f32), &f32)| 0.299 * r + 0.587 * g + 0.114 * b;
                Some(pixels.map(bright).collect())
            }
            _ => None,
        }
    }

    /// The picture the right way up, of one that lies in its file as EXIF's `orientation` says.
    fn turned(self, orientation: u8) -> Self {
        if orientation == 1 {
            return self;
        }
        let [height, width] = match orientation {
            5..=8 => [self.width, self.height],
            _ => [self.height, self.width],
        };
        let from = |y: usize, x: usize| {
            let (bottom, right) = (self.height - 1, self.width - 1);
            match orientation {
                2 => (y, right - x),
                3 => (bottom - y, right - x),
                4 => (bottom - y, x),
                5 => (x, y),
                6 => (bottom - x, y),
                7 => (bottom - x, right - y),
                8 => (x, right - y),
                _ => (y, x),
            }
        };
        let turn = |plane: &Vec<f32>| {
            let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
            let places = places.map(|(y, x)| from(y, x));
            places.map(|(y, x)| plane[y * self.width + x]).collect()
        };
        Self {
            height,
            width,
            planes: self.planes.each_ref().map(turn),
        }
    }
}

/// Red, green and blue of each pixel, height and width, and the orientation.
type Pixels = (Vec<u8>, [usize; 2], u8);

fn jpeg(bytes: &[u8]) -> Result<Pixels, String> {
    let fail = |error: zune_jpeg::errors::DecodeErrors| {
        format!(
            "is no JPEG file that can be read: {}",
            shown(format!("{error:?}").trim())
        )
    };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(fail)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size(height, width)?;
    let orientation = decoder.exif().map_or(1, |exif| orientation(exif));
    let pixels = decoder.decode().map_err(fail)?;
    complete(pixels, [height, width], orientation)
}

fn png(bytes: &[u8]) -> Result<Pixels, String> {
    let fail = |error: png::DecodingError| {
        format!(
            "is no PNG file that can be read: {}",
            shown(&error.to_string())
        )
    };
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(fail)?;
    let info = reader.info();
    let (height, width) = (info.height as usize, info.width as usize);
    check_size(height, width)?;
    let orientation = info.exif_metadata.as_deref().map_or(1, orientation);
    let size = reader.output_buffer_size();
    let mut pixels = vec![0; size.ok_or("is too large")?];
    let frame = reader.next_frame(&mut pixels).map_err(fail)?;
    pixels.truncate(frame.buffer_size());
    let channels = frame.color_type.samples();
    let colours = |pixel: &[u8]| match *pixel {
        [gray] | [gray, _] => [gray; 3],
        [red, green, blue, ..] => [red, green, blue],
        [] => [0; 3],
    };
    let pixels = pixels.chunks(channels).flat_map(colours).collect();
    complete(pixels, [height, width], orientation)
}

fn check_size(height: usize, width: usize) -> Result<(), String> {
    let fits = |pixels: usize| (1..=MOST_PIXELS).contains(&pixels);
    if height.checked_mul(width).is_some_and(fits) {
        return Ok(());
    }
    Err(format!(
        "has {width} by {height} pixels; it must have some, and at most {MOST_PIXELS}"
    ))
}

fn complete(pixels: Vec<u8>, size: [usize; 2], orientation: u8) -> Result<Pixels, String> {
    if pixels.len() == 3 * size[0] * size[1] {
        Ok((pixels, size, orientation))
    } else {
        Err("is no picture of one frame".to_owned())
    }
}

/// The orientation that EXIF data say, 1 if they say none: the entry 0x0112 of the first directory
/// (TIFF 6.0, section 2).
fn orientation(exif: &[u8]) -> u8 {
    find_orientation(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
        .filter(|orientation| (1..=8).contains(orientation))
        .unwrap_or(1)
}

fn find_orientation(tiff: &[u8]) -> Option<u8> {
    const ORIENTATION: u16 = 0x0112;
    let big = tiff.starts_with(b"MM");
    let short = |at: usize| {
        let bytes = tiff.get(at..)?.first_chunk()?;
        Some(if big {
            u16::from_be_bytes(*bytes)
        } else {
            u16::from_le_bytes(*bytes)
        })
    };
    let offset = tiff.get(4..)?.first_chunk()?;
    let offset = if big {
        u32::from_be_bytes(*offset)
    } else {
        u32::from_le_bytes(*offset)
    };
    let entries = usize::try_from(offset).ok()?;
    let first = entries.checked_add(2)?;
    let found = (0..usize::from(short(entries)?))
        .map(|number| first + 12 * number)
        .find(|at| short(*at) == Some(ORIENTATION))?;
    u8::try_from(short(found + 8)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: usize, width: usize) -> PictureFile {
        let plane: Vec<f32> = (0..height * width).map(|n| n as f32).collect();
        PictureFile {
            height,
            width,
            planes: [plane.clone(), plane.clone(), plane],
        }
    }

    /// EXIF data with this orientation, in either byte order.
    fn exif(orientation: u16, big: bool) -> Vec<u8> {
        let short = |n: u16| {
            if big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let long = |n: u32| {
            if big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let mut bytes = if big { b"MM".to_vec() } else { b"II".to_vec() };
        bytes.extend(short(42));
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, value) in [(0x010F, 0), (0x0112, orientation)] {
            bytes.extend([short(tag), short(3)].concat());
            bytes.extend(long(1));
            bytes.extend([short(value), short(0)].concat());
        }
        bytes
    }

    #[test]
    fn orientations_are_read_in_either_byte_order_and_from_what_is_cut_off() {
        for big in [false, true] {
            for wanted in 1..=8 {
                assert_eq!(orientation(&exif(wanted, big)), wanted as u8);
            }
            assert_eq!(orientation(&exif(9, big)), 1);
            let whole = exif(6, big);
            for cut in 0..whole.len() - 2 {
                assert_eq!(orientation(&whole[..cut]), 1, "{cut}");
            }
        }
        assert_eq!(orientation(&[0xFF; 64]), 1);
    }

    /// The corner that is first in the file, as the numbers of EXIF's table have it.
    #[test]
    fn pictures_are_turned_as_their_camera_says() {
        let first = |orientation| {
            let turned = picture(2, 3).turned(orientation);
            let at = turned.planes[0].iter().position(|x| *x == 0.0).unwrap();
            (
                [turned.height, turned.width],
                [at / turned.width, at % turned.width],
            )
        };
        assert_eq!(first(1), ([2, 3], [0, 0]));
        assert_eq!(first(2), ([2, 3], [0, 2]));
        assert_eq!(first(3), ([2, 3], [1, 2]));
        assert_eq!(first(4), ([2, 3], [1, 0]));
        assert_eq!(first(5), ([3, 2], [0, 0]));
        assert_eq!(first(6), ([3, 2], [0, 1]));
        assert_eq!(first(7), ([3, 2], [2, 1]));
        assert_eq!(first(8), ([3, 2], [2, 0]));
    }

    #[test]
    fn what_does_not_fit_is_cut_off_on_both_sides() {
        let wide = picture(2, 6).filling([2, 2]);
        assert_eq!((wide.height, wide.width), (2, 2));
        assert_eq!(wide.planes[0], [2.0, 3.0, 8.0, 9.0]);
        let high = picture(6, 1).filling([2, 1]);
        assert_eq!(high.planes[0], [2.0, 3.0]);
    }
}
