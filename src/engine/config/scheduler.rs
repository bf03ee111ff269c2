//! `scheduler/scheduler_config.json`: what a sampler is made from.

use std::path::Path;

use serde::Deserialize;

use super::Document;
use crate::engine::error::LoadError;
use crate::job::SamplerKind;

/// What the model's output means.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity: `sqrt(alpha) * noise - sqrt(1 - alpha) * x0`.
    #[serde(rename = "v_prediction")]
    Velocity,
    /// The picture.
    Sample,
}

/// How noise grows over the training timesteps.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BetaSchedule {
    /// Betas are evenly spaced.
    Linear,
    /// Their square roots are.
    ScaledLinear,
    /// The cosine schedule.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// Which training timesteps are visited; table 2 of arXiv 2305.08891.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Spacing {
    /// Evenly, from the first to the last.
    Linspace,
    /// Evenly, from the first on.
    Leading,
    /// Evenly, to the last.
    Trailing,
}

/// The classes that samplers are made from.
pub(super) const CLASSES: [&str; 6] = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
];

/// `scheduler/scheduler_config.json`: what a sampler is made from.
///
/// A field that the file leaves out is `None` where diffusers' scheduler classes differ in what they take instead.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct SchedulerConfig {
    /// The class that the model comes with.
    #[serde(rename = "_class_name", default)]
    pub(crate) class: String,
    /// Timesteps of the training.
    pub(crate) num_train_timesteps: Option<usize>,
    /// The first beta.
    pub(crate) beta_start: Option<f64>,
    /// The last beta.
    pub(crate) beta_end: Option<f64>,
    /// How betas lie between them.
    pub(crate) beta_schedule: Option<BetaSchedule>,
    /// What the model's output means.
    #[serde(default)]
    pub(crate) prediction_type: Prediction,
    /// Which timesteps are visited.
    pub(crate) timestep_spacing: Option<Spacing>,
    /// Added to timesteps of the spacing `leading`.
    #[serde(default)]
    pub(crate) steps_offset: usize,
    /// Whether the picture is clamped at each step (DDIM and LCM).
    pub(crate) clip_sample: Option<bool>,
    /// To which absolute value.
    pub(crate) clip_sample_range: Option<f64>,
    /// Whether the last step ends without any noise (DDIM and LCM).
    pub(crate) set_alpha_to_one: Option<bool>,
    /// Whether betas are rescaled so that the last timestep is nothing but noise.
    #[serde(default)]
    pub(crate) rescale_betas_zero_snr: bool,
    /// Whether Euler and DPM++ take the spacing of Karras et al.
    #[serde(default)]
    pub(crate) use_karras_sigmas: Option<bool>,
    /// Steps of the schedule that an LCM was distilled with.
    pub(crate) original_inference_steps: Option<usize>,
    /// Of LCM's boundary conditions.
    pub(crate) timestep_scaling: Option<f64>,
}

impl SchedulerConfig {
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        const READ: [&str; 14] = [
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "prediction_type",
            "timestep_spacing",
            "steps_offset",
            "clip_sample",
            "clip_sample_range",
            "set_alpha_to_one",
            "rescale_betas_zero_snr",
            "use_karras_sigmas",
            "original_inference_steps",
            "timestep_scaling",
        ];
        const FIXED: [(&str, &[&str]); 13] = [
            ("algorithm_type", &["\"dpmsolver++\""]),
            ("dynamic_thresholding_ratio", &["*"]),
            ("final_sigmas_type", &["\"zero\""]),
            ("flow_shift", &["*"]),
            ("interpolation_type", &["\"linear\""]),
            ("lambda_min_clipped", &["*"]),
            ("lower_order_final", &["true"]),
            ("sample_max_value", &["*"]),
            ("skip_prk_steps", &["true"]),
            ("solver_order", &["2"]),
            ("solver_type", &["\"midpoint\""]),
            ("time_shift_type", &["*"]),
            ("timestep_type", &["\"discrete\""]),
        ];
        let document = Document::read(directory.join("scheduler/scheduler_config.json"))?;
        document.refuse_others(&READ, &FIXED)?;
        let config: Self = document.parse()?;
        if config.default_sampler().is_none() {
            return Err(document.unsupported("_class_name", &config.class, CLASSES.join(", ")));
        }
        if config.num_train_timesteps == Some(0) {
            return Err(document.invalid("num_train_timesteps", "is 0"));
        }
        Ok(config)
    }

    /// The sampler that the model comes with.
    ///
    /// `PNDMScheduler` is answered with DDIM, which walks the same schedule: PNDM itself is not implemented.
    pub(crate) fn default_sampler(&self) -> Option<SamplerKind> {
        match self.class.as_str() {
            "DDIMScheduler" => Some(SamplerKind::Ddim),
            "PNDMScheduler" => {
                tracing::warn!("the model's PNDMScheduler is not implemented: its default is ddim");
                Some(SamplerKind::Ddim)
            }
            "EulerDiscreteScheduler" => Some(SamplerKind::Euler),
            "EulerAncestralDiscreteScheduler" => Some(SamplerKind::EulerAncestral),
            "DPMSolverMultistepScheduler" if self.use_karras_sigmas == Some(true) => {
                Some(SamplerKind::DpmPlusPlus2MKarras)
            }
            "DPMSolverMultistepScheduler" => Some(SamplerKind::DpmPlusPlus2M),
            "LCMScheduler" => Some(SamplerKind::Lcm),
            _ => None,
        }
    }
}
