//! Starting pictures and masks: from bytes that nobody has looked at yet to the tensors that pipelines start from.
//!
//! [`decode`] takes PNG, JPEG and WebP files of one frame, told by their content, and looks at size and kind before it
//! makes room for a pixel. It turns the picture the way that EXIF says and rounds 16 bits to 8; colour profiles are
//! ignored, as in diffusers.
//!
//! [`prepare`] and [`prepare_mask`] do what diffusers' `VaeImageProcessor.preprocess(resize_mode="crop")` does with the
//! same pixels, bit for bit: scale with Lanczos' filter until the asked size is covered, cut the same amount from both
//! sides. A picture of the asked size is not resampled. What is transparent in a picture is white; of a mask, only the
//! colours count.
//!
//! It fetches nothing and knows no request.

use std::io::Cursor;
use std::ops::Range;

use ::image::codecs::jpeg::JpegDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{DynamicImage, ImageDecoder, ImageResult, Limits, RgbaImage};
use candle_core::{Device, Tensor};

use crate::job::limits::{PICTURE_BYTES_MAX, PICTURE_PIXELS_MAX};
use crate::job::{Fault, FaultCode};

/// Memory that a decoder may take besides the pixels; only the PNG decoder can be told.
const DECODER_BYTES_MAX: u64 = 8 * PICTURE_PIXELS_MAX;

/// Each scan of a progressive JPEG costs a pass over all pixels, however short it is. Encoders write about ten.
const JPEG_SCANS_MAX: usize = 64;

/// A decoded picture, upright.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pixels: RgbaImage,
}

impl Picture {
    /// Pixels.
    pub(crate) fn width(&self) -> u32 {
        self.pixels.width()
    }

    /// Pixels.
    pub(crate) fn height(&self) -> u32 {
        self.pixels.height()
    }
}

/// What a starting picture can be a file of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PictureKind {
    Png,
    Jpeg,
    Webp,
}

impl std::fmt::Display for PictureKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Webp => "WebP",
        })
    }
}

/// A picture that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PictureError {
    /// No bytes.
    #[error("the picture is empty, allowed: a PNG, JPEG or WebP file")]
    Empty,
    /// The file is too long.
    #[error("the picture has {bytes} bytes, allowed: up to {PICTURE_BYTES_MAX}")]
    TooManyBytes {
        /// Its length.
        bytes: usize,
    },
    /// The content is something else.
    #[error("the picture is {found}, allowed: a PNG, JPEG or WebP file")]
    Unsupported {
        /// What its first bytes say.
        found: &'static str,
    },
    /// Too large when decoded.
    #[error("the picture has {width} x {height} pixels, allowed: up to {PICTURE_PIXELS_MAX} together")]
    TooManyPixels {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// More than one frame.
    #[error("the picture is an animated {kind}, allowed: one frame")]
    Animated {
        /// What it is.
        kind: PictureKind,
    },
    /// Cut short, damaged, or made of parts that are not supported.
    #[error(
        "the picture is a {kind} file that cannot be decoded: {reason}; allowed: a complete PNG, JPEG or WebP file"
    )]
    Damaged {
        /// What it is.
        kind: PictureKind,
        /// What is wrong with it.
        reason: String,
    },
    /// The mask belongs to another picture.
    #[error(
        "the mask has {width} x {height} pixels, allowed: those of the picture, {picture_width} x {picture_height}"
    )]
    OtherSize {
        /// Pixels of the mask.
        width: u32,
        /// Pixels of the mask.
        height: u32,
        /// Pixels of the picture.
        picture_width: u32,
        /// Pixels of the picture.
        picture_height: u32,
    },
    /// candle failed.
    #[error("the picture cannot be brought into the engine")]
    Tensor(#[from] candle_core::Error),
}

impl PictureError {
    /// The fault of a job whose field `field` holds the picture.
    pub(crate) fn fault(&self, field: &str) -> Fault {
        match self {
            Self::Tensor(error) => Fault::retry(FaultCode::EngineFailed, format!("{field}: {self}: {error}")),
            Self::Empty
            | Self::TooManyBytes { .. }
            | Self::Unsupported { .. }
            | Self::TooManyPixels { .. }
            | Self::Animated { .. }
            | Self::Damaged { .. }
            | Self::OtherSize { .. } => Fault::reject(FaultCode::InvalidRequest, format!("{field}: {self}")),
        }
    }
}

/// The picture in a file.
///
/// # Errors
/// [`PictureError`] for everything but one whole PNG, JPEG or WebP file within the limits.
pub(crate) fn decode(bytes: &[u8]) -> Result<Picture, PictureError> {
    if bytes.is_empty() {
        return Err(PictureError::Empty);
    }
    if bytes.len() > PICTURE_BYTES_MAX {
        return Err(PictureError::TooManyBytes { bytes: bytes.len() });
    }
    let kind = sniff(bytes).map_err(|found| PictureError::Unsupported { found })?;
    // A decoder that panics over bytes from outside must not end the process that serves everybody.
    std::panic::catch_unwind(|| decode_as(kind, bytes))
        .unwrap_or_else(|_| Err(PictureError::Damaged { kind, reason: "the decoder gave up".into() }))
}

fn sniff(bytes: &[u8]) -> Result<PictureKind, &'static str> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let text = bytes[..bytes.len().min(256)].trim_ascii_start();
    match () {
        () if begins(b"\x89PNG\r\n\x1a\n") => Ok(PictureKind::Png),
        () if begins(b"\xff\xd8\xff") => Ok(PictureKind::Jpeg),
        () if begins(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") => Ok(PictureKind::Webp),
        () if begins(b"GIF8") => Err("a GIF"),
        () if begins(b"BM") => Err("a BMP"),
        () if begins(b"II*\0") || begins(b"MM\0*") => Err("a TIFF"),
        () if begins(b"%PDF") => Err("a PDF"),
        () if bytes.get(4..8) == Some(b"ftyp") => Err("an AVIF, a HEIC or a film"),
        () if text.starts_with(b"<svg") || text.starts_with(b"<?xml") => Err("an SVG or another XML document"),
        () if text.starts_with(b"<") => Err("an HTML page"),
        () => Err("of an unknown kind"),
    }
}

fn decode_as(kind: PictureKind, bytes: &[u8]) -> Result<Picture, PictureError> {
    let damaged = |error: ::image::ImageError| PictureError::Damaged { kind, reason: error.to_string() };
    let input = Cursor::new(bytes);
    match kind {
        PictureKind::Png => {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(DECODER_BYTES_MAX);
            let decoder = PngDecoder::with_limits(input, limits).map_err(damaged)?;
            upright(kind, decoder.is_apng().map_err(damaged)?, decoder)
        }
        PictureKind::Jpeg => {
            check_jpeg(bytes).map_err(|reason| PictureError::Damaged { kind, reason: reason.into() })?;
            upright(kind, false, JpegDecoder::new(input).map_err(damaged)?)
        }
        PictureKind::Webp => {
            let decoder = WebPDecoder::new(input).map_err(damaged)?;
            upright(kind, decoder.has_animation(), decoder)
        }
    }
}

/// Checks what the header says, and only then decodes.
fn upright(kind: PictureKind, animated: bool, decoder: impl ImageDecoder) -> Result<Picture, PictureError> {
    let (width, height) = decoder.dimensions();
    if animated {
        return Err(PictureError::Animated { kind });
    }
    if u64::from(width) * u64::from(height) > PICTURE_PIXELS_MAX {
        return Err(PictureError::TooManyPixels { width, height });
    }
    let pixels = read(decoder).map_err(|error| PictureError::Damaged { kind, reason: error.to_string() })?;
    Ok(Picture { pixels })
}

fn read(mut decoder: impl ImageDecoder) -> ImageResult<RgbaImage> {
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgba8())
}

/// Follows the markers of a JPEG file to its end, which the decoder does not insist on.
fn check_jpeg(bytes: &[u8]) -> Result<(), &'static str> {
    const TRUNCATED: &str = "it ends in the middle";
    let mut position = 2;
    let mut scans = 0;
    loop {
        let marker = match bytes.get(position..position + 2) {
            Some([0xff, 0xff]) => {
                position += 1;
                continue;
            }
            Some([0xff, marker]) => *marker,
            // Between the markers: the data of a scan.
            Some(_) => {
                let rest = &bytes[position..];
                position += rest.iter().position(|byte| *byte == 0xff).ok_or(TRUNCATED)?;
                continue;
            }
            None => return Err(TRUNCATED),
        };
        position += 2;
        match marker {
            0xd9 => return Ok(()),
            // An escaped 0xff of the data, and markers without content.
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            0xda => scans += 1,
            _ => {}
        }
        if scans > JPEG_SCANS_MAX {
            return Err("it has more scans than encoders write");
        }
        let length = bytes.get(position..).and_then(|rest| rest.first_chunk::<2>()).ok_or(TRUNCATED)?;
        position += usize::from(u16::from_be_bytes(*length));
    }
}

/// What an image-to-image pipeline encodes: `(1, 3, height, width)`, f32 from -1 to 1, on the CPU.
///
/// # Errors
/// [`PictureError::Tensor`].
pub(crate) fn prepare(picture: &Picture, width: u32, height: u32) -> Result<Tensor, PictureError> {
    let (width, height) = (width as usize, height as usize);
    let on_white = |[red, green, blue, alpha]: [u8; 4]| {
        [red, green, blue].map(|value| {
            let (value, alpha) = (u32::from(value), u32::from(alpha));
            ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        })
    };
    let pixels = resize_and_crop(picture, on_white, width, height);
    let plane = width * height;
    let values: Vec<f32> =
        (0..3 * plane).map(|index| 2.0 * (f32::from(pixels[index % plane][index / plane]) / 255.0) - 1.0).collect();
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}

/// Where an inpainting pipeline repaints: `(1, 1, height, width)`, f32, 1 where the mask is half white or more, else 0.
///
/// # Errors
/// [`PictureError::OtherSize`] for a mask that is not of `picture`'s size, [`PictureError::Tensor`].
pub(crate) fn prepare_mask(mask: &Picture, picture: &Picture, width: u32, height: u32) -> Result<Tensor, PictureError> {
    if mask.pixels.dimensions() != picture.pixels.dimensions() {
        let (picture_width, picture_height) = picture.pixels.dimensions();
        return Err(PictureError::OtherSize {
            width: mask.width(),
            height: mask.height(),
            picture_width,
            picture_height,
        });
    }
    let (width, height) = (width as usize, height as usize);
    let pixels = resize_and_crop(mask, |[red, green, blue, _]| [red, green, blue], width, height);
    let values: Vec<f32> = pixels.iter().map(|pixel| if luma(*pixel) >= 128 { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec(values, (1, 1, height, width), &Device::Cpu)?)
}

/// ITU-R 601-2 with the integers of PIL's `convert("L")`.
fn luma([red, green, blue]: [u8; 3]) -> u32 {
    (u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16
}

/// `mask (b, 1, h, w)` at the size of the latents: the nearest value up and left, as `torch.nn.functional.interpolate`.
///
/// # Errors
/// candle's.
pub(crate) fn latent_mask(mask: &Tensor, height: usize, width: usize) -> candle_core::Result<Tensor> {
    let (_, _, from_height, from_width) = mask.dims4()?;
    let nearest = |from: usize, to: usize| {
        let scale = from as f32 / to as f32;
        let indices = (0..to).map(|index| (((index as f32 * scale) as usize).min(from - 1)) as u32);
        Tensor::from_iter(indices, mask.device())
    };
    mask.index_select(&nearest(from_height, height)?, 2)?.index_select(&nearest(from_width, width)?, 3)
}

/// `width * height` pixels, rows from the top: `picture`, scaled to cover them, without what sticks out evenly on both
/// sides. `colour` says what a pixel looks like. The arithmetic is that of PIL's resampling of 8-bit images.
fn resize_and_crop(
    picture: &Picture,
    colour: impl Fn([u8; 4]) -> [u8; 3],
    width: usize,
    height: usize,
) -> Vec<[u8; 3]> {
    let (from_width, from_height) = (picture.width() as usize, picture.height() as usize);
    let (scaled_width, scaled_height) = if width * from_height > from_width * height {
        (width, from_height * width / from_width)
    } else {
        (from_width * height / from_height, height)
    };
    let centred = |scaled: usize, wanted: usize| (scaled / 2 - wanted / 2)..(scaled / 2 - wanted / 2 + wanted);
    let columns = taps(from_width, scaled_width, centred(scaled_width, width));
    let rows = taps(from_height, scaled_height, centred(scaled_height, height));

    // Only the rows that the second pass looks at.
    let first = rows.first().map_or(0, |row| row.first);
    let last = rows.iter().map(|row| row.first + row.weights.len()).max().unwrap_or(first);
    let (source, _) = picture.pixels.as_raw().as_chunks::<4>();
    let mut narrowed: Vec<[u8; 3]> = Vec::with_capacity((last - first) * width);
    for line in source[first * from_width..last * from_width].chunks_exact(from_width) {
        let line: Vec<[u8; 3]> = line.iter().map(|pixel| colour(*pixel)).collect();
        narrowed.extend(columns.iter().map(|tap| tap.weigh(|index| line[index])));
    }
    let mut pixels = Vec::with_capacity(width * height);
    for row in &rows {
        pixels.extend((0..width).map(|x| row.weigh(|index| narrowed[(index - first) * width + x])));
    }
    pixels
}

/// What one pixel of the result is made of, along one axis.
#[derive(Clone, Debug, PartialEq)]
struct Tap {
    first: usize,
    /// In units of 2^-22.
    weights: Vec<i32>,
}

/// Fraction bits of weights: with 8 bits of colour and two for what overshoots, 32.
const WEIGHT_BITS: u32 = 22;

impl Tap {
    fn weigh(&self, pixel: impl Fn(usize) -> [u8; 3]) -> [u8; 3] {
        let mut sums = [1 << (WEIGHT_BITS - 1); 3];
        for (index, weight) in (self.first..).zip(&self.weights) {
            for (sum, value) in sums.iter_mut().zip(pixel(index)) {
                *sum += i32::from(value) * weight;
            }
        }
        sums.map(|sum| (sum >> WEIGHT_BITS).clamp(0, 255) as u8)
    }
}

/// Lanczos' filter for the positions `wanted` among `to`, over `from` pixels.
fn taps(from: usize, to: usize, wanted: Range<usize>) -> Vec<Tap> {
    if from == to {
        return wanted.map(|first| Tap { first, weights: vec![1 << WEIGHT_BITS] }).collect();
    }
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let support = LANCZOS_LOBES * widened;
    let tap = |position: usize| {
        let centre = (position as f64 + 0.5) * scale;
        // Casts cut off, so this rounds; what is left of the first pixel becomes 0.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|index| lanczos((index as f64 - centre + 0.5) * (1.0 / widened))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1 << WEIGHT_BITS)).round() as i32;
        Tap { first, weights: weights.iter().map(fixed).collect() }
    };
    wanted.map(tap).collect()
}

const LANCZOS_LOBES: f64 = 3.0;

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-LANCZOS_LOBES..LANCZOS_LOBES).contains(&x) { sinc(x) * sinc(x / LANCZOS_LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../tests/golden/pictures.json")).unwrap()
    }

    fn number(value: &Value) -> u32 {
        u32::try_from(value.as_u64().unwrap()).unwrap()
    }

    fn bytes_of(value: &Value) -> Vec<u8> {
        let (pairs, rest) = value.as_str().unwrap().as_bytes().as_chunks::<2>();
        assert!(rest.is_empty());
        pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn digest(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn digest_of(tensor: &Tensor) -> String {
        digest(&values(tensor).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// The pixels of `tests/golden/pictures.py`.
    fn pattern(width: u32, height: u32) -> Picture {
        let pixels = RgbaImage::from_fn(width, height, |x, y| {
            let colour = |c: u32| {
                let mixed = u64::from(x * 37 + y * 59 + c * 101 + x * y * (c + 3)) * 2_654_435_761;
                let ramp = if x * 3 / width == 2 { 255 } else { (x * 5 + y * 3 + c * 40) % 256 };
                if y * 2 < height { (mixed as u32 >> 24) as u8 } else { ramp as u8 }
            };
            ::image::Rgba([colour(0), colour(1), colour(2), 255])
        });
        Picture { pixels }
    }

    #[test]
    fn pictures_and_masks_are_prepared_as_in_diffusers() {
        for case in golden()["prepared"].as_array().unwrap() {
            let size = |name: &str| (number(&case[name][0]), number(&case[name][1]));
            let ((from_width, from_height), (width, height)) = (size("from"), size("to"));
            let name = format!("{from_width} x {from_height} to {width} x {height}");
            let picture = pattern(from_width, from_height);

            let ready = prepare(&picture, width, height).unwrap();
            assert_eq!(ready.dims(), [1, 3, height as usize, width as usize], "{name}");
            for (ours, theirs) in values(&ready).iter().zip(case["first"].as_array().unwrap()) {
                assert_eq!(f64::from(*ours), theirs.as_f64().unwrap(), "{name}");
            }
            assert_eq!(digest_of(&ready), case["picture"].as_str().unwrap(), "{name}");

            let mask = prepare_mask(&picture, &picture, width, height).unwrap();
            assert_eq!(mask.dims(), [1, 1, height as usize, width as usize], "{name}");
            assert_eq!(values(&mask).iter().sum::<f32>() as u64, case["white"].as_u64().unwrap(), "{name}");
            assert_eq!(digest_of(&mask), case["mask"].as_str().unwrap(), "{name}");
            let latent = latent_mask(&mask, height as usize / 8, width as usize / 8).unwrap();
            assert_eq!(digest_of(&latent), case["latent_mask"].as_str().unwrap(), "{name}");
        }
    }

    #[test]
    fn masks_shrink_as_torch_interpolates() {
        let from = Tensor::arange(0_f32, 240.0, &Device::Cpu).unwrap().reshape((1, 1, 12, 20)).unwrap();
        for case in golden()["nearest"].as_array().unwrap() {
            let (height, width) = (number(&case["to"][0]) as usize, number(&case["to"][1]) as usize);
            let expected: Vec<f32> = case["values"].as_array().unwrap().iter().map(|v| number(v) as f32).collect();
            assert_eq!(values(&latent_mask(&from, height, width).unwrap()), expected, "{height} x {width}");
        }
    }

    #[test]
    fn good_files_are_decoded_upright() {
        let golden = golden();
        for case in golden["good"].as_array().unwrap() {
            let picture = decode(&bytes_of(&case["bytes"])).unwrap();
            let size = (number(&case["size"][0]), number(&case["size"][1]));
            assert_eq!((picture.width(), picture.height()), size, "{}", case["name"]);
            assert_eq!(digest(picture.pixels.as_raw()), case["rgba"].as_str().unwrap(), "{}", case["name"]);
        }
        // Decoders of lossy files may differ a little.
        for case in golden["lossy"].as_array().unwrap() {
            let picture = decode(&bytes_of(&case["bytes"])).unwrap();
            let size = (number(&case["size"][0]), number(&case["size"][1]));
            assert_eq!((picture.width(), picture.height()), size, "{}", case["name"]);
            let expected = bytes_of(&case["rgb"]);
            let found = picture.pixels.as_raw().as_chunks::<4>().0.iter().flat_map(|pixel| &pixel[..3]);
            let worst = found.zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 4, "{}: a channel is off by {worst}", case["name"]);
        }
    }

    #[test]
    fn bad_files_are_refused_for_what_they_are() {
        for case in golden()["bad"].as_array().unwrap() {
            let bytes = bytes_of(&case["bytes"]);
            let fault = decode(&bytes).unwrap_err().fault("init_image");
            let says = case["says"].as_str().unwrap();
            assert_eq!((fault.class, fault.code), (crate::job::FaultClass::Reject, FaultCode::InvalidRequest));
            assert!(fault.message.contains(says), "{}: {fault}", case["name"]);
            assert!(fault.message.starts_with("init_image: ") && fault.message.contains("allowed: "), "{fault}");
        }
        assert!(matches!(decode(&[]), Err(PictureError::Empty)));
        let long = vec![0; PICTURE_BYTES_MAX + 1];
        assert!(matches!(decode(&long), Err(PictureError::TooManyBytes { bytes }) if bytes == long.len()));
    }

    #[test]
    fn files_that_end_early_are_refused() {
        let golden = golden();
        for case in ["good", "lossy"].iter().flat_map(|list| golden[*list].as_array().unwrap()) {
            let bytes = bytes_of(&case["bytes"]);
            // Some of a PNG's or a WebP's last bytes are not part of the picture.
            for length in (0..bytes.len() - 20).step_by(7).chain([1, 2, 3, 8, 12]) {
                assert!(decode(&bytes[..length]).is_err(), "{}: {length} of {}", case["name"], bytes.len());
            }
        }
    }

    #[test]
    fn what_is_transparent_is_white_in_a_picture_and_its_colour_in_a_mask() {
        let picture = |pixel| Picture { pixels: RgbaImage::from_pixel(2, 2, ::image::Rgba(pixel)) };
        for (pixel, value, masked) in [
            ([0, 0, 0, 255], 0, 0.0),
            ([0, 0, 0, 0], 255, 0.0),
            ([0, 0, 0, 128], 127, 0.0),
            ([255, 255, 255, 0], 255, 1.0),
            ([128, 128, 128, 255], 128, 1.0),
            ([127, 127, 127, 255], 127, 0.0),
            // Green weighs most.
            ([0, 218, 0, 255], 0, 1.0),
            ([218, 0, 0, 255], 218, 0.0),
        ] {
            let picture = picture(pixel);
            let red = values(&prepare(&picture, 2, 2).unwrap())[0];
            assert_eq!(red, 2.0 * (value as f32 / 255.0) - 1.0, "{pixel:?}");
            let mask = prepare_mask(&picture, &picture, 2, 2).unwrap();
            assert_eq!(values(&mask), [masked; 4], "{pixel:?}");
        }
    }

    #[test]
    fn a_mask_of_another_size_is_refused() {
        let error = prepare_mask(&pattern(8, 4), &pattern(4, 8), 16, 16).unwrap_err();
        assert_eq!(error.to_string(), "the mask has 8 x 4 pixels, allowed: those of the picture, 4 x 8");
    }
}
