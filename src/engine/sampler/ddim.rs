//! Solvers that walk the training timesteps themselves: DDIM (arXiv 2010.02502), DDPM (2006.11239), LCM (2310.04378).

use super::Trajectory;
use super::schedule::{Level, Schedule};
use super::step::{ESTIMATE, NOISE, SAMPLE, StepNoise, StepPlan};
use crate::engine::config::{SchedulerConfig, Spacing, Variance};

/// `timestep_scaling` of models that do not say.
const LCM_TIMESTEP_SCALING: f64 = 10.0;
/// Standard deviation of the data that consistency models assume.
const LCM_SIGMA_DATA: f64 = 0.5;
/// The least variance that DDPM adds.
const DDPM_VARIANCE_MIN: f64 = 1e-20;

/// Integer timesteps, most noise first.
fn timesteps(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Vec<usize> {
    let spacing = config.timestep_spacing.unwrap_or(Spacing::Leading);
    let timesteps = schedule.timesteps(steps, spacing, config.steps_offset);
    timesteps.into_iter().map(|timestep| schedule.index(timestep.round_ties_even())).collect()
}

fn clip(config: &SchedulerConfig, unless_said: bool) -> Option<f64> {
    config.clip_sample.unwrap_or(unless_said).then(|| config.clip_sample_range.unwrap_or(1.0))
}

/// What the three have in common.
fn step(schedule: &Schedule, timestep: usize) -> StepPlan {
    let level = Level::of_variance(schedule.alphas[timestep]);
    StepPlan {
        timestep: timestep as f32,
        input_scale: 1.0,
        estimate: level.estimate(schedule.prediction),
        noising: level.noising(),
        ..StepPlan::default()
    }
}

/// Equation 12 of arXiv 2010.02502 with a sigma of 0.
pub(super) fn ddim(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let alpha_final = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { schedule.alphas[0] };
    let stride = schedule.len() / steps;
    let plan = |timestep: usize| {
        let alpha_next = timestep.checked_sub(stride).map_or(alpha_final, |next| schedule.alphas[next]);
        let (level, next) = (Level::of_variance(schedule.alphas[timestep]), Level::of_variance(alpha_next));
        StepPlan {
            clip: clip(config, true),
            next: ESTIMATE * next.alpha + level.noise(schedule.prediction) * next.sigma,
            ..step(schedule, timestep)
        }
    };
    Trajectory { initial_scale: 1.0, steps: timesteps(schedule, steps, config).into_iter().map(plan).collect() }
}

/// Equations 6 and 7 of arXiv 2006.11239 between the timesteps that are visited.
pub(super) fn ddpm(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let timesteps = timesteps(schedule, steps, config);
    let plan = |index: usize| {
        let timestep = timesteps[index];
        let alpha = schedule.alphas[timestep];
        let alpha_next = timesteps.get(index + 1).map_or(1.0, |next| schedule.alphas[*next]);
        let beta = 1.0 - alpha / alpha_next;
        let mean = ESTIMATE * (alpha_next.sqrt() * beta / (1.0 - alpha))
            + SAMPLE * ((alpha / alpha_next).sqrt() * (1.0 - alpha_next) / (1.0 - alpha));
        let variance = match config.variance_type.unwrap_or_default() {
            Variance::Small => ((1.0 - alpha_next) / (1.0 - alpha) * beta).max(DDPM_VARIANCE_MIN),
            Variance::Large => beta,
        };
        let (noise, draws_noise) =
            if timestep == 0 { (0.0, StepNoise::None) } else { (variance.sqrt(), StepNoise::Drawn) };
        StepPlan { clip: clip(config, true), next: mean + NOISE * noise, draws_noise, ..step(schedule, timestep) }
    };
    Trajectory { initial_scale: 1.0, steps: (0..timesteps.len()).map(plan).collect() }
}

/// Multistep consistency sampling, algorithm 3 of arXiv 2310.04378: every step goes to the end; all but the last then
/// go back to the next timestep with new noise. The model was distilled with a schedule of `distilled` steps, of which
/// the last `remaining` are used.
pub(super) fn lcm(
    schedule: &Schedule,
    steps: usize,
    config: &SchedulerConfig,
    [distilled, remaining]: [usize; 2],
) -> Trajectory {
    let stride = schedule.len() / distilled;
    let timesteps: Vec<usize> = (0..steps)
        .map(|index| {
            let skipped = (index as f64 * (remaining as f64 / steps as f64)).floor() as usize;
            (remaining - skipped) * stride - 1
        })
        .collect();
    let plan = |index: usize| {
        let timestep = timesteps[index];
        let scaled = timestep as f64 * config.timestep_scaling.unwrap_or(LCM_TIMESTEP_SCALING);
        let variance = scaled * scaled + LCM_SIGMA_DATA * LCM_SIGMA_DATA;
        let denoised = ESTIMATE * (scaled / variance.sqrt()) + SAMPLE * (LCM_SIGMA_DATA * LCM_SIGMA_DATA / variance);
        let (next, draws_noise) = match timesteps.get(index + 1) {
            Some(next) => {
                let next = Level::of_variance(schedule.alphas[*next]);
                (denoised * next.alpha + NOISE * next.sigma, StepNoise::Drawn)
            }
            None => (denoised, StepNoise::None),
        };
        StepPlan { clip: clip(config, false), next, draws_noise, ..step(schedule, timestep) }
    };
    Trajectory { initial_scale: 1.0, steps: (0..steps).map(plan).collect() }
}
