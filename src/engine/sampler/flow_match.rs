//! Euler's method along the straight lines of flow matching; Stable Diffusion 3, arXiv 2403.03206, and FLUX.

use super::schedule::{Level, spaced};
use super::step::{OUTPUT, SAMPLE, StepPlan};
use super::{FlowSigmas, PlanOptions, Trajectory};
use crate::engine::config::{Prediction, SchedulerConfig, TimeShift};

/// The noise level `sigma`, moved towards noise (`shift` above 1) or away; equation 23 of arXiv 2403.03206.
pub(super) fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// The shift for a picture of so many tokens: `mu` lies on the line through the base and the maximum.
pub(super) fn dynamic_shift(config: &SchedulerConfig, image_tokens: usize) -> f64 {
    let (base, max) = (config.base_shift.unwrap_or(0.5), config.max_shift.unwrap_or(1.15));
    let (base_tokens, max_tokens) = (config.base_image_seq_len as f64, config.max_image_seq_len as f64);
    let slope = (max - base) / (max_tokens - base_tokens);
    let mu = image_tokens as f64 * slope + (base - slope * base_tokens);
    match config.time_shift_type {
        TimeShift::Exponential => mu.exp(),
        TimeShift::Linear => mu,
    }
}

/// Noise levels stretched so that the last is `terminal`; not possible with one level of nothing but noise.
pub(super) fn stretched_to(terminal: f64, sigmas: Vec<f64>) -> Vec<f64> {
    let scale = sigmas.last().map_or(0.0, |last| (1.0 - last) / (1.0 - terminal));
    if scale == 0.0 {
        return sigmas;
    }
    sigmas.into_iter().map(|sigma| 1.0 - (1.0 - sigma) / scale).collect()
}

/// The steps of `FlowMatchEulerDiscreteScheduler`.
pub(super) fn plan(steps: usize, config: &SchedulerConfig, options: &PlanOptions) -> Trajectory {
    let count = config.train_timesteps() as f64;
    let fixed = config.shift.unwrap_or(1.0);
    let shift = if config.use_dynamic_shifting { dynamic_shift(config, options.image_tokens) } else { fixed };
    let (max, min) = match options.flow_sigmas {
        FlowSigmas::Pipeline => (1.0, 1.0 / steps as f64),
        // Levels of the training are shifted already, and will be again.
        FlowSigmas::Scheduler if config.use_dynamic_shifting => (1.0, 1.0 / count),
        FlowSigmas::Scheduler => (1.0, shifted(1.0 / count, fixed)),
    };
    let width = if steps == 1 { 0.0 } else { (max - min) / (steps - 1) as f64 };
    let mut sigmas: Vec<f64> = (0..steps).map(|index| shifted(max - width * index as f64, shift)).collect();
    if let Some(terminal) = config.terminal() {
        sigmas = stretched_to(terminal, sigmas);
    }
    if let Some(spaced) = spaced(config.sigma_spacing(), (sigmas[0], sigmas[steps - 1]), steps, config) {
        sigmas = spaced;
    }
    sigmas.push(0.0);
    let plan = |index: usize| {
        let level = Level::of_flow(sigmas[index]);
        StepPlan {
            timestep: (sigmas[index] * count) as f32,
            input_scale: 1.0,
            estimate: level.estimate(Prediction::Flow),
            next: SAMPLE + OUTPUT * (sigmas[index + 1] - sigmas[index]),
            noising: level.noising(),
            ..StepPlan::default()
        }
    };
    Trajectory { initial_scale: 1.0, steps: (0..steps).map(plan).collect() }
}
