//! `model_index.json`: which family of pipelines a directory holds, and which of its parts are used.
//!
//! The architecture of each part is its own `config.json`'s business.

use serde_json::Value;

use super::Document;
use crate::engine::error::LoadError;

/// A way to put prompts, a denoiser and a VAE together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Stable Diffusion 1.x and 2.x, LCM.
    StableDiffusion,
    /// SDXL, SDXL Turbo.
    StableDiffusionXl,
    /// Stable Diffusion 3 and 3.5.
    StableDiffusion3,
    /// FLUX.1.
    Flux,
}

/// A directory of a pipeline, with the library and the classes that this engine implements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) directory: &'static str,
    library: &'static str,
    classes: &'static [&'static str],
    /// Whether a pipeline may do without it.
    optional: bool,
}

impl Part {
    /// Whether it has weights, and not only text files.
    pub(crate) fn has_weights(&self) -> bool {
        !self.directory.starts_with("tokenizer") && self.directory != "scheduler"
    }
}

const fn part(directory: &'static str, library: &'static str, classes: &'static [&'static str]) -> Part {
    Part { directory, library, classes, optional: false }
}

const CLIP: &[&str] = &["CLIPTextModel"];
const CLIP_PROJECTED: &[&str] = &["CLIPTextModelWithProjection"];
const CLIP_TOKENIZER: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
const T5: &[&str] = &["T5EncoderModel"];
const T5_TOKENIZER: &[&str] = &["T5Tokenizer", "T5TokenizerFast"];
const SCHEDULER: Part = part("scheduler", "diffusers", &super::scheduler::CLASSES);
const UNET: Part = part("unet", "diffusers", &["UNet2DConditionModel"]);
const VAE: Part = part("vae", "diffusers", &["AutoencoderKL"]);

const STABLE_DIFFUSION: &[Part] = &[
    SCHEDULER,
    part("text_encoder", "transformers", CLIP),
    part("tokenizer", "transformers", CLIP_TOKENIZER),
    UNET,
    VAE,
];
const STABLE_DIFFUSION_XL: &[Part] = &[
    SCHEDULER,
    part("text_encoder", "transformers", CLIP),
    part("text_encoder_2", "transformers", CLIP_PROJECTED),
    part("tokenizer", "transformers", CLIP_TOKENIZER),
    part("tokenizer_2", "transformers", CLIP_TOKENIZER),
    UNET,
    VAE,
];
const STABLE_DIFFUSION_3: &[Part] = &[
    SCHEDULER,
    part("text_encoder", "transformers", CLIP_PROJECTED),
    part("text_encoder_2", "transformers", CLIP_PROJECTED),
    Part { optional: true, ..part("text_encoder_3", "transformers", T5) },
    part("tokenizer", "transformers", CLIP_TOKENIZER),
    part("tokenizer_2", "transformers", CLIP_TOKENIZER),
    Part { optional: true, ..part("tokenizer_3", "transformers", T5_TOKENIZER) },
    part("transformer", "diffusers", &["SD3Transformer2DModel"]),
    VAE,
];
const FLUX: &[Part] = &[
    SCHEDULER,
    part("text_encoder", "transformers", CLIP),
    part("text_encoder_2", "transformers", T5),
    part("tokenizer", "transformers", CLIP_TOKENIZER),
    part("tokenizer_2", "transformers", T5_TOKENIZER),
    part("transformer", "diffusers", &["FluxTransformer2DModel"]),
    VAE,
];

/// Pipeline classes of diffusers. What a pipeline is for (text, a starting picture, a mask) is the request's choice here.
const CLASSES: [(&str, Family); 14] = [
    ("StableDiffusionPipeline", Family::StableDiffusion),
    ("StableDiffusionImg2ImgPipeline", Family::StableDiffusion),
    ("StableDiffusionInpaintPipeline", Family::StableDiffusion),
    ("LatentConsistencyModelPipeline", Family::StableDiffusion),
    ("LatentConsistencyModelImg2ImgPipeline", Family::StableDiffusion),
    ("StableDiffusionXLPipeline", Family::StableDiffusionXl),
    ("StableDiffusionXLImg2ImgPipeline", Family::StableDiffusionXl),
    ("StableDiffusionXLInpaintPipeline", Family::StableDiffusionXl),
    ("StableDiffusion3Pipeline", Family::StableDiffusion3),
    ("StableDiffusion3Img2ImgPipeline", Family::StableDiffusion3),
    ("StableDiffusion3InpaintPipeline", Family::StableDiffusion3),
    ("FluxPipeline", Family::Flux),
    ("FluxImg2ImgPipeline", Family::Flux),
    ("FluxInpaintPipeline", Family::Flux),
];

/// What `model_index.json` says.
#[derive(Clone, Debug)]
pub(crate) struct PipelineIndex {
    pub(crate) family: Family,
    /// The pipeline class, as the file names it.
    pub(crate) class: String,
    /// The parts that the pipeline has, in order.
    pub(crate) parts: Vec<Part>,
    /// Whether a request without a negative prompt is guided away from zeros and not from the embedding of "" (SDXL).
    pub(crate) force_zeros_for_empty_prompt: bool,
}

impl PipelineIndex {
    /// The directories of the T5 and its tokenizer, if the pipeline has one.
    pub(crate) fn t5(&self) -> Option<(&'static str, &'static str)> {
        let directories = match self.family {
            Family::StableDiffusion | Family::StableDiffusionXl => return None,
            Family::StableDiffusion3 => ("text_encoder_3", "tokenizer_3"),
            Family::Flux => ("text_encoder_2", "tokenizer_2"),
        };
        self.parts.iter().any(|part| part.directory == directories.0).then_some(directories)
    }

    pub(super) fn read(document: &Document) -> Result<Self, LoadError> {
        let class = document.fields.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let Some((_, family)) = CLASSES.iter().find(|(name, _)| *name == class) else {
            let known: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).collect();
            let value = document.fields.get("_class_name").unwrap_or(&Value::Null);
            return Err(document.unsupported("_class_name", value, known.join(", ")));
        };
        let all = match family {
            Family::StableDiffusion => STABLE_DIFFUSION,
            Family::StableDiffusionXl => STABLE_DIFFUSION_XL,
            Family::StableDiffusion3 => STABLE_DIFFUSION_3,
            Family::Flux => FLUX,
        };
        let mut parts = Vec::with_capacity(all.len());
        for part in all {
            let value = document.fields.get(part.directory).unwrap_or(&Value::Null);
            let absent = value.is_null() || value.get(0).is_some_and(Value::is_null);
            if absent && part.optional {
                continue;
            }
            let named = |class: &&str| {
                value.get(0).is_some_and(|library| library == part.library)
                    && value.get(1).is_some_and(|name| name == class)
            };
            if !part.classes.iter().any(named) {
                let supported = format!("{}: {}", part.library, part.classes.join(", "));
                return Err(document.unsupported(part.directory, value, supported));
            }
            parts.push(*part);
        }
        let flag = |field: &str| document.fields.get(field).is_some_and(|value| value == true);
        if flag("requires_aesthetics_score") {
            return Err(document.unsupported(
                "requires_aesthetics_score",
                true,
                "false: the refiner is not implemented",
            ));
        }
        Ok(Self {
            family: *family,
            class: class.to_owned(),
            parts,
            // diffusers' default, which files since 2023 spell out.
            force_zeros_for_empty_prompt: *family == Family::StableDiffusionXl
                && document.fields.get("force_zeros_for_empty_prompt").is_none_or(|value| value == true),
        })
    }
}
