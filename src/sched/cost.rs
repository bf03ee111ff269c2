//! How long the engine takes for a step and a decode, by the size of the pictures and how many are in it: as it was
//! measured before, and as it turns out.
//!
//! It measures nothing and picks nothing. Before anything is known its figures are guesses that suit no machine, but have
//! the right order among each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::batch::BatchKey;

/// A guess before any measurement: a step of one image, for each pixel.
const GUESSED_STEP_MS_PER_PIXEL: f64 = 4e-4;
/// A guess: a decode takes as long as so many steps of one image.
const GUESSED_STEPS_PER_DECODE: f64 = 2.0;
/// A guess: the share of a step of one image that does not grow with more images. It makes larger batches be tried, after
/// which there is no need to guess.
const GUESSED_FIXED_SHARE: f64 = 0.3;
/// What a single observation counts against all before.
const OBSERVATION_WEIGHT: f64 = 0.2;
/// An observation that is off by more than this factor counts as if it were off by it: machines have hiccups.
const OBSERVATION_FACTOR_MAX: f64 = 3.0;

/// What is known of one size of picture.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shape {
    /// By number of images.
    steps_ms: BTreeMap<u32, f64>,
    decode_ms: Option<f64>,
}

/// What one worker's engine takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CostModel {
    shapes: BTreeMap<BatchKey, Shape>,
}

impl CostModel {
    /// Takes in what was measured at leisure: it replaces what was known.
    pub fn measured_step(&mut self, key: BatchKey, images: u32, took: Duration) {
        self.shapes.entry(key).or_default().steps_ms.insert(images.max(1), milliseconds(took));
    }

    /// The same for a decode.
    pub fn measured_decode(&mut self, key: BatchKey, took: Duration) {
        self.shapes.entry(key).or_default().decode_ms = Some(milliseconds(took));
    }

    /// Takes in what a step at work took.
    pub fn observed_step(&mut self, key: BatchKey, images: u32, took: Duration) {
        let steps = &mut self.shapes.entry(key).or_default().steps_ms;
        steps
            .entry(images.max(1))
            .and_modify(|known| *known = observed(*known, took))
            .or_insert_with(|| milliseconds(took));
    }

    /// The same for a decode.
    pub fn observed_decode(&mut self, key: BatchKey, took: Duration) {
        let shape = self.shapes.entry(key).or_default();
        shape.decode_ms = Some(shape.decode_ms.map_or_else(|| milliseconds(took), |known| observed(known, took)));
    }

    /// Whether steps of this size were ever timed.
    pub fn is_known(&self, key: BatchKey) -> bool {
        self.shapes.get(&key).is_some_and(|shape| !shape.steps_ms.is_empty())
    }

    /// A step of `images` pictures.
    pub fn step_ms(&self, key: BatchKey, images: u32) -> f64 {
        self.steps_ms(key)(images)
    }

    /// Steps of this size, by number of images.
    pub fn steps_ms(&self, key: BatchKey) -> impl Fn(u32) -> f64 {
        let timed = |shape: &Shape| !shape.steps_ms.is_empty();
        let known = match self.shapes.get(&key).filter(|shape| timed(shape)) {
            Some(shape) => Some((1.0, shape)),
            None => self.nearest(key, timed).map(|(other, shape)| (pixels(key) / pixels(other), shape)),
        };
        move |images: u32| {
            let images = images.max(1);
            match known {
                Some((factor, shape)) => factor * interpolated(&shape.steps_ms, images),
                None => GUESSED_STEP_MS_PER_PIXEL * pixels(key) * guessed_growth(1, images),
            }
        }
    }

    /// A decode of one picture.
    pub fn decode_ms(&self, key: BatchKey) -> f64 {
        let known = |shape: &Shape| shape.decode_ms;
        match self.shapes.get(&key).and_then(known) {
            Some(decode_ms) => decode_ms,
            None => match self.nearest(key, |shape| shape.decode_ms.is_some()) {
                Some((other, shape)) => known(shape).unwrap_or_default() * pixels(key) / pixels(other),
                None => GUESSED_STEPS_PER_DECODE * self.step_ms(key, 1),
            },
        }
    }

    /// The size of which something is known that is closest in pixels.
    fn nearest(&self, key: BatchKey, known: impl Fn(&Shape) -> bool) -> Option<(BatchKey, &Shape)> {
        let distance = |other: &BatchKey| (pixels(*other).ln() - pixels(key).ln()).abs();
        let candidates = self.shapes.iter().filter(|(_, shape)| known(shape)).map(|(key, shape)| (*key, shape));
        candidates.min_by(|(one, _), (other, _)| distance(one).total_cmp(&distance(other)))
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn pixels(key: BatchKey) -> f64 {
    (f64::from(key.width) * f64::from(key.height)).max(1.0)
}

fn observed(known_ms: f64, took: Duration) -> f64 {
    let took_ms = milliseconds(took).clamp(known_ms / OBSERVATION_FACTOR_MAX, known_ms * OBSERVATION_FACTOR_MAX);
    known_ms + OBSERVATION_WEIGHT * (took_ms - known_ms)
}

/// By how much a step of `to` images takes longer than one of `from`, as far as one can guess.
fn guessed_growth(from: u32, to: u32) -> f64 {
    let relative = |images: u32| GUESSED_FIXED_SHARE + (1.0 - GUESSED_FIXED_SHARE) * f64::from(images);
    relative(to) / relative(from)
}

/// Between known numbers of images along a line, beyond them along the last one. More images never take less.
fn interpolated(steps_ms: &BTreeMap<u32, f64>, images: u32) -> f64 {
    let below = steps_ms.range(..=images).next_back();
    let above = steps_ms.range(images..).next();
    let least = steps_ms.range(..=images).map(|(_, ms)| *ms).fold(0.0, f64::max);
    let estimate = match (below, above) {
        (Some((from, from_ms)), Some((to, to_ms))) if to > from => {
            from_ms + (to_ms - from_ms) * f64::from(images - from) / f64::from(to - from)
        }
        (Some((_, ms)), Some(_)) => *ms,
        (Some((last, last_ms)), None) => match steps_ms.range(..last).next_back() {
            Some((before, before_ms)) => {
                let slope = (last_ms - before_ms) / f64::from(last - before);
                last_ms + slope.max(0.0) * f64::from(images - last)
            }
            None => last_ms * guessed_growth(*last, images),
        },
        (None, Some((first, ms))) => ms * guessed_growth(*first, images),
        (None, None) => 0.0,
    };
    estimate.max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(side: u32) -> BatchKey {
        BatchKey { width: side, height: side }
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn known_numbers_of_images_are_joined_by_lines() {
        let mut costs = CostModel::default();
        for (images, took) in [(1, 100), (4, 160), (8, 320)] {
            costs.measured_step(key(512), images, ms(took));
        }
        for (images, expected) in [(1, 100.0), (2, 120.0), (4, 160.0), (6, 240.0), (8, 320.0), (10, 400.0)] {
            assert!((costs.step_ms(key(512), images) - expected).abs() < 1e-9, "{images}");
        }
    }

    #[test]
    fn other_sizes_are_judged_by_their_pixels_and_the_closest_known_size() {
        let mut costs = CostModel::default();
        costs.measured_step(key(512), 1, ms(100));
        costs.measured_step(key(1024), 1, ms(600));
        assert!((costs.step_ms(key(256), 1) - 25.0).abs() < 1e-9);
        assert!((costs.step_ms(key(2048), 1) - 2400.0).abs() < 1e-9);
        costs.measured_decode(key(512), ms(80));
        assert!((costs.decode_ms(key(1024)) - 320.0).abs() < 1e-9);
    }

    #[test]
    fn guesses_grow_with_pixels_and_images_and_more_images_never_take_less() {
        let mut costs = CostModel::default();
        assert!(costs.step_ms(key(1024), 1) > costs.step_ms(key(512), 1));
        assert!(costs.step_ms(key(512), 2) < 2.0 * costs.step_ms(key(512), 1), "a larger batch is worth a try");
        assert!(costs.decode_ms(key(512)) > 0.0);
        costs.measured_step(key(512), 1, ms(100));
        costs.measured_step(key(512), 2, ms(90));
        assert!(costs.step_ms(key(512), 2) >= 100.0 && costs.step_ms(key(512), 3) >= 100.0);
    }

    #[test]
    fn observations_move_the_figures_and_a_hiccup_hardly_does() {
        let mut costs = CostModel::default();
        costs.observed_step(key(512), 1, ms(100));
        costs.observed_step(key(512), 1, ms(60_000));
        assert!(costs.step_ms(key(512), 1) < 150.0);
        for _ in 0..40 {
            costs.observed_step(key(512), 1, ms(50));
        }
        assert!((costs.step_ms(key(512), 1) - 50.0).abs() < 1.0);
        costs.observed_decode(key(512), ms(10));
        costs.observed_decode(key(512), ms(20));
        assert!((costs.decode_ms(key(512)) - 12.0).abs() < 1e-9);
    }
}
