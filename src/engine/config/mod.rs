//! The JSON files of a diffusers directory, as far as they decide pixels.
//!
//! Reading is strict: a value that this engine does not implement is refused by name, because ignoring it would make
//! wrong pictures. A field that nobody here knows passes only when it is null or false. Weights are not looked at.

mod dit;
mod family;
mod scheduler;
mod text;
mod unet;
mod vae;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::LoadError;
pub(crate) use dit::{FluxConfig, Sd3Config, T5Activation, T5Config};
pub(crate) use family::{Family, PipelineIndex};
pub(crate) use scheduler::{
    Algorithm, BetaSchedule, FinalSigma, Interpolation, Prediction, SchedulerConfig, SolverType, Spacing, TimeShift,
    Variance,
};
pub(crate) use text::{ClipConfig, TextActivation};
pub(crate) use unet::{TIME_IDS, UnetConfig, UnetLevel};
pub(crate) use vae::VaeConfig;

/// A JSON object and where it came from.
#[derive(Debug)]
struct Document {
    file: PathBuf,
    fields: Map<String, Value>,
}

impl Document {
    fn read(file: PathBuf) -> Result<Self, LoadError> {
        let fields = read_json(&file)?;
        Ok(Self { file, fields })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        serde_json::from_value(Value::Object(self.fields.clone()))
            .map_err(|source| LoadError::Json { path: self.file.clone(), source })
    }

    /// Refuses every field that is neither in `read` nor null, false, or as `fixed` says (in JSON; `*` is anything).
    fn refuse_others(&self, read: &[&str], fixed: &[(&str, &[&str])]) -> Result<(), LoadError> {
        for (field, value) in &self.fields {
            let known = field.starts_with('_') || read.contains(&field.as_str());
            let off = matches!(value, Value::Null | Value::Bool(false));
            let allowed = fixed.iter().find(|(name, _)| name == field).map_or(&[][..], |(_, allowed)| allowed);
            let text = value.to_string();
            if !known && !off && !allowed.iter().any(|one| *one == "*" || *one == text) {
                let supported = if allowed.is_empty() { "null".into() } else { allowed.join(", ") };
                return Err(self.unsupported(field, text, supported));
            }
        }
        Ok(())
    }

    fn unsupported(&self, field: &str, value: impl ToString, supported: impl Into<String>) -> LoadError {
        LoadError::Unsupported {
            file: self.file.clone(),
            field: field.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    fn invalid(&self, field: &str, reason: impl Into<String>) -> LoadError {
        LoadError::Invalid { file: self.file.clone(), field: field.into(), reason: reason.into() }
    }
}

/// The JSON in `path`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::reading(path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: path.into(), source })
}

/// Everything that the configuration files of a model say.
#[derive(Clone, Debug)]
pub(crate) struct PipelineConfig {
    pub(crate) index: PipelineIndex,
    pub(crate) denoiser: DenoiserConfig,
    pub(crate) vae: VaeConfig,
    /// In the order of their directories.
    pub(crate) clips: Vec<ClipConfig>,
    pub(crate) t5: Option<T5Config>,
    pub(crate) scheduler: SchedulerConfig,
}

/// The model that is run at each step.
#[derive(Clone, Debug)]
pub(crate) enum DenoiserConfig {
    Unet(UnetConfig),
    Sd3(Sd3Config),
    Flux(FluxConfig),
}

impl DenoiserConfig {
    /// The directory of its weights.
    pub(crate) fn directory(&self) -> &'static str {
        match self {
            Self::Unet(_) => "unet",
            Self::Sd3(_) | Self::Flux(_) => "transformer",
        }
    }

    /// Whether it takes mask and masked picture as further channels.
    pub(crate) fn takes_mask(&self) -> bool {
        match self {
            Self::Unet(unet) => unet.in_channels > unet.out_channels,
            Self::Sd3(_) | Self::Flux(_) => false,
        }
    }
}

impl PipelineConfig {
    /// Reads `model_index.json` and the configuration of each part below `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, LoadError> {
        if !directory.is_dir() {
            return Err(LoadError::Missing { path: directory.into() });
        }
        let index = PipelineIndex::read(&Document::read(directory.join("model_index.json"))?)?;
        let clip = |part: &str| ClipConfig::read(directory, part);
        let (denoiser, clips) = match index.family {
            Family::StableDiffusion => {
                (DenoiserConfig::Unet(UnetConfig::read(directory)?), vec![clip("text_encoder")?])
            }
            Family::StableDiffusionXl => (
                DenoiserConfig::Unet(UnetConfig::read(directory)?),
                vec![clip("text_encoder")?, clip("text_encoder_2")?],
            ),
            Family::StableDiffusion3 => {
                (DenoiserConfig::Sd3(Sd3Config::read(directory)?), vec![clip("text_encoder")?, clip("text_encoder_2")?])
            }
            Family::Flux => (DenoiserConfig::Flux(FluxConfig::read(directory)?), vec![clip("text_encoder")?]),
        };
        let t5 = match index.t5() {
            Some((part, _)) => Some(T5Config::read(directory, part)?),
            None => None,
        };
        let config = Self {
            index,
            denoiser,
            vae: VaeConfig::read(directory)?,
            clips,
            t5,
            scheduler: SchedulerConfig::read(directory)?,
        };
        config.check(directory)?;
        Ok(config)
    }

    /// Refuses parts that contradict each other.
    fn check(&self, directory: &Path) -> Result<(), LoadError> {
        let flow_match = match &self.denoiser {
            DenoiserConfig::Unet(_) => false,
            DenoiserConfig::Sd3(_) | DenoiserConfig::Flux(_) => true,
        };
        if self.scheduler.is_flow_match() != flow_match {
            return Err(LoadError::Unsupported {
                file: directory.join("scheduler/scheduler_config.json"),
                field: "_class_name".into(),
                value: format!("\"{}\"", self.scheduler.class),
                supported: if flow_match { "FlowMatchEulerDiscreteScheduler" } else { "all others" }.into(),
            });
        }

        let contradicts = |file: &str, field: &str, found: usize, what: &str, wanted: usize| {
            let file = directory.join(file).join("config.json");
            Err(LoadError::Invalid { file, field: field.into(), reason: format!("is {found}, but {what} is {wanted}") })
        };
        let latent = self.vae.latent_channels;
        match &self.denoiser {
            DenoiserConfig::Unet(unet) => {
                if unet.out_channels != latent {
                    return contradicts("unet", "out_channels", unet.out_channels, "the VAE's latent_channels", latent);
                }
                if unet.in_channels != latent && unet.in_channels != 2 * latent + 1 {
                    let what = format!("the VAE's latent_channels (or {} for inpainting)", 2 * latent + 1);
                    return contradicts("unet", "in_channels", unet.in_channels, &what, latent);
                }
                let width = self.clips.iter().map(|clip| clip.hidden_size).sum();
                if unet.cross_attention_dim != width {
                    let what = "the text encoders' hidden_size";
                    return contradicts("unet", "cross_attention_dim", unet.cross_attention_dim, what, width);
                }
                let pooled = unet.addition.map(|addition| addition.pooled_width);
                match (self.index.family, pooled) {
                    (Family::StableDiffusionXl, Some(width)) if self.clips[1].projection_dim != width => {
                        let what = "the pooled width that the UNet's projection_class_embeddings_input_dim leaves";
                        return contradicts(
                            "text_encoder_2",
                            "projection_dim",
                            self.clips[1].projection_dim,
                            what,
                            width,
                        );
                    }
                    (Family::StableDiffusionXl, Some(_)) | (_, None)
                        if pooled.is_some() == (self.index.family == Family::StableDiffusionXl) => {}
                    _ => {
                        let file = directory.join("unet/config.json");
                        let wanted = if pooled.is_some() { "null" } else { "\"text_time\"" };
                        return Err(LoadError::Unsupported {
                            file,
                            field: "addition_embed_type".into(),
                            value: if pooled.is_some() { "\"text_time\"" } else { "null" }.into(),
                            supported: format!("{wanted} in a {}", self.index.class),
                        });
                    }
                }
            }
            DenoiserConfig::Sd3(transformer) => {
                let pooled = self.clips.iter().map(|clip| clip.projection_dim).sum();
                let width = self.t5.as_ref().map_or(transformer.joint_attention_dim, |t5| t5.d_model);
                for (field, found, what, wanted) in [
                    ("in_channels", transformer.in_channels, "the VAE's latent_channels", latent),
                    ("out_channels", transformer.out_channels, "the VAE's latent_channels", latent),
                    ("pooled_projection_dim", transformer.pooled_projection_dim, "the CLIPs' projection_dim", pooled),
                    ("joint_attention_dim", transformer.joint_attention_dim, "the T5's d_model", width),
                ] {
                    if found != wanted {
                        return contradicts("transformer", field, found, what, wanted);
                    }
                }
            }
            DenoiserConfig::Flux(transformer) => {
                let pooled = self.clips.iter().map(|clip| clip.hidden_size).sum();
                let width = self.t5.as_ref().map_or(transformer.joint_attention_dim, |t5| t5.d_model);
                for (field, found, what, wanted) in [
                    ("in_channels", transformer.in_channels, "four times the VAE's latent_channels", 4 * latent),
                    ("pooled_projection_dim", transformer.pooled_projection_dim, "the CLIP's hidden_size", pooled),
                    ("joint_attention_dim", transformer.joint_attention_dim, "the T5's d_model", width),
                ] {
                    if found != wanted {
                        return contradicts("transformer", field, found, what, wanted);
                    }
                }
            }
        }
        Ok(())
    }
}

// What diffusers takes for fields that older files do not have.
fn groups() -> usize {
    32
}
fn epsilon() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
