//! Solvers in noise over picture, as k-diffusion has them: Euler, Euler ancestral and Heun; arXiv 2206.00364.

use super::Trajectory;
use super::schedule::{Schedule, spaced};
use super::step::{Combination, ESTIMATE, MEMORY, NOISE, Noising, OUTPUT, SAMPLE, StepNoise, StepPlan, ZERO};
use crate::engine::config::{FinalSigma, Interpolation, Prediction, SchedulerConfig, Spacing};
use crate::job::SigmaSpacing;

/// Where the steps of a solver start, and where the last one ends.
struct Ladder {
    timesteps: Vec<f64>,
    /// As many as there are timesteps and one more.
    sigmas: Vec<f64>,
    initial_scale: f64,
}

fn ladder(
    schedule: &Schedule,
    spacing: SigmaSpacing,
    steps: usize,
    config: &SchedulerConfig,
    (interpolation, sigma_final): (Interpolation, f64),
) -> Ladder {
    let timestep_spacing = config.timestep_spacing.unwrap_or(Spacing::Linspace);
    let mut timesteps = schedule.timesteps(steps, timestep_spacing, config.steps_offset);
    let mut sigmas: Vec<f64> = match interpolation {
        Interpolation::Linear => timesteps.iter().map(|timestep| schedule.sigma_at(*timestep)).collect(),
        Interpolation::LogLinear => {
            let (high, low) = (schedule.sigma_max().ln(), schedule.sigmas[0].ln());
            (0..=steps).map(|index| (high + (low - high) * index as f64 / steps as f64).exp()).collect()
        }
    };
    if let Some(spaced) = spaced(spacing, (sigmas[0], sigmas[sigmas.len() - 1]), steps, config) {
        timesteps = spaced.iter().map(|sigma| schedule.timestep_of(*sigma)).collect();
        sigmas = spaced;
    }
    sigmas.push(sigma_final);
    let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
    let sigma_max = sigmas.iter().copied().fold(0.0, f64::max);
    let initial_scale = match timestep_spacing {
        Spacing::Linspace | Spacing::Trailing => sigma_max,
        Spacing::Leading => (sigma_max * sigma_max + 1.0).sqrt(),
    };
    Ladder { timesteps, sigmas, initial_scale }
}

/// The picture, from latents `picture + sigma * noise`.
fn estimate(sigma: f64, prediction: Prediction) -> Combination {
    let variance = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => SAMPLE - OUTPUT * sigma,
        Prediction::Velocity => SAMPLE * (1.0 / variance) - OUTPUT * (sigma / variance.sqrt()),
        Prediction::Sample => OUTPUT,
        Prediction::Flow => (SAMPLE - OUTPUT * sigma) * (1.0 / (1.0 + sigma)),
    }
}

/// The derivative of the latents by the noise in them.
fn derivative(sigma: f64) -> Combination {
    (SAMPLE - ESTIMATE) * (1.0 / sigma)
}

/// What the three have in common.
fn step(schedule: &Schedule, timestep: f64, sigma: f64) -> StepPlan {
    StepPlan {
        timestep: timestep as f32,
        input_scale: 1.0 / (sigma * sigma + 1.0).sqrt(),
        estimate: estimate(sigma, schedule.prediction),
        noising: Noising { signal: 1.0, noise: sigma },
        ..StepPlan::default()
    }
}

/// Algorithm 2 of arXiv 2206.00364 without churn and without its second order.
pub(super) fn euler(schedule: &Schedule, spacing: SigmaSpacing, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let sigma_final = match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => schedule.sigmas[0],
    };
    let ends = (config.interpolation_type, sigma_final);
    let Ladder { timesteps, sigmas, initial_scale } = ladder(schedule, spacing, steps, config, ends);
    let plan = |index: usize| {
        let (sigma, next) = (sigmas[index], sigmas[index + 1]);
        StepPlan { next: SAMPLE + derivative(sigma) * (next - sigma), ..step(schedule, timesteps[index], sigma) }
    };
    Trajectory { initial_scale, steps: (0..steps).map(plan).collect() }
}

/// k-diffusion's `sample_euler_ancestral`: too far towards the picture, and back with new noise.
pub(super) fn ancestral(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let Ladder { timesteps, sigmas, initial_scale } =
        ladder(schedule, SigmaSpacing::Trained, steps, config, (Interpolation::Linear, 0.0));
    let plan = |index: usize| {
        let (sigma, next) = (sigmas[index], sigmas[index + 1]);
        let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0).sqrt();
        let down = (next * next - up * up).max(0.0).sqrt();
        StepPlan {
            next: SAMPLE + derivative(sigma) * (down - sigma) + NOISE * up,
            draws_noise: StepNoise::Drawn,
            ..step(schedule, timesteps[index], sigma)
        }
    };
    Trajectory { initial_scale, steps: (0..steps).map(plan).collect() }
}

/// Algorithm 1 of arXiv 2206.00364. Every interval but the last takes two calls of the model.
///
/// Memory: the sample that an interval started from, with half of the step that the first call makes.
pub(super) fn heun(schedule: &Schedule, spacing: SigmaSpacing, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let Ladder { timesteps, sigmas, initial_scale } =
        ladder(schedule, spacing, steps, config, (Interpolation::Linear, 0.0));
    let clip = config.clip_sample.unwrap_or(false).then(|| config.clip_sample_range.unwrap_or(1.0));
    let plan = |interval: usize| {
        let (sigma, next) = (sigmas[interval], sigmas[interval + 1]);
        let width = next - sigma;
        let predictor = StepPlan {
            clip,
            next: SAMPLE + derivative(sigma) * width,
            memory: vec![SAMPLE + derivative(sigma) * (0.5 * width)],
            ..step(schedule, timesteps[interval], sigma)
        };
        let corrector = timesteps.get(interval + 1).map(|timestep| StepPlan {
            clip,
            next: MEMORY[0] + derivative(next) * (0.5 * width),
            memory: vec![ZERO],
            ..step(schedule, *timestep, next)
        });
        std::iter::once(predictor).chain(corrector)
    };
    Trajectory { initial_scale, steps: (0..steps).flat_map(plan).collect() }
}
