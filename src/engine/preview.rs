//! A rough picture from latents at almost no cost: a linear map from latent channels to colours.
//!
//! The map is fitted to the model's own decoder the first time somebody wants a preview, so it suits any VAE. A preview
//! never touches the state of a row.

use ::image::imageops::{self, FilterType};
use candle_core::{Device, Result, Tensor};

use super::RgbImage;
use super::random::Generator;
use super::vae::Decoder;
use crate::job::Rng;

/// Longest side of a preview, in pixels.
const SIDE_PIXELS: u32 = 128;
/// Enough decoded samples that the fit does not depend on their noise.
const SAMPLES: u64 = 8;
/// Side of a sample, in latent pixels, and of the patches of one value that it consists of: a decoder shows no clear
/// colour for latents that change with every pixel.
const SAMPLE_SIDE: usize = 8;
const PATCH_SIDE: usize = 4;

/// Red, green and blue as linear functions of the latent channels and 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ColourMap {
    /// For each colour: one factor per latent channel, and a constant.
    factors: [Vec<f64>; 3],
}

impl ColourMap {
    /// Fits the map to `decoder`, whose latents have `channels` channels.
    pub(crate) fn fit(decoder: &Decoder, channels: usize, device: &Device) -> Result<Self> {
        let unknowns = channels + 1;
        let mut products = vec![vec![0.0; unknowns]; unknowns];
        let mut targets = [(); 3].map(|()| vec![0.0; unknowns]);
        let patches = SAMPLE_SIDE / PATCH_SIDE;
        let plane = SAMPLE_SIDE * SAMPLE_SIDE;
        for seed in 0..SAMPLES {
            let values = Generator::new(Rng::TorchCpu, seed).normal(channels * patches * patches);
            let mut latents = Vec::with_capacity(channels * plane);
            for index in 0..channels * plane {
                let (channel, y, x) = (index / plane, index % plane / SAMPLE_SIDE, index % SAMPLE_SIDE);
                latents.push(values[(channel * patches + y / PATCH_SIDE) * patches + x / PATCH_SIDE]);
            }
            let tensor = Tensor::from_slice(&latents, (1, channels, SAMPLE_SIDE, SAMPLE_SIDE), device)?;
            let pixels = decoder.forward(&tensor)?;
            // The mean colour of the pixels of each latent pixel: (3, SAMPLE_SIDE, SAMPLE_SIDE)
            let colours = pixels.avg_pool2d(pixels.dim(2)? / SAMPLE_SIDE)?.flatten_all()?.to_vec1::<f32>()?;
            for pixel in 0..plane {
                let input: Vec<f64> =
                    (0..channels).map(|channel| f64::from(latents[channel * plane + pixel])).chain([1.0]).collect();
                for row in 0..unknowns {
                    for column in 0..unknowns {
                        products[row][column] += input[row] * input[column];
                    }
                    for (colour, target) in targets.iter_mut().enumerate() {
                        target[row] += input[row] * f64::from(colours[colour * plane + pixel]);
                    }
                }
            }
        }
        Ok(Self { factors: targets.map(|target| solve(products.clone(), target)) })
    }

    /// `latents (1, c, h, w)` of unit variance as a picture whose longest side is 128 pixels.
    pub(crate) fn apply(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, channels, height, width) = latents.dims4()?;
        let values = latents.flatten_all()?.to_vec1::<f32>()?;
        let plane = height * width;
        let mut small = ::image::RgbImage::new(width as u32, height as u32);
        for (index, pixel) in small.pixels_mut().enumerate() {
            for (colour, factors) in pixel.0.iter_mut().zip(&self.factors) {
                let sum = (0..channels).fold(factors[channels], |sum, channel| {
                    sum + factors[channel] * f64::from(values[channel * plane + index])
                });
                *colour = ((sum / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        }
        let longest = small.width().max(small.height());
        let scaled = |side: u32| (side * SIDE_PIXELS / longest).max(1);
        let large = imageops::resize(&small, scaled(small.width()), scaled(small.height()), FilterType::Triangle);
        Ok(RgbImage { width: large.width(), height: large.height(), pixels: large.into_raw() })
    }
}

/// The solution of `matrix * x = right` by elimination, with a zero for each unknown that nothing determines.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let count = right.len();
    for column in 0..count {
        let pivot = (column..count)
            .max_by(|a, b| matrix[*a][column].abs().total_cmp(&matrix[*b][column].abs()))
            .unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        if matrix[column][column].abs() < 1e-9 {
            continue;
        }
        let (pivot_row, pivot_right) = (matrix[column].clone(), right[column]);
        for (row, (line, right)) in matrix.iter_mut().zip(&mut right).enumerate() {
            if row != column {
                let factor = line[column] / pivot_row[column];
                line.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
                *right -= factor * pivot_right;
            }
        }
    }
    let value = |index: usize| {
        let pivot = matrix[index][index];
        if pivot.abs() < 1e-9 { 0.0 } else { right[index] / pivot }
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_equations_are_solved() {
        let matrix = vec![vec![0.0, 2.0, 1.0], vec![1.0, 1.0, 0.0], vec![3.0, 0.0, -1.0]];
        let solution = solve(matrix, vec![7.0, 3.0, 0.0]);
        for (found, expected) in solution.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-12, "{solution:?}");
        }
    }
}
