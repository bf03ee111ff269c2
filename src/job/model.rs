//! What everyone but the engine needs to know of a model: its name, limits and defaults.

use super::id::ModelName;
use super::limits::SIZE_MULTIPLE;
use super::spec::SamplerKind;

/// Sizes and batches a model can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// Smallest width and height, in pixels.
    pub side_min: u32,
    /// Largest width and height, in pixels.
    pub side_max: u32,
    /// Widths and heights are multiples of this, in pixels.
    pub side_multiple: u32,
    /// Images that one worker denoises at the same time.
    pub images_in_batch_max: u32,
}

impl Default for ModelLimits {
    fn default() -> Self {
        Self { side_min: 64, side_max: 1024, side_multiple: SIZE_MULTIPLE, images_in_batch_max: 8 }
    }
}

/// What a request that leaves a field out gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Classifier-free guidance; 1 is none.
    pub guidance_scale: f32,
    /// The sampler.
    pub scheduler: SamplerKind,
}

/// What a model can be asked for; the names are the field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// A prompt alone.
    TextToImage,
    /// A prompt and `init_image`.
    ImageToImage,
    /// A prompt, `init_image` and `mask_image`.
    Inpainting,
}

impl Task {
    /// Every task.
    pub const ALL: &'static [Self] = &[Self::TextToImage, Self::ImageToImage, Self::Inpainting];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TextToImage => "text-to-image",
            Self::ImageToImage => "image-to-image",
            Self::Inpainting => "inpainting",
        }
    }
}

/// A model as clients and schedulers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelManifest {
    /// Its name on the bus.
    pub name: ModelName,
    /// The pipeline class of its `model_index.json`.
    pub family: String,
    /// What it can do.
    pub limits: ModelLimits,
    /// What it does unasked.
    pub defaults: Defaults,
    /// What it can be asked for.
    pub tasks: Vec<Task>,
    /// Samplers that suit it.
    pub schedulers: Vec<SamplerKind>,
}
