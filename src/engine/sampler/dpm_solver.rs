//! DPM-Solver++ (arXiv 2211.01095), over several steps and within single ones, as an ODE or an SDE.
//!
//! Also the noise levels that it shares with UniPC.

use super::flow_match::{dynamic_shift, shifted, stretched_to};
use super::schedule::{Level, Schedule, spaced, trailing};
use super::step::{Combination, ESTIMATE, MEMORY, NOISE, SAMPLE, StepNoise, StepPlan};
use super::{PlanOptions, Trajectory};
use crate::engine::config::{Algorithm, BetaSchedule, FinalSigma, SchedulerConfig, SolverType, Spacing};
use crate::job::{SamplerKind, SigmaSpacing};

/// From how many steps on `lower_order_final` changes nothing.
const MANY_STEPS: usize = 15;
/// What UniPC takes from a first noise level of 1, at which there is no picture to divide by.
const UNIPC_FLOW_EPSILON: f64 = 1e-6;

/// Where the steps of a solver start, and where the last one ends.
pub(super) struct Ladder {
    pub(super) timesteps: Vec<f64>,
    /// As many as there are timesteps and one more.
    pub(super) levels: Vec<Level>,
}

impl Ladder {
    pub(super) fn new(
        schedule: &Schedule,
        kind: SamplerKind,
        steps: usize,
        config: &SchedulerConfig,
        options: &PlanOptions,
    ) -> Self {
        let spacing = kind.spacing();
        let unipc = matches!(kind, SamplerKind::UniPc(_));
        let (timesteps, mut sigmas): (Vec<f64>, Vec<f64>) = if config.use_flow_sigmas {
            let sigmas = flow_sigmas(schedule, unipc, steps, config, options);
            sigmas.into_iter().map(|sigma| ((sigma * schedule.len() as f64).trunc(), sigma)).unzip()
        } else if let Some(sigmas) = spaced(spacing, (schedule.sigma_max(), schedule.sigmas[0]), steps, config) {
            // Karras sigmas are rounded to timesteps, but for one class with the cosine schedule; all else is cut.
            let multistep = matches!(kind, SamplerKind::DpmPlusPlus2M(_) | SamplerKind::DpmPlusPlus2MSde(_));
            let cosine = config.beta_schedule == Some(BetaSchedule::SquaredCosine);
            let rounds = spacing == SigmaSpacing::Karras && !(multistep && cosine);
            let timestep = |sigma: f64| {
                let timestep = schedule.timestep_of(sigma);
                if rounds { timestep.round_ties_even() } else { timestep.trunc() }
            };
            sigmas.into_iter().map(|sigma| (timestep(sigma), sigma)).unzip()
        } else {
            let timesteps = trained_timesteps(schedule, kind, steps, config);
            timesteps.into_iter().map(|timestep| (timestep, schedule.sigma_at(timestep))).unzip()
        };
        let respaced = config.use_flow_sigmas || spacing != SigmaSpacing::Trained;
        sigmas.push(match config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin if unipc && respaced => sigmas[sigmas.len() - 1],
            FinalSigma::SigmaMin => schedule.sigmas[0],
        });
        let level = if config.use_flow_sigmas { Level::of_flow } else { Level::of_ratio };
        Self { timesteps, levels: sigmas.into_iter().map(|sigma| level(f64::from(sigma as f32))).collect() }
    }

    pub(super) fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// What all steps on a ladder have in common.
    pub(super) fn step(&self, index: usize, schedule: &Schedule) -> StepPlan {
        StepPlan {
            timestep: self.timesteps[index] as f32,
            input_scale: 1.0,
            estimate: self.levels[index].estimate(schedule.prediction),
            noising: self.levels[index].noising(),
            ..StepPlan::default()
        }
    }
}

fn flow_sigmas(
    schedule: &Schedule,
    unipc: bool,
    steps: usize,
    config: &SchedulerConfig,
    options: &PlanOptions,
) -> Vec<f64> {
    let fixed = config.flow_shift.unwrap_or(1.0);
    let shift = if config.use_dynamic_shifting { dynamic_shift(config, options.image_tokens) } else { fixed };
    let least = 1.0 / schedule.len() as f64;
    let width = (1.0 - least) / steps as f64;
    let sigma = |index: usize| if unipc { 1.0 - width * index as f64 } else { width * (steps - index) as f64 };
    let mut sigmas: Vec<f64> = (0..steps).map(|index| shifted(sigma(index), shift)).collect();
    if unipc {
        if let Some(terminal) = config.terminal() {
            sigmas = stretched_to(terminal, sigmas);
        }
        if (sigmas[0] - 1.0).abs() < UNIPC_FLOW_EPSILON {
            sigmas[0] -= UNIPC_FLOW_EPSILON;
        }
    }
    sigmas
}

/// Integer timesteps, one less than the spacing has: these solvers do not stop at the least noise.
fn trained_timesteps(schedule: &Schedule, kind: SamplerKind, steps: usize, config: &SchedulerConfig) -> Vec<f64> {
    let clips = !matches!(kind, SamplerKind::UniPc(_));
    let clipped = config
        .lambda_min_clipped
        .filter(|_| clips)
        .map_or(0, |least| schedule.alphas.iter().filter(|alpha| Level::of_variance(**alpha).lambda() < least).count());
    let last = schedule.len().saturating_sub(clipped).max(1);
    let singlestep = matches!(kind, SamplerKind::DpmPlusPlusSde(_));
    match config.timestep_spacing.filter(|_| !singlestep).unwrap_or(Spacing::Linspace) {
        Spacing::Linspace => (1..=steps)
            .rev()
            .map(|index| (index as f64 * ((last - 1) as f64 / steps as f64)).round_ties_even())
            .collect(),
        Spacing::Leading => {
            let stride = last / (steps + 1);
            (1..=steps).rev().map(|index| (index * stride + config.steps_offset) as f64).collect()
        }
        Spacing::Trailing => trailing(last as f64, schedule.len() as f64 / steps as f64, steps),
    }
}

/// The steps of `DPMSolverMultistepScheduler`: 2M, and first order where there is no step before.
///
/// Memory: the estimate of the step before.
pub(super) fn multistep(
    schedule: &Schedule,
    kind: SamplerKind,
    steps: usize,
    skipped: usize,
    config: &SchedulerConfig,
    options: &PlanOptions,
) -> Trajectory {
    let sde = matches!(kind, SamplerKind::DpmPlusPlus2MSde(_));
    let algorithm = if sde { Algorithm::Sde } else { Algorithm::Ode };
    let ladder = Ladder::new(schedule, kind, steps, config, options);
    let count = ladder.steps();
    let lower_order_final = config.euler_at_final
        || config.final_sigmas_type == FinalSigma::Zero
        || (config.lower_order_final.unwrap_or(true) && count < MANY_STEPS);
    let plan = |index: usize| {
        let (from, to) = (ladder.levels[index], ladder.levels[index + 1]);
        let solver = Solver { algorithm, solver_type: config.solver_type, from, to };
        let first_order =
            config.solver_order == Some(1) || index <= skipped || (lower_order_final && index + 1 == count);
        let next = if first_order {
            solver.first_order(SAMPLE, ESTIMATE)
        } else {
            let ratio = (from.lambda() - ladder.levels[index - 1].lambda()) / solver.width();
            solver.second_order(SAMPLE, ESTIMATE, (ESTIMATE - MEMORY[0]) * (1.0 / ratio))
        };
        StepPlan { next, memory: vec![ESTIMATE], draws_noise: algorithm.draws(), ..ladder.step(index, schedule) }
    };
    Trajectory { initial_scale: 1.0, steps: (0..count).map(plan).collect() }
}

/// The steps of `DPMSolverSinglestepScheduler`: pairs of a first order step and a second order one from the same start.
///
/// Memory: the sample that the pair started from, and the estimate of the step before.
pub(super) fn singlestep(
    schedule: &Schedule,
    kind: SamplerKind,
    steps: usize,
    skipped: usize,
    config: &SchedulerConfig,
    options: &PlanOptions,
) -> Trajectory {
    let algorithm = config.algorithm_type.unwrap_or(Algorithm::Ode);
    let ladder = Ladder::new(schedule, kind, steps, config, options);
    let count = ladder.steps();
    let ends_at_zero = config.final_sigmas_type == FinalSigma::Zero;
    let lower_order_final = config.lower_order_final.unwrap_or(false) || count % 2 == 1 || ends_at_zero;
    let plan = |index: usize| {
        let (from, to) = (ladder.levels[index], ladder.levels[index + 1]);
        let first_order = config.solver_order == Some(1)
            || index.is_multiple_of(2)
            || index <= skipped
            || (lower_order_final && index + 1 == count);
        let solver = |start: Level| Solver { algorithm, solver_type: config.solver_type, from: start, to };
        let (next, start) = if first_order {
            (solver(from).first_order(SAMPLE, ESTIMATE), SAMPLE)
        } else {
            let [start, estimate, ..] = MEMORY;
            let solver = solver(ladder.levels[index - 1]);
            let ratio = (from.lambda() - solver.from.lambda()) / solver.width();
            (solver.second_order(start, estimate, (ESTIMATE - estimate) * (1.0 / ratio)), start)
        };
        StepPlan { next, memory: vec![start, ESTIMATE], draws_noise: algorithm.draws(), ..ladder.step(index, schedule) }
    };
    Trajectory { initial_scale: 1.0, steps: (0..count).map(plan).collect() }
}

impl Algorithm {
    fn draws(self) -> StepNoise {
        match self {
            Self::Ode => StepNoise::None,
            Self::Sde => StepNoise::Drawn,
        }
    }
}

/// One step of DPM-Solver++ between two levels.
struct Solver {
    algorithm: Algorithm,
    solver_type: SolverType,
    from: Level,
    to: Level,
}

impl Solver {
    /// In half log signal-to-noise ratio: `h` of the paper.
    fn width(&self) -> f64 {
        self.to.lambda() - self.from.lambda()
    }

    /// Widths count double where the noise is renewed.
    fn effective_width(&self) -> f64 {
        match self.algorithm {
            Algorithm::Ode => self.width(),
            Algorithm::Sde => 2.0 * self.width(),
        }
    }

    /// `1 - exp(-h)`
    fn gain(&self) -> f64 {
        -(-self.effective_width()).exp_m1()
    }

    fn first_order(&self, sample: Combination, estimate: Combination) -> Combination {
        let Level { alpha, sigma } = self.to;
        let step = estimate * (alpha * self.gain());
        let kept = sample * (sigma / self.from.sigma);
        match self.algorithm {
            Algorithm::Ode => kept + step,
            Algorithm::Sde => kept * (-self.width()).exp() + step + NOISE * (sigma * self.gain().sqrt()),
        }
    }

    /// `slope` is the change of the estimate over a step of this width.
    fn second_order(&self, sample: Combination, estimate: Combination, slope: Combination) -> Combination {
        let factor = match self.solver_type {
            SolverType::Heun => 1.0 - self.gain() / self.effective_width(),
            SolverType::Midpoint | SolverType::LogRho | SolverType::Bh1 | SolverType::Bh2 => 0.5 * self.gain(),
        };
        self.first_order(sample, estimate) + slope * (self.to.alpha * factor)
    }
}
