//! Pictures as files: PNG, JPEG and WebP bytes that depend on nothing but the pixels.
//!
//! It writes no metadata: no dates, no prompts, no program names.

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::codecs::webp::WebPEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

use super::RgbImage;
use crate::job::{Fault, FaultCode, OutputFormat};

/// High enough that compression is not seen, as [`OutputFormat::Jpeg`] promises.
const JPEG_QUALITY: u8 = 95;

/// The bytes of `image` in `format`.
///
/// # Errors
/// `Retry` when the encoder fails, which it does only for sizes that no model makes.
pub fn encode(image: &RgbImage, format: OutputFormat) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    match format {
        // Said, so that no file changes with the package's defaults.
        OutputFormat::Png => {
            write(image, PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive))?;
        }
        OutputFormat::Jpeg => return jpeg(image, JPEG_QUALITY),
        OutputFormat::Webp => write(image, WebPEncoder::new_lossless(&mut bytes))?,
    }
    Ok(bytes)
}

/// The bytes of `image` as JPEG of `quality` 1 to 100.
pub(crate) fn jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    write(image, JpegEncoder::new_with_quality(&mut bytes, quality))?;
    Ok(bytes)
}

fn write(image: &RgbImage, encoder: impl ImageEncoder) -> Result<(), Fault> {
    encoder
        .write_image(&image.pixels, image.width, image.height, ExtendedColorType::Rgb8)
        .map_err(|error| Fault::retry(FaultCode::EngineFailed, format!("the picture cannot be encoded: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_reads_back_and_is_deterministic() {
        let (width, height) = (48, 32);
        let pixels = (0..width * height).flat_map(|i| [(i % width * 5) as u8, (i / width * 7) as u8, 90]).collect();
        let image = RgbImage { width, height, pixels };
        for format in OutputFormat::ALL {
            let bytes = encode(&image, *format).unwrap();
            assert_eq!(bytes, encode(&image, *format).unwrap());
            let back = ::image::load_from_memory(&bytes).unwrap().to_rgb8();
            assert_eq!(back.dimensions(), (width, height));
            let worst = back.as_raw().iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            let allowed = if *format == OutputFormat::Jpeg { 16 } else { 0 };
            assert!(worst <= allowed, "{format}: a channel is off by {worst}");
        }
    }
}
