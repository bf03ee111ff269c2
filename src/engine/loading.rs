//! A diffusers directory as a pipeline in memory.
//!
//! What decides pixels is read and checked here; nothing is computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};

use super::PromptEncoder;
use super::clip::{Clip, Projection};
use super::condition::{ClipEncoder, FLUX_T5_TOKENS, Known, SD3_T5_TOKENS, TextEncoders};
use super::config::{DenoiserConfig, Family, PipelineConfig};
use super::denoiser::{Architecture, Denoiser};
use super::device::{self, DeviceChoice, Placement, Placements, Precision, Precisions};
use super::digest::{KnownPieces, ModelDigest};
use super::error::LoadError;
use super::flux::FluxTransformer;
use super::lora::{Base, Lora, LoraSet, Part};
use super::manifest::{Overrides, describe};
use super::mmdit::Sd3Transformer;
use super::pipeline::Pipeline;
use super::t5::{self, T5Encoder};
use super::tokenizer::ClipTokenizer;
use super::unet::Unet;
use super::vae::{Decoder, Encoder, LatentScale};
use super::weights::{self, Tally, Weights};
use crate::job::ModelManifest;

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
    pub(crate) text: Arc<TextEncoders>,
    pub(crate) denoiser: Denoiser,
    /// The digests of the LoRAs that are merged into them, with commas.
    pub(crate) loras: String,
    /// Weights in memory of their own.
    pub(crate) copied_bytes: u64,
    /// Weights in mapped files, which models with other LoRAs share.
    pub(crate) mapped_bytes: u64,
}

/// Everything that parts are built from, and built again from with LoRAs.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) directory: PathBuf,
    pub(crate) config: PipelineConfig,
    pub(crate) placements: Placements,
    /// The weights' files by part.
    files: BTreeMap<&'static str, Vec<PathBuf>>,
    /// The folder with LoRAs.
    pub(crate) loras: Option<PathBuf>,
    /// As the manifest says.
    images_in_batch_max: u32,
    /// Held while text is encoded, with whatever LoRAs.
    encoding: Arc<Mutex<()>>,
}

/// A model whose prompts can be encoded, while the rest of it is yet to be loaded.
#[derive(Debug)]
pub struct OpenedModel {
    manifest: ModelManifest,
    digest: ModelDigest,
    source: Source,
    text: Arc<TextEncoders>,
    /// What the text encoders take.
    tally: Arc<Tally>,
    scale: LatentScale,
}

/// Loads the model in `directory`.
///
/// # Errors
/// A [`LoadError`] that names the file, and the field or tensor in it.
pub fn load(directory: &Path, options: &LoadOptions) -> Result<Pipeline, LoadError> {
    open(directory, options, KnownPieces::default())?.load()
}

/// Loads the text encoders of the model in `directory`. For its digest only those files are read that are not `known`.
///
/// # Errors
/// As [`load`], for all but the tensors of what is not loaded yet.
pub fn open(directory: &Path, options: &LoadOptions, known: KnownPieces) -> Result<OpenedModel, LoadError> {
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
    let stored = match config.index.family {
        // What it adds up goes beyond f16's range, in whatever its weights are stored.
        Family::Flux => DType::BF16,
        Family::StableDiffusion | Family::StableDiffusionXl | Family::StableDiffusion3 => {
            Weights::open(&files[config.denoiser.directory()], &on(&Device::Cpu, DType::F32))?.stored_dtype()
        }
    };
    let asked = Precisions {
        denoiser: options.precisions.denoiser.or(overrides.precision.denoiser),
        text_encoder: options.precisions.text_encoder.or(overrides.precision.text_encoder),
        vae: options.precisions.vae.or(overrides.precision.vae),
    };
    // As diffusers takes it where the configuration says nothing; only its pipelines of SDXL ask.
    let vae_upcasts = config.vae.force_upcast.unwrap_or(config.index.family == Family::StableDiffusionXl);
    let placements = Placements::choose(&device, &device::beside(&device)?, asked, stored, vae_upcasts);
    if asked.vae == Some(Precision::F16) && placements.vae.dtype == DType::F32 {
        tracing::warn!("model.vae: f32, not f16, as `force_upcast` says that it overflows");
    }
    let source = Source {
        directory: directory.into(),
        config,
        placements,
        files,
        loras: options.loras.clone(),
        images_in_batch_max: manifest.limits.images_in_batch_max,
        encoding: Arc::default(),
    };

    let mut hashed = configuration_files(&source)?;
    hashed.extend(source.files.values().flatten().cloned());
    let scale = LatentScale::new(&source.config.vae, &device)?;
    let digest = ModelDigest::new(directory, hashed, known);
    let tally = Arc::default();
    let text = Arc::new(source.text_encoders(None, &tally)?);
    Ok(OpenedModel { manifest, digest, source, text, tally, scale })
}

impl OpenedModel {
    /// The model's digest, which nobody has begun.
    pub fn digest(&self) -> &ModelDigest {
        &self.digest
    }

    /// What the model is called and can do.
    pub fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    /// What encodes prompts already; the loaded model will know them.
    pub fn prompt_encoder(&self) -> Arc<dyn PromptEncoder> {
        Arc::<TextEncoders>::clone(&self.text)
    }

    /// Loads the rest.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(self) -> Result<Pipeline, LoadError> {
        let Self { manifest, digest, source, text, tally, scale } = self;
        let vae = &source.config.vae;
        let decoder = Decoder::new(&source.vae()?, vae, scale.clone(), source.placements.vae.computes_in())?;
        let base = source.weighted(text, None, &tally)?;
        Ok(Pipeline::new(manifest, digest, source, base, scale, decoder))
    }
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
    fn open(&self, part: &str, placement: &Placement, loras: Option<&Arc<LoraSet>>) -> Result<Weights, LoadError> {
        let missing = || LoadError::Missing { path: self.directory.join(part) };
        let weights = Weights::open(self.files.get(part).ok_or_else(missing)?, placement)?;
        Ok(match (loras, Part::ALL.into_iter().find(|one| one.as_str() == part)) {
            (Some(loras), Some(part)) => weights.overlaid(Arc::clone(loras), part),
            _ => weights,
        })
    }

    fn vae(&self) -> Result<Weights, LoadError> {
        self.open("vae", &self.placements.vae, None)
    }

    /// The layers that LoRAs can change.
    fn base(&self) -> Result<Base, LoadError> {
        let cpu = on(&Device::Cpu, DType::F32);
        let mut parts = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| self.files.contains_key(part.as_str())) {
            parts.push((part, self.open(part.as_str(), &cpu, None)?));
        }
        Ok(Base::new(parts.iter().map(|(part, weights)| (*part, weights))))
    }

    /// Reads LoRA files, each with its weight.
    pub(crate) fn lora_set(&self, files: &[(PathBuf, f32)]) -> Result<LoraSet, LoadError> {
        let base = self.base()?;
        let mut loras = Vec::new();
        for (file, weight) in files {
            loras.push((Arc::new(Lora::read(file, &base)?), *weight));
        }
        Ok(LoraSet::new(loras))
    }

    /// The VAE's encoder, which only starting pictures need.
    pub(crate) fn encoder(&self) -> Result<Encoder, LoadError> {
        Encoder::new(&self.vae()?, &self.config.vae, self.placements.vae.computes_in())
    }

    /// Text encoders and denoiser, with `loras` merged into them.
    pub(crate) fn merged(&self, loras: &Arc<LoraSet>) -> Result<Weighted, LoadError> {
        let tally = Arc::default();
        let text = Arc::new(self.text_encoders(Some(loras), &tally)?);
        self.weighted(text, Some(loras), &tally)
    }

    /// A denoiser for these text encoders, with `loras` merged into it. `tally` knows what they take.
    fn weighted(
        &self,
        text: Arc<TextEncoders>,
        loras: Option<&Arc<LoraSet>>,
        tally: &Arc<Tally>,
    ) -> Result<Weighted, LoadError> {
        let placement = &self.placements.denoiser;
        let (device, dtype) = (&placement.device, placement.computes_in());
        let weights = self.open(self.config.denoiser.directory(), placement, loras)?.counted(tally);
        let denoiser = match &self.config.denoiser {
            DenoiserConfig::Unet(config) => Architecture::Unet(Box::new(Unet::new(&weights, config, device, dtype)?)),
            DenoiserConfig::Sd3(config) => Architecture::Sd3(Sd3Transformer::new(&weights, config)?),
            DenoiserConfig::Flux(config) => Architecture::Flux(FluxTransformer::new(&weights, config)?),
        };
        let denoiser = Denoiser::new(denoiser);
        let loras = loras.map(|loras| loras.digests()).unwrap_or_default();
        Ok(Weighted { text, denoiser, loras, copied_bytes: tally.copied(), mapped_bytes: tally.mapped() })
    }

    fn text_encoders(&self, loras: Option<&Arc<LoraSet>>, tally: &Arc<Tally>) -> Result<TextEncoders, LoadError> {
        let family = self.config.index.family;
        let mut clips = Vec::new();
        for (index, config) in self.config.clips.iter().enumerate() {
            let (part, tokenizer) = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")][index];
            let projection = match (family, index) {
                (Family::StableDiffusion | Family::Flux, _) | (Family::StableDiffusionXl, 0) => Projection::None,
                (Family::StableDiffusionXl | Family::StableDiffusion3, _) => Projection::Linear,
            };
            let weights = self.open(part, &self.placements.text_encoder, loras)?.counted(tally);
            let tokenizer = ClipTokenizer::read(&self.directory.join(tokenizer), config.max_position_embeddings)?;
            let clip = Clip::new(&weights, config, projection, &self.placements.text_encoder.device)?;
            clips.push(ClipEncoder { tokenizer, clip });
        }
        let t5 = match (self.config.index.t5(), &self.config.t5) {
            (Some((part, tokenizer)), Some(config)) => {
                let placement = t5::placement(&self.placements.text_encoder);
                let weights = self.open(part, &placement, loras)?.counted(tally);
                let tokens = if family == Family::Flux { FLUX_T5_TOKENS } else { SD3_T5_TOKENS };
                Some(T5Encoder::new(&self.directory.join(tokenizer), &weights, config, tokens, &placement.device)?)
            }
            _ => None,
        };
        Ok(TextEncoders {
            family,
            clips,
            t5,
            joint_attention_dim: match &self.config.denoiser {
                DenoiserConfig::Sd3(config) => config.joint_attention_dim,
                DenoiserConfig::Unet(_) | DenoiserConfig::Flux(_) => 0,
            },
            force_zeros_for_empty_prompt: self.config.index.force_zeros_for_empty_prompt,
            guidance_is_built_in: match &self.config.denoiser {
                DenoiserConfig::Unet(config) => config.time_cond_proj_dim.is_some(),
                DenoiserConfig::Sd3(_) => false,
                DenoiserConfig::Flux(_) => true,
            },
            known: Known::new(self.images_in_batch_max, Arc::clone(&self.encoding)),
        })
    }
}
