//! Trajectories against those that diffusers took, and what all samplers have in common.

use std::fmt::Write;

use candle_core::Device;
use serde_json::Value;

use super::*;
use crate::engine::checkpoint::{Checkpoint, Facts};
use crate::engine::config::Prediction;
use crate::engine::random::Generator;
use crate::job::{Rng, SigmaSpacing};

const GOLDEN: &str = include_str!("../../../tests/golden/samplers.json");
/// Of `max(1, |value|)`.
const TOLERANCE: f64 = 1e-4;

fn vector(values: impl IntoIterator<Item = f64>) -> Tensor {
    Tensor::from_iter(values.into_iter().map(|value| value as f32), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec1().unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// What `tests/golden/samplers.py` has for a model.
fn output(plan: &StepPlan, state: &SamplerState) -> Tensor {
    let seen = numbers(&(&state.latents * plan.input_scale).unwrap());
    vector(
        (0_u32..)
            .zip(seen)
            .map(|(index, value)| (1.3 * f64::from(value) + 0.01 * f64::from(plan.timestep) + f64::from(index)).sin()),
    )
}

/// And for a generator.
fn noise(step: usize, values: usize) -> Tensor {
    vector((0..values).map(|index| 1.2 * (7.0 * step as f64 + index as f64).sin()))
}

/// A trajectory that diffusers took.
struct Case {
    name: String,
    kind: SamplerKind,
    config: SchedulerConfig,
    steps: usize,
    options: PlanOptions,
    scale: f64,
    timesteps: Vec<f64>,
    draws: Vec<f64>,
    /// Of picture and noise at each step; only with a strength.
    noising: Vec<f64>,
    latents: Vec<Vec<f64>>,
}

impl Case {
    fn all() -> Vec<Self> {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let groups = golden["groups"].as_array().unwrap();
        groups
            .iter()
            .flat_map(|group| group["cases"].as_array().unwrap().iter().map(move |case| Self::read(group, case)))
            .collect()
    }

    fn read(group: &Value, case: &Value) -> Self {
        let steps = case["steps"].as_u64().unwrap() as usize;
        let strength = case["strength"].as_f64();
        let kind = case["kind"].as_str().unwrap().parse().unwrap();
        let flow_sigmas = if group["flow"] == "pipeline" { FlowSigmas::Pipeline } else { FlowSigmas::Scheduler };
        let image_tokens = group["tokens"].as_u64().unwrap_or(0) as usize;
        let timesteps = floats(&case["timesteps"]);
        let values = floats(&case["trajectory"]);
        let mut name = format!("{}, {kind}, {steps} steps", group["name"].as_str().unwrap());
        if let Some(strength) = strength {
            write!(name, ", strength {strength}").unwrap();
        }
        Self {
            name,
            kind,
            config: serde_json::from_value(group["config"].clone()).unwrap(),
            steps,
            options: PlanOptions { strength, image_tokens, flow_sigmas, ..PlanOptions::default() },
            scale: case["scale"].as_f64().unwrap(),
            draws: floats(&case["draws"]),
            noising: case.get("noising").map(floats).unwrap_or_default(),
            latents: values.chunks(values.len() / (timesteps.len() + 1)).map(<[f64]>::to_vec).collect(),
            timesteps,
        }
    }

    fn plan(&self) -> Trajectory {
        Trajectory::plan(self.kind, self.steps, &self.config, &self.options).unwrap()
    }

    fn start(&self, trajectory: &Trajectory) -> SamplerState {
        let values = self.latents[0].len();
        let noise = vector((0..values).map(|index| 0.9 - 0.8 * index as f64));
        let picture = vector((0..values).map(|index| 0.4 + 0.3 * index as f64));
        match self.options.strength {
            None => trajectory.start(&noise).unwrap(),
            Some(_) => trajectory.start_from(&picture, &noise).unwrap(),
        }
    }

    /// What differs from diffusers most: how much of the tolerance, and where.
    fn worst(&self) -> (f64, String) {
        let trajectory = self.plan();
        let mut worst = (0.0, String::new());
        let mut compare = |ours: f64, theirs: f64, what: String| {
            let share = (ours - theirs).abs() / (TOLERANCE * theirs.abs().max(1.0));
            if share > worst.0 || share.is_nan() {
                worst = (
                    if share.is_nan() { f64::INFINITY } else { share },
                    format!("{}, {what}: {ours}, in diffusers {theirs}", self.name),
                );
            }
        };
        assert_eq!(trajectory.steps.len(), self.timesteps.len(), "{}", self.name);
        compare(trajectory.initial_scale, self.scale, "initial scale".into());
        for (plan, noising) in trajectory.steps.iter().zip(self.noising.chunks(2)) {
            compare(plan.noising.signal, noising[0], "signal of the noised picture".into());
            compare(plan.noising.noise, noising[1], "noise of the noised picture".into());
        }
        let mut state = self.start(&trajectory);
        for (index, plan) in trajectory.steps.iter().enumerate() {
            compare(f64::from(plan.timestep), self.timesteps[index], format!("timestep {index}"));
            assert_eq!(plan.draws_noise == StepNoise::Drawn, self.draws[index] > 0.0, "{}, noise {index}", self.name);
            for (ours, theirs) in numbers(&state.latents).into_iter().zip(&self.latents[index]) {
                compare(f64::from(ours), *theirs, format!("before step {index}"));
            }
            let drawn = || Ok(noise(index, self.latents[0].len()));
            state = plan.advance(&state, &output(plan, &state), drawn).unwrap();
            assert_eq!(plan.memory.len(), state.memory.len());
        }
        for (ours, theirs) in numbers(&state.latents).into_iter().zip(&self.latents[trajectory.steps.len()]) {
            compare(f64::from(ours), *theirs, "at the end".into());
        }
        worst
    }
}

#[test]
fn every_sampler_walks_as_in_diffusers() {
    let cases = Case::all();
    assert!(cases.len() > 400, "{} cases", cases.len());
    for kind in SamplerKind::ALL {
        assert!(cases.iter().any(|case| case.kind == *kind), "{kind} was not recorded");
    }
    let wrong: Vec<(f64, String)> = cases.iter().map(Case::worst).filter(|(share, _)| *share > 1.0).collect();
    assert!(wrong.is_empty(), "{} of {} cases, as shares of the tolerance: {wrong:#?}", wrong.len(), cases.len());
}

/// The latents after the last step; `between` may do what it likes to the state of each.
fn walked(trajectory: &Trajectory, between: impl Fn(SamplerState) -> SamplerState) -> Vec<f32> {
    let mut state = trajectory.start(&vector([0.9, 0.1, -0.7])).unwrap();
    for (index, plan) in trajectory.steps.iter().enumerate() {
        state = between(state);
        state = plan.advance(&state, &output(plan, &state), || Ok(noise(index, 3))).unwrap();
    }
    numbers(&state.latents)
}

fn planned(kind: SamplerKind, config: &SchedulerConfig) -> Trajectory {
    Trajectory::plan(kind, 7, config, &PlanOptions::default()).unwrap()
}

fn flow_match() -> SchedulerConfig {
    SchedulerConfig { class: "FlowMatchEulerDiscreteScheduler".into(), shift: Some(3.0), ..SchedulerConfig::default() }
}

#[test]
fn a_row_that_is_written_down_after_every_step_ends_the_same() {
    let third_order = SchedulerConfig { solver_order: Some(3), ..SchedulerConfig::default() };
    for config in [SchedulerConfig::default(), flow_match(), third_order] {
        for kind in config.available_samplers() {
            let trajectory = planned(kind, &config);
            let through_bytes = |state: SamplerState| {
                let shape = state.latents.dims().to_vec();
                let random = Generator::new(Rng::TorchCuda, 0);
                let checkpoint = Checkpoint { facts: Facts::default(), step: 0, state, whole: None, random };
                let bytes = checkpoint.to_bytes().unwrap();
                let read = Checkpoint::from_bytes(&bytes, &shape).unwrap();
                assert_eq!(read.to_bytes().unwrap(), bytes, "{kind}");
                read.state
            };
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(walked(&trajectory, through_bytes)), bits(walked(&trajectory, |state| state)), "{kind}");
        }
    }
}

#[test]
fn the_state_of_another_sampler_is_refused() {
    let config = SchedulerConfig::default();
    let (euler, heun) =
        (planned(SamplerKind::Ddim, &config), planned(SamplerKind::Heun(SigmaSpacing::Karras), &config));
    let state = euler.start(&vector([1.0])).unwrap();
    assert!(heun.steps[0].advance(&state, &state.latents, || Ok(vector([0.0]))).is_err());
}

#[test]
fn the_picture_of_a_perfect_model_is_found_by_every_sampler() {
    // The model knows the picture: it answers with the noise that would have led from it to what it sees.
    let picture = 0.6;
    for config in [
        SchedulerConfig { clip_sample: Some(false), set_alpha_to_one: Some(true), ..SchedulerConfig::default() },
        flow_match(),
    ] {
        for kind in config.available_samplers() {
            let trajectory = planned(kind, &config);
            let mut state = trajectory.start(&vector([0.4])).unwrap();
            for plan in &trajectory.steps {
                let Noising { signal, noise } = plan.noising;
                let latents = f64::from(numbers(&state.latents)[0]);
                let dirt = (latents - signal * picture) / noise;
                let answer = if config.is_flow_match() { dirt - picture } else { dirt };
                state = plan.advance(&state, &vector([answer]), || Ok(vector([1.0]))).unwrap();
                let estimate = f64::from(numbers(&state.estimate)[0]);
                assert!((estimate - picture).abs() < 1e-3, "{kind} takes {picture} for {estimate}");
            }
            let found = f64::from(numbers(&state.latents)[0]);
            assert!((found - picture).abs() < 0.05, "{kind} finds {found}");
        }
    }
}

#[test]
fn steps_that_the_schedule_does_not_have_are_refused() {
    let config = SchedulerConfig { num_train_timesteps: Some(60), ..SchedulerConfig::default() };
    for (kind, steps, steps_max) in [
        (SamplerKind::Lcm, 51, 50),
        (SamplerKind::Ddim, 61, 60),
        (SamplerKind::Pndm, 61, 60),
        (SamplerKind::DpmPlusPlus2M(SigmaSpacing::Trained), 60, 59),
        (SamplerKind::UniPc(SigmaSpacing::Karras), 60, 59),
        (SamplerKind::Euler(SigmaSpacing::Trained), 0, 60),
        (SamplerKind::Heun(SigmaSpacing::Beta), 61, 60),
    ] {
        let refused = Trajectory::plan(kind, steps, &config, &PlanOptions::default());
        assert_eq!(refused, Err(PlanError::TooManySteps { sampler: kind, steps, steps_max }));
        let most = Trajectory::plan(kind, steps_max, &config, &PlanOptions::default()).unwrap();
        assert!(most.steps.iter().all(|plan| plan.timestep < 60.0), "{kind}");
    }
}

#[test]
fn the_number_of_steps_is_that_of_the_calls_of_the_model() {
    let count = |kind, steps, strength| {
        let options = PlanOptions { strength, ..PlanOptions::default() };
        Trajectory::plan(kind, steps, &SchedulerConfig::default(), &options).map(|trajectory| trajectory.steps.len())
    };
    let heun = SamplerKind::Heun(SigmaSpacing::Trained);
    assert_eq!(count(SamplerKind::Ddim, 20, None), Ok(20));
    assert_eq!(count(SamplerKind::Pndm, 20, None), Ok(21));
    assert_eq!(count(SamplerKind::Pndm, 1, None), Ok(1));
    assert_eq!(count(heun, 20, None), Ok(39));
    assert_eq!(count(SamplerKind::Ddim, 20, Some(0.33)), Ok(6));
    assert_eq!(count(heun, 20, Some(0.33)), Ok(11));
    for strength in [0.0, -1.0, 0.04, 1.5, f64::NAN] {
        let refused = count(SamplerKind::Ddim, 20, Some(strength));
        assert!(matches!(refused, Err(PlanError::NoSteps { steps: 20, .. })), "{strength}: {refused:?}");
    }
}

#[test]
fn a_strength_takes_the_steps_of_the_number_that_was_written() {
    let count = |kind, steps, config: &SchedulerConfig, strength| {
        let options = PlanOptions { strength: Some(as_written(strength)), ..PlanOptions::default() };
        Trajectory::plan(kind, steps, config, &options).map(|trajectory| trajectory.steps.len())
    };
    for (strength, steps, taken) in [(0.7, 10, 7), (0.9, 30, 27), (0.35, 20, 7), (0.95, 40, 38), (0.3, 10, 3)] {
        let taken = Ok(taken);
        assert_eq!(
            count(SamplerKind::Ddim, steps, &SchedulerConfig::default(), strength),
            taken,
            "{strength} of {steps}"
        );
    }
    for (strength, steps, taken) in [(0.1, 10, 1), (0.3, 10, 3), (0.4, 50, 20), (0.36, 25, 9), (0.7, 10, 7)] {
        let taken = Ok(taken);
        assert_eq!(count(SamplerKind::FlowMatchEuler, steps, &flow_match(), strength), taken, "{strength} of {steps}");
    }
}

#[test]
fn a_model_has_the_samplers_that_suit_its_configuration() {
    let but = |left_out: &[&str]| -> Vec<SamplerKind> {
        let left_out = |kind: &SamplerKind| left_out.iter().any(|name| kind.as_str().starts_with(name));
        SamplerKind::ALL.iter().copied().filter(|kind| !left_out(kind)).collect()
    };
    let config = SchedulerConfig::default;
    assert_eq!(config().available_samplers(), but(&["flow_match_euler"]));
    assert_eq!(flow_match().available_samplers(), [SamplerKind::FlowMatchEuler]);
    let picture = SchedulerConfig { prediction_type: Prediction::Sample, ..config() };
    assert_eq!(picture.available_samplers(), but(&["flow_match_euler", "pndm", "euler_ancestral"]));
    let third_order = SchedulerConfig { solver_order: Some(3), ..config() };
    assert_eq!(third_order.available_samplers(), but(&["flow_match_euler", "dpmpp"]));
    let flow = SchedulerConfig { use_flow_sigmas: true, prediction_type: Prediction::Flow, ..config() };
    assert_eq!(SamplerKind::list(&flow.available_samplers()), "dpmpp_2m, dpmpp_2m_sde, dpmpp_sde, unipc");

    let refused = Trajectory::plan(SamplerKind::Ddim, 5, &flow_match(), &PlanOptions::default()).unwrap_err();
    assert_eq!(refused.to_string(), "ddim does not suit this model, but these do: flow_match_euler");
}
