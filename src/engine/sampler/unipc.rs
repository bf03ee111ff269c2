//! UniPC (arXiv 2302.04867): a multistep predictor whose steps are corrected when the next model output is there.

use super::dpm_solver::Ladder;
use super::schedule::{Level, Schedule};
use super::step::{Combination, ESTIMATE, MEMORY, SAMPLE, StepPlan, ZERO};
use super::{PlanOptions, Trajectory};
use crate::engine::config::{SchedulerConfig, SolverType};
use crate::job::SamplerKind;

/// The steps of `UniPCMultistepScheduler`: each corrects the step before and predicts the next.
///
/// Memory: the corrected sample of the step before and `order` estimates, latest first.
pub(super) fn plan(
    schedule: &Schedule,
    kind: SamplerKind,
    steps: usize,
    skipped: usize,
    config: &SchedulerConfig,
    options: &PlanOptions,
) -> Trajectory {
    let ladder = Ladder::new(schedule, kind, steps, config, options);
    let (count, levels) = (ladder.steps(), &ladder.levels);
    let order_max = config.solver_order.unwrap_or(2);
    let order = |index: usize| {
        let left = if config.lower_order_final.unwrap_or(true) || levels[index + 1].sigma == 0.0 {
            count - index
        } else {
            order_max
        };
        // There are only so many estimates.
        order_max.min(left).min(index.saturating_sub(skipped) + 1)
    };
    let [last_sample, ..] = MEMORY;
    let remembered = &MEMORY[1..=order_max];
    let plan = |index: usize| {
        let corrects = index > skipped && !config.disable_corrector.contains(&(index - 1));
        let sample = if corrects {
            let step = Step { levels, index: index - 1, order: order(index - 1), solver_type: config.solver_type };
            step.corrected(last_sample, remembered, ESTIMATE)
        } else {
            SAMPLE
        };
        let estimates: Vec<Combination> = [&[ESTIMATE], &remembered[..order_max - 1]].concat();
        let step = Step { levels, index, order: order(index), solver_type: config.solver_type };
        StepPlan {
            next: step.predicted(sample, &estimates),
            memory: [&[sample], estimates.as_slice()].concat(),
            ..ladder.step(index, schedule)
        }
    };
    Trajectory { initial_scale: 1.0, steps: (0..count).map(plan).collect() }
}

/// The step from `levels[index]` to the next.
struct Step<'a> {
    levels: &'a [Level],
    index: usize,
    order: usize,
    solver_type: SolverType,
}

impl Step<'_> {
    /// `h`: in half log signal-to-noise ratio.
    fn width(&self) -> f64 {
        self.levels[self.index + 1].lambda() - self.levels[self.index].lambda()
    }

    /// `B(h)`, for the model that predicts the picture.
    fn b(&self) -> f64 {
        let h = -self.width();
        match self.solver_type {
            SolverType::Bh1 => h,
            SolverType::Bh2 | SolverType::Midpoint | SolverType::Heun | SolverType::LogRho => h.exp_m1(),
        }
    }

    /// Where the known estimates lie, in widths from the start of the step: `r` of earlier ones, then 1.
    fn ratios(&self) -> Vec<f64> {
        let lambda = |index: usize| self.levels[index].lambda();
        let earlier = (1..self.order).map(|back| (lambda(self.index - back) - lambda(self.index)) / self.width());
        earlier.chain([1.0]).collect()
    }

    /// The weights of the first `count` ratios: the solution of equation 5 of the paper.
    fn weights(&self, count: usize) -> Vec<f64> {
        let h = -self.width();
        let ratios = self.ratios();
        let mut phi = h.exp_m1() / h - 1.0;
        let mut factorial = 1.0;
        let mut equations = Vec::with_capacity(count);
        for power in 0..count {
            let mut equation: Vec<f64> = ratios[..count].iter().map(|ratio| ratio.powi(power as i32)).collect();
            equation.push(phi * factorial / self.b());
            equations.push(equation);
            factorial *= (power + 2) as f64;
            phi = phi / h - 1.0 / factorial;
        }
        solved(equations)
    }

    /// DDIM's step.
    fn first_order(&self, sample: Combination, estimate: Combination) -> Combination {
        let (from, to) = (self.levels[self.index], self.levels[self.index + 1]);
        sample * (to.sigma / from.sigma) - estimate * (to.alpha * (-self.width()).exp_m1())
    }

    /// The weighted differences of earlier estimates from the latest; `estimates` latest first.
    fn differences(&self, weights: &[f64], estimates: &[Combination]) -> Combination {
        let terms = weights.iter().zip(self.ratios()).zip(&estimates[1..]);
        terms.fold(ZERO, |sum, ((weight, ratio), earlier)| sum + (*earlier - estimates[0]) * (weight / ratio))
    }

    /// UniP, algorithm 2.
    fn predicted(&self, sample: Combination, estimates: &[Combination]) -> Combination {
        let weights = match self.order {
            1 => return self.first_order(sample, estimates[0]),
            2 => vec![0.5],
            order => self.weights(order - 1),
        };
        let change = self.differences(&weights, estimates);
        self.first_order(sample, estimates[0]) - change * (self.levels[self.index + 1].alpha * self.b())
    }

    /// UniC, algorithm 1, with the estimate at the end of the step.
    fn corrected(&self, sample: Combination, estimates: &[Combination], end: Combination) -> Combination {
        let weights = if self.order == 1 { vec![0.5] } else { self.weights(self.order) };
        let (earlier, last) = weights.split_at(self.order - 1);
        let change = self.differences(earlier, estimates) + (end - estimates[0]) * last[0];
        self.first_order(sample, estimates[0]) - change * (self.levels[self.index + 1].alpha * self.b())
    }
}

/// The unknowns of as many equations, each its factors and then its right side; Gauss and Jordan's elimination.
fn solved(mut equations: Vec<Vec<f64>>) -> Vec<f64> {
    for pivot in 0..equations.len() {
        let divisor = equations[pivot][pivot];
        let normed: Vec<f64> = equations[pivot].iter().map(|factor| factor / divisor).collect();
        for (row, equation) in equations.iter_mut().enumerate() {
            let factor = equation[pivot];
            if row == pivot {
                equation.clone_from(&normed);
            } else {
                equation.iter_mut().zip(&normed).for_each(|(own, other)| *own -= factor * other);
            }
        }
    }
    equations.into_iter().filter_map(|equation| equation.last().copied()).collect()
}
