use std::fmt::Write;

use candle_core::Device;
use serde_json::Value;

use super::*;

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
            options: PlanOptions { strength, image_tokens, flow_sigmas },
            scale: case["scale"].as_f64().unwrap(),
            draws: floats(&case["draws"]),
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
            // Not a number is worst of all.
            if !(share <= worst.0) {
                worst = (share, format!("{}, {what}: {ours}, in diffusers {theirs}", self.name));
            }
        };
        assert_eq!(trajectory.steps.len(), self.timesteps.len(), "{}", self.name);
        compare(trajectory.initial_scale, self.scale, "initial scale".into());
        let mut state = self.start(&trajectory);
        for (index, plan) in trajectory.steps.iter().enumerate() {
            compare(f64::from(plan.timestep), self.timesteps[index], format!("timestep {index}"));
            assert_eq!(plan.draws_noise == StepNoise::Drawn, self.draws[index] > 0.0, "{}, noise {index}", self.name);
            for (ours, theirs) in numbers(&state.latents).into_iter().zip(&self.latents[index]) {
                compare(f64::from(ours), *theirs, format!("before step {index}"));
            }
            let drawn = || Ok(noise(index, self.latents[0].len()));
            state = plan.advance(&state, &output(plan, &state), drawn).unwrap();
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
    let wrong: Vec<(f64, String)> = cases.iter().map(Case::worst).filter(|(share, _)| !(*share <= 1.0)).collect();
    assert!(wrong.is_empty(), "{} of {} cases, as shares of the tolerance: {wrong:#?}", wrong.len(), cases.len());
}
