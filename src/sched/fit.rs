//! How many images of a size the engine has memory for, as it turned out.
//!
//! A step that runs out of memory halves the number for its size. After many steps of that number one more is tried: what
//! took the memory may be gone. Each time that fails, it takes twice as many steps until the next try.

use std::collections::BTreeMap;

use super::batch::BatchKey;

/// Steps of the largest number that fits before one more is tried, the first time.
const STEPS_BEFORE_MORE: u32 = 64;
/// The same, at most.
const STEPS_BEFORE_MORE_MAX: u32 = 1 << 14;

#[derive(Clone, Copy, Debug)]
struct Fit {
    images: u32,
    /// The largest number that a step went well with since.
    proven: u32,
    steps: u32,
    steps_before_more: u32,
}

/// What is known of every size that ever ran out of memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Fits {
    of_key: BTreeMap<BatchKey, Fit>,
}

impl Fits {
    /// Images that fit, as far as one knows.
    pub(super) fn images(&self, key: BatchKey) -> u32 {
        self.of_key.get(&key).map_or(u32::MAX, |fit| fit.images)
    }

    /// A step of so many images ran out of memory.
    pub(super) fn failed(&mut self, key: BatchKey, images: u32) {
        let unknown = Fit { images, proven: 0, steps: 0, steps_before_more: STEPS_BEFORE_MORE / 2 };
        let fit = self.of_key.entry(key).or_insert(unknown);
        // A try of one more says nothing against what went well before.
        let proven = if fit.proven < images { fit.proven } else { 0 };
        *fit = Fit {
            images: if proven > 0 { proven } else { (images / 2).max(1) },
            proven,
            steps: 0,
            steps_before_more: (fit.steps_before_more * 2).min(STEPS_BEFORE_MORE_MAX),
        };
    }

    /// A step of so many images went well.
    pub(super) fn stepped(&mut self, key: BatchKey, images: u32) {
        let Some(fit) = self.of_key.get_mut(&key).filter(|fit| images >= fit.images) else { return };
        fit.proven = fit.proven.max(images);
        fit.steps += 1;
        if fit.steps >= fit.steps_before_more {
            fit.steps = 0;
            fit.images = fit.images.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: BatchKey = BatchKey { width: 64, height: 64 };

    /// Steps until more than `images` are tried.
    fn steps_until_more(fits: &mut Fits, images: u32) -> u32 {
        let mut steps = 0;
        while fits.images(KEY) <= images {
            fits.stepped(KEY, images);
            steps += 1;
        }
        steps
    }

    #[test]
    fn what_does_not_fit_is_halved_and_one_more_is_tried_ever_more_rarely() {
        let mut fits = Fits::default();
        assert_eq!(fits.images(KEY), u32::MAX);
        fits.failed(KEY, 8);
        assert_eq!(fits.images(KEY), 4);
        let first = steps_until_more(&mut fits, 4);
        assert_eq!(fits.images(KEY), 5);
        fits.failed(KEY, 5);
        assert_eq!(fits.images(KEY), 4);
        assert_eq!(steps_until_more(&mut fits, 4), 2 * first);
        fits.failed(KEY, 4);
        assert_eq!(fits.images(KEY), 2, "what went well may not any more");
        fits.failed(KEY, 1);
        assert_eq!(fits.images(KEY), 1);
    }
}
