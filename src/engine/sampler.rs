//! Samplers as plain data: every step of every sampler is a linear combination whose factors are known in advance.
//!
//! A [`Trajectory`] is worked out once, in f64, from the model's scheduler configuration; what is left for each step is
//! one function over tensors. So a row's whole state is its step, its latents and its last estimate of the picture. The
//! numbers are those of diffusers 0.42's scheduler classes when made `from_config`. Noise is drawn elsewhere.

use candle_core::{Result, Tensor};

use super::config::{BetaSchedule, Prediction, SchedulerConfig, Spacing};
use crate::job::SamplerKind;

/// What one step does: `x` the latents, `output` the model's output for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepPlan {
    /// What the model is told.
    pub(crate) timestep: f32,
    /// The model sees `input_scale * x`.
    pub(crate) input_scale: f64,
    /// `x0 = sample_to_x0 * x + output_to_x0 * output`: the estimate of the finished picture.
    pub(crate) sample_to_x0: f64,
    /// See `sample_to_x0`.
    pub(crate) output_to_x0: f64,
    /// Absolute value that `x0` is cut off at.
    pub(crate) clip: Option<f64>,
    /// The next latents are the sum of these factors times latents, model output, the estimate, the estimate of the
    /// step before, and noise.
    pub(crate) from_sample: f64,
    /// Times the model's output.
    pub(crate) from_output: f64,
    /// Times the estimate of the finished picture.
    pub(crate) from_x0: f64,
    /// Times the estimate of the step before.
    pub(crate) from_previous_x0: f64,
    /// Times noise of unit variance.
    pub(crate) from_noise: f64,
}

/// All steps of one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trajectory {
    /// The initial latents are this times noise of unit variance.
    pub(crate) initial_scale: f64,
    /// In order.
    pub(crate) steps: Vec<StepPlan>,
}

/// A number of steps that the sampler cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sampler} takes 1 to {steps_max} steps of this model, not {steps}")]
pub(crate) struct TooManySteps {
    /// The sampler.
    pub(crate) sampler: SamplerKind,
    /// What was asked for.
    pub(crate) steps: usize,
    /// What is possible.
    pub(crate) steps_max: usize,
}

/// Latents and estimate after a step.
#[derive(Clone, Debug)]
pub(crate) struct Advanced {
    pub(crate) latents: Tensor,
    pub(crate) x0: Tensor,
}

impl StepPlan {
    /// Takes the step. All tensors are of one shape; `previous_x0` is needed from the second step on, `noise` is asked
    /// for only when it counts.
    pub(crate) fn advance(
        &self,
        x: &Tensor,
        output: &Tensor,
        previous_x0: Option<&Tensor>,
        noise: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Advanced> {
        let mut x0 = ((x * self.sample_to_x0)? + (output * self.output_to_x0)?)?;
        if let Some(clip) = self.clip {
            x0 = x0.clamp(-clip, clip)?;
        }
        let mut latents = (&x0 * self.from_x0)?;
        for (factor, tensor) in
            [(self.from_sample, Some(x)), (self.from_output, Some(output)), (self.from_previous_x0, previous_x0)]
        {
            if let Some(tensor) = tensor
                && factor != 0.0
            {
                latents = (latents + (tensor * factor)?)?;
            }
        }
        if self.from_noise != 0.0 {
            latents = (latents + (noise()? * self.from_noise)?)?;
        }
        Ok(Advanced { latents, x0 })
    }
}

impl Trajectory {
    /// The steps that `kind` takes for a request of `steps` steps.
    ///
    /// # Errors
    /// [`TooManySteps`] when the schedule has fewer.
    pub(crate) fn plan(
        kind: SamplerKind,
        steps: usize,
        config: &SchedulerConfig,
    ) -> std::result::Result<Self, TooManySteps> {
        let schedule = Schedule::new(kind, config);
        let steps_max = match kind {
            SamplerKind::Lcm => config.original_inference_steps.unwrap_or(LCM_ORIGINAL_STEPS).min(schedule.len()),
            // One training timestep more is needed for the spacing.
            SamplerKind::DpmPlusPlus2M | SamplerKind::DpmPlusPlus2MKarras => schedule.len() - 1,
            SamplerKind::Ddim | SamplerKind::Euler | SamplerKind::EulerAncestral => schedule.len(),
        };
        if !(1..=steps_max).contains(&steps) {
            return Err(TooManySteps { sampler: kind, steps, steps_max });
        }
        Ok(match kind {
            SamplerKind::Ddim => ddim(&schedule, steps, config),
            SamplerKind::Euler => euler(&schedule, steps, config, Ancestral::No),
            SamplerKind::EulerAncestral => euler(&schedule, steps, config, Ancestral::Yes),
            SamplerKind::DpmPlusPlus2M => dpm_plus_plus(&schedule, steps, config, Sigmas::Interpolated),
            SamplerKind::DpmPlusPlus2MKarras => dpm_plus_plus(&schedule, steps, config, Sigmas::Karras),
            SamplerKind::Lcm => lcm(&schedule, steps, config),
        })
    }
}

/// `original_inference_steps` of models that do not say.
const LCM_ORIGINAL_STEPS: usize = 50;
/// `timestep_scaling` of models that do not say.
const LCM_TIMESTEP_SCALING: f64 = 10.0;
/// Standard deviation of the data that consistency models assume.
const LCM_SIGMA_DATA: f64 = 0.5;
/// The exponent of Karras et al.
const KARRAS_RHO: f64 = 7.0;
/// What the cumulative alpha of the last timestep becomes where dividing by zero would follow.
const ALPHA_MIN: f64 = 1.0 / 16_777_216.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ancestral {
    No,
    Yes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sigmas {
    Interpolated,
    Karras,
}

/// The noise schedule of the training.
struct Schedule {
    /// The share of the picture's variance at each training timestep.
    alphas: Vec<f64>,
    prediction: Prediction,
}

impl Schedule {
    fn new(kind: SamplerKind, config: &SchedulerConfig) -> Self {
        // The classes of diffusers differ in what they take for fields that a file leaves out.
        let (start, end, shape) = match kind {
            SamplerKind::Lcm => (0.00085, 0.012, BetaSchedule::ScaledLinear),
            SamplerKind::Ddim
            | SamplerKind::Euler
            | SamplerKind::EulerAncestral
            | SamplerKind::DpmPlusPlus2M
            | SamplerKind::DpmPlusPlus2MKarras => (0.0001, 0.02, BetaSchedule::Linear),
        };
        let count = config.num_train_timesteps.unwrap_or(1000);
        let (start, end) = (config.beta_start.unwrap_or(start), config.beta_end.unwrap_or(end));
        let line = |from: f64, to: f64, index: usize| from + (to - from) * index as f64 / (count - 1).max(1) as f64;
        let beta = |index: usize| match config.beta_schedule.unwrap_or(shape) {
            BetaSchedule::Linear => line(start, end, index),
            BetaSchedule::ScaledLinear => line(start.sqrt(), end.sqrt(), index).powi(2),
            BetaSchedule::SquaredCosine => {
                let remaining = |index: usize| {
                    let angle = (index as f64 / count as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
                    angle.cos().powi(2)
                };
                (1.0 - remaining(index + 1) / remaining(index)).min(0.999)
            }
        };
        let mut alphas: Vec<f64> = (0..count)
            .scan(1.0, |alpha, index| {
                *alpha *= 1.0 - beta(index);
                Some(*alpha)
            })
            .collect();
        if config.rescale_betas_zero_snr {
            let (first, last) = (alphas[0].sqrt(), alphas[count - 1].sqrt());
            for alpha in &mut alphas {
                *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
            }
            match kind {
                SamplerKind::Ddim | SamplerKind::Lcm => {}
                SamplerKind::Euler
                | SamplerKind::EulerAncestral
                | SamplerKind::DpmPlusPlus2M
                | SamplerKind::DpmPlusPlus2MKarras => alphas[count - 1] = ALPHA_MIN,
            }
        }
        Self { alphas, prediction: config.prediction_type }
    }

    fn len(&self) -> usize {
        self.alphas.len()
    }

    /// Noise over picture at each training timestep.
    fn sigmas(&self) -> Vec<f64> {
        self.alphas.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }

    /// The noise at a timestep between training timesteps.
    fn sigma_at(&self, sigmas: &[f64], timestep: f64) -> f64 {
        let below = (timestep.max(0.0) as usize).min(sigmas.len() - 1);
        let above = (below + 1).min(sigmas.len() - 1);
        sigmas[below] + (sigmas[above] - sigmas[below]) * (timestep - below as f64).clamp(0.0, 1.0)
    }

    /// The timestep at which there is this much noise.
    fn timestep_of(&self, sigmas: &[f64], sigma: f64) -> f64 {
        let logarithm = sigma.max(1e-10).ln();
        let low = sigmas.partition_point(|other| other.ln() <= logarithm).saturating_sub(1).min(sigmas.len() - 2);
        let (below, above) = (sigmas[low].ln(), sigmas[low + 1].ln());
        low as f64 + ((below - logarithm) / (below - above)).clamp(0.0, 1.0)
    }

    /// How the estimate of the picture follows from latents `alpha.sqrt() * picture + (1 - alpha).sqrt() * noise` and
    /// the model's output.
    fn to_x0(&self, alpha: f64) -> (f64, f64) {
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        match self.prediction {
            Prediction::Epsilon => (1.0 / signal, -noise / signal),
            Prediction::Velocity => (signal, -noise),
            Prediction::Sample => (0.0, 1.0),
        }
    }

    /// The same for the noise in the latents.
    fn to_noise(&self, alpha: f64) -> (f64, f64) {
        let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        match self.prediction {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Velocity => (noise, signal),
            Prediction::Sample => (1.0 / noise, -signal / noise),
        }
    }

    /// Timesteps from the most noise to the least, as most classes space them.
    fn timesteps(&self, steps: usize, spacing: Spacing, offset: usize) -> Vec<f64> {
        let count = self.len() as f64;
        match spacing {
            Spacing::Linspace => (0..steps)
                .rev()
                .map(|index| if index == 0 { 0.0 } else { index as f64 * ((count - 1.0) / (steps - 1) as f64) })
                .collect(),
            Spacing::Leading => {
                let stride = self.len() / steps;
                (0..steps).rev().map(|index| (index * stride + offset) as f64).collect()
            }
            Spacing::Trailing => trailing(count, steps),
        }
    }
}

fn trailing(count: f64, steps: usize) -> Vec<f64> {
    let stride = count / steps as f64;
    (0..steps).map(|index| (count - index as f64 * stride).round_ties_even() - 1.0).collect()
}

fn karras(sigma_max: f64, sigma_min: f64, steps: usize) -> Vec<f64> {
    let (high, low) = (sigma_max.powf(1.0 / KARRAS_RHO), sigma_min.powf(1.0 / KARRAS_RHO));
    let ramp = |index: usize| if steps == 1 { 0.0 } else { index as f64 / (steps - 1) as f64 };
    (0..steps).map(|index| (high + ramp(index) * (low - high)).powf(KARRAS_RHO)).collect()
}

fn ddim(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let spacing = config.timestep_spacing.unwrap_or(Spacing::Leading);
    let alpha_final = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { schedule.alphas[0] };
    let clip = config.clip_sample.unwrap_or(true).then(|| config.clip_sample_range.unwrap_or(1.0));
    let stride = schedule.len() / steps;
    let plan = |timestep: f64| {
        let timestep = (timestep.round_ties_even() as usize).min(schedule.len() - 1);
        let alpha = schedule.alphas[timestep];
        let alpha_next = timestep.checked_sub(stride).map_or(alpha_final, |next| schedule.alphas[next]);
        let (sample_to_x0, output_to_x0) = schedule.to_x0(alpha);
        let (sample_to_noise, output_to_noise) = schedule.to_noise(alpha);
        StepPlan {
            timestep: timestep as f32,
            input_scale: 1.0,
            sample_to_x0,
            output_to_x0,
            clip,
            from_sample: (1.0 - alpha_next).sqrt() * sample_to_noise,
            from_output: (1.0 - alpha_next).sqrt() * output_to_noise,
            from_x0: alpha_next.sqrt(),
            ..StepPlan::default()
        }
    };
    let timesteps = schedule.timesteps(steps, spacing, config.steps_offset);
    Trajectory { initial_scale: 1.0, steps: timesteps.into_iter().map(plan).collect() }
}

fn euler(schedule: &Schedule, steps: usize, config: &SchedulerConfig, ancestral: Ancestral) -> Trajectory {
    let spacing = config.timestep_spacing.unwrap_or(Spacing::Linspace);
    let trained = schedule.sigmas();
    let mut timesteps = schedule.timesteps(steps, spacing, config.steps_offset);
    let mut sigmas: Vec<f64> = timesteps.iter().map(|timestep| schedule.sigma_at(&trained, *timestep)).collect();
    if config.use_karras_sigmas == Some(true) && ancestral == Ancestral::No {
        sigmas = karras(sigmas[0], sigmas[steps - 1], steps);
        timesteps = sigmas.iter().map(|sigma| schedule.timestep_of(&trained, *sigma)).collect();
    }
    let sigma_max = sigmas.iter().copied().fold(0.0, f64::max);
    let initial_scale = match spacing {
        Spacing::Linspace | Spacing::Trailing => sigma_max,
        Spacing::Leading => (sigma_max * sigma_max + 1.0).sqrt(),
    };
    sigmas.push(0.0);
    let plan = |index: usize| {
        let (sigma, next) = (sigmas[index], sigmas[index + 1]);
        let variance = sigma * sigma + 1.0;
        let (sample_to_x0, output_to_x0) = match schedule.prediction {
            Prediction::Epsilon => (1.0, -sigma),
            Prediction::Velocity => (1.0 / variance, -sigma / variance.sqrt()),
            Prediction::Sample => (0.0, 1.0),
        };
        let up = match ancestral {
            Ancestral::No => 0.0,
            Ancestral::Yes => (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0).sqrt(),
        };
        let down = (next * next - up * up).max(0.0).sqrt();
        // x + (x - x0) / sigma * (down - sigma)
        StepPlan {
            timestep: timesteps[index] as f32,
            input_scale: 1.0 / variance.sqrt(),
            sample_to_x0,
            output_to_x0,
            from_sample: down / sigma,
            from_x0: 1.0 - down / sigma,
            from_noise: up,
            ..StepPlan::default()
        }
    };
    Trajectory { initial_scale, steps: (0..steps).map(plan).collect() }
}

fn dpm_plus_plus(schedule: &Schedule, steps: usize, config: &SchedulerConfig, spaced: Sigmas) -> Trajectory {
    let trained = schedule.sigmas();
    let last = schedule.len() - 1;
    let (timesteps, mut sigmas): (Vec<f64>, Vec<f64>) = match spaced {
        Sigmas::Karras => karras(trained[last], trained[0], steps)
            .into_iter()
            .map(|sigma| {
                let timestep = schedule.timestep_of(&trained, sigma);
                // diffusers rounds, except for the cosine schedule, whose timesteps it then cuts to integers.
                let rounded = match config.beta_schedule {
                    Some(BetaSchedule::SquaredCosine) => timestep.trunc(),
                    Some(BetaSchedule::Linear | BetaSchedule::ScaledLinear) | None => timestep.round_ties_even(),
                };
                (rounded, sigma)
            })
            .unzip(),
        Sigmas::Interpolated => {
            let timesteps = match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
                Spacing::Linspace => (1..=steps)
                    .rev()
                    .map(|index| (index as f64 * (last as f64 / steps as f64)).round_ties_even())
                    .collect(),
                Spacing::Leading => {
                    let stride = schedule.len() / (steps + 1);
                    (1..=steps).rev().map(|index| (index * stride + config.steps_offset) as f64).collect()
                }
                Spacing::Trailing => trailing(schedule.len() as f64, steps),
            };
            timesteps.into_iter().map(|timestep| (timestep, schedule.sigma_at(&trained, timestep))).unzip()
        }
    };
    sigmas.push(0.0);
    let plan = |index: usize| {
        let (sigma, next) = (sigmas[index], sigmas[index + 1]);
        // Shares of the picture before and after the step; `width` is the step in half log signal-to-noise ratio.
        let (alpha, alpha_next) = (1.0 / (sigma * sigma + 1.0), 1.0 / (next * next + 1.0));
        let width = sigma.ln() - next.ln();
        let x0 = -alpha_next.sqrt() * (-width).exp_m1();
        // The first step has no step before; the last ends at no noise at all, where only first order is defined.
        let slope = if index == 0 || index + 1 == steps {
            0.0
        } else {
            0.5 * x0 * width / (sigmas[index - 1].ln() - sigma.ln())
        };
        let (sample_to_x0, output_to_x0) = schedule.to_x0(alpha);
        StepPlan {
            timestep: timesteps[index] as f32,
            input_scale: 1.0,
            sample_to_x0,
            output_to_x0,
            from_sample: next * alpha_next.sqrt() / (sigma * alpha.sqrt()),
            from_x0: x0 + slope,
            from_previous_x0: -slope,
            ..StepPlan::default()
        }
    };
    Trajectory { initial_scale: 1.0, steps: (0..steps).map(plan).collect() }
}

fn lcm(schedule: &Schedule, steps: usize, config: &SchedulerConfig) -> Trajectory {
    let original = config.original_inference_steps.unwrap_or(LCM_ORIGINAL_STEPS).min(schedule.len());
    let stride = schedule.len() / original;
    let timesteps: Vec<usize> = (0..steps)
        .map(|index| {
            let skipped = (index as f64 * (original as f64 / steps as f64)).floor() as usize;
            (original - skipped) * stride - 1
        })
        .collect();
    let clip = config.clip_sample.unwrap_or(false).then(|| config.clip_sample_range.unwrap_or(1.0));
    let plan = |index: usize| {
        let timestep = timesteps[index];
        let (sample_to_x0, output_to_x0) = schedule.to_x0(schedule.alphas[timestep]);
        let scaled = timestep as f64 * config.timestep_scaling.unwrap_or(LCM_TIMESTEP_SCALING);
        let variance = scaled * scaled + LCM_SIGMA_DATA * LCM_SIGMA_DATA;
        let (skip, out) = (LCM_SIGMA_DATA * LCM_SIGMA_DATA / variance, scaled / variance.sqrt());
        // Every step goes to the end; all but the last then go back to the next timestep with new noise.
        let alpha_next = timesteps.get(index + 1).map_or(1.0, |next| schedule.alphas[*next]);
        StepPlan {
            timestep: timestep as f32,
            input_scale: 1.0,
            sample_to_x0,
            output_to_x0,
            clip,
            from_sample: alpha_next.sqrt() * skip,
            from_x0: alpha_next.sqrt() * out,
            from_noise: (1.0 - alpha_next).sqrt(),
            ..StepPlan::default()
        }
    };
    Trajectory { initial_scale: 1.0, steps: (0..steps).map(plan).collect() }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::Value;

    use super::*;

    /// Follows every trajectory that `tests/golden/samplers.py` recorded from diffusers, with its pseudo model.
    #[test]
    fn every_sampler_walks_as_in_diffusers() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/samplers.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 100, "{} cases", cases.len());
        for case in cases {
            let kind: SamplerKind = case["kind"].as_str().unwrap().parse().unwrap();
            let config: SchedulerConfig = serde_json::from_value(case["config"].clone()).unwrap();
            let expected = case["trajectory"].as_array().unwrap();
            let name = format!("{}, {kind}, {} steps", case["name"], expected.len());

            let trajectory = Trajectory::plan(kind, expected.len(), &config).unwrap();
            let close = |ours: f64, theirs: f64, what: &str| {
                let tolerance = 5e-4 * theirs.abs().max(1.0);
                assert!((ours - theirs).abs() <= tolerance, "{name}, {what}: {ours}, in diffusers {theirs}");
            };
            close(trajectory.initial_scale, case["initial_scale"].as_f64().unwrap(), "initial scale");
            let mut x = vector((0..3).map(|i| (0.9 - 0.8 * i as f64) * trajectory.initial_scale));
            let mut x0 = None;
            for (index, plan) in trajectory.steps.iter().enumerate() {
                close(f64::from(plan.timestep), case["timesteps"][index].as_f64().unwrap(), "timestep");
                let seen = (&x * plan.input_scale).unwrap().to_vec1::<f32>().unwrap();
                let output =
                    vector(seen.iter().enumerate().map(|(i, value)| {
                        (1.3 * f64::from(*value) + 0.01 * f64::from(plan.timestep) + i as f64).sin()
                    }));
                let noise = || Ok(vector((0..3).map(|i| 1.2 * (7.0 * index as f64 + f64::from(i)).sin())));
                let advanced = plan.advance(&x, &output, x0.as_ref(), noise).unwrap();
                for (ours, theirs) in
                    advanced.latents.to_vec1::<f32>().unwrap().iter().zip(expected[index].as_array().unwrap())
                {
                    close(f64::from(*ours), theirs.as_f64().unwrap(), &format!("step {index}"));
                }
                (x, x0) = (advanced.latents, Some(advanced.x0));
            }
        }
    }

    fn vector(values: impl Iterator<Item = f64>) -> Tensor {
        Tensor::from_iter(values.map(|value| value as f32), &Device::Cpu).unwrap()
    }

    #[test]
    fn steps_that_the_schedule_does_not_have_are_refused() {
        let config = SchedulerConfig { num_train_timesteps: Some(60), ..SchedulerConfig::default() };
        for (kind, steps, steps_max) in [
            (SamplerKind::Lcm, 51, 50),
            (SamplerKind::Ddim, 61, 60),
            (SamplerKind::DpmPlusPlus2M, 60, 59),
            (SamplerKind::Euler, 0, 60),
        ] {
            let refused = Trajectory::plan(kind, steps, &config);
            assert_eq!(refused, Err(TooManySteps { sampler: kind, steps, steps_max }));
        }
    }
}
