//! The `config.json` files of a Stable Diffusion 1.x/2.x directory, as far as they decide pixels.
//!
//! Reading is strict: a value that this engine does not implement is refused by name, because ignoring it would make
//! wrong pictures. A field that nobody here knows passes only when it is null or false. Weights are not looked at.

#[cfg_attr(not(test), allow(dead_code, reason = "no pipeline loads these parts yet"))]
mod dit;
mod scheduler;
mod text;
mod unet;
mod vae;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::LoadError;
#[cfg_attr(not(test), allow(unused_imports, reason = "no pipeline loads these parts yet"))]
pub(crate) use dit::{FluxConfig, Sd3Config, T5Activation, T5Config};
pub(crate) use scheduler::{BetaSchedule, Prediction, SchedulerConfig, Spacing};
pub(crate) use text::{TextActivation, TextEncoderConfig};
pub(crate) use unet::UnetConfig;
pub(crate) use vae::VaeConfig;

/// The one pipeline of this family.
pub(crate) const PIPELINE_CLASS: &str = "StableDiffusionPipeline";

/// The directories of a pipeline that this engine reads, with the library and the classes that it implements.
pub(crate) const PARTS: [(&str, &str, &[&str]); 5] = [
    (
        "scheduler",
        "diffusers",
        &[
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LCMScheduler",
            "PNDMScheduler",
        ],
    ),
    ("text_encoder", "transformers", &["CLIPTextModel"]),
    ("tokenizer", "transformers", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("unet", "diffusers", &["UNet2DConditionModel"]),
    ("vae", "diffusers", &["AutoencoderKL"]),
];

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
    pub(crate) unet: UnetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) text_encoder: TextEncoderConfig,
    pub(crate) scheduler: SchedulerConfig,
}

impl PipelineConfig {
    /// Reads `model_index.json` and the configuration of each part below `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, LoadError> {
        if !directory.is_dir() {
            return Err(LoadError::Missing { path: directory.into() });
        }
        check_index(&Document::read(directory.join("model_index.json"))?)?;
        let config = Self {
            unet: UnetConfig::read(directory)?,
            vae: VaeConfig::read(directory)?,
            text_encoder: TextEncoderConfig::read(directory)?,
            scheduler: SchedulerConfig::read(directory)?,
        };
        let unet_file = || directory.join("unet/config.json");
        if config.unet.in_channels != config.vae.latent_channels || config.unet.out_channels != config.unet.in_channels
        {
            return Err(LoadError::Unsupported {
                file: unet_file(),
                field: "in_channels, out_channels".into(),
                value: format!("{}, {}", config.unet.in_channels, config.unet.out_channels),
                supported: format!("the VAE's latent_channels, {}", config.vae.latent_channels),
            });
        }
        if config.unet.cross_attention_dim != config.text_encoder.hidden_size {
            return Err(LoadError::Invalid {
                file: unet_file(),
                field: "cross_attention_dim".into(),
                reason: format!("is not the text encoder's hidden_size, {}", config.text_encoder.hidden_size),
            });
        }
        Ok(config)
    }
}

fn check_index(index: &Document) -> Result<(), LoadError> {
    let class = index.fields.get("_class_name").unwrap_or(&Value::Null);
    if class != PIPELINE_CLASS {
        return Err(index.unsupported("_class_name", class, PIPELINE_CLASS));
    }
    for (part, library, classes) in PARTS {
        let value = index.fields.get(part).unwrap_or(&Value::Null);
        let named =
            |class: &&str| value.get(0).is_some_and(|x| x == library) && value.get(1).is_some_and(|x| x == class);
        if !classes.iter().any(named) {
            return Err(index.unsupported(part, value, format!("{library}: {}", classes.join(", "))));
        }
    }
    Ok(())
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
