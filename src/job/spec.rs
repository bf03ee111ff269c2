//! The validated specification of a job, and the check that makes one from what a client asked for.
//!
//! All violations are found in one pass. What a field is called and of what type it is, is `wire`'s business.

use std::fmt;
use std::str::FromStr;

use super::id::InvalidToken;
use super::limits::{GUIDANCE_MAX, IMAGES_MAX, PROMPT_CHARACTERS_MAX, SEED_MAX, STEPS_MAX};
use super::model::ModelManifest;

/// How noise becomes latents. Names follow k-diffusion and diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SamplerKind {
    /// `DDIMScheduler`, eta 0.
    Ddim,
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `DPMSolverMultistepScheduler`, order 2.
    DpmPlusPlus2M,
    /// `DPMSolverMultistepScheduler`, order 2, with Karras sigmas.
    DpmPlusPlus2MKarras,
    /// `LCMScheduler`.
    Lcm,
}

impl SamplerKind {
    /// Every sampler.
    pub const ALL: &'static [Self] =
        &[Self::Ddim, Self::Euler, Self::EulerAncestral, Self::DpmPlusPlus2M, Self::DpmPlusPlus2MKarras, Self::Lcm];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::DpmPlusPlus2M => "dpmpp_2m",
            Self::DpmPlusPlus2MKarras => "dpmpp_2m_karras",
            Self::Lcm => "lcm",
        }
    }
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputFormat {
    /// Lossless, the default.
    Png,
    /// JPEG, quality 95.
    Jpeg,
    /// WebP, lossless.
    Webp,
}

impl OutputFormat {
    /// Every format.
    pub const ALL: &'static [Self] = &[Self::Png, Self::Jpeg, Self::Webp];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// The file extension of object keys.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    /// The media type that the object is stored with.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// Whose random numbers a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rng {
    /// PyTorch's generator on a CPU, the default: what pipelines use that are to give the same picture everywhere.
    #[default]
    TorchCpu,
    /// PyTorch's generator on an NVIDIA GPU.
    TorchCuda,
}

impl Rng {
    /// Every generator.
    pub const ALL: &'static [Self] = &[Self::TorchCpu, Self::TorchCuda];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TorchCpu => "torch-cpu",
            Self::TorchCuda => "torch-cuda",
        }
    }
}

macro_rules! by_name {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = InvalidToken;

            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(InvalidToken)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

by_name!(SamplerKind);
by_name!(OutputFormat);
by_name!(Rng);

/// One rule that a request breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as the request names it; `body` for the whole.
    pub field: String,
    /// What was found there, shortened.
    pub value: String,
    /// What would be right.
    pub allowed: String,
}

impl Violation {
    /// A violation; `value` is shortened to what an event can carry.
    pub fn new(field: impl Into<String>, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        const SHOWN_CHARACTERS_MAX: usize = 64;
        let value = value.to_string();
        let shown = match value.char_indices().nth(SHOWN_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Self { field: field.into(), value: shown, allowed: allowed.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} is {}, allowed: {}", self.field, self.value, self.allowed)
    }
}

/// What a client asked for: right types, unchecked values, gaps where the model's defaults go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// What to draw.
    pub prompt: Option<String>,
    /// What to avoid.
    pub negative_prompt: Option<String>,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// Denoising steps.
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance.
    pub guidance_scale: Option<f32>,
    /// Decides the noise.
    pub seed: Option<u64>,
    /// Images of this job.
    pub num_images: Option<u32>,
    /// The sampler.
    pub scheduler: Option<SamplerKind>,
    /// How the images are stored.
    pub output_format: Option<OutputFormat>,
    /// A preview with every n-th step.
    pub previews: Option<u32>,
}

/// A job that can be done.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// What to draw; 1 to 2000 characters.
    pub prompt: String,
    /// What to avoid; empty for nothing.
    pub negative_prompt: String,
    /// Pixels, within the model's limits.
    pub width: u32,
    /// Pixels, within the model's limits.
    pub height: u32,
    /// Denoising steps, 1 to 100.
    pub num_inference_steps: u32,
    /// Classifier-free guidance, 1 to 20; 1 is none.
    pub guidance_scale: f32,
    /// Decides the noise of image 0; image `n` has `seed + n`.
    pub seed: u64,
    /// Images of this job, 1 to 8.
    pub num_images: u32,
    /// The sampler.
    pub scheduler: SamplerKind,
    /// How the images are stored.
    pub output_format: OutputFormat,
    /// A preview with every n-th step.
    pub previews: Option<u32>,
}

/// All that decides the pixels of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// What to draw.
    pub prompt: String,
    /// What to avoid.
    pub negative_prompt: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Classifier-free guidance; 1 is none.
    pub guidance_scale: f32,
    /// Decides the noise.
    pub seed: u64,
    /// The sampler.
    pub scheduler: SamplerKind,
}

impl JobSpec {
    /// Checks `draft` against the general limits and, where one is given, the model's; every broken rule is pushed to
    /// `violations`. `seed_unasked` is the seed of a request that names none.
    ///
    /// Returns a specification only if this call found nothing wrong; earlier violations are the caller's to look at.
    pub fn check(
        draft: &Draft,
        manifest: &ModelManifest,
        seed_unasked: u64,
        violations: &mut Vec<Violation>,
    ) -> Option<Self> {
        let before = violations.len();
        let (limits, defaults) = (&manifest.limits, &manifest.defaults);

        let prompt = draft.prompt.clone().unwrap_or_default();
        for (field, text, shortest) in
            [("prompt", prompt.as_str(), 1), ("negative_prompt", draft.negative_prompt.as_deref().unwrap_or(""), 0)]
        {
            let characters = text.chars().count();
            if characters < shortest || characters > PROMPT_CHARACTERS_MAX {
                let allowed = format!("{shortest} to {PROMPT_CHARACTERS_MAX} characters");
                violations.push(Violation::new(field, format!("{characters} characters long"), allowed));
            }
        }
        if !prompt.is_empty() && prompt.trim().is_empty() {
            violations.push(Violation::new("prompt", "only white space", "text that describes the picture"));
        }

        let mut side = |field: &str, asked: Option<u32>, default: u32| {
            let value = asked.unwrap_or(default);
            let in_range = (limits.side_min..=limits.side_max).contains(&value);
            if !in_range || !value.is_multiple_of(limits.side_multiple) {
                let allowed =
                    format!("multiples of {} from {} to {}", limits.side_multiple, limits.side_min, limits.side_max);
                violations.push(Violation::new(field, value, allowed));
            }
            value
        };
        let width = side("width", draft.width, defaults.width);
        let height = side("height", draft.height, defaults.height);

        let num_inference_steps = draft.num_inference_steps.unwrap_or(defaults.num_inference_steps);
        let num_images = draft.num_images.unwrap_or(1);
        let previews = draft.previews;
        for (field, value, largest) in [
            ("num_inference_steps", num_inference_steps, STEPS_MAX),
            ("num_images", num_images, IMAGES_MAX),
            ("previews", previews.unwrap_or(1), STEPS_MAX),
        ] {
            if !(1..=largest).contains(&value) {
                violations.push(Violation::new(field, value, format!("1 to {largest}")));
            }
        }

        let guidance_scale = draft.guidance_scale.unwrap_or(defaults.guidance_scale);
        if !(1.0..=GUIDANCE_MAX).contains(&guidance_scale) {
            violations.push(Violation::new("guidance_scale", guidance_scale, format!("1 to {GUIDANCE_MAX}")));
        }

        let seed = draft.seed.unwrap_or(seed_unasked);
        let seed_largest = SEED_MAX - u64::from(IMAGES_MAX);
        if seed > seed_largest {
            violations.push(Violation::new("seed", seed, format!("0 to {seed_largest}")));
        }

        (violations.len() == before).then(|| Self {
            prompt,
            negative_prompt: draft.negative_prompt.clone().unwrap_or_default(),
            width,
            height,
            num_inference_steps,
            guidance_scale,
            seed,
            num_images,
            scheduler: draft.scheduler.unwrap_or(defaults.scheduler),
            output_format: draft.output_format.unwrap_or(OutputFormat::Png),
            previews,
        })
    }

    /// All that decides the pixels of image `index`.
    pub fn image(&self, index: u32) -> ImageSpec {
        ImageSpec {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: self.width,
            height: self.height,
            num_inference_steps: self.num_inference_steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed + u64::from(index),
            scheduler: self.scheduler,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Defaults, ModelLimits};
    use super::*;

    fn manifest() -> ModelManifest {
        ModelManifest {
            name: "shapes".parse().unwrap(),
            family: "StableDiffusionPipeline".into(),
            limits: ModelLimits { side_min: 64, side_max: 256, side_multiple: 8, images_in_batch_max: 4 },
            defaults: Defaults {
                width: 256,
                height: 256,
                num_inference_steps: 20,
                guidance_scale: 5.0,
                scheduler: SamplerKind::Ddim,
            },
        }
    }

    fn draft(change: impl FnOnce(&mut Draft)) -> Draft {
        let mut draft = Draft { prompt: Some("a red circle".into()), ..Draft::default() };
        change(&mut draft);
        draft
    }

    #[test]
    fn gaps_take_the_models_defaults() {
        let mut violations = Vec::new();
        let spec = JobSpec::check(&draft(|_| {}), &manifest(), 9, &mut violations).unwrap();
        assert_eq!((spec.width, spec.height, spec.num_inference_steps, spec.seed), (256, 256, 20, 9));
        assert_eq!(spec.image(3).seed, 12);
    }

    #[test]
    fn each_rule_names_its_field() {
        let cases: Vec<(&str, Draft)> = vec![
            ("prompt", Draft::default()),
            ("prompt", draft(|d| d.prompt = Some("a".repeat(2001)))),
            ("prompt", draft(|d| d.prompt = Some(" \n".into()))),
            ("negative_prompt", draft(|d| d.negative_prompt = Some("é".repeat(2001)))),
            ("width", draft(|d| d.width = Some(100))),
            ("height", draft(|d| d.height = Some(264))),
            ("height", draft(|d| d.height = Some(0))),
            ("num_inference_steps", draft(|d| d.num_inference_steps = Some(0))),
            ("num_inference_steps", draft(|d| d.num_inference_steps = Some(101))),
            ("guidance_scale", draft(|d| d.guidance_scale = Some(f32::NAN))),
            ("guidance_scale", draft(|d| d.guidance_scale = Some(0.5))),
            ("guidance_scale", draft(|d| d.guidance_scale = Some(20.5))),
            ("num_images", draft(|d| d.num_images = Some(9))),
            ("seed", draft(|d| d.seed = Some(u64::MAX))),
            ("previews", draft(|d| d.previews = Some(0))),
        ];
        for (field, draft) in cases {
            let mut violations = Vec::new();
            assert_eq!(JobSpec::check(&draft, &manifest(), 0, &mut violations), None);
            let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
            assert_eq!(fields, [field], "{draft:?}");
        }
    }

    #[test]
    fn all_violations_are_reported_together() {
        let wrong = draft(|d| {
            d.prompt = Some(String::new());
            d.width = Some(1);
            d.num_inference_steps = Some(0);
            d.guidance_scale = Some(99.0);
        });
        let mut violations = Vec::new();
        JobSpec::check(&wrong, &manifest(), 0, &mut violations);
        assert_eq!(violations.len(), 4, "{violations:?}");
    }

    #[test]
    fn names_read_back() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for format in OutputFormat::ALL {
            assert_eq!(format.as_str().parse(), Ok(*format));
        }
        for rng in Rng::ALL {
            assert_eq!(rng.as_str().parse(), Ok(*rng));
        }
    }
}
