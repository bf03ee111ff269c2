"""Records what diffusers' schedulers do with a pseudo model, into samplers.json.

    python samplers.py        # needs torch, diffusers and scipy; numbers only change when their versions do

The pseudo model's output and the noise are functions that `src/engine/sampler/tests.rs` has too; no weights are needed.
"""

import collections
import json
import math
import pathlib

import diffusers
import numpy as np
import torch
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_dpmsolver_singlestep,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)
from tiny import versions

VALUES = 2
SPACINGS = {"": {}, "_karras": {"use_karras_sigmas": True}, "_exponential": {"use_exponential_sigmas": True},
            "_beta": {"use_beta_sigmas": True}}
PLAIN = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
KINDS = {
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "flow_match_euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
}
for kind, scheduler_class, options in [
    ("euler", diffusers.EulerDiscreteScheduler, {}),
    ("heun", diffusers.HeunDiscreteScheduler, {}),
    ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    ("dpmpp_2m_sde", diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ("dpmpp_sde", diffusers.DPMSolverSinglestepScheduler, {}),
    ("unipc", diffusers.UniPCMultistepScheduler, {}),
]:
    for suffix, spacing in SPACINGS.items():
        KINDS[kind + suffix] = (scheduler_class, {**options, **PLAIN, **spacing})

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
                    "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
CONFIGS = {
    "class defaults": {},
    "stable diffusion 1": {**STABLE_DIFFUSION, "prediction_type": "epsilon"},
    "stable diffusion 2": {**STABLE_DIFFUSION, "prediction_type": "v_prediction"},
    "shapes": {
        **STABLE_DIFFUSION, "beta_end": 0.025, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    },
    "zero terminal SNR": {
        **STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
    "clipped, evenly spaced": {
        **STABLE_DIFFUSION, "set_alpha_to_one": True, "clip_sample": True, "clip_sample_range": 1.5,
        "timestep_spacing": "linspace", "steps_offset": 0, "prediction_type": "epsilon",
    },
    "picture, cosine": {
        "beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "trailing",
        "prediction_type": "sample",
    },
}
SIGMA_SPACE = [kind + suffix for kind in ["euler", "heun"] for suffix in SPACINGS]
# Configurations that only matter to some samplers.
SPECIAL = [
    ("picture", {**STABLE_DIFFUSION, "prediction_type": "sample"}, SIGMA_SPACE),
    ("clipped heun", {**STABLE_DIFFUSION, "clip_sample": True, "clip_sample_range": 0.7}, ["heun"]),
    ("fixed_small_log", {**STABLE_DIFFUSION, "variance_type": "fixed_small_log"}, ["ddpm"]),
    ("fixed_large", {**STABLE_DIFFUSION, "variance_type": "fixed_large"}, ["ddpm"]),
    ("to sigma_min", {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min"},
     ["euler", "euler_karras", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_beta", "dpmpp_sde", "dpmpp_sde_karras", "unipc",
      "unipc_karras"]),
    ("to sigma_min, higher order", {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min", "lower_order_final": False},
     ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc"]),
    ("euler at final", {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min", "euler_at_final": True}, ["dpmpp_2m"]),
    ("log-linear", {**STABLE_DIFFUSION, "interpolation_type": "log_linear"}, ["euler", "euler_karras"]),
    ("sigma bounds", {**STABLE_DIFFUSION, "sigma_min": 0.05, "sigma_max": 12.0},
     ["euler_karras", "euler_exponential", "euler_beta", "heun_karras", "dpmpp_2m_karras", "unipc_karras"]),
    ("heun", {**STABLE_DIFFUSION, "solver_type": "heun"},
     ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_2m_karras", "unipc"]),
    ("sde", {**STABLE_DIFFUSION, "algorithm_type": "sde-dpmsolver++"}, ["dpmpp_sde", "dpmpp_sde_karras", "dpmpp_2m"]),
    ("sde, heun", {**STABLE_DIFFUSION, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, ["dpmpp_sde"]),
    # With bh1, diffusers makes no number of the last step to no noise at all.
    ("bh1", {**STABLE_DIFFUSION, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, ["unipc", "dpmpp_2m"]),
    ("order 1", {**STABLE_DIFFUSION, "solver_order": 1}, ["unipc", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde"]),
    ("order 3", {**STABLE_DIFFUSION, "solver_order": 3}, ["unipc", "unipc_karras"]),
    ("order 3, bh1", {**STABLE_DIFFUSION, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
     ["unipc"]),
    ("uncorrected", {**STABLE_DIFFUSION, "disable_corrector": [0, 2]}, ["unipc"]),
    ("clipped lambda", {**STABLE_DIFFUSION, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1,
                        "timestep_spacing": "linspace"}, ["dpmpp_2m", "dpmpp_sde", "unipc"]),
    ("flow", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
     ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc"]),
    ("flow, dynamic", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_dynamic_shifting": True},
     ["dpmpp_2m", "unipc"]),
    ("lcm", {"original_inference_steps": 40, "timestep_scaling": 3.0, "clip_sample": True}, ["lcm"]),
]
FLUX = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "shift": 3.0,
        "use_dynamic_shifting": True}
# With who picks the noise levels and the tokens of the picture.
FLOW_MATCH = [
    ("stable diffusion 3", {"shift": 3.0}, "scheduler", 1024),
    ("flux dev", FLUX, "pipeline", 4096),
    ("flux dev, small", FLUX, "pipeline", 100),
    ("flux schnell", {**FLUX, "shift": 1.0, "use_dynamic_shifting": False}, "pipeline", 4096),
    ("dynamic", FLUX, "scheduler", 2000),
    ("linear", {**FLUX, "time_shift_type": "linear"}, "pipeline", 3000),
    ("terminal", {**FLUX, "shift_terminal": 0.1}, "pipeline", 3000),
    ("karras", {"shift": 3.0, "use_karras_sigmas": True}, "scheduler", 0),
    ("exponential", {"shift": 3.0, "use_exponential_sigmas": True}, "scheduler", 0),
    ("beta", {"shift": 3.0, "use_beta_sigmas": True}, "scheduler", 0),
]
STEPS = [(1, None), (2, None), (5, None), (12, None)]
LONG = [(20, None)]
STRENGTHS = [(7, 0.3), (10, 0.55), (6, 0.9), (4, 1.0)]


def output(x, timestep):
    return torch.tensor([math.sin(1.3 * float(v) + 0.01 * float(timestep) + i) for i, v in enumerate(x)])


def noise(step):
    return torch.tensor([1.2 * math.sin(7.0 * step + i) for i in range(VALUES)])


class Generator:
    """What stands in for the schedulers' generator, and counts."""

    step = 0
    drawn = 0

    def __call__(self, shape, **options):
        self.drawn += 1
        return noise(self.step).reshape(shape)


generator = Generator()


def mu_of(config, tokens):
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    return tokens * slope + config["base_shift"] - slope * config["base_image_seq_len"]


def noised(scheduler, picture, dirt, timesteps):
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(picture, timesteps, dirt)
    return scheduler.add_noise(picture, dirt, timesteps)


def walk(kind, config, steps, strength, flow=None, tokens=0):
    scheduler_class, options = KINDS[kind]
    scheduler = scheduler_class.from_config({**config, **options})
    arguments = {}
    if config.get("use_dynamic_shifting"):
        arguments["mu"] = mu_of(FLUX, tokens)
    if flow == "pipeline":
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    else:
        arguments["num_inference_steps"] = steps
    scheduler.set_timesteps(**arguments)

    # As the pipelines' `get_timesteps` do.
    begin = 0
    if strength is not None:
        if kind == "flow_match_euler":
            begin = int(max(steps - min(steps * strength, steps), 0))
        else:
            begin = max(steps - min(int(steps * strength), steps), 0)
        begin *= scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        # Without it the first of two equal timesteps would be skipped.
        scheduler.set_begin_index(begin)

    x = torch.tensor([0.9 - 0.8 * i for i in range(VALUES)])
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if strength is None:
        x = x * scale
    else:
        x = noised(scheduler, torch.tensor([0.4 + 0.3 * i for i in range(VALUES)]), x, timesteps[:1])
    generator.drawn = 0
    trajectory, draws, noising = [[round(float(v), 6) for v in x]], [], []
    for generator.step, timestep in enumerate(timesteps):
        before = generator.drawn
        if strength is not None:
            # As inpainting does between steps, of a picture of ones or nothing and noise of the other.
            one = torch.ones(1)
            for picture, dirt in [(one, 0 * one), (0 * one, one)]:
                noising.append(round(float(noised(scheduler, picture, dirt, timestep[None])), 6))
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        # UniPC needs channels.
        shaped = lambda values: values[None, :, None, None]
        x = scheduler.step(shaped(output(seen, timestep)), timestep, shaped(x)).prev_sample[0, :, 0, 0]
        trajectory.append([round(float(v), 6) for v in x])
        draws.append(generator.drawn - before)
        assert all(math.isfinite(v) for v in trajectory[-1]), (kind, config, steps)
    numbers = lambda rows: [v for row in rows for v in row]
    return {
        "kind": kind, "steps": steps, **({} if strength is None else {"strength": strength, "noising": noising}),
        "scale": scale, "timesteps": [round(float(t), 4) for t in timesteps], "draws": draws,
        "trajectory": numbers(trajectory),
    }


def main():
    for module in [scheduling_ddpm, scheduling_dpmsolver_multistep, scheduling_dpmsolver_singlestep,
                   scheduling_euler_ancestral_discrete, scheduling_lcm]:
        module.randn_tensor = generator
    groups = []

    def record(name, config, kinds, asked, **flow):
        class_name = KINDS[kinds[0]][0].__name__
        shown = {"_class_name": class_name, **{k: v for k, v in config.items()}}
        cases = [walk(kind, config, *one, **flow) for kind in kinds for one in asked]
        groups.append({"name": name, "config": shown, **flow, "cases": cases})

    for name, config in CONFIGS.items():
        kinds = [kind for kind in KINDS if kind != "flow_match_euler"]
        if config.get("prediction_type") == "sample":
            # The first two are not implemented there. The cosine schedule has a sigma of 20000, whose f32 latents leave
            # the others three digits of a picture.
            left_out = ["euler_ancestral", "pndm", *SIGMA_SPACE]
            kinds = [kind for kind in kinds if kind not in left_out]
        asked = STEPS + (LONG if name == "stable diffusion 1" else [])
        record(name, config, kinds, asked if name == "stable diffusion 1" else [(1, None), (5, None)])
    kinds = [kind for kind in KINDS if kind != "flow_match_euler"]
    record("stable diffusion 1", CONFIGS["stable diffusion 1"], kinds, STRENGTHS)
    for name, config, kinds in SPECIAL:
        flow = {"flow": "scheduler", "tokens": 1000} if config.get("use_dynamic_shifting") else {}
        record(name, config, kinds, [(4, None), (7, None), (7, 0.6), (16, None)], **flow)
    for name, config, flow, tokens in FLOW_MATCH:
        asked = STEPS[1:] if "shift_terminal" in config else STEPS  # one step alone divides by zero
        record(name, config, ["flow_match_euler"], asked + STRENGTHS, flow=flow, tokens=tokens)

    document = {"versions": versions(diffusers, torch), "groups": groups}
    text = json.dumps(document, separators=(",", ":")).replace('{"name"', '\n{"name"').replace('{"kind"', '\n{"kind"')
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(collections.Counter(case["kind"] for group in groups for case in group["cases"]))


if __name__ == "__main__":
    main()
