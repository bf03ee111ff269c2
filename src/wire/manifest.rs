//! A model's manifest as JSON: how clients learn of a model while no worker runs.
//!
//! `darkroom setup` puts it into the metadata of the model's consumers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::{Defaults, ModelLimits, ModelManifest, SamplerKind, Task};

/// The key in the consumers' metadata.
pub const METADATA_KEY: &str = "darkroom.model";

/// A model as the bus shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ManifestDocument {
    /// Its name in subjects.
    pub name: String,
    /// The pipeline class of its `model_index.json`.
    pub family: String,
    /// Smallest width and height, in pixels.
    pub side_min: u32,
    /// Largest width and height, in pixels.
    pub side_max: u32,
    /// Widths and heights are multiples of this, in pixels.
    pub side_multiple: u32,
    /// Images that one worker denoises at the same time.
    pub images_in_batch_max: u32,
    /// Width of a request that names none.
    pub width: u32,
    /// Height of a request that names none.
    pub height: u32,
    /// Steps of a request that names none.
    pub num_inference_steps: u32,
    /// Guidance of a request that names none.
    pub guidance_scale: f32,
    /// Sampler of a request that names none.
    pub scheduler: String,
    /// What it can be asked for: `text-to-image`, `image-to-image`, `inpainting`.
    pub tasks: Vec<String>,
    /// Samplers that suit it.
    pub schedulers: Vec<String>,
}

impl From<&ModelManifest> for ManifestDocument {
    fn from(manifest: &ModelManifest) -> Self {
        let ModelManifest { name, family, limits, defaults, tasks, schedulers } = manifest;
        Self {
            name: name.to_string(),
            family: family.clone(),
            side_min: limits.side_min,
            side_max: limits.side_max,
            side_multiple: limits.side_multiple,
            images_in_batch_max: limits.images_in_batch_max,
            width: defaults.width,
            height: defaults.height,
            num_inference_steps: defaults.num_inference_steps,
            guidance_scale: defaults.guidance_scale,
            scheduler: defaults.scheduler.to_string(),
            tasks: tasks.iter().map(|task| task.as_str().to_owned()).collect(),
            schedulers: schedulers.iter().map(ToString::to_string).collect(),
        }
    }
}

impl ManifestDocument {
    /// The manifest, if every name in it is one we know.
    pub fn to_manifest(&self) -> Option<ModelManifest> {
        Some(ModelManifest {
            name: self.name.parse().ok()?,
            family: self.family.clone(),
            limits: ModelLimits {
                side_min: self.side_min,
                side_max: self.side_max,
                side_multiple: self.side_multiple.max(1),
                images_in_batch_max: self.images_in_batch_max,
            },
            defaults: Defaults {
                width: self.width,
                height: self.height,
                num_inference_steps: self.num_inference_steps,
                guidance_scale: self.guidance_scale,
                scheduler: self.scheduler.parse::<SamplerKind>().ok()?,
            },
            tasks: Task::ALL
                .iter()
                .copied()
                .filter(|task| self.tasks.iter().any(|name| name == task.as_str()))
                .collect(),
            schedulers: self.schedulers.iter().filter_map(|name| name.parse().ok()).collect(),
        })
    }
}

/// The manifest as one line of JSON.
pub fn encode(manifest: &ModelManifest) -> String {
    serde_json::to_string(&ManifestDocument::from(manifest)).unwrap_or_default()
}

/// Reads what [`encode`] wrote.
pub fn decode(text: &str) -> Option<ModelManifest> {
    serde_json::from_str::<ManifestDocument>(text).ok()?.to_manifest()
}
