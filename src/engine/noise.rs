//! Noise as a function of (seed, step): ChaCha12 keyed by the seed, one stream for each use.
//!
//! Nothing is remembered between calls, so a resumed image gets the noise it would have got without the interruption,
//! whatever else is in the batch. Values differ from PyTorch's for the same seed.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// Separates these streams from any other use of the same seed.
const DOMAIN: &[u8; 24] = b"darkroom latent noise v1";

/// `count` values of unit variance for the initial latents.
pub(crate) fn initial(seed: u64, count: usize) -> Vec<f32> {
    stream(seed, 0, count)
}

/// `count` values of unit variance that sampler step `step` adds.
pub(crate) fn at_step(seed: u64, step: usize, count: usize) -> Vec<f32> {
    stream(seed, 1 + step as u64, count)
}

fn stream(seed: u64, stream: u64, count: usize) -> Vec<f32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..].copy_from_slice(DOMAIN);
    let mut generator = ChaCha12Rng::from_seed(key);
    generator.set_stream(stream);
    StandardNormal.sample_iter(&mut generator).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_depends_on_seed_and_step_alone() {
        assert_eq!(initial(7, 64), initial(7, 64));
        assert_eq!(at_step(7, 3, 64), at_step(7, 3, 64));
        assert_ne!(initial(7, 64), initial(8, 64));
        assert_ne!(initial(7, 64), at_step(7, 0, 64));
        assert_ne!(at_step(7, 0, 64), at_step(7, 1, 64));
        // A shorter draw is the beginning of a longer one.
        assert_eq!(initial(7, 16), initial(7, 64)[..16]);
    }

    #[test]
    fn noise_is_standard_normal() {
        let values = initial(1, 100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn the_generator_has_not_changed() {
        // Another generator, or another order of drawing, would change every picture ever made.
        let values = initial(0, 3);
        let shown: Vec<String> = values.iter().map(|value| format!("{value:.5}")).collect();
        assert_eq!(shown, ["0.66116", "-1.42948", "0.92665"]);
    }
}
