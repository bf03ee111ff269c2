//! What a model is called and can do, read from its directory without loading any weights.
//!
//! Sizes follow from the configuration of UNet and VAE; `darkroom.toml` beside `model_index.json` may say otherwise. It
//! decides no pixels: those come from diffusers' own files alone.

use std::path::Path;

use serde::Deserialize;

use super::config::{DenoiserConfig, Family, PipelineConfig, Prediction, Spacing};
use super::device::Precisions;
use super::error::LoadError;
use crate::job::limits::{GUIDANCE_MAX, SIZE_MULTIPLE, STEPS_MAX, TOKEN_LENGTH_MAX};
use crate::job::{Defaults, ModelLimits, ModelManifest, ModelName, SamplerKind, Task};

/// The file beside `model_index.json` that may overrule what the configuration implies.
pub const OVERRIDES_FILE: &str = "darkroom.toml";

/// Larger pictures than this are refused unless `darkroom.toml` allows them: memory grows with the fourth power.
const SIDE_MAX: u32 = 1536;
/// Smaller pictures than this show nothing.
const SIDE_MIN: u32 = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Overrides {
    name: Option<String>,
    limits: LimitOverrides,
    defaults: DefaultOverrides,
    pub(crate) precision: Precisions,
}

impl Overrides {
    /// Reads the file in `directory`, if there is one.
    pub(crate) fn read(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join(OVERRIDES_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|source| LoadError::Toml { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(LoadError::Io { path, source }),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitOverrides {
    side_min: Option<u32>,
    side_max: Option<u32>,
    side_multiple: Option<u32>,
    images_in_batch_max: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DefaultOverrides {
    width: Option<u32>,
    height: Option<u32>,
    num_inference_steps: Option<u32>,
    guidance_scale: Option<f32>,
    scheduler: Option<String>,
}

/// The manifest of the model in `directory`.
///
/// # Errors
/// Any [`LoadError`] but those of weights: all configuration is read and checked.
pub fn read_manifest(directory: &Path) -> Result<ModelManifest, LoadError> {
    describe(directory, &PipelineConfig::read(directory)?, &Overrides::read(directory)?)
}

/// The manifest of the model in `directory`, whose configuration is known.
pub(crate) fn describe(
    directory: &Path,
    config: &PipelineConfig,
    overrides: &Overrides,
) -> Result<ModelManifest, LoadError> {
    let file = directory.join(OVERRIDES_FILE);
    let invalid = |field: &str, reason: String| LoadError::Invalid { file: file.clone(), field: field.into(), reason };

    let pixels_per_latent = u32::try_from(config.vae.pixels_per_latent()).unwrap_or(u32::MAX);
    let (sample_size, latent_grid) = match &config.denoiser {
        // Each level of the UNet but the last halves the latents, and the way up can only double them.
        DenoiserConfig::Unet(unet) => (unet.sample_size, 1 << (unet.levels.len() - 1)),
        DenoiserConfig::Sd3(transformer) => (transformer.sample_size, grid_of(transformer.patch_size)),
        // diffusers' `default_sample_size`; latents are packed two by two.
        DenoiserConfig::Flux(_) => (128, 2),
    };
    let grid = pixels_per_latent.saturating_mul(latent_grid).max(SIZE_MULTIPLE);
    let trained = u32::try_from(sample_size).unwrap_or(u32::MAX).saturating_mul(pixels_per_latent);
    let side_default = (trained / grid * grid).max(grid);

    let asked = &overrides.limits;
    let side_multiple = asked.side_multiple.unwrap_or(grid);
    if side_multiple == 0 || !side_multiple.is_multiple_of(grid) {
        return Err(invalid("limits.side_multiple", format!("is {side_multiple}, not a multiple of {grid}")));
    }
    let on_grid = |side: u32| side / side_multiple * side_multiple;
    let side_min = SIDE_MIN.next_multiple_of(side_multiple).min(on_grid(side_default));
    let side_max = match &config.denoiser {
        DenoiserConfig::Sd3(transformer) => {
            let places = u32::try_from(transformer.pos_embed_max_size).unwrap_or(u32::MAX);
            on_grid(places.saturating_mul(latent_grid).saturating_mul(pixels_per_latent))
        }
        DenoiserConfig::Unet(_) | DenoiserConfig::Flux(_) => {
            on_grid((side_default * 2).min(SIDE_MAX.max(side_default)))
        }
    };
    let images_in_batch_max = ModelLimits::default().images_in_batch_max;
    let limits = ModelLimits {
        side_min: asked.side_min.unwrap_or(side_min),
        side_max: asked.side_max.unwrap_or(side_max),
        side_multiple,
        images_in_batch_max: asked.images_in_batch_max.unwrap_or(images_in_batch_max),
    };
    if limits.side_min == 0 || limits.side_min > limits.side_max || limits.images_in_batch_max == 0 {
        return Err(invalid("limits", "allow no picture at all".into()));
    }

    let asked = &overrides.defaults;
    let scheduler = match &asked.scheduler {
        Some(name) => {
            let available = config.scheduler.available_samplers();
            let unavailable =
                || invalid("defaults.scheduler", format!("is {name}, not one of {}", SamplerKind::list(&available)));
            available.iter().copied().find(|kind| kind.as_str() == name).ok_or_else(unavailable)?
        }
        None => config.scheduler.default_sampler().unwrap_or(SamplerKind::Ddim),
    };
    let schedulers = config.scheduler.available_samplers();
    if !schedulers.contains(&scheduler) {
        return Err(invalid("defaults.scheduler", format!("is {scheduler}, which this model cannot use")));
    }
    let (steps, guidance) = steps_and_guidance(config, scheduler);
    let side = side_default.clamp(limits.side_min, limits.side_max);
    let defaults = Defaults {
        width: asked.width.unwrap_or(side),
        height: asked.height.unwrap_or(side),
        num_inference_steps: asked.num_inference_steps.unwrap_or(steps),
        guidance_scale: asked.guidance_scale.unwrap_or(guidance),
        scheduler,
    };
    for (field, side) in [("defaults.width", defaults.width), ("defaults.height", defaults.height)] {
        if !(limits.side_min..=limits.side_max).contains(&side) || !side.is_multiple_of(side_multiple) {
            return Err(invalid(field, format!("is {side}, which the limits do not allow")));
        }
    }
    if !(1..=STEPS_MAX).contains(&defaults.num_inference_steps) {
        return Err(invalid("defaults.num_inference_steps", format!("is not 1 to {STEPS_MAX}")));
    }
    if !(1.0..=GUIDANCE_MAX).contains(&defaults.guidance_scale) {
        return Err(invalid("defaults.guidance_scale", format!("is not 1 to {GUIDANCE_MAX}")));
    }

    let name = match &overrides.name {
        Some(name) => name.parse().map_err(|error| invalid("name", format!("{error}")))?,
        None => name_of(directory)?,
    };
    Ok(ModelManifest { name, family: config.index.class.clone(), limits, defaults, tasks: tasks(config), schedulers })
}

/// Steps and guidance of requests that name none: what the authors of the family, or everybody in the field, uses.
fn steps_and_guidance(config: &PipelineConfig, scheduler: SamplerKind) -> (u32, f32) {
    let few = scheduler == SamplerKind::Lcm;
    let guidance_is_built_in = match &config.denoiser {
        DenoiserConfig::Unet(unet) => unet.time_cond_proj_dim.is_some(),
        DenoiserConfig::Sd3(_) => false,
        DenoiserConfig::Flux(transformer) => transformer.guidance_embeds,
    };
    // Turbo models look like their base models but for the spacing of their Euler sampler.
    let scheduler = &config.scheduler;
    let turbo = scheduler.class.starts_with("Euler")
        && scheduler.timestep_spacing == Some(Spacing::Trailing)
        && scheduler.prediction_type == Prediction::Epsilon;
    match config.index.family {
        _ if few && guidance_is_built_in => (4, 8.5),
        _ if few => (4, 1.0),
        _ if turbo => (1, 1.0),
        Family::StableDiffusion => (25, 7.5),
        Family::StableDiffusionXl => (25, 5.0),
        Family::StableDiffusion3 => (28, 7.0),
        Family::Flux if guidance_is_built_in => (28, 3.5),
        Family::Flux => (4, 1.0),
    }
}

fn grid_of(patch_size: usize) -> u32 {
    u32::try_from(patch_size).unwrap_or(u32::MAX)
}

fn tasks(config: &PipelineConfig) -> Vec<Task> {
    if config.denoiser.takes_mask() { vec![Task::Inpainting] } else { Task::ALL.to_vec() }
}

/// The name of the directory, as far as a name on the bus can hold it.
fn name_of(directory: &Path) -> Result<ModelName, LoadError> {
    // `models/shapes/.` and `.` have a name too.
    let path = directory.canonicalize().map_err(|source| LoadError::Io { path: directory.to_path_buf(), source })?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let token: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || character == '_' { character } else { '-' })
        .take(TOKEN_LENGTH_MAX)
        .collect();
    token.parse().map_err(|error| LoadError::Invalid {
        file: directory.into(),
        field: "the directory's name".into(),
        reason: format!("{error}; name the model in {OVERRIDES_FILE}"),
    })
}
