//! The validated specification of a job, and the check that makes one from what a client asked for.
//!
//! All violations are found in one pass. What a field is called and of what type it is, is `wire`'s business.

use std::fmt;

use super::id::by_name;
use super::limits::{
    CACHE_INTERVAL_MAX, GUIDANCE_MAX, IMAGES_MAX, LORA_WEIGHT_MAX, LORAS_MAX, PROMPT_CHARACTERS_MAX, SEED_MAX,
    STEPS_MAX, TOLD_SIZE_MAX,
};
use super::model::{Defaults, ModelManifest, Task};
use super::options::{
    Deadline, FeatureCache, LongPrompt, LoraChoice, OnLate, PictureSource, PromptOptions, Rng, Sizes, Start, Weighting,
};
use super::webhook::Webhook;

/// How much of a starting picture is made anew unasked, as in diffusers.
const STRENGTH_DEFAULT: f32 = 0.8;

/// Which noise levels a sampler stops at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SigmaSpacing {
    /// Those of the training timesteps that the model's configuration picks.
    #[default]
    Trained,
    /// Denser towards little noise; Karras et al., arXiv 2206.00364.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// Denser at both ends, by the beta distribution; arXiv 2407.12173.
    Beta,
}

/// How noise becomes latents. Names follow k-diffusion and diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SamplerKind {
    /// `PNDMScheduler` without Runge-Kutta steps.
    Pndm,
    /// `DDIMScheduler`, eta 0.
    Ddim,
    /// `DDPMScheduler`.
    Ddpm,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `LCMScheduler`.
    Lcm,
    /// `FlowMatchEulerDiscreteScheduler`.
    FlowMatchEuler,
    /// `EulerDiscreteScheduler`.
    Euler(SigmaSpacing),
    /// `HeunDiscreteScheduler`.
    Heun(SigmaSpacing),
    /// `DPMSolverMultistepScheduler`.
    DpmPlusPlus2M(SigmaSpacing),
    /// `DPMSolverMultistepScheduler`, `algorithm_type` `sde-dpmsolver++`.
    DpmPlusPlus2MSde(SigmaSpacing),
    /// `DPMSolverSinglestepScheduler`.
    DpmPlusPlusSde(SigmaSpacing),
    /// `UniPCMultistepScheduler`.
    UniPc(SigmaSpacing),
}

impl SamplerKind {
    /// Every sampler.
    pub const ALL: &'static [Self] = {
        use SigmaSpacing::{Beta, Exponential, Karras, Trained};
        &[
            Self::Pndm,
            Self::Ddim,
            Self::Ddpm,
            Self::EulerAncestral,
            Self::Lcm,
            Self::FlowMatchEuler,
            Self::Euler(Trained),
            Self::Euler(Karras),
            Self::Euler(Exponential),
            Self::Euler(Beta),
            Self::Heun(Trained),
            Self::Heun(Karras),
            Self::Heun(Exponential),
            Self::Heun(Beta),
            Self::DpmPlusPlus2M(Trained),
            Self::DpmPlusPlus2M(Karras),
            Self::DpmPlusPlus2M(Exponential),
            Self::DpmPlusPlus2M(Beta),
            Self::DpmPlusPlus2MSde(Trained),
            Self::DpmPlusPlus2MSde(Karras),
            Self::DpmPlusPlus2MSde(Exponential),
            Self::DpmPlusPlus2MSde(Beta),
            Self::DpmPlusPlusSde(Trained),
            Self::DpmPlusPlusSde(Karras),
            Self::DpmPlusPlusSde(Exponential),
            Self::DpmPlusPlusSde(Beta),
            Self::UniPc(Trained),
            Self::UniPc(Karras),
            Self::UniPc(Exponential),
            Self::UniPc(Beta),
        ]
    };

    /// The name on the wire: that of the solver and, unless it is [`SigmaSpacing::Trained`], of the spacing.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pndm => "pndm",
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::EulerAncestral => "euler_ancestral",
            Self::Lcm => "lcm",
            Self::FlowMatchEuler => "flow_match_euler",
            Self::Euler(spacing) => spacing.pick(["euler", "euler_karras", "euler_exponential", "euler_beta"]),
            Self::Heun(spacing) => spacing.pick(["heun", "heun_karras", "heun_exponential", "heun_beta"]),
            Self::DpmPlusPlus2M(spacing) => {
                spacing.pick(["dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_exponential", "dpmpp_2m_beta"])
            }
            Self::DpmPlusPlus2MSde(spacing) => {
                spacing.pick(["dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_2m_sde_exponential", "dpmpp_2m_sde_beta"])
            }
            Self::DpmPlusPlusSde(spacing) => {
                spacing.pick(["dpmpp_sde", "dpmpp_sde_karras", "dpmpp_sde_exponential", "dpmpp_sde_beta"])
            }
            Self::UniPc(spacing) => spacing.pick(["unipc", "unipc_karras", "unipc_exponential", "unipc_beta"]),
        }
    }

    /// Names for people, with commas.
    pub fn list(kinds: &[Self]) -> String {
        kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The spacing of its noise levels.
    pub fn spacing(self) -> SigmaSpacing {
        match self {
            Self::Pndm | Self::Ddim | Self::Ddpm | Self::EulerAncestral | Self::Lcm | Self::FlowMatchEuler => {
                SigmaSpacing::Trained
            }
            Self::Euler(spacing)
            | Self::Heun(spacing)
            | Self::DpmPlusPlus2M(spacing)
            | Self::DpmPlusPlus2MSde(spacing)
            | Self::DpmPlusPlusSde(spacing)
            | Self::UniPc(spacing) => spacing,
        }
    }
}

impl SigmaSpacing {
    fn pick(self, names: [&'static str; 4]) -> &'static str {
        let [trained, karras, exponential, beta] = names;
        match self {
            Self::Trained => trained,
            Self::Karras => karras,
            Self::Exponential => exponential,
            Self::Beta => beta,
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

by_name!(SamplerKind);
by_name!(OutputFormat);

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
    /// How much of guidance's growth in contrast is taken back.
    pub guidance_rescale: Option<f32>,
    /// Whose random numbers the seed gives.
    pub rng: Option<Rng>,
    /// What to start from.
    pub init_image: Option<PictureSource>,
    /// How much of it is made anew.
    pub strength: Option<f32>,
    /// Where it is made anew.
    pub mask_image: Option<PictureSource>,
    /// Changes to the model's weights.
    pub loras: Vec<LoraChoice>,
    /// How long prompts are read.
    pub long_prompt: Option<LongPrompt>,
    /// Whether brackets in prompts have a meaning.
    pub prompt_weighting: Option<bool>,
    /// Height and width that SDXL is told.
    pub original_size: Option<[u32; 2]>,
    /// Top and left that SDXL is told.
    pub crops_coords_top_left: Option<[u32; 2]>,
    /// Height and width that SDXL is told.
    pub target_size: Option<[u32; 2]>,
    /// When it is to be done, in milliseconds since the Unix epoch.
    pub deadline_unix_ms: Option<i64>,
    /// What becomes of it otherwise.
    pub on_late: Option<OnLate>,
    /// Whom to tell of it.
    pub webhook: Option<Webhook>,
    /// Which steps do without most of the model.
    pub cache: Option<FeatureCache>,
}

/// A job that can be done.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// The first image; image `n` differs from it in its seed alone.
    pub image: ImageSpec,
    /// Images of this job, 1 to 8.
    pub num_images: u32,
    /// How the images are stored.
    pub output_format: OutputFormat,
    /// A preview with every n-th step.
    pub previews: Option<u32>,
    /// What the images start from, if not from noise alone.
    pub init_image: Option<PictureSource>,
    /// Where the starting picture is to be made anew.
    pub mask_image: Option<PictureSource>,
    /// When it is to be done.
    pub deadline: Option<Deadline>,
    /// Whom to tell of it.
    pub webhook: Option<Webhook>,
}

/// All that decides the pixels of one image, but for the starting picture's.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// What to draw; 1 to 2000 characters.
    pub prompt: String,
    /// What to avoid; empty for nothing.
    pub negative_prompt: String,
    /// How both are read.
    pub prompt_options: PromptOptions,
    /// Pixels, within the model's limits.
    pub width: u32,
    /// Pixels, within the model's limits.
    pub height: u32,
    /// Denoising steps, 1 to 100.
    pub num_inference_steps: u32,
    /// Classifier-free guidance, 1 to 20; 1 is none.
    pub guidance_scale: f32,
    /// How much of guidance's growth in contrast is taken back, 0 to 1 (section 3.4 of arXiv 2305.08891).
    pub guidance_rescale: f32,
    /// Decides the noise.
    pub seed: u64,
    /// Whose random numbers the seed gives.
    pub rng: Rng,
    /// The sampler.
    pub scheduler: SamplerKind,
    /// What it starts from.
    pub start: Start,
    /// Changes to the model's weights.
    pub loras: Vec<LoraChoice>,
    /// What SDXL is told of sizes.
    pub sizes: Sizes,
    /// Which steps do without most of the model: less time for another picture. None when absent.
    pub cache: Option<FeatureCache>,
}

impl ImageSpec {
    /// Of so many steps one is whole; 1 where all are.
    pub fn whole_every(&self) -> u32 {
        self.cache.map_or(1, |cache| cache.interval)
    }

    /// What a request asks for that names nothing but `prompt`, with seed 0.
    pub fn with_defaults(prompt: impl Into<String>, defaults: &Defaults) -> Self {
        let size = [defaults.height, defaults.width];
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            prompt_options: PromptOptions::default(),
            width: defaults.width,
            height: defaults.height,
            num_inference_steps: defaults.num_inference_steps,
            guidance_scale: defaults.guidance_scale,
            guidance_rescale: 0.0,
            seed: 0,
            rng: Rng::default(),
            scheduler: defaults.scheduler,
            start: Start::Noise,
            loras: Vec::new(),
            sizes: Sizes { original: size, crops_coords_top_left: [0, 0], target: size },
            cache: None,
        }
    }
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

        let guidance_rescale = draft.guidance_rescale.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&guidance_rescale) {
            violations.push(Violation::new("guidance_rescale", guidance_rescale, "0 to 1"));
        }
        if let Some(cache) = draft.cache.filter(|cache| !(2..=CACHE_INTERVAL_MAX).contains(&cache.interval)) {
            violations.push(Violation::new("cache.interval", cache.interval, format!("2 to {CACHE_INTERVAL_MAX}")));
        }
        let scheduler = draft.scheduler.unwrap_or(defaults.scheduler);
        if !manifest.schedulers.contains(&scheduler) {
            let names: Vec<&str> = manifest.schedulers.iter().map(|kind| kind.as_str()).collect();
            violations.push(Violation::new("scheduler", scheduler, format!("with this model: {}", names.join(", "))));
        }
        let start = check_start(draft, manifest, violations);
        check_loras(&draft.loras, violations);
        let sizes = Sizes {
            original: draft.original_size.unwrap_or([height, width]),
            crops_coords_top_left: draft.crops_coords_top_left.unwrap_or([0, 0]),
            target: draft.target_size.unwrap_or([height, width]),
        };
        for (field, told, least) in [
            ("original_size", draft.original_size, 1),
            ("crops_coords_top_left", draft.crops_coords_top_left, 0),
            ("target_size", draft.target_size, 1),
        ] {
            if let Some(told) = told
                && told.iter().any(|value| !(least..=TOLD_SIZE_MAX).contains(value))
            {
                let allowed = format!("two numbers from {least} to {TOLD_SIZE_MAX}");
                violations.push(Violation::new(field, format!("{told:?}"), allowed));
            }
        }

        let deadline =
            draft.deadline_unix_ms.map(|unix_ms| Deadline { unix_ms, on_late: draft.on_late.unwrap_or_default() });
        if let (None, Some(on_late)) = (deadline, draft.on_late) {
            violations.push(Violation::new("on_late", on_late.as_str(), "only together with deadline"));
        }

        (violations.len() == before).then(|| Self {
            image: ImageSpec {
                prompt,
                negative_prompt: draft.negative_prompt.clone().unwrap_or_default(),
                prompt_options: PromptOptions {
                    long: draft.long_prompt.unwrap_or_default(),
                    weighting: if draft.prompt_weighting == Some(true) { Weighting::On } else { Weighting::Off },
                },
                width,
                height,
                num_inference_steps,
                guidance_scale,
                guidance_rescale,
                seed,
                rng: draft.rng.unwrap_or_default(),
                scheduler,
                start,
                loras: draft.loras.clone(),
                sizes,
                cache: draft.cache,
            },
            num_images,
            output_format: draft.output_format.unwrap_or(OutputFormat::Png),
            previews,
            init_image: draft.init_image.clone(),
            mask_image: draft.mask_image.clone(),
            deadline,
            webhook: draft.webhook.clone(),
        })
    }

    /// All that decides the pixels of image `index`.
    pub fn image(&self, index: u32) -> ImageSpec {
        ImageSpec { seed: self.image.seed + u64::from(index), ..self.image.clone() }
    }
}

/// What the images start from; the rules of `init_image`, `mask_image` and `strength`, which depend on each other.
fn check_start(draft: &Draft, manifest: &ModelManifest, violations: &mut Vec<Violation>) -> Start {
    let (task, strength_unasked) = match (&draft.init_image, &draft.mask_image) {
        (None, None) => (Task::TextToImage, 1.0),
        (Some(_), None) => (Task::ImageToImage, STRENGTH_DEFAULT),
        (Some(_), Some(_)) => (Task::Inpainting, 1.0),
        (None, Some(_)) => {
            violations.push(Violation::new("mask_image", "given", "only together with init_image"));
            return Start::Noise;
        }
    };
    let strength = draft.strength.unwrap_or(strength_unasked);
    if !(strength > 0.0 && strength <= 1.0) {
        violations.push(Violation::new("strength", strength, "above 0 to 1"));
    } else if draft.strength.is_some() && task == Task::TextToImage {
        violations.push(Violation::new("strength", strength, "only together with init_image"));
    }
    if !manifest.tasks.contains(&task) {
        let needed = if manifest.tasks.contains(&Task::ImageToImage) || manifest.tasks == [Task::TextToImage] {
            "not with this model"
        } else {
            "this model needs init_image and mask_image"
        };
        let field = if task == Task::Inpainting { "mask_image" } else { "init_image" };
        let value = if draft.init_image.is_some() { "given" } else { "missing" };
        violations.push(Violation::new(field, value, needed));
    }
    match task {
        Task::TextToImage => Start::Noise,
        Task::ImageToImage => Start::Picture { strength },
        Task::Inpainting => Start::Inpaint { strength },
    }
}

fn check_loras(loras: &[LoraChoice], violations: &mut Vec<Violation>) {
    if loras.len() > LORAS_MAX {
        violations.push(Violation::new("loras", format!("{} of them", loras.len()), format!("up to {LORAS_MAX}")));
    }
    for (index, lora) in loras.iter().enumerate() {
        if !(-LORA_WEIGHT_MAX..=LORA_WEIGHT_MAX).contains(&lora.weight) {
            let allowed = format!("-{LORA_WEIGHT_MAX} to {LORA_WEIGHT_MAX}");
            violations.push(Violation::new(format!("loras[{index}].weight"), lora.weight, allowed));
        }
        if loras[..index].iter().any(|earlier| earlier.name == lora.name) {
            violations.push(Violation::new(format!("loras[{index}].name"), &lora.name, "each LoRA once"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::ModelLimits;
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
            tasks: vec![Task::TextToImage, Task::ImageToImage],
            schedulers: vec![SamplerKind::Ddim, SamplerKind::Euler(SigmaSpacing::Trained)],
        }
    }

    fn draft(change: impl FnOnce(&mut Draft)) -> Draft {
        let mut draft = Draft { prompt: Some("a red circle".into()), ..Draft::default() };
        change(&mut draft);
        draft
    }

    fn picture() -> PictureSource {
        PictureSource::Key("inputs/a.png".into())
    }

    fn lora(name: &str, weight: f32) -> LoraChoice {
        LoraChoice { name: name.parse().unwrap(), weight }
    }

    #[test]
    fn a_model_for_inpainting_needs_picture_and_mask() {
        let manifest = ModelManifest { tasks: vec![Task::Inpainting], ..manifest() };
        for (draft, field) in [(draft(|_| {}), "init_image"), (draft(|d| d.init_image = Some(picture())), "init_image")]
        {
            let mut violations = Vec::new();
            assert_eq!(JobSpec::check(&draft, &manifest, 0, &mut violations), None);
            assert_eq!(violations[0].field, field, "{violations:?}");
        }
    }

    #[test]
    fn gaps_take_the_models_defaults() {
        let mut violations = Vec::new();
        let spec = JobSpec::check(&draft(|_| {}), &manifest(), 9, &mut violations).unwrap();
        let image = spec.image(0);
        assert_eq!((image.width, image.height, image.num_inference_steps, image.seed), (256, 256, 20, 9));
        assert_eq!((image.start, image.rng, image.sizes.original), (Start::Noise, Rng::TorchCpu, [256, 256]));
        assert_eq!(spec.image(3).seed, 12);
        let spec = JobSpec::check(&draft(|d| d.init_image = Some(picture())), &manifest(), 9, &mut violations).unwrap();
        assert_eq!(spec.image.start, Start::Picture { strength: 0.8 });
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
            ("guidance_rescale", draft(|d| d.guidance_rescale = Some(1.1))),
            ("scheduler", draft(|d| d.scheduler = Some(SamplerKind::Lcm))),
            ("strength", draft(|d| d.strength = Some(0.5))),
            ("strength", draft(|d| (d.init_image, d.strength) = (Some(picture()), Some(0.0)))),
            ("strength", draft(|d| (d.init_image, d.strength) = (Some(picture()), Some(1.5)))),
            ("strength", draft(|d| (d.init_image, d.strength) = (Some(picture()), Some(f32::NAN)))),
            ("mask_image", draft(|d| d.mask_image = Some(picture()))),
            ("mask_image", draft(|d| (d.init_image, d.mask_image) = (Some(picture()), Some(picture())))),
            ("loras[0].weight", draft(|d| d.loras = vec![lora("a", f32::INFINITY)])),
            ("loras[1].name", draft(|d| d.loras = vec![lora("a", 1.0), lora("a", 0.5)])),
            ("target_size", draft(|d| d.target_size = Some([0, 64]))),
            ("cache.interval", draft(|d| d.cache = Some(FeatureCache { interval: 1 }))),
            ("cache.interval", draft(|d| d.cache = Some(FeatureCache { interval: 11 }))),
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
    }
}
