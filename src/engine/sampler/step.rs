//! What one step does, as plain data, and the state that it takes a row from and to.
//!
//! A step is a handful of [`Combination`]s whose factors were worked out in f64 before the first step. Evaluating them
//! is all that happens to tensors; schedules and solvers are none of this module's business.

use std::ops::{Add, Mul, Sub};

use candle_core::{Device, Result, Tensor};

/// Memory slots of the sampler that has the most.
pub(crate) const MEMORY_SLOTS_MAX: usize = 4;
/// Sample, model output, estimate, noise, then memory.
const INPUTS: usize = 4 + MEMORY_SLOTS_MAX;

/// A sum of the tensors of a step, each times a factor. Zero factors cost nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Combination([f64; INPUTS]);

/// The latents before the step.
pub(super) const SAMPLE: Combination = unit(0);
/// What the model made of them.
pub(super) const OUTPUT: Combination = unit(1);
/// The step's estimate of the finished picture.
pub(super) const ESTIMATE: Combination = unit(2);
/// Fresh noise of unit variance.
pub(super) const NOISE: Combination = unit(3);
/// Nothing.
pub(super) const ZERO: Combination = Combination([0.0; INPUTS]);
/// What the step before left behind.
pub(super) const MEMORY: [Combination; MEMORY_SLOTS_MAX] = [unit(4), unit(5), unit(6), unit(7)];

const fn unit(input: usize) -> Combination {
    let mut factors = [0.0; INPUTS];
    factors[input] = 1.0;
    Combination(factors)
}

impl Add for Combination {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|input| self.0[input] + other.0[input]))
    }
}

impl Sub for Combination {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|input| self.0[input] - other.0[input]))
    }
}

impl Mul<f64> for Combination {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self(self.0.map(|own| own * factor))
    }
}

impl Combination {
    fn of(&self, inputs: [Option<&Tensor>; INPUTS]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (factor, input) in self.0.into_iter().zip(inputs) {
            if factor == 0.0 {
                continue;
            }
            let Some(input) = input else { candle_core::bail!("the step needs a tensor that its state does not have") };
            let term = if factor == 1.0 { input.clone() } else { (input * factor)? };
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        match (sum, inputs[0]) {
            (Some(sum), _) => Ok(sum),
            (None, Some(sample)) => sample.zeros_like(),
            (None, None) => candle_core::bail!("the step has no latents"),
        }
    }
}

/// How much of the picture and how much noise there is at a step: `signal * picture + noise * noise`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Noising {
    /// Times the picture.
    pub(crate) signal: f64,
    /// Times noise of unit variance.
    pub(crate) noise: f64,
}

impl Noising {
    /// The latents of `picture` with this much of `noise`; both `(1, c, h, w)`.
    pub(crate) fn apply(self, picture: &Tensor, noise: &Tensor) -> Result<Tensor> {
        (picture * self.signal)? + (noise * self.noise)?
    }
}

/// Whether a step asks the generator for noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StepNoise {
    /// It does not.
    #[default]
    None,
    /// It does, even where the factor is 0: diffusers' generators move on all the same.
    Drawn,
}

/// What one step does: one call of the model and what follows from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StepPlan {
    /// What the model is told.
    pub(crate) timestep: f32,
    /// The model sees `input_scale` times the latents.
    pub(crate) input_scale: f64,
    /// The estimate of the finished picture: of latents and model output only.
    pub(crate) estimate: Combination,
    /// Absolute value that the estimate is cut off at.
    pub(crate) clip: Option<f64>,
    /// The latents after the step.
    pub(crate) next: Combination,
    /// What the step leaves behind, slot by slot. All steps of a sampler have the same number of slots.
    pub(crate) memory: Vec<Combination>,
    /// What the noised picture of img2img and inpainting is made of at the step's timestep.
    pub(crate) noising: Noising,
    /// Whether noise is drawn.
    pub(crate) draws_noise: StepNoise,
}

impl StepPlan {
    /// Takes the step. `output` has the shape of the latents; `noise` is asked for exactly when [`StepNoise::Drawn`].
    ///
    /// # Errors
    /// Those of candle, and a state that is not of this sampler.
    pub(crate) fn advance(
        &self,
        state: &SamplerState,
        output: &Tensor,
        noise: impl FnOnce() -> Result<Tensor>,
    ) -> Result<SamplerState> {
        if state.memory.len() != self.memory.len() {
            candle_core::bail!("the state has {} memory slots, not {}", state.memory.len(), self.memory.len());
        }
        let noise = match self.draws_noise {
            StepNoise::None => None,
            StepNoise::Drawn => Some(noise()?),
        };
        let mut inputs = [None; INPUTS];
        inputs[0] = Some(&state.latents);
        inputs[1] = Some(output);
        let mut estimate = self.estimate.of(inputs)?;
        if let Some(clip) = self.clip {
            estimate = estimate.clamp(-clip, clip)?;
        }
        inputs[2] = Some(&estimate);
        inputs[3] = noise.as_ref();
        for (input, slot) in inputs[4..].iter_mut().zip(&state.memory) {
            *input = Some(slot);
        }
        let latents = self.next.of(inputs)?;
        let memory = self.memory.iter().map(|slot| slot.of(inputs)).collect::<Result<_>>()?;
        Ok(SamplerState { latents, estimate, memory })
    }
}

/// All that a row is between two steps, besides how many it has taken.
#[derive(Clone, Debug)]
pub(crate) struct SamplerState {
    /// `(1, c, h, w)` f32
    pub(crate) latents: Tensor,
    /// The last estimate of the finished picture, like `latents`; before the first step, what stands in for one.
    pub(crate) estimate: Tensor,
    /// What the sampler remembers of earlier steps, each like `latents`; as many as its plans have.
    pub(crate) memory: Vec<Tensor>,
}

impl SamplerState {
    /// The same state on `device`.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let memory = self.memory.iter().map(|slot| slot.to_device(device)).collect::<Result<_>>()?;
        Ok(Self { latents: self.latents.to_device(device)?, estimate: self.estimate.to_device(device)?, memory })
    }
}
