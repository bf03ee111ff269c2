//! Starting pictures and masks: files that nobody vouches for become tensors.
//!
//! What a file says of itself is checked before it is decoded. A picture of another size than asked for is scaled until it
//! covers the asked size and cropped around its middle; one of that size is taken as it is, so that its bytes are
//! diffusers' bytes. Where files come from is not known here.

use std::io::Cursor;

use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::imageops::{self, FilterType};
use ::image::{DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage};
use candle_core::{Device, Result as TensorResult, Tensor};

/// A file.
const BYTES_MAX: usize = 32 << 20;
/// Pixels of a picture; decoded, three bytes each.
const PIXELS_MAX: u64 = 40_000_000;
/// What a decoder may allocate beside the picture.
const DECODER_BYTES_MAX: u64 = 512 << 20;

/// A file that no image starts from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PictureError {
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Too long.
    #[error("the file has {bytes} bytes, more than {BYTES_MAX}")]
    TooManyBytes {
        /// Its length.
        bytes: usize,
    },
    /// Of another type.
    #[error("the file is neither PNG nor JPEG nor WebP")]
    UnknownType,
    /// Too large.
    #[error("the picture has {width} x {height} pixels, more than {PIXELS_MAX}")]
    TooManyPixels {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Several pictures in one file.
    #[error("the picture is animated; only still pictures can be used")]
    Animated,
    /// Damaged or cut off.
    #[error("the file cannot be decoded")]
    Damaged(#[source] ImageError),
    /// A mask that does not fit its picture.
    #[error("the mask has {} x {} pixels, the picture {} x {}", found.0, found.1, wanted.0, wanted.1)]
    MaskSize {
        /// Width and height of the mask.
        found: (u32, u32),
        /// Width and height of the picture.
        wanted: (u32, u32),
    },
}

/// Decodes a picture: upright as its EXIF data says, transparent pixels on white.
pub(crate) fn decode(file: &[u8]) -> Result<RgbImage, PictureError> {
    let decoded = read(file)?;
    if !decoded.color().has_alpha() {
        return Ok(decoded.into_rgb8());
    }
    let transparent = decoded.into_rgba8();
    let on_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let mut picture = RgbImage::new(transparent.width(), transparent.height());
    for (target, source) in picture.pixels_mut().zip(transparent.pixels()) {
        let [red, green, blue, alpha] = source.0;
        *target = Rgb([on_white(red, alpha), on_white(green, alpha), on_white(blue, alpha)]);
    }
    Ok(picture)
}

/// Decodes the mask of `picture`: its brightness, by ITU-R 601 with the rounding of Pillow.
pub(crate) fn decode_mask(file: &[u8], picture: &RgbImage) -> Result<GrayImage, PictureError> {
    let mask = decode(file)?;
    let (found, wanted) = (mask.dimensions(), picture.dimensions());
    if found != wanted {
        return Err(PictureError::MaskSize { found, wanted });
    }
    let brightness = |pixel: &Rgb<u8>| {
        let [red, green, blue] = pixel.0.map(u32::from);
        ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
    };
    let values = mask.pixels().map(brightness).collect();
    Ok(GrayImage::from_raw(found.0, found.1, values).unwrap_or_default())
}

fn read(file: &[u8]) -> Result<DynamicImage, PictureError> {
    if file.is_empty() {
        return Err(PictureError::Empty);
    }
    if file.len() > BYTES_MAX {
        return Err(PictureError::TooManyBytes { bytes: file.len() });
    }
    let animated = match ::image::guess_format(file) {
        Ok(ImageFormat::Png) => {
            PngDecoder::new(Cursor::new(file)).and_then(|decoder| decoder.is_apng()).map_err(PictureError::Damaged)?
        }
        Ok(ImageFormat::WebP) => {
            WebPDecoder::new(Cursor::new(file)).map_err(PictureError::Damaged)?.has_animation()
        }
        Ok(ImageFormat::Jpeg) => false,
        Ok(ImageFormat::Gif) => return Err(PictureError::UnknownType),
        Ok(_) | Err(_) => return Err(PictureError::UnknownType),
    };
    if animated {
        return Err(PictureError::Animated);
    }
    let reader = || ImageReader::new(Cursor::new(file)).with_guessed_format();
    let damaged = |error: std::io::Error| PictureError::Damaged(ImageError::IoError(error));
    let (width, height) = reader().map_err(damaged)?.into_dimensions().map_err(PictureError::Damaged)?;
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(PictureError::TooManyPixels { width, height });
    }
    let mut reader = reader().map_err(damaged)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(PictureError::Damaged)?;
    let orientation = decoder.orientation().map_err(PictureError::Damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(PictureError::Damaged)?;
    decoded.apply_orientation(orientation);
    Ok(decoded)
}

/// Where a picture of `from` covers `to` when scaled as little as possible: its scaled size, and what is cut off at the
/// left and the top.
fn cover(from: (u32, u32), to: (u32, u32)) -> ((u32, u32), (u32, u32)) {
    let scale = (f64::from(to.0) / f64::from(from.0)).max(f64::from(to.1) / f64::from(from.1));
    let side = |from: u32, to: u32| ((f64::from(from) * scale).round() as u32).max(to);
    let scaled = (side(from.0, to.0), side(from.1, to.1));
    (scaled, ((scaled.0 - to.0) / 2, (scaled.1 - to.1) / 2))
}

/// The picture at `width` and `height`: `(1, 3, h, w)` f32 in -1 to 1.
pub(crate) fn prepare(picture: &RgbImage, width: u32, height: u32, device: &Device) -> TensorResult<Tensor> {
    let sized = if picture.dimensions() == (width, height) {
        picture.clone()
    } else {
        let ((w, h), (left, top)) = cover(picture.dimensions(), (width, height));
        let scaled = imageops::resize(picture, w, h, FilterType::Lanczos3);
        imageops::crop_imm(&scaled, left, top, width, height).to_image()
    };
    let plane = (width * height) as usize;
    let mut values = vec![0.0; 3 * plane];
    for (index, pixel) in sized.pixels().enumerate() {
        for (channel, value) in pixel.0.into_iter().enumerate() {
            values[channel * plane + index] = f32::from(value) / 255.0 * 2.0 - 1.0;
        }
    }
    Tensor::from_vec(values, (1, 3, height as usize, width as usize), device)
}

/// The mask at `width` and `height`, scaled and cropped like its picture: `(1, 1, h, w)` f32, 1 from half brightness on.
pub(crate) fn prepare_mask(mask: &GrayImage, width: u32, height: u32, device: &Device) -> TensorResult<Tensor> {
    let sized = if mask.dimensions() == (width, height) {
        mask.clone()
    } else {
        let ((w, h), (left, top)) = cover(mask.dimensions(), (width, height));
        let scaled = imageops::resize(mask, w, h, FilterType::Lanczos3);
        imageops::crop_imm(&scaled, left, top, width, height).to_image()
    };
    let values = sized.pixels().map(|pixel| if f32::from(pixel.0[0]) / 255.0 >= 0.5 { 1.0 } else { 0.0 }).collect();
    Tensor::from_vec::<_, f32>(values, (1, 1, height as usize, width as usize), device)
}

/// `mask (1, 1, h, w)` at the size of latents: the pixel at the top left of each, as PyTorch's nearest interpolation.
pub(crate) fn nearest(mask: &Tensor, height: usize, width: usize) -> TensorResult<Tensor> {
    let (_, _, full_height, full_width) = mask.dims4()?;
    let values = mask.flatten_all()?.to_vec1::<f32>()?;
    let mut latent = Vec::with_capacity(height * width);
    for y in 0..height {
        for x in 0..width {
            latent.push(values[(y * full_height / height) * full_width + x * full_width / width]);
        }
    }
    Tensor::from_vec(latent, (1, 1, height, width), mask.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8]))
    }

    /// A PNG whose header promises `width` and `height`, with hardly any data.
    fn header(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 2, 0, 0, 0]);
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
        file.extend(b"\0\0\0\x04IDAT\x78\x9c\x03\0");
        file.extend(crc32(b"IDAT\x78\x9c\x03\0").to_be_bytes());
        file
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn files_that_are_no_still_picture_are_refused_by_what_is_wrong() {
        let png = encoded(&picture(40, 30), ImageFormat::Png);
        let cut = &png[..png.len() / 2];
        // An animation control chunk before the data makes a PNG an animation.
        let mut animated = png[..33].to_vec();
        let mut control = b"acTL".to_vec();
        control.extend([0, 0, 0, 2, 0, 0, 0, 0]);
        animated.extend(8_u32.to_be_bytes());
        animated.extend(&control);
        animated.extend(crc32(&control).to_be_bytes());
        animated.extend(&png[33..]);
        for (file, words) in [
            (&[][..], "empty"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "neither PNG"),
            (b"GIF89a\x01\0\x01\0\0\0\0;", "neither PNG"),
            (&header(50_000, 50_000), "50000 x 50000"),
            (cut, "cannot be decoded"),
            (&animated, "animated"),
            (&vec![0; BYTES_MAX + 1], "bytes"),
        ] {
            let error = decode(file).unwrap_err();
            assert!(error.to_string().contains(words), "{error} lacks {words}");
        }
    }

    #[test]
    fn a_picture_of_the_asked_size_keeps_its_bytes() {
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let decoded = decode(&encoded(&picture(16, 8), format)).unwrap();
            assert_eq!(decoded, picture(16, 8));
        }
        let values = prepare(&picture(16, 8), 16, 8, &Device::Cpu).unwrap();
        assert_eq!(values.dims(), [1, 3, 8, 16]);
        let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((values[0], values[1]), (-1.0, 5.0 / 255.0 * 2.0 - 1.0));
    }

    #[test]
    fn other_sizes_are_covered_and_cropped_around_the_middle() {
        for (from, to, scaled, cut) in [
            ((100, 50), (20, 20), (40, 20), (10, 0)),
            ((50, 100), (20, 20), (20, 40), (0, 10)),
            ((10, 10), (24, 16), (24, 24), (0, 4)),
        ] {
            assert_eq!(cover(from, to), (scaled, cut), "{from:?} to {to:?}");
        }
        assert_eq!(prepare(&picture(100, 50), 20, 20, &Device::Cpu).unwrap().dims(), [1, 3, 20, 20]);
    }

    #[test]
    fn masks_have_the_size_of_their_picture_and_two_values() {
        let picture = picture(6, 4);
        let mask = RgbImage::from_fn(6, 4, |x, _| Rgb([if x < 3 { 127 } else { 128 }; 3]));
        let file = encoded(&mask, ImageFormat::Png);
        let decoded = decode_mask(&file, &picture).unwrap();
        let tensor = prepare_mask(&decoded, 6, 4, &Device::Cpu).unwrap();
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..6], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(nearest(&tensor, 2, 3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[..3], [0.0, 0.0, 1.0]);
        let other = RgbImage::new(6, 5);
        let error = decode_mask(&file, &other).unwrap_err();
        assert!(error.to_string().contains("6 x 4"), "{error}");
    }

    #[test]
    fn transparent_pixels_lie_on_white() {
        let transparent = ::image::RgbaImage::from_pixel(2, 2, ::image::Rgba([0, 100, 255, 0]));
        let mut file = Cursor::new(Vec::new());
        transparent.write_to(&mut file, ImageFormat::Png).unwrap();
        assert_eq!(decode(&file.into_inner()).unwrap().get_pixel(0, 0).0, [255; 3]);
    }
}
