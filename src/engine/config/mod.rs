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

/// Whole numbers are sizes and counts of what models have. None has so many of anything, and products of three fit.
const NUMBER_MAX: u64 = 1 << 20;
/// Halvings of a picture's sides and one more. Even the largest picture would be a single pixel then.
const LEVELS_MAX: usize = 10;

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
        for (field, value) in &self.fields {
            if let Some(number) = greatest(value).filter(|number| *number > NUMBER_MAX) {
                return Err(self.invalid(field, format!("is {number}, above {NUMBER_MAX}")));
            }
        }
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

/// The greatest whole number in a value, lists included.
fn greatest(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::Array(values) => values.iter().filter_map(greatest).max(),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_) => None,
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

        let latent = self.vae.latent_channels;
        // Where a width stands, what is there, what it has to agree with, and how wide that is.
        let agreements = match &self.denoiser {
            DenoiserConfig::Unet(unet) => {
                let input = if unet.in_channels == 2 * latent + 1 { unet.in_channels } else { latent };
                let what = format!("the VAE's latent_channels (or {} for inpainting)", 2 * latent + 1);
                let context = self.clips.iter().map(|clip| clip.hidden_size).sum();
                let mut agreements = vec![
                    ("unet", "out_channels", unet.out_channels, "the VAE's latent_channels".to_owned(), latent),
                    ("unet", "in_channels", unet.in_channels, what, input),
                    (
                        "unet",
                        "cross_attention_dim",
                        unet.cross_attention_dim,
                        "the text encoders' hidden_size".into(),
                        context,
                    ),
                ];
                if let (Some(addition), Some(clip)) = (unet.addition, self.clips.get(1)) {
                    let what = "the pooled width that the UNet's projection_class_embeddings_input_dim leaves".into();
                    agreements.push((
                        "text_encoder_2",
                        "projection_dim",
                        clip.projection_dim,
                        what,
                        addition.pooled_width,
                    ));
                }
                agreements
            }
            DenoiserConfig::Sd3(transformer) => {
                let pooled = self.clips.iter().map(|clip| clip.projection_dim).sum();
                let what = "the VAE's latent_channels";
                vec![
                    ("transformer", "in_channels", transformer.in_channels, what.to_owned(), latent),
                    ("transformer", "out_channels", transformer.out_channels, what.into(), latent),
                    (
                        "transformer",
                        "pooled_projection_dim",
                        transformer.pooled_projection_dim,
                        "the CLIPs' projection_dim".into(),
                        pooled,
                    ),
                    self.t5_agreement(transformer.joint_attention_dim),
                ]
            }
            DenoiserConfig::Flux(transformer) => {
                let pooled = self.clips.iter().map(|clip| clip.hidden_size).sum();
                let what = "four times the VAE's latent_channels".to_owned();
                vec![
                    ("transformer", "in_channels", transformer.in_channels, what, 4 * latent),
                    (
                        "transformer",
                        "pooled_projection_dim",
                        transformer.pooled_projection_dim,
                        "the CLIP's hidden_size".into(),
                        pooled,
                    ),
                    self.t5_agreement(transformer.joint_attention_dim),
                ]
            }
        };
        match agreements.into_iter().find(|(_, _, found, _, wanted)| found != wanted) {
            None => self.check_addition(directory),
            Some((part, field, found, what, wanted)) => Err(LoadError::Invalid {
                file: directory.join(part).join("config.json"),
                field: field.into(),
                reason: format!("is {found}, but {what} is {wanted}"),
            }),
        }
    }

    /// What the transformer's `joint_attention_dim` has to agree with; itself without a T5.
    fn t5_agreement(&self, joint_attention_dim: usize) -> (&'static str, &'static str, usize, String, usize) {
        let width = self.t5.as_ref().map_or(joint_attention_dim, |t5| t5.d_model);
        ("transformer", "joint_attention_dim", joint_attention_dim, "the T5's d_model".into(), width)
    }

    /// SDXL's UNet is told sizes and the pooled prompt, no other one is.
    fn check_addition(&self, directory: &Path) -> Result<(), LoadError> {
        let DenoiserConfig::Unet(unet) = &self.denoiser else { return Ok(()) };
        let wanted = self.index.family == Family::StableDiffusionXl;
        if unet.addition.is_some() == wanted {
            return Ok(());
        }
        let name = |told: bool| if told { "\"text_time\"" } else { "null" };
        Err(LoadError::Unsupported {
            file: directory.join("unet/config.json"),
            field: "addition_embed_type".into(),
            value: name(!wanted).into(),
            supported: format!("{} in a {}", name(wanted), self.index.class),
        })
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
