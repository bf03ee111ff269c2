//! A diffusers directory as a pipeline in memory.
//!
//! What decides pixels is read and checked here; nothing is computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::clip::{Clip, Projection};
use super::condition::{ClipEncoder, TextEncoders};
use super::config::{DenoiserConfig, Family, PipelineConfig};
use super::denoiser::Denoiser;
use super::device::{DeviceChoice, Placement, Placements, Precisions};
use super::digest;
use super::error::LoadError;
use super::manifest::{Overrides, describe};
use super::pipeline::Pipeline;
use super::tokenizer::ClipTokenizer;
use super::unet::Unet;
use super::vae::{Decoder, Encoder, LatentScale};
use super::weights::{self, Weights};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: DeviceChoice,
    /// In which number formats; goes before what the model's `darkroom.toml` says.
    pub precisions: Precisions,
    /// The folder with LoRAs, `<name>.safetensors`.
    pub loras: Option<PathBuf>,
}

/// The parts of a pipeline that LoRAs change.
#[derive(Debug)]
pub(crate) struct Weighted {
    pub(crate) text: TextEncoders,
    pub(crate) denoiser: Denoiser,
}

/// Everything that parts are built from, and built again from with LoRAs.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) directory: PathBuf,
    pub(crate) config: PipelineConfig,
    pub(crate) placements: Placements,
    /// The weights' files by part.
    files: BTreeMap<&'static str, Vec<PathBuf>>,
}

/// Loads the model in `directory`.
///
/// # Errors
/// A [`LoadError`] that names the file, and the field or tensor in it.
pub fn load(directory: &Path, options: &LoadOptions) -> Result<Pipeline, LoadError> {
    let config = PipelineConfig::read(directory)?;
    let overrides = Overrides::read(directory)?;
    let manifest = describe(directory, &config, &overrides)?;
    let mut files = BTreeMap::new();
    for part in &config.index.parts {
        if part.has_weights() {
            files.insert(part.directory, weights::files(&directory.join(part.directory))?);
        }
    }
    let device = options.device.open()?;
    let stored = Weights::open(&files[config.denoiser.directory()], &on(&Device::Cpu, DType::F32))?.stored_dtype();
    let asked = Precisions {
        denoiser: options.precisions.denoiser.or(overrides.precision.denoiser),
        text_encoder: options.precisions.text_encoder.or(overrides.precision.text_encoder),
        vae: options.precisions.vae.or(overrides.precision.vae),
    };
    let placements = Placements::choose(&device, asked, stored, config.vae.force_upcast)?;
    let source = Source { directory: directory.into(), config, placements, files };

    let base = source.weighted()?;
    let scale = LatentScale::new(&source.config.vae, &device)?;
    let decoder = Decoder::new(&source.vae()?, &source.config.vae, scale.clone(), source.placements.vae.dtype)?;
    let mut hashed = configuration_files(&source)?;
    hashed.extend(source.files.values().flatten().cloned());
    let digest = digest::of_files(directory, &hashed)?;
    Ok(Pipeline::new(manifest, digest, source, base, scale, decoder))
}

fn on(device: &Device, dtype: DType) -> Placement {
    Placement { device: device.clone(), dtype }
}

/// Everything that decides pixels besides weights: JSON and text files of the pipeline and its parts.
fn configuration_files(source: &Source) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = vec![source.directory.join("model_index.json")];
    for part in &source.config.index.parts {
        let path = source.directory.join(part.directory);
        let entries = std::fs::read_dir(&path).map_err(|error| LoadError::reading(&path, error))?;
        for entry in entries {
            let file = entry.map_err(|source| LoadError::Io { path: path.clone(), source })?.path();
            if file.extension().is_some_and(|extension| extension == "json" || extension == "txt") {
                files.push(file);
            }
        }
    }
    Ok(files)
}

impl Source {
    fn open(&self, part: &str, placement: &Placement) -> Result<Weights, LoadError> {
        let missing = || LoadError::Missing { path: self.directory.join(part) };
        Weights::open(self.files.get(part).ok_or_else(missing)?, placement)
    }

    fn vae(&self) -> Result<Weights, LoadError> {
        self.open("vae", &self.placements.vae)
    }

    /// The VAE's encoder, which only starting pictures need.
    pub(crate) fn encoder(&self) -> Result<Encoder, LoadError> {
        Encoder::new(&self.vae()?, &self.config.vae, self.placements.vae.dtype)
    }

    /// Text encoders and denoiser.
    pub(crate) fn weighted(&self) -> Result<Weighted, LoadError> {
        let Placement { device, dtype } = &self.placements.denoiser;
        let denoiser = match &self.config.denoiser {
            DenoiserConfig::Unet(config) => {
                Denoiser::Unet(Unet::new(&self.open("unet", &self.placements.denoiser)?, config, device, *dtype)?)
            }
        };
        Ok(Weighted { text: self.text_encoders()?, denoiser })
    }

    fn text_encoders(&self) -> Result<TextEncoders, LoadError> {
        let family = self.config.index.family;
        let mut clips = Vec::new();
        for (index, config) in self.config.clips.iter().enumerate() {
            let (part, tokenizer) =
                [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")][index];
            let projection = match (family, index) {
                (Family::StableDiffusion | Family::Flux, _) | (Family::StableDiffusionXl, 0) => Projection::None,
                (Family::StableDiffusionXl | Family::StableDiffusion3, _) => Projection::Linear,
            };
            let weights = self.open(part, &self.placements.text_encoder)?;
            let tokenizer = ClipTokenizer::read(&self.directory.join(tokenizer), config.max_position_embeddings)?;
            let clip = Clip::new(&weights, config, projection, &self.placements.text_encoder.device)?;
            clips.push(ClipEncoder { tokenizer, clip });
        }
        Ok(TextEncoders::new(family, clips, self.config.index.force_zeros_for_empty_prompt))
    }
}
