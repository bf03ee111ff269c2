//! How long the engine takes for a step and a decode, by the size of the pictures and how many are in it, as it was
//! measured before and as it turns out; and how much memory, as it was measured.
//!
//! It measures nothing and picks nothing. Before anything is known its times are guesses that suit no machine, but have
//! the right order among each other. Memory is not guessed.

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
/// Steps that were kept smaller than they could have been, before a larger one is tried again: the first time.
const STEPS_BEFORE_RETRY: u32 = 8;
/// The same, at most.
const STEPS_BEFORE_RETRY_MAX: u32 = 1 << 10;

/// Numbers of images, which grow, and a value of each. They are few, and looked through with every decision, in which a
/// map is slow.
type ByImages = Vec<(u32, f64)>;

/// What is known of one size of picture.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shape {
    steps_ms: ByImages,
    /// What was measured at leisure of these.
    measured_ms: ByImages,
    retry: Retry,
    decode_ms: Option<f64>,
    steps_bytes: ByImages,
    decode_bytes: Option<f64>,
}

/// When a larger step is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Retry {
    /// Steps since the last time that were kept smaller than they could have been.
    steps: u32,
    steps_before: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { steps: 0, steps_before: STEPS_BEFORE_RETRY }
    }
}

/// What one worker's engine takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CostModel {
    shapes: BTreeMap<BatchKey, Shape>,
}

impl CostModel {
    /// Takes in what was measured at leisure: it replaces what was known.
    pub fn measured_step(&mut self, key: BatchKey, images: u32, took: Duration) {
        let shape = self.shapes.entry(key).or_default();
        learn(&mut shape.steps_ms, images, |_| milliseconds(took));
        learn(&mut shape.measured_ms, images, |_| milliseconds(took));
    }

    /// The same for a decode.
    pub fn measured_decode(&mut self, key: BatchKey, took: Duration) {
        self.shapes.entry(key).or_default().decode_ms = Some(milliseconds(took));
    }

    /// Takes in how many bytes a step needs on top of the loaded model, rows and all.
    pub fn measured_step_bytes(&mut self, key: BatchKey, images: u32, bytes: u64) {
        learn(&mut self.shapes.entry(key).or_default().steps_bytes, images, |_| bytes as f64);
    }

    /// The same for a decode.
    pub fn measured_decode_bytes(&mut self, key: BatchKey, bytes: u64) {
        self.shapes.entry(key).or_default().decode_bytes = Some(bytes as f64);
    }

    /// Takes in what a step at work took.
    pub fn observed_step(&mut self, key: BatchKey, images: u32, took: Duration) {
        learn(&mut self.shapes.entry(key).or_default().steps_ms, images, |known| observed(known, took));
    }

    /// A step was kept to `images` because more did not seem worth it. After some of them what was seen of larger ones is
    /// forgotten, so that one is tried again: the first of a size pays for what is done once, and machines have bad moments.
    /// Each time it takes twice as many steps. What was measured at leisure is what they take then.
    pub fn kept_small(&mut self, key: BatchKey, images: u32) {
        let Some(shape) = self.shapes.get_mut(&key) else { return };
        let seen = |of: &ByImages| of.partition_point(|(count, _)| *count <= images);
        let (known, measured) = (seen(&shape.steps_ms), &shape.measured_ms[seen(&shape.measured_ms)..]);
        if shape.steps_ms[known..] == *measured {
            return;
        }
        shape.retry.steps += 1;
        if shape.retry.steps >= shape.retry.steps_before {
            shape.steps_ms.truncate(known);
            shape.steps_ms.extend_from_slice(measured);
            shape.retry.steps = 0;
            shape.retry.steps_before = (2 * shape.retry.steps_before).min(STEPS_BEFORE_RETRY_MAX);
        }
    }

    /// The same for a decode.
    pub fn observed_decode(&mut self, key: BatchKey, took: Duration) {
        let shape = self.shapes.entry(key).or_default();
        shape.decode_ms = Some(observed(shape.decode_ms, took));
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
        let known = self.closest(key, |shape| !shape.steps_ms.is_empty());
        move |images: u32| {
            let steps =
                known.and_then(|(ratio, shape)| Some(ratio * interpolated(&shape.steps_ms, images, guessed_growth)?));
            steps.unwrap_or_else(|| GUESSED_STEP_MS_PER_PIXEL * pixels(key) * guessed_growth(1, images.max(1)))
        }
    }

    /// A decode of one picture.
    pub fn decode_ms(&self, key: BatchKey) -> f64 {
        self.known(key, |shape| shape.decode_ms).unwrap_or_else(|| GUESSED_STEPS_PER_DECODE * self.step_ms(key, 1))
    }

    /// Bytes of a step of `images` pictures; none when no step's were measured.
    pub fn step_bytes(&self, key: BatchKey, images: u32) -> Option<u64> {
        let bytes = self.known(key, |shape| interpolated(&shape.steps_bytes, images, proportional))?;
        Some(bytes.ceil() as u64)
    }

    /// The same for a decode of one picture.
    pub fn decode_bytes(&self, key: BatchKey) -> Option<u64> {
        self.known(key, |shape| shape.decode_bytes).map(|bytes| bytes.ceil() as u64)
    }

    /// The most pictures, from 1 to `at_most`, whose step takes no more than `bytes`: 1 even if it takes more, and `at_most`
    /// when nothing is known.
    pub fn images_within(&self, key: BatchKey, bytes: u64, at_most: u32) -> u32 {
        let fit = |images: u32| self.step_bytes(key, images).is_none_or(|needed| needed <= bytes);
        // More pictures never take less.
        let (mut most, mut at_most) = (1, at_most.max(1));
        while most < at_most {
            let middle = most + (at_most - most).div_ceil(2);
            if fit(middle) {
                most = middle;
            } else {
                at_most = middle - 1;
            }
        }
        most
    }

    /// What is known of `key`, or else of the size closest to it, in proportion to its pixels.
    fn known(&self, key: BatchKey, of: impl Fn(&Shape) -> Option<f64>) -> Option<f64> {
        let (ratio, shape) = self.closest(key, |shape| of(shape).is_some())?;
        of(shape).map(|known| ratio * known)
    }

    /// The size closest to `key` of which something is known, and how many times its pixels `key` has.
    fn closest(&self, key: BatchKey, is_known: impl Fn(&Shape) -> bool) -> Option<(f64, &Shape)> {
        if let Some(shape) = self.shapes.get(&key).filter(|shape| is_known(shape)) {
            return Some((1.0, shape));
        }
        let distance = |other: BatchKey| (pixels(other).ln() - pixels(key).ln()).abs();
        let candidates = self.shapes.iter().filter(|(_, shape)| is_known(shape));
        let (other, shape) = candidates.min_by(|(one, _), (other, _)| distance(**one).total_cmp(&distance(**other)))?;
        Some((pixels(key) / pixels(*other), shape))
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn pixels(key: BatchKey) -> f64 {
    (f64::from(key.width) * f64::from(key.height)).max(1.0)
}

fn observed(known_ms: Option<f64>, took: Duration) -> f64 {
    let Some(known_ms) = known_ms else { return milliseconds(took) };
    let took_ms = milliseconds(took).clamp(known_ms / OBSERVATION_FACTOR_MAX, known_ms * OBSERVATION_FACTOR_MAX);
    known_ms + OBSERVATION_WEIGHT * (took_ms - known_ms)
}

/// Puts a value in its place, made of what is there.
fn learn(values: &mut ByImages, images: u32, value: impl FnOnce(Option<f64>) -> f64) {
    let images = images.max(1);
    match values.binary_search_by_key(&images, |(count, _)| *count) {
        Ok(place) => values[place].1 = value(Some(values[place].1)),
        Err(place) => values.insert(place, (images, value(None))),
    }
}

/// By how much a step of `to` images takes longer than one of `from`, as far as one can guess.
fn guessed_growth(from: u32, to: u32) -> f64 {
    let relative = |images: u32| GUESSED_FIXED_SHARE + (1.0 - GUESSED_FIXED_SHARE) * f64::from(images);
    relative(to) / relative(from)
}

/// The same of what has no part that does not grow.
fn proportional(from: u32, to: u32) -> f64 {
    f64::from(to) / f64::from(from)
}

/// Between known numbers of images along a line, beyond them along the last one, from a single number by `growth`. More
/// images never take less.
fn interpolated(known: &[(u32, f64)], images: u32, growth: impl Fn(u32, u32) -> f64) -> Option<f64> {
    let images = images.max(1);
    let (up_to, beyond) = known.split_at(known.partition_point(|(count, _)| *count <= images));
    let least = up_to.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let estimate = match (up_to, beyond) {
        ([], []) => return None,
        ([.., (count, value)], _) if *count == images => *value,
        ([.., (from, lower)], [(to, upper), ..]) => {
            lower + (upper - lower) * f64::from(images - from) / f64::from(to - from)
        }
        ([.., (before, value_before), (last, value)], []) => {
            let slope = (value - value_before) / f64::from(last - before);
            value + slope.max(0.0) * f64::from(images - last)
        }
        ([(only, value)], []) | ([], [(only, value), ..]) => value * growth(*only, images),
    };
    Some(estimate.max(least))
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

    #[test]
    fn what_was_seen_of_larger_steps_is_forgotten_ever_more_rarely_and_what_was_measured_stands() {
        let mut costs = CostModel::default();
        costs.observed_step(key(512), 1, ms(100));
        let guessed_ms = costs.step_ms(key(512), 8);
        (0..STEPS_BEFORE_RETRY_MAX).for_each(|_| costs.kept_small(key(512), 1));
        for steps in [8, 16, 32] {
            costs.observed_step(key(512), 8, ms(5000));
            for _ in 1..steps {
                costs.kept_small(key(512), 1);
                assert!(costs.step_ms(key(512), 8) > 4999.0);
            }
            costs.kept_small(key(512), 1);
            assert!((costs.step_ms(key(512), 8) - guessed_ms).abs() < 1e-9);
        }
        costs.measured_step(key(512), 4, ms(300));
        costs.observed_step(key(512), 4, ms(5000));
        costs.observed_step(key(512), 8, ms(5000));
        assert!(costs.step_ms(key(512), 4) > 400.0);
        (0..64).for_each(|_| costs.kept_small(key(512), 1));
        assert!((costs.step_ms(key(512), 4) - 300.0).abs() < 1e-9, "the hiccup is forgotten");
        assert!(costs.step_ms(key(512), 8) < 4999.0);
    }

    #[test]
    fn bytes_are_known_as_times_are_but_never_guessed() {
        let mut costs = CostModel::default();
        costs.measured_step(key(512), 1, ms(100));
        assert_eq!((costs.step_bytes(key(512), 1), costs.decode_bytes(key(512))), (None, None));
        costs.measured_step_bytes(key(512), 2, 300);
        for (images, expected) in [(0, 150), (1, 150), (2, 300), (4, 600)] {
            assert_eq!(costs.step_bytes(key(512), images), Some(expected), "{images}, of one number");
        }
        for (images, bytes) in [(1, 200), (4, 400)] {
            costs.measured_step_bytes(key(512), images, bytes);
        }
        for (images, expected) in [(1, 200), (2, 300), (3, 350), (4, 400), (6, 500)] {
            assert_eq!(costs.step_bytes(key(512), images), Some(expected), "{images}");
        }
        costs.measured_decode_bytes(key(512), 1001);
        assert_eq!((costs.step_bytes(key(1024), 4), costs.decode_bytes(key(256))), (Some(1600), Some(251)));
        assert!((costs.step_ms(key(512), 1) - 100.0).abs() < 1e-9, "times are a matter of their own");
    }

    #[test]
    fn more_pictures_never_take_fewer_bytes() {
        let mut costs = CostModel::default();
        for (images, bytes) in [(1, 500), (2, 400), (4, 450), (8, 450)] {
            costs.measured_step_bytes(key(512), images, bytes);
        }
        for images in 1..20 {
            assert_eq!(costs.step_bytes(key(512), images), Some(500));
        }
    }

    #[test]
    fn as_many_pictures_step_as_there_is_memory_for_but_one_always() {
        let mut costs = CostModel::default();
        assert_eq!(costs.images_within(key(512), 0, 8), 8, "nothing is known");
        costs.measured_decode_bytes(key(512), 1 << 40);
        assert_eq!(costs.images_within(key(512), 1, 8), 8, "nor of steps");
        costs.measured_step_bytes(key(512), 1, 100);
        costs.measured_step_bytes(key(512), 4, 400);
        for (bytes, expected) in [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (450, 4), (700, 7), (u64::MAX, 8)] {
            assert_eq!(costs.images_within(key(512), bytes, 8), expected, "{bytes}");
        }
        assert_eq!(costs.images_within(key(1024), 800, 8), 2, "four times the pixels");
        assert_eq!(costs.images_within(key(512), 450, 1), 1);
        assert_eq!(costs.images_within(key(512), 450, 0), 1);
        assert_eq!(costs.images_within(key(512), u64::MAX, u32::MAX), u32::MAX);
    }
}
