//! What an engine's work costs: milliseconds of each stage by size and by number of images, from a table.
//!
//! The table says who measured its numbers and which of them are derived. Between measured batch sizes the time of a
//! step is interpolated linearly, beyond the last it goes on with the last slope. Memory is not modelled.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::sched::BatchKey;

/// Step times are looked up for batches of up to so many images.
const IMAGES_MAX: u32 = 64;
/// Longer than anything takes, so that sums do not overflow: more than two hours.
pub(super) const MS_MAX: f64 = 1e7;

/// The tables that come along, by name.
const TABLES: &[(&str, &str)] = &[
    ("a100-sd15", include_str!("../../docs/workloads/costs/a100-sd15.toml")),
    ("a100-sdxl", include_str!("../../docs/workloads/costs/a100-sdxl.toml")),
    ("a10g-sd15", include_str!("../../docs/workloads/costs/a10g-sd15.toml")),
    ("a10g-sdxl", include_str!("../../docs/workloads/costs/a10g-sdxl.toml")),
    ("h100-sd15", include_str!("../../docs/workloads/costs/h100-sd15.toml")),
    ("h100-sdxl", include_str!("../../docs/workloads/costs/h100-sdxl.toml")),
    ("t4-sd15", include_str!("../../docs/workloads/costs/t4-sd15.toml")),
];

/// A table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CostsError {
    /// It is not of the form of tables.
    #[error("the cost table cannot be read")]
    Malformed(#[from] toml::de::Error),
    /// No table of this name comes along.
    #[error("no cost table is called {name:?}; there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that are there.
        known: String,
    },
    /// A number that time cannot have.
    #[error("the cost table {name:?} has a negative time or one of hours, or batch sizes that do not grow from 1")]
    Impossible {
        /// The table's name.
        name: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    encode_ms: f64,
    size: Vec<SizeEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeEntry {
    width: u32,
    height: u32,
    decode_ms: f64,
    /// Pairs of images in the batch and milliseconds.
    step_ms: Vec<(u32, f64)>,
}

#[derive(Clone, Debug)]
struct OfSize {
    decode_us: u64,
    /// Index is the number of images.
    step_us: Vec<u64>,
}

/// How long one GPU takes for each stage of one model.
#[derive(Clone, Debug)]
pub struct Costs {
    name: String,
    encode_us: u64,
    sizes: BTreeMap<BatchKey, OfSize>,
}

impl Costs {
    /// Reads a table.
    ///
    /// # Errors
    /// When it is no table, or holds what time cannot be.
    pub fn parse(text: &str) -> Result<Self, CostsError> {
        let file: File = toml::from_str(text)?;
        let impossible = || CostsError::Impossible { name: file.name.clone() };
        let mut sizes = BTreeMap::new();
        for entry in &file.size {
            let grows = entry.step_ms.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
            let begins = entry.step_ms.first().is_some_and(|(images, _)| *images == 1);
            if !grows || !begins {
                return Err(impossible());
            }
            let step_us = (0..=IMAGES_MAX).map(|images| micros(between(&entry.step_ms, images)));
            let step_us = step_us.collect::<Option<_>>().ok_or_else(impossible)?;
            let decode_us = micros(entry.decode_ms).ok_or_else(impossible)?;
            sizes.insert(BatchKey { width: entry.width, height: entry.height }, OfSize { decode_us, step_us });
        }
        let encode_us = micros(file.encode_ms).ok_or_else(impossible)?;
        Ok(Self { name: file.name, encode_us, sizes })
    }

    /// One of the tables that come along.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self, CostsError> {
        let known = || TABLES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = TABLES.iter().find(|(known, _)| *known == name);
        let (_, text) = found.ok_or_else(|| CostsError::Unknown { name: name.to_owned(), known: known() })?;
        Self::parse(text)
    }

    /// The table of a GPU, as `A10G`, for a model, as `sd15`, among those that come along.
    pub fn of_gpu(gpu: &str, model: &str) -> Option<Self> {
        Self::named(&format!("{gpu}-{model}").to_ascii_lowercase()).ok()
    }

    /// What the table is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the table has this size.
    pub fn knows(&self, key: BatchKey) -> bool {
        self.sizes.contains_key(&key)
    }

    /// One denoising step of so many images.
    pub fn step(&self, key: BatchKey, images: u32) -> Duration {
        Duration::from_micros(self.step_us(key, images))
    }

    /// The prompts of one image.
    pub fn encode(&self) -> Duration {
        Duration::from_micros(self.encode_us)
    }

    /// Latents of one image to pixels.
    pub fn decode(&self, key: BatchKey) -> Duration {
        Duration::from_micros(self.decode_us(key))
    }

    pub(super) fn step_us(&self, key: BatchKey, images: u32) -> u64 {
        let of_size = self.sizes.get(&key);
        of_size.and_then(|size| size.step_us.get(images as usize).or_else(|| size.step_us.last())).copied().unwrap_or(0)
    }

    pub(super) fn encode_us(&self) -> u64 {
        self.encode_us
    }

    pub(super) fn decode_us(&self, key: BatchKey) -> u64 {
        self.sizes.get(&key).map_or(0, |size| size.decode_us)
    }

    /// The GPU time of one image when its batch is always of the best size up to `images_max`.
    pub(super) fn best_image_us(&self, key: BatchKey, steps: u32, images_max: u32) -> f64 {
        let step = (1..=images_max.max(1)).map(|images| self.step_us(key, images) as f64 / f64::from(images));
        let step = step.fold(f64::INFINITY, f64::min);
        self.encode_us as f64 + self.decode_us(key) as f64 + f64::from(steps) * step
    }
}

/// Milliseconds at `images`, on the line through the measured points beside it.
fn between(points: &[(u32, f64)], images: u32) -> f64 {
    let (first, rest) = match points {
        [] => return f64::NAN,
        [only] => return only.1,
        [first, rest @ ..] => (first, rest),
    };
    let mut left = first;
    for (nth, right) in (1..).zip(rest) {
        if images <= right.0 || nth == rest.len() {
            let slope = (right.1 - left.1) / f64::from(right.0 - left.0);
            return left.1 + slope * (f64::from(images) - f64::from(left.0));
        }
        left = right;
    }
    left.1
}

fn micros(millis: f64) -> Option<u64> {
    (0.0..=MS_MAX).contains(&millis).then(|| (millis * 1e3).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: BatchKey = BatchKey { width: 512, height: 512 };

    #[test]
    fn steps_lie_on_lines_between_what_was_measured() {
        let table = "name = \"t\"\nencode_ms = 5\n[[size]]\nwidth = 512\nheight = 512\ndecode_ms = 7.5\n\
                     step_ms = [[1, 10], [4, 22], [8, 46]]\n";
        let costs = Costs::parse(table).unwrap();
        let step_ms = |images| costs.step(KEY, images).as_millis();
        assert_eq!([1, 2, 4, 6, 8, 10].map(step_ms), [10, 14, 22, 34, 46, 58]);
        assert_eq!(costs.encode(), Duration::from_millis(5));
        assert_eq!(costs.decode(KEY), Duration::from_micros(7500));
    }

    #[test]
    fn the_tables_that_come_along_are_tables() {
        for (name, _) in TABLES {
            let costs = Costs::named(name).unwrap();
            assert_eq!(costs.name(), *name);
            for side in [512, 768, 1024] {
                let key = BatchKey { width: side, height: side };
                assert!(costs.knows(key), "{name} {side}");
                for images in 2..=16 {
                    assert!(costs.step(key, images) > costs.step(key, images - 1), "{name} {side} {images}");
                }
            }
        }
        assert!(matches!(Costs::named("tpu"), Err(CostsError::Unknown { .. })));
    }

    #[test]
    fn impossible_tables_are_refused() {
        let table = |points: &str| {
            Costs::parse(&format!(
                "name = \"t\"\nencode_ms = 5\n[[size]]\nwidth = 8\nheight = 8\ndecode_ms = 1\nstep_ms = {points}\n"
            ))
        };
        for points in ["[]", "[[2, 5.0]]", "[[1, 5.0], [1, 6.0]]", "[[1, -5.0]]", "[[1, 5.0], [4, 2.0]]"] {
            assert!(matches!(table(points), Err(CostsError::Impossible { .. })), "{points}");
        }
    }
}
