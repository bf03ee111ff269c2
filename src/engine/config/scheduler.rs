//! `scheduler/scheduler_config.json`: what a sampler is made from.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Document;
use crate::engine::error::LoadError;
use crate::job::{SamplerKind, SigmaSpacing};

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
    /// The way from the picture to the noise.
    #[serde(rename = "flow_prediction")]
    Flow,
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
pub(super) const CLASSES: [&str; 11] = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
];

/// How Euler's noise levels follow from timesteps.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Interpolation {
    /// From those of the training timesteps around.
    #[default]
    Linear,
    /// Not at all: their logarithms are evenly spaced.
    LogLinear,
}

/// Where the last step ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinalSigma {
    /// Without noise.
    #[default]
    Zero,
    /// With the noise of the first training timestep.
    SigmaMin,
}

/// What DPM-Solver++ solves.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// The ordinary differential equation.
    #[serde(rename = "dpmsolver++")]
    Ode,
    /// The stochastic one: every step brings new noise.
    #[serde(rename = "sde-dpmsolver++")]
    Sde,
}

/// The variant of a solver; each class reads what it does not have as its own default.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SolverType {
    /// DPM-Solver++'s default.
    #[default]
    Midpoint,
    /// DPM-Solver++.
    Heun,
    /// DEIS.
    LogRho,
    /// UniPC, `B(h) = h`.
    Bh1,
    /// UniPC's default, `B(h) = exp(h) - 1`.
    Bh2,
}

/// The variance of the noise that DDPM adds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) enum Variance {
    /// That of the step back, given the picture.
    #[default]
    #[serde(rename = "fixed_small", alias = "fixed_small_log")]
    Small,
    /// Beta.
    #[serde(rename = "fixed_large")]
    Large,
}

/// What `mu` is to a dynamic shift.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TimeShift {
    /// Its logarithm.
    #[default]
    Exponential,
    /// The shift itself.
    Linear,
}

/// Flow matching has a class of its own.
const FLOW_MATCH_CLASS: &str = "FlowMatchEulerDiscreteScheduler";
/// `num_train_timesteps` of every class.
const TRAIN_TIMESTEPS: usize = 1000;

/// `scheduler/scheduler_config.json`: what a sampler is made from.
///
/// A field that the file leaves out is `None` where diffusers' scheduler classes differ in what they take instead.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub(crate) struct SchedulerConfig {
    /// The class that the model comes with.
    #[serde(rename = "_class_name")]
    pub(crate) class: String,
    /// Timesteps of the training.
    pub(crate) num_train_timesteps: Option<usize>,
    /// The first beta.
    pub(crate) beta_start: Option<f64>,
    /// The last beta.
    pub(crate) beta_end: Option<f64>,
    /// How betas lie between them.
    pub(crate) beta_schedule: Option<BetaSchedule>,
    /// Whether betas are rescaled so that the last timestep is nothing but noise.
    pub(crate) rescale_betas_zero_snr: bool,
    /// What the model's output means.
    pub(crate) prediction_type: Prediction,
    /// Which timesteps are visited.
    pub(crate) timestep_spacing: Option<Spacing>,
    /// Added to timesteps of the spacing `leading`.
    pub(crate) steps_offset: usize,
    /// Whether the picture is clamped at each step (DDIM, DDPM, Heun and LCM).
    pub(crate) clip_sample: Option<bool>,
    /// To which absolute value.
    pub(crate) clip_sample_range: Option<f64>,
    /// Whether the last step ends without any noise (DDIM and PNDM).
    pub(crate) set_alpha_to_one: Option<bool>,
    /// Whether PNDM goes without Runge-Kutta steps.
    pub(crate) skip_prk_steps: Option<bool>,
    /// What noise DDPM adds.
    pub(crate) variance_type: Option<Variance>,
    /// Whether noise levels have the spacing of Karras et al.
    pub(crate) use_karras_sigmas: Option<bool>,
    /// Whether their logarithms are evenly spaced.
    pub(crate) use_exponential_sigmas: Option<bool>,
    /// Whether they are spaced by the beta distribution.
    pub(crate) use_beta_sigmas: Option<bool>,
    /// The least of the three spacings.
    pub(crate) sigma_min: Option<f64>,
    /// The most of the three spacings.
    pub(crate) sigma_max: Option<f64>,
    /// Where the last step ends (Euler, DPM-Solver++ and UniPC).
    pub(crate) final_sigmas_type: FinalSigma,
    /// How Euler's noise levels follow from timesteps.
    pub(crate) interpolation_type: Interpolation,
    /// What DPM-Solver++ solves.
    pub(crate) algorithm_type: Option<Algorithm>,
    /// The order of DPM-Solver++ and UniPC.
    pub(crate) solver_order: Option<usize>,
    /// The variant of DPM-Solver++ and UniPC.
    pub(crate) solver_type: SolverType,
    /// Whether the last of a few steps is of first order (DPM-Solver++ and UniPC).
    pub(crate) lower_order_final: Option<bool>,
    /// Whether the last step always is (DPM-Solver++).
    pub(crate) euler_at_final: bool,
    /// The half log signal-to-noise ratio below which timesteps are not visited (DPM-Solver++).
    pub(crate) lambda_min_clipped: Option<f64>,
    /// Steps that UniPC does not correct.
    pub(crate) disable_corrector: Vec<usize>,
    /// Steps of the schedule that an LCM was distilled with.
    pub(crate) original_inference_steps: Option<usize>,
    /// Of LCM's boundary conditions.
    pub(crate) timestep_scaling: Option<f64>,
    /// Whether DPM-Solver++ and UniPC walk the straight lines of flow matching.
    pub(crate) use_flow_sigmas: bool,
    /// The shift of their noise levels.
    pub(crate) flow_shift: Option<f64>,
    /// The shift of the noise levels of flow matching.
    pub(crate) shift: Option<f64>,
    /// Whether the shift depends on the size of the picture.
    pub(crate) use_dynamic_shifting: bool,
    /// `mu` at the least size.
    pub(crate) base_shift: Option<f64>,
    /// `mu` at the largest size.
    pub(crate) max_shift: Option<f64>,
    /// The least size in tokens.
    pub(crate) base_image_seq_len: usize,
    /// The largest size in tokens.
    pub(crate) max_image_seq_len: usize,
    /// What `mu` is to the shift.
    pub(crate) time_shift_type: TimeShift,
    /// The last noise level that flow matching stops at.
    pub(crate) shift_terminal: Option<f64>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class: String::new(),
            num_train_timesteps: None,
            beta_start: None,
            beta_end: None,
            beta_schedule: None,
            rescale_betas_zero_snr: false,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            clip_sample: None,
            clip_sample_range: None,
            set_alpha_to_one: None,
            skip_prk_steps: None,
            variance_type: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigma::Zero,
            interpolation_type: Interpolation::Linear,
            algorithm_type: None,
            solver_order: None,
            solver_type: SolverType::Midpoint,
            lower_order_final: None,
            euler_at_final: false,
            lambda_min_clipped: None,
            disable_corrector: Vec::new(),
            original_inference_steps: None,
            timestep_scaling: None,
            use_flow_sigmas: false,
            flow_shift: None,
            shift: None,
            use_dynamic_shifting: false,
            base_shift: None,
            max_shift: None,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
        }
    }
}

/// Fields that decide which samplers there are.
const DECIDING_FIELDS: &str = "_class_name, prediction_type, solver_order, use_flow_sigmas";
/// Fields that decide a trajectory.
const READ: [&str; 37] = [
    "algorithm_type",
    "base_image_seq_len",
    "base_shift",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "max_image_seq_len",
    "max_shift",
    "num_train_timesteps",
    "original_inference_steps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "shift",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "steps_offset",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
];

/// Fields that have to be as they are implemented, or that only matter with one that is refused.
const FIXED: [(&str, &[&str]); 6] = [
    ("dynamic_thresholding_ratio", &["*"]),
    ("predict_x0", &["true"]),
    ("sample_max_value", &["*"]),
    ("solver_type", &["\"midpoint\"", "\"heun\"", "\"logrho\"", "\"bh1\"", "\"bh2\""]),
    ("timestep_type", &["\"discrete\""]),
    ("variance_type", &["\"fixed_small\"", "\"fixed_small_log\"", "\"fixed_large\""]),
];

impl SchedulerConfig {
    /// The last noise level before none, where levels are stretched to it. diffusers takes 0 for nothing said.
    pub(crate) fn terminal(&self) -> Option<f64> {
        self.shift_terminal.filter(|last| *last > 0.0)
    }

    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let file = directory.join("scheduler/scheduler_config.json");
        let text = std::fs::read_to_string(&file).map_err(|source| LoadError::reading(&file, source))?;
        // Python writes a float that JSON does not have where nothing is clipped.
        let text = text.replace("-Infinity", "null");
        let mut fields: Map<String, Value> =
            serde_json::from_str(&text).map_err(|source| LoadError::Json { path: file.clone(), source })?;
        fields.retain(|_, value| !value.is_null());
        Self::from_document(&Document { file, fields })
    }

    fn from_document(document: &Document) -> Result<Self, LoadError> {
        document.refuse_others(&READ, &FIXED)?;
        if document.fields.get("predict_x0") == Some(&false.into()) {
            return Err(document.unsupported("predict_x0", false, "true"));
        }
        let config: Self = document.parse()?;
        let Some(default) = config.default_sampler() else {
            return Err(document.unsupported("_class_name", &config.class, CLASSES.join(", ")));
        };
        let spacings = [config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas];
        let spaced = spacings.into_iter().filter(|spacing| *spacing == Some(true)).count();
        let reasons = [
            ("num_train_timesteps", config.train_timesteps() < 2, "is less than 2"),
            ("steps_offset", config.steps_offset >= config.train_timesteps(), "is not below num_train_timesteps"),
            ("original_inference_steps", config.original_inference_steps == Some(0), "is 0"),
            ("use_karras_sigmas", spaced > 1, "is only one of use_exponential_sigmas and use_beta_sigmas"),
            ("solver_order", !(1..=3).contains(&config.solver_order.unwrap_or(2)), "is not 1 to 3"),
            (
                "max_image_seq_len",
                config.max_image_seq_len <= config.base_image_seq_len,
                "is not above base_image_seq_len",
            ),
            ("shift_terminal", config.shift_terminal.is_some_and(|last| !(0.0..1.0).contains(&last)), "is not 0 to 1"),
        ];
        if let Some((field, _, reason)) = reasons.into_iter().find(|(_, wrong, _)| *wrong) {
            return Err(document.invalid(field, reason));
        }
        let prk_steps = default == SamplerKind::Pndm && config.skip_prk_steps != Some(true);
        if prk_steps {
            return Err(document.unsupported("skip_prk_steps", false, "true"));
        }
        if config.prediction_type == Prediction::Flow && !config.use_flow_sigmas {
            return Err(document.unsupported("use_flow_sigmas", false, "true with prediction_type flow_prediction"));
        }
        let available = config.available_samplers();
        if !available.contains(&default) {
            let Self { class, prediction_type, solver_order, use_flow_sigmas, .. } = &config;
            let fields = format!("{class}, {prediction_type:?}, {solver_order:?}, {use_flow_sigmas}");
            let supported = format!("what one of these takes: {}", SamplerKind::list(&available));
            return Err(document.unsupported(DECIDING_FIELDS, fields, supported));
        }
        Ok(config)
    }

    /// Timesteps of the training.
    pub(crate) fn train_timesteps(&self) -> usize {
        self.num_train_timesteps.unwrap_or(TRAIN_TIMESTEPS)
    }

    /// Whether the model was trained by flow matching and comes with the scheduler for it.
    pub(crate) fn is_flow_match(&self) -> bool {
        self.class == FLOW_MATCH_CLASS
    }

    /// The spacing of noise levels that the model comes with.
    pub(crate) fn sigma_spacing(&self) -> SigmaSpacing {
        if self.use_karras_sigmas == Some(true) {
            SigmaSpacing::Karras
        } else if self.use_exponential_sigmas == Some(true) {
            SigmaSpacing::Exponential
        } else if self.use_beta_sigmas == Some(true) {
            SigmaSpacing::Beta
        } else {
            SigmaSpacing::Trained
        }
    }

    /// The samplers that a model with this configuration can be used with, in the order of [`SamplerKind::ALL`].
    pub(crate) fn available_samplers(&self) -> Vec<SamplerKind> {
        let order = self.solver_order.unwrap_or(2);
        let suits = |kind: &SamplerKind| match kind {
            SamplerKind::FlowMatchEuler => self.is_flow_match(),
            _ if self.is_flow_match() => false,
            SamplerKind::UniPc(spacing) => !self.use_flow_sigmas || *spacing == SigmaSpacing::Trained,
            SamplerKind::DpmPlusPlus2M(spacing)
            | SamplerKind::DpmPlusPlus2MSde(spacing)
            | SamplerKind::DpmPlusPlusSde(spacing) => {
                order <= 2 && (!self.use_flow_sigmas || *spacing == SigmaSpacing::Trained)
            }
            _ if self.use_flow_sigmas => false,
            SamplerKind::Pndm | SamplerKind::EulerAncestral => self.prediction_type != Prediction::Sample,
            SamplerKind::Ddim | SamplerKind::Ddpm | SamplerKind::Lcm | SamplerKind::Euler(_) | SamplerKind::Heun(_) => {
                true
            }
        };
        SamplerKind::ALL.iter().copied().filter(suits).collect()
    }

    /// The sampler that the model comes with.
    pub(crate) fn default_sampler(&self) -> Option<SamplerKind> {
        let spacing = self.sigma_spacing();
        match self.class.as_str() {
            "DDIMScheduler" => Some(SamplerKind::Ddim),
            "DDPMScheduler" => Some(SamplerKind::Ddpm),
            "DPMSolverMultistepScheduler" => Some(match self.algorithm_type {
                Some(Algorithm::Sde) => SamplerKind::DpmPlusPlus2MSde(spacing),
                Some(Algorithm::Ode) | None => SamplerKind::DpmPlusPlus2M(spacing),
            }),
            "DPMSolverSinglestepScheduler" => Some(SamplerKind::DpmPlusPlusSde(spacing)),
            "EulerAncestralDiscreteScheduler" => Some(SamplerKind::EulerAncestral),
            "EulerDiscreteScheduler" => Some(SamplerKind::Euler(spacing)),
            FLOW_MATCH_CLASS => Some(SamplerKind::FlowMatchEuler),
            "HeunDiscreteScheduler" => Some(SamplerKind::Heun(spacing)),
            "LCMScheduler" => Some(SamplerKind::Lcm),
            "PNDMScheduler" => Some(SamplerKind::Pndm),
            "UniPCMultistepScheduler" => Some(SamplerKind::UniPc(spacing)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: Value) -> Result<SchedulerConfig, LoadError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("scheduler")).unwrap();
        // Python's way of writing what JSON cannot.
        let text = fields.to_string().replace("\"-inf\"", "-Infinity");
        std::fs::write(directory.path().join("scheduler/scheduler_config.json"), text).unwrap();
        SchedulerConfig::read(directory.path())
    }

    /// `more` added to what all Stable Diffusions say.
    fn stable_diffusion(class: &str, more: Value) -> Value {
        let mut fields = json!({
            "_class_name": class, "_diffusers_version": "0.42.1", "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000, "prediction_type": "epsilon",
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    }

    #[test]
    fn the_files_of_well_known_models_are_read() {
        let flux = json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "invert_sigmas": false, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000,
            "shift": 3.0, "shift_terminal": null, "stochastic_sampling": false, "time_shift_type": "exponential",
            "use_beta_sigmas": false, "use_dynamic_shifting": true, "use_exponential_sigmas": false,
            "use_karras_sigmas": false,
        });
        let euler = json!({
            "interpolation_type": "linear", "sample_max_value": 1.0, "timestep_spacing": "leading",
            "use_karras_sigmas": false,
        });
        let turbo = json!({
            "final_sigmas_type": "zero", "interpolation_type": "linear", "rescale_betas_zero_snr": false,
            "sample_max_value": 1.0, "sigma_max": null, "sigma_min": null, "timestep_spacing": "trailing",
            "timestep_type": "discrete", "use_karras_sigmas": false,
        });
        let dpm = json!({
            "algorithm_type": "dpmsolver++", "dynamic_thresholding_ratio": 0.995, "euler_at_final": false,
            "final_sigmas_type": "zero", "flow_shift": 1.0, "lambda_min_clipped": "-inf", "lower_order_final": true,
            "rescale_betas_zero_snr": false, "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint",
            "thresholding": false, "time_shift_type": "exponential", "timestep_spacing": "linspace",
            "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
            "use_flow_sigmas": false, "use_karras_sigmas": true, "use_lu_lambdas": false, "variance_type": null,
        });
        let unipc = json!({
            "disable_corrector": [], "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero",
            "lower_order_final": true, "predict_x0": true, "sample_max_value": 1.0, "solver_order": 2, "solver_p": null,
            "solver_type": "bh2", "thresholding": false, "timestep_spacing": "linspace",
        });
        let lcm = json!({
            "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "original_inference_steps": 50,
            "rescale_betas_zero_snr": false, "sample_max_value": 1.0, "thresholding": false, "timestep_scaling": 10.0,
            "timestep_spacing": "leading",
        });
        for (model, fields, sampler) in [
            ("Stable Diffusion 1.5", stable_diffusion("PNDMScheduler", json!({})), "pndm"),
            ("2.1", stable_diffusion("DDIMScheduler", json!({"prediction_type": "v_prediction"})), "ddim"),
            ("XL", stable_diffusion("EulerDiscreteScheduler", euler), "euler"),
            ("XL Turbo", stable_diffusion("EulerAncestralDiscreteScheduler", turbo.clone()), "euler_ancestral"),
            ("Turbo", stable_diffusion("EulerDiscreteScheduler", turbo), "euler"),
            ("DPM++ 2M Karras", stable_diffusion("DPMSolverMultistepScheduler", dpm), "dpmpp_2m_karras"),
            ("UniPC", stable_diffusion("UniPCMultistepScheduler", unipc), "unipc"),
            ("an LCM", stable_diffusion("LCMScheduler", lcm), "lcm"),
            (
                "3.5",
                json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}),
                "flow_match_euler",
            ),
            ("FLUX.1", flux, "flow_match_euler"),
        ] {
            let config = read(fields).unwrap_or_else(|error| panic!("{model}: {error}"));
            assert_eq!(config.default_sampler().unwrap().as_str(), sampler, "{model}");
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let sde = json!({"algorithm_type": "sde-dpmsolver++", "use_beta_sigmas": true});
        let config = read(stable_diffusion("DPMSolverMultistepScheduler", sde)).unwrap();
        assert_eq!(config.default_sampler(), Some(SamplerKind::DpmPlusPlus2MSde(SigmaSpacing::Beta)));

        for (class, more, field) in [
            ("PNDMScheduler", json!({"skip_prk_steps": false}), "skip_prk_steps"),
            ("DDPMScheduler", json!({"variance_type": "learned_range"}), "variance_type"),
            ("DDIMScheduler", json!({"thresholding": true}), "thresholding"),
            ("DDIMScheduler", json!({"trained_betas": [0.1]}), "trained_betas"),
            ("EulerDiscreteScheduler", json!({"timestep_type": "continuous"}), "timestep_type"),
            ("UniPCMultistepScheduler", json!({"predict_x0": false}), "predict_x0"),
            ("UniPCMultistepScheduler", json!({"solver_order": 4}), "solver_order"),
            ("UniPCMultistepScheduler", json!({"prediction_type": "flow_prediction"}), "use_flow_sigmas"),
            ("DPMSolverMultistepScheduler", json!({"use_lu_lambdas": true}), "use_lu_lambdas"),
            ("DPMSolverMultistepScheduler", json!({"solver_order": 3}), DECIDING_FIELDS),
            ("FlowMatchEulerDiscreteScheduler", json!({"invert_sigmas": true}), "invert_sigmas"),
            ("FlowMatchEulerDiscreteScheduler", json!({"stochastic_sampling": true}), "stochastic_sampling"),
            ("FlowMatchEulerDiscreteScheduler", json!({"max_image_seq_len": 256}), "max_image_seq_len"),
            ("LCMScheduler", json!({"original_inference_steps": 0}), "original_inference_steps"),
            ("HeunDiscreteScheduler", json!({"use_karras_sigmas": true, "use_beta_sigmas": true}), "use_karras_sigmas"),
            ("DDIMScheduler", json!({"num_train_timesteps": 1}), "num_train_timesteps"),
            ("KDPM2DiscreteScheduler", json!({}), "_class_name"),
        ] {
            let error = read(stable_diffusion(class, more)).unwrap_err();
            if let LoadError::Unsupported { field: named, .. } | LoadError::Invalid { field: named, .. } = &error {
                assert_eq!(named, field, "{class}");
            } else {
                panic!("{class}, {field}: {error}");
            }
        }
    }
}
