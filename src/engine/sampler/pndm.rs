//! PNDM without its Runge-Kutta steps (arXiv 2202.09778): linear multistep over the last four model outputs.

use super::Trajectory;
use super::schedule::{Level, Schedule};
use super::step::{Combination, MEMORY, OUTPUT, SAMPLE, StepPlan, ZERO};
use crate::engine::config::{Prediction, SchedulerConfig, Spacing};

/// One step more than asked: the second timestep is visited twice, first to correct the first step.
///
/// Memory: three earlier model outputs, latest first, and the sample of the first step.
pub(super) fn plan(schedule: &Schedule, steps: usize, skipped: usize, config: &SchedulerConfig) -> Trajectory {
    let spacing = config.timestep_spacing.unwrap_or(Spacing::Leading);
    let mut timesteps: Vec<usize> = schedule
        .timesteps(steps, spacing, config.steps_offset)
        .into_iter()
        .map(|timestep| schedule.index(timestep.round_ties_even()))
        .collect();
    if let Some(second) = timesteps.get(1).copied() {
        timesteps.insert(1, second);
    }
    let alpha_final = if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { schedule.alphas[0] };
    let stride = schedule.len() / steps;
    let plan = |index: usize| {
        let timestep = timesteps[index];
        let level = Level::of_variance(schedule.alphas[timestep]);
        let taken = index.saturating_sub(skipped);
        let [first, second, third, saved] = MEMORY;
        // Adams-Bashforth of growing order, equation 12.
        let (output, memory) = match taken {
            0 => (OUTPUT, vec![OUTPUT, ZERO, ZERO, SAMPLE]),
            1 => ((OUTPUT + first) * (1.0 / 2.0), vec![first, ZERO, ZERO, ZERO]),
            2 => ((OUTPUT * 3.0 - first) * (1.0 / 2.0), vec![OUTPUT, first, ZERO, ZERO]),
            3 => ((OUTPUT * 23.0 - first * 16.0 + second * 5.0) * (1.0 / 12.0), vec![OUTPUT, first, second, ZERO]),
            _ => (
                (OUTPUT * 55.0 - first * 59.0 + second * 37.0 - third * 9.0) * (1.0 / 24.0),
                vec![OUTPUT, first, second, ZERO],
            ),
        };
        let (sample, from, to) = match taken {
            1 => (saved, (timestep + stride).min(schedule.len() - 1), Some(timestep)),
            _ => (SAMPLE, timestep, timestep.checked_sub(stride)),
        };
        let alpha_next = to.map_or(alpha_final, |to| schedule.alphas[to]);
        StepPlan {
            timestep: timestep as f32,
            input_scale: 1.0,
            estimate: level.estimate(schedule.prediction),
            next: transfer(sample, output, schedule.alphas[from], alpha_next, schedule.prediction),
            memory,
            noising: level.noising(),
            ..StepPlan::default()
        }
    };
    Trajectory { initial_scale: 1.0, steps: (0..timesteps.len()).map(plan).collect() }
}

/// Equation 11: from the share `alpha` of the picture's variance to `alpha_next`.
fn transfer(
    sample: Combination,
    output: Combination,
    alpha: f64,
    alpha_next: f64,
    prediction: Prediction,
) -> Combination {
    let (beta, beta_next) = (1.0 - alpha, 1.0 - alpha_next);
    let noise = match prediction {
        Prediction::Epsilon | Prediction::Sample | Prediction::Flow => output,
        Prediction::Velocity => output * alpha.sqrt() + sample * beta.sqrt(),
    };
    let divisor = alpha * beta_next.sqrt() + (alpha * beta * alpha_next).sqrt();
    sample * (alpha_next / alpha).sqrt() - noise * ((alpha_next - alpha) / divisor)
}
