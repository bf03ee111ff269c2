//! Samplers as plain data: every step of every sampler is a set of linear combinations known in advance.
//!
//! A [`Trajectory`] is worked out once, in f64, from the model's scheduler configuration; what is left for each step is
//! [`StepPlan::advance`], a function from one [`SamplerState`] to the next. The numbers are those of diffusers 0.42's
//! scheduler classes when made `from_config`, in text-to-image and, from a `strength` on, in image-to-image pipelines.
//! Noise is drawn elsewhere.

mod ddim;
mod dpm_solver;
mod euler;
mod flow_match;
mod pndm;
mod schedule;
mod step;
#[cfg(test)]
mod tests;
mod unipc;

use candle_core::{Result, Tensor};

use super::config::SchedulerConfig;
use crate::job::SamplerKind;
use schedule::Schedule;
#[cfg(test)]
use step::StepNoise;
pub(crate) use step::{MEMORY_SLOTS_MAX, Noising, SamplerState, StepPlan};

/// `original_inference_steps` of models that do not say.
const LCM_ORIGINAL_STEPS: usize = 50;

/// All steps of one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trajectory {
    /// Initial latents that come from nothing are this times noise of unit variance.
    pub(crate) initial_scale: f64,
    /// In order; one call of the model each. Their number is not always that of the request: PNDM takes one more, Heun
    /// two for all but the last, and a `strength` leaves some out.
    pub(crate) steps: Vec<StepPlan>,
}

/// What decides a trajectory besides sampler, steps and configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PlanOptions {
    /// For image-to-image: the share of the steps that is taken, above 0 and up to 1.
    pub(crate) strength: Option<f64>,
    /// What that share is of.
    pub(crate) shortened: Shortened,
    /// Tokens of the packed latents, `(h / 16) * (w / 16)` of a picture; what flow matching shifts by if it does.
    pub(crate) image_tokens: usize,
    /// Who picks the noise levels of flow matching.
    pub(crate) flow_sigmas: FlowSigmas,
}

/// What a strength shortens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shortened {
    /// The steps of the request: the first ones are left out.
    #[default]
    Steps,
    /// The schedule that an LCM was distilled with: all steps of the request are taken, over what remains of it.
    Schedule,
}

/// Who picks the noise levels of flow matching before they are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FlowSigmas {
    /// The scheduler, down to its least noise: Stable Diffusion 3.
    #[default]
    Scheduler,
    /// The pipeline, evenly from 1 to one over the steps: FLUX.
    Pipeline,
}

/// What a sampler cannot do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A number of steps that the schedule does not have.
    #[error("{sampler} takes 1 to {steps_max} steps of this model, not {steps}")]
    TooManySteps {
        /// The sampler.
        sampler: SamplerKind,
        /// What was asked for.
        steps: usize,
        /// What is possible.
        steps_max: usize,
    },
    /// A sampler that does not suit the model.
    #[error("{sampler} does not suit this model, but these do: {}", SamplerKind::list(available))]
    Unavailable {
        /// The sampler.
        sampler: SamplerKind,
        /// Those that suit.
        available: Vec<SamplerKind>,
    },
    /// A strength that leaves nothing to do, or is none.
    #[error("strength {strength} takes none of {steps} steps; it has to be above 0, up to 1")]
    NoSteps {
        /// What was asked for.
        strength: f64,
        /// What was asked for.
        steps: usize,
    },
}

impl Trajectory {
    /// The steps that `kind` takes for a request of `steps` steps.
    ///
    /// # Errors
    /// [`PlanError`]
    pub(crate) fn plan(
        kind: SamplerKind,
        steps: usize,
        config: &SchedulerConfig,
        options: &PlanOptions,
    ) -> std::result::Result<Self, PlanError> {
        let available = config.available_samplers();
        if !available.contains(&kind) {
            return Err(PlanError::Unavailable { sampler: kind, available });
        }
        let count = config.train_timesteps();
        let (skipping, shortening) = match (kind, options.shortened) {
            (SamplerKind::Lcm, Shortened::Schedule) => (None, options.strength),
            _ => (options.strength, None),
        };
        let distilled = config.original_inference_steps.unwrap_or(LCM_ORIGINAL_STEPS).min(count);
        let remaining = (distilled as f64 * shortening.unwrap_or(1.0)) as usize;
        let steps_max = match kind {
            SamplerKind::Lcm => remaining,
            // One training timestep more is needed for the spacing.
            SamplerKind::DpmPlusPlus2M(_)
            | SamplerKind::DpmPlusPlus2MSde(_)
            | SamplerKind::DpmPlusPlusSde(_)
            | SamplerKind::UniPc(_) => count - 1,
            SamplerKind::Pndm
            | SamplerKind::Ddim
            | SamplerKind::Ddpm
            | SamplerKind::EulerAncestral
            | SamplerKind::FlowMatchEuler
            | SamplerKind::Euler(_)
            | SamplerKind::Heun(_) => count,
        };
        if !(1..=steps_max).contains(&steps) {
            return Err(PlanError::TooManySteps { sampler: kind, steps, steps_max });
        }
        let skipped = skipped(kind, steps, skipping)?;
        let schedule = Schedule::new(kind, config);
        let trajectory = match kind {
            SamplerKind::Pndm => pndm::plan(&schedule, steps, skipped, config),
            SamplerKind::Ddim => ddim::ddim(&schedule, steps, config),
            SamplerKind::Ddpm => ddim::ddpm(&schedule, steps, config),
            SamplerKind::Lcm => ddim::lcm(&schedule, steps, config, [distilled, remaining]),
            SamplerKind::Euler(spacing) => euler::euler(&schedule, spacing, steps, config),
            SamplerKind::EulerAncestral => euler::ancestral(&schedule, steps, config),
            SamplerKind::Heun(spacing) => euler::heun(&schedule, spacing, steps, config),
            SamplerKind::DpmPlusPlus2M(_) | SamplerKind::DpmPlusPlus2MSde(_) => {
                dpm_solver::multistep(&schedule, kind, steps, skipped, config, options)
            }
            SamplerKind::DpmPlusPlusSde(_) => dpm_solver::singlestep(&schedule, kind, steps, skipped, config, options),
            SamplerKind::UniPc(_) => unipc::plan(&schedule, kind, steps, skipped, config, options),
            SamplerKind::FlowMatchEuler => flow_match::plan(steps, config, options),
        };
        Ok(Self { steps: trajectory.steps.into_iter().skip(skipped).collect(), ..trajectory })
    }

    /// The state before the first step of a picture that comes from `noise` of unit variance, `(1, c, h, w)`.
    pub(crate) fn start(&self, noise: &Tensor) -> Result<SamplerState> {
        self.state((noise * self.initial_scale)?, noise.clone())
    }

    /// The same for image-to-image: from the latents of a picture and noise of unit variance, both `(1, c, h, w)`.
    pub(crate) fn start_from(&self, picture: &Tensor, noise: &Tensor) -> Result<SamplerState> {
        let noising = self.steps.first().map(|step| step.noising).unwrap_or_default();
        self.state(noising.apply(picture, noise)?, picture.clone())
    }

    fn state(&self, latents: Tensor, estimate: Tensor) -> Result<SamplerState> {
        let slots = self.steps.first().map_or(0, |step| step.memory.len());
        let memory = (0..slots).map(|_| latents.zeros_like()).collect::<Result<_>>()?;
        Ok(SamplerState { latents, estimate, memory })
    }
}

/// The number that a client wrote: the nearest one of 32 bits is a little less than 0.7, and takes a step less.
pub(crate) fn as_written(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}

/// Calls of the model that `strength` leaves out; `get_timesteps` of diffusers' image-to-image pipelines, where Stable
/// Diffusion cuts the taken steps to an integer, SD3 and FLUX the skipped ones.
fn skipped(kind: SamplerKind, steps: usize, strength: Option<f64>) -> std::result::Result<usize, PlanError> {
    let Some(strength) = strength else { return Ok(0) };
    let taken = (steps as f64 * strength).min(steps as f64);
    let flow_match = kind == SamplerKind::FlowMatchEuler;
    let skipped = if flow_match { (steps as f64 - taken) as usize } else { steps - taken as usize };
    if !(strength > 0.0 && strength <= 1.0) || skipped == steps {
        return Err(PlanError::NoSteps { strength, steps });
    }
    Ok(if matches!(kind, SamplerKind::Heun(_)) { 2 * skipped } else { skipped })
}
