//! The noise schedule of the training, and which of its noise levels a sampler stops at.
//!
//! The schedule is worked out in f32 and in PyTorch's order of operations: what diffusers rounds there is amplified by
//! [`Schedule`]s of zero terminal signal-to-noise ratio. Everything after it is f64. No solver is known here.

use super::step::{Combination, Noising, OUTPUT, SAMPLE};
use crate::engine::config::{BetaSchedule, Prediction, SchedulerConfig, Spacing};
use crate::job::{SamplerKind, SigmaSpacing};

/// The exponent of Karras et al., arXiv 2206.00364.
const KARRAS_RHO: f64 = 7.0;
/// Both parameters of the beta distribution of arXiv 2407.12173.
const BETA_SHAPE: f64 = 0.6;
/// What the cumulative alpha of the last timestep becomes where dividing by zero would follow.
const ALPHA_MIN: f32 = 1.0 / 16_777_216.0;

/// Shares of picture and noise in latents: `alpha * picture + sigma * noise`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
}

impl Level {
    /// From the picture's share of the variance, diffusers' `alphas_cumprod`.
    pub(super) fn of_variance(alpha: f64) -> Self {
        Self { alpha: alpha.sqrt(), sigma: (1.0 - alpha).sqrt() }
    }

    /// From noise over picture, diffusers' `sigmas`, with the variance kept at 1.
    pub(super) fn of_ratio(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { alpha, sigma: sigma * alpha }
    }

    /// From the noise's share on the straight line of flow matching.
    pub(super) fn of_flow(sigma: f64) -> Self {
        Self { alpha: 1.0 - sigma, sigma }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite without noise.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// The picture, from latents of this level and the model's output.
    pub(super) fn estimate(self, prediction: Prediction) -> Combination {
        match prediction {
            Prediction::Epsilon => (SAMPLE - OUTPUT * self.sigma) * (1.0 / self.alpha),
            Prediction::Velocity => SAMPLE * self.alpha - OUTPUT * self.sigma,
            Prediction::Sample => OUTPUT,
            Prediction::Flow => SAMPLE - OUTPUT * self.sigma,
        }
    }

    /// The noise in latents of this level.
    pub(super) fn noise(self, prediction: Prediction) -> Combination {
        match prediction {
            Prediction::Epsilon => OUTPUT,
            Prediction::Velocity => SAMPLE * self.sigma + OUTPUT * self.alpha,
            Prediction::Sample => (SAMPLE - OUTPUT * self.alpha) * (1.0 / self.sigma),
            Prediction::Flow => SAMPLE + OUTPUT * self.alpha,
        }
    }

    pub(super) fn noising(self) -> Noising {
        Noising { signal: self.alpha, noise: self.sigma }
    }
}

/// What a scheduler class does about `rescale_betas_zero_snr`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ZeroSnr {
    Ignored,
    Rescaled,
    /// Rescaled, with a last alpha that can be divided by.
    Capped,
}

/// The noise schedule of the training.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The share of the picture's variance at each training timestep: `alphas_cumprod`.
    pub(super) alphas: Vec<f64>,
    /// Noise over picture at each training timestep.
    pub(super) sigmas: Vec<f64>,
    pub(super) prediction: Prediction,
}

impl Schedule {
    /// The schedule that diffusers' class for `kind` makes from `config`.
    pub(super) fn new(kind: SamplerKind, config: &SchedulerConfig) -> Self {
        // The classes differ in what they take for fields that a file leaves out.
        let standard = (0.0001, 0.02, BetaSchedule::Linear);
        let ((start, end, shape), zero_snr) = match kind {
            SamplerKind::Ddim | SamplerKind::Ddpm => (standard, ZeroSnr::Rescaled),
            SamplerKind::Lcm => ((0.00085, 0.012, BetaSchedule::ScaledLinear), ZeroSnr::Rescaled),
            SamplerKind::Heun(_) => ((0.00085, 0.012, BetaSchedule::Linear), ZeroSnr::Ignored),
            SamplerKind::Pndm | SamplerKind::DpmPlusPlusSde(_) | SamplerKind::FlowMatchEuler => {
                (standard, ZeroSnr::Ignored)
            }
            SamplerKind::Euler(_)
            | SamplerKind::EulerAncestral
            | SamplerKind::DpmPlusPlus2M(_)
            | SamplerKind::DpmPlusPlus2MSde(_)
            | SamplerKind::UniPc(_) => (standard, ZeroSnr::Capped),
        };
        let (start, end) = (config.beta_start.unwrap_or(start), config.beta_end.unwrap_or(end));
        let count = config.train_timesteps();
        let betas = match config.beta_schedule.unwrap_or(shape) {
            BetaSchedule::Linear => linspace(start as f32, end as f32, count),
            BetaSchedule::ScaledLinear => {
                linspace(start.sqrt() as f32, end.sqrt() as f32, count).into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredCosine => squared_cosine(count),
        };
        let mut alphas = products(betas.into_iter().map(|beta| 1.0 - beta));
        if config.rescale_betas_zero_snr && zero_snr != ZeroSnr::Ignored {
            alphas = to_zero_snr(&alphas);
            if zero_snr == ZeroSnr::Capped {
                alphas[count - 1] = ALPHA_MIN;
            }
        }
        let sigmas = alphas.iter().map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt())).collect();
        Self { alphas: alphas.into_iter().map(f64::from).collect(), sigmas, prediction: config.prediction_type }
    }

    pub(super) fn len(&self) -> usize {
        self.alphas.len()
    }

    /// A training timestep, however far out the spacing put it.
    pub(super) fn index(&self, timestep: f64) -> usize {
        (timestep.max(0.0) as usize).min(self.len() - 1)
    }

    /// The most noise of the training.
    pub(super) fn sigma_max(&self) -> f64 {
        self.sigmas[self.len() - 1]
    }

    /// Noise over picture at a timestep between training timesteps.
    pub(super) fn sigma_at(&self, timestep: f64) -> f64 {
        let below = self.index(timestep);
        let above = (below + 1).min(self.len() - 1);
        self.sigmas[below] + (self.sigmas[above] - self.sigmas[below]) * (timestep - below as f64).clamp(0.0, 1.0)
    }

    /// The timestep, between training timesteps, at which there is this much noise.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let log = |sigma: f64| f64::from((sigma as f32).ln());
        let wanted = sigma.max(1e-10).ln();
        let low = self.sigmas.partition_point(|sigma| log(*sigma) <= wanted).saturating_sub(1).min(self.len() - 2);
        let (below, above) = (log(self.sigmas[low]), log(self.sigmas[low + 1]));
        let weight = ((below - wanted) / (below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }

    /// Timesteps from the most noise to the least, as most classes space them; not rounded.
    ///
    /// diffusers makes one step more than asked of a few numbers of `trailing` steps (61 of 1000 is the first), which
    /// ends at timestep -1; not so here.
    pub(super) fn timesteps(&self, steps: usize, spacing: Spacing, offset: usize) -> Vec<f64> {
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
            Spacing::Trailing => trailing(count, count / steps as f64, steps),
        }
    }
}

/// `steps` timesteps at most, down from `last - 1`.
pub(super) fn trailing(last: f64, stride: f64, steps: usize) -> Vec<f64> {
    (0..steps)
        .map(|index| last - index as f64 * stride)
        .take_while(|timestep| *timestep > 0.0)
        .map(|timestep| timestep.round_ties_even() - 1.0)
        .collect()
}

/// The noise levels of a spacing between `max` and `min`, most noise first; `None` for [`SigmaSpacing::Trained`].
///
/// `sigma_max` and `sigma_min` of the configuration go before.
pub(super) fn spaced(
    spacing: SigmaSpacing,
    (max, min): (f64, f64),
    steps: usize,
    config: &SchedulerConfig,
) -> Option<Vec<f64>> {
    let (max, min) = (config.sigma_max.unwrap_or(max), config.sigma_min.unwrap_or(min));
    let level = |ramp: f64| match spacing {
        SigmaSpacing::Trained => None,
        SigmaSpacing::Karras => {
            let (max, min) = (max.powf(1.0 / KARRAS_RHO), min.powf(1.0 / KARRAS_RHO));
            Some((max + ramp * (min - max)).powf(KARRAS_RHO))
        }
        SigmaSpacing::Exponential => Some((max.ln() + ramp * (min.ln() - max.ln())).exp()),
        SigmaSpacing::Beta => Some(min + beta_quantile(1.0 - ramp) * (max - min)),
    };
    (0..steps).map(|index| level(if steps == 1 { 0.0 } else { index as f64 / (steps - 1) as f64 })).collect()
}

/// The value below which the beta distribution of [`BETA_SHAPE`] has the share `probability`.
fn beta_quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - beta_quantile(1.0 - probability);
    }
    // The density is symmetric, so what lies below a half is half of all.
    let all = 2.0 * incomplete_beta(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if incomplete_beta(middle) < probability * all {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The integral of `(t (1 - t)) ^ (BETA_SHAPE - 1)` from 0 to `x`, by the binomial series, for `x` up to a half.
fn incomplete_beta(x: f64) -> f64 {
    let mut power = x.powf(BETA_SHAPE);
    let mut sum = 0.0;
    for index in 0..60 {
        let index = f64::from(index);
        sum += power / (BETA_SHAPE + index);
        power *= x * (1.0 - BETA_SHAPE + index) / (1.0 + index);
    }
    sum
}

/// As PyTorch fills it: from both ends, each value rounded once.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1).max(1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - 1 - index) as f32, end)
            }
        })
        .collect()
}

fn squared_cosine(count: usize) -> Vec<f32> {
    let remaining = |index: usize| {
        let angle = (index as f64 / count as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
        angle.cos().powi(2)
    };
    (0..count).map(|index| (1.0 - remaining(index + 1) / remaining(index)).min(0.999) as f32).collect()
}

/// Running products, which PyTorch keeps in f64.
fn products(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    factors
        .scan(1.0_f64, |product, factor| {
            *product *= f64::from(factor);
            Some(*product as f32)
        })
        .collect()
}

/// Algorithm 1 of arXiv 2305.08891: shifted and scaled so that the last timestep is nothing but noise.
fn to_zero_snr(alphas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let scaled: Vec<f32> = roots.into_iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
    // Back to betas and forth, as diffusers does.
    let alpha = |index: usize| if index == 0 { scaled[0] } else { scaled[index] / scaled[index - 1] };
    products((0..scaled.len()).map(|index| 1.0 - (1.0 - alpha(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_beta_distribution_are_those_of_scipy() {
        for (probability, expected) in
            [(0.0, 0.0), (0.001, SCIPY[0]), (0.1, SCIPY[1]), (0.25, SCIPY[2]), (0.5, 0.5), (0.9, SCIPY[3]), (1.0, 1.0)]
        {
            let ours = beta_quantile(probability);
            assert!((ours - expected).abs() < 1e-12, "{probability}: {ours}, not {expected}");
        }
    }

    /// `scipy.stats.beta.ppf([0.001, 0.1, 0.25, 0.9], 0.6, 0.6)`
    const SCIPY: [f64; 4] = [1.855873851745199e-5, 0.03958440558878085, 0.17568037865269498, 0.9604155944112192];

    #[test]
    fn spacings_start_and_end_at_their_bounds() {
        for spacing in [SigmaSpacing::Karras, SigmaSpacing::Exponential, SigmaSpacing::Beta] {
            let sigmas = spaced(spacing, (14.6, 0.03), 9, &SchedulerConfig::default()).unwrap();
            assert!(sigmas.is_sorted_by(|above, below| above > below), "{spacing:?}: {sigmas:?}");
            assert!((sigmas[0] - 14.6).abs() < 1e-9 && (sigmas[8] - 0.03).abs() < 1e-9, "{spacing:?}: {sigmas:?}");
        }
        assert_eq!(spaced(SigmaSpacing::Trained, (14.6, 0.03), 9, &SchedulerConfig::default()), None);
    }
}
