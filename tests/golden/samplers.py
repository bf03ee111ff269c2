"""Records what diffusers' schedulers do with a pseudo model, into samplers.json.

    python samplers.py        # needs torch and diffusers; numbers only change when their versions do

The pseudo model's output and the noise are functions that `src/engine/sampler.rs` has too; no weights are involved.
"""

import json
import math
import pathlib

import diffusers
import torch
from diffusers.schedulers import (
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)

VALUES = 3
STEPS = [1, 5, 20]
KINDS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": False}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (diffusers.LCMScheduler, {}),
}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS = {
    "class defaults": {},
    "stable diffusion 1": {
        **STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        "timestep_spacing": "leading", "prediction_type": "epsilon",
    },
    "stable diffusion 2": {
        **STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        "timestep_spacing": "leading", "prediction_type": "v_prediction",
    },
    "shapes": {
        **STABLE_DIFFUSION, "beta_end": 0.025, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    },
    "zero terminal SNR": {
        **STABLE_DIFFUSION, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
    "clipped, evenly spaced": {
        **STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 1.5, "timestep_spacing": "linspace",
        "prediction_type": "epsilon",
    },
    "picture, cosine": {
        "beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "trailing",
        "prediction_type": "sample",
    },
}


def output(x, timestep):
    return torch.tensor([math.sin(1.3 * float(v) + 0.01 * float(timestep) + i) for i, v in enumerate(x)])


def noise(step):
    return torch.tensor([1.2 * math.sin(7.0 * step + i) for i in range(VALUES)])


def main():
    step_now = 0
    draw = lambda *arguments, **options: noise(step_now)
    scheduling_euler_ancestral_discrete.randn_tensor = draw
    scheduling_lcm.randn_tensor = draw
    cases = []
    for name, config in CONFIGS.items():
        for kind, (scheduler_class, options) in KINDS.items():
            if kind == "euler_ancestral" and config.get("prediction_type") == "sample":
                continue  # diffusers does not implement it
            if kind == "dpmpp_2m_karras" and config.get("beta_schedule") == "squaredcos_cap_v2":
                continue  # it cuts 998.9999… to 998: a matter of the last bit of an f32
            for steps in STEPS:
                scheduler = scheduler_class.from_config({**config, **options})
                scheduler.set_timesteps(steps)
                if hasattr(scheduler, "set_begin_index"):
                    # Else the first of two equal timesteps would be skipped.
                    scheduler.set_begin_index(0)
                x = torch.tensor([0.9 - 0.8 * i for i in range(VALUES)])
                scale = float(scheduler.init_noise_sigma)
                x = x * scale
                trajectory = []
                for step_now, timestep in enumerate(scheduler.timesteps):
                    seen = scheduler.scale_model_input(x, timestep)
                    x = scheduler.step(output(seen, timestep), timestep, x).prev_sample
                    trajectory.append([round(float(v), 6) for v in x])
                cases.append({
                    "name": name, "kind": kind, "config": {"_class_name": scheduler_class.__name__, **config},
                    "initial_scale": scale, "timesteps": [round(float(t), 4) for t in scheduler.timesteps],
                    "trajectory": trajectory,
                })
    document = {"diffusers": diffusers.__version__, "torch": torch.__version__, "cases": cases}
    text = json.dumps(document).replace('{"name"', '\n{"name"')
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
