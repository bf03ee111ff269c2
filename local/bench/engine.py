"""Checks Darkroom against diffusers on this machine, then times both in turns; `local/bench/engine` runs it.

Three parts, each of which `--only` can choose: `goldens`, the recorded results of diffusers against the GPU's; `noise`,
images from the random numbers of CUDA generators; `times`, which prints the tables. Diffusers is timed in a process of
its own, which prints what `darkroom profile` prints, so that neither has the other's memory or caches.

Shares are of the rate at which PyTorch multiplies large matrices on the same machine, which is about what it can do: a
stage's operations, which are counted for the plain way to compute it, over its time. A share above 1 is of operations
that were saved.
"""

import argparse
import contextlib
import datetime
import inspect
import io
import json
import logging
import os
import pathlib
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import diffusers
import safetensors.torch
import torch
import torch.utils.flop_counter
import transformers

import models

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "darkroom"
PARTS = ["goldens", "noise", "times"]
IMAGES = [1, 2, 4]
PROMPT, NEGATIVE_PROMPT = "a red star above the sea", "and"

# What is measured: the model, its size in pixels, the number format of its weights.
FAMILIES = {
    "tiny": ("Shapes", 256, "f32"),
    "sd15": ("Stable Diffusion 1.5", 512, "f16"),
    "sdxl": ("SDXL", 1024, "f16"),
    "sd35-medium": ("Stable Diffusion 3.5 medium", 1024, "bf16"),
    "flux-schnell": ("FLUX.1 schnell", 1024, "bf16"),
}
# Besides the weights: activations of four images, and what cuDNN tries out.
GPU_BYTES_SPARE = 8 << 30
DISK_BYTES_SPARE = 2 << 30

# Families of the goldens and samplers that draw noise once and in every step; sizes and seeds of several magnitudes.
NOISE_CASES = [("sd1", None), ("sd1", "euler_ancestral"), ("flux-schnell", None)]
NOISE_SIZES = [(16, 24), (32, 32), (128, 96)]
NOISE_SEEDS = [0, 20_231, 2**32 + 9]

# Steps of a whole image, from its prompt to the bytes of a PNG.
WHOLE_STEPS = 20
# What both say when they have made one.
FIRST_STEP = "step 1/1"
COLUMNS = ["", "diffusers", "Darkroom", "ratio", "share of diffusers", "of Darkroom"]
# What a processor computes with, by the flag that says so, the best first.
VECTORS = {"avx512_bf16": "AVX-512 and its bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
# Side of the matrices, and bytes of the copies, by which the machine is measured.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = 1 << 28


class Failure(Exception):
    """A program ended with an error; the text is what it said last."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def darkroom_environment(**more):
    environment = {**os.environ, **more}
    if libraries := os.environ.get("DARKROOM_LIBRARY_PATH"):
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, [libraries, os.environ.get("LD_LIBRARY_PATH")]))
    return environment


def cargo_environment(device, **more):
    """Programs with and without CUDA are kept apart, as in `local/test`."""
    target = os.environ.get("CARGO_TARGET_DIR") or str(CACHE / "target")
    return darkroom_environment(
        CARGO_TARGET_DIR=f"{target}-cuda" if device == "cuda" else target, DARKROOM_FEATURES=features(device), **more)


def features(device):
    return (os.environ.get("DARKROOM_FEATURES") or "cudnn") if device == "cuda" else ""


def build(device):
    """Builds Darkroom, and gives the path of its command line."""
    say("building Darkroom")
    built = subprocess.run(
        [ROOT / "local/build"], env=cargo_environment(device, DARKROOM_PROFILE="release"), stdout=subprocess.PIPE,
        text=True)
    if built.returncode:
        sys.exit("Darkroom cannot be built")
    return pathlib.Path(built.stdout.strip()) / "darkroom"


# The checks.


def check_goldens(device):
    """Runs the tests that compare with what diffusers computed on a CPU."""
    say(f"goldens, on {device}")
    chosen = ["--features", features(device)] if features(device) else []
    command = ["cargo", "test", "--release", "--locked", *chosen, "--lib", "--", "golden", "random"]
    tested = subprocess.run(
        command, cwd=ROOT, env=cargo_environment(device, DARKROOM_TEST_DEVICE=device), stdout=sys.stderr)
    return tested.returncode == 0


def check_noise(program, device):
    """Compares final latents that began with the numbers of PyTorch's generator on `device`, both computed there in f32.

    The noise itself is not to be had from the command line, but other noise makes other latents.
    """
    from check_fresh import LATENTS_MAX
    from make import FAMILIES as TINY
    from make import build as build_tiny

    say(f"noise of torch.Generator({device!r}), seen in the final latents of Darkroom and diffusers, both on {device} in"
        f" f32; they may differ by {LATENTS_MAX:.0e} of the largest")
    torch.backends.cudnn.allow_tf32 = False
    good = True
    for name, sampler in NOISE_CASES:
        pipeline, _ = build_tiny(TINY[name], seed=1)
        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            save_tiny(pipeline, directory / "model")
            use_sampler(pipeline, sampler, directory / "model")
            pipeline.to(device)
            for width, height in NOISE_SIZES:
                for seed in NOISE_SEEDS:
                    request = {
                        "prompt": "a red star", "num_inference_steps": 4, "guidance_scale": 3.0, "width": width,
                        "height": height, "seed": seed,
                    }
                    ours = darkroom_latents(program, device, directory, request, sampler)
                    theirs = diffusers_latents(pipeline, device, request)
                    off = latents_difference(pipeline, ours, theirs)
                    good &= off <= LATENTS_MAX
                    say(f"  {name:12} {sampler or 'default':15} {width}x{height} seed {seed}: {off:.1e}"
                        f"{'' if off <= LATENTS_MAX else ' TOO FAR'}")
    return good


def save_tiny(pipeline, directory):
    pipeline.save_pretrained(str(directory))
    # Configurations of tiny models imply tiny limits.
    (directory / "darkroom.toml").write_text("[limits]\nside_min = 8\nside_max = 1024\n")


def use_sampler(pipeline, sampler, directory):
    """Gives `pipeline` the sampler, or its own as the file in `directory` says it."""
    from samplers import KINDS

    own = type(pipeline.scheduler).from_pretrained(str(directory), subfolder="scheduler")
    if sampler:
        scheduler_class, settings = KINDS[sampler]
        own = scheduler_class.from_config({**own.config, **settings})
    pipeline.scheduler = own


def darkroom_latents(program, device, directory, request, sampler):
    asked = {**request, "rng": f"torch-{device}", **({"scheduler": sampler} if sampler else {})}
    (directory / "request.json").write_text(json.dumps(asked))
    output([
        program, "render", "--model", directory / "model", "--request", directory / "request.json", "--out",
        directory / "image.png", "--latents", directory / "latents.safetensors", "--device", device, "--dtype", "f32",
    ], darkroom_environment())
    return safetensors.torch.load_file(directory / "latents.safetensors")["latents"]


def diffusers_latents(pipeline, device, request):
    """What the VAE is given to decode."""
    kept = []
    original = pipeline.vae.decode

    def decode(latents, *rest, **named):
        kept.append(latents.clone())
        return original(latents, *rest, **named)

    pipeline.vae.decode = decode
    arguments = {key: value for key, value in request.items() if key != "seed"}
    try:
        with torch.no_grad():
            pipeline(**arguments, generator=torch.Generator(device).manual_seed(request["seed"]), output_type="np")
    finally:
        del pipeline.vae.decode
    return kept[0].cpu()


def latents_difference(pipeline, ours, theirs):
    """The largest difference, relative to the largest value."""
    scale, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor or 0.0
    return float((ours / scale + shift - theirs).abs().max() / theirs.abs().max())


# The times of diffusers, in a process of its own.


def profile_diffusers(directory, device, dtype, side, turns, whole, compiled):
    """Prints what `darkroom profile` prints, of diffusers."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.zeros(1, device=device)
    pipeline, loading = timed(device, lambda: load(directory, device, models.DTYPES[dtype]))
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        denoiser(pipeline).compile(mode="max-autotune", fullgraph=True)
    with torch.inference_mode():
        found = {
            "loading_ms": loading,
            "encode_ms": median_of(turns, lambda: timed(device, lambda: encode(pipeline, device))[1]),
            "steps": [{
                "width": side, "height": side, "images": 1,
                "ms": median_of(turns, lambda: step_ms(pipeline, device, side)),
            }],
            "decode": [{"width": side, "height": side, "ms": median_of(turns, decode_timer(pipeline, device, side))}],
        }
        if whole:
            found["whole_ms"] = median_of(turns, lambda: timed(device, lambda: whole_image(pipeline, side))[1])
    found["resident_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def load(directory, device, dtype):
    """The pipeline with the settings that diffusers recommends for speed; attention is PyTorch's by default."""
    vae = json.loads((directory / "vae/config.json").read_text())
    class_name = json.loads((directory / "model_index.json").read_text())["_class_name"]
    pipeline_class = getattr(diffusers, class_name)
    # What SDXL's pipeline does before it decodes, at once.
    upcast = dtype == torch.float16 and class_name.startswith("StableDiffusionXL") and vae.get("force_upcast")
    pipeline = pipeline_class.from_pretrained(
        str(directory), dtype={"default": dtype, "vae": torch.float32 if upcast else dtype}).to(device)
    pipeline.vae.to(memory_format=torch.channels_last)
    if hasattr(pipeline, "unet"):
        pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def denoiser(pipeline):
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, work):
    """The result of `work`, and its milliseconds."""
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, (time.perf_counter() - started) * 1e3


def median_of(turns, measure):
    """The first measurement is for what is only done once."""
    measure()
    return statistics.median(measure() for _ in range(turns))


def encode(pipeline, device):
    known = inspect.signature(pipeline.encode_prompt).parameters
    asked = {
        "prompt": PROMPT, "prompt_2": None, "prompt_3": None, "negative_prompt": NEGATIVE_PROMPT, "device": device,
        "num_images_per_prompt": 1, "do_classifier_free_guidance": True,
    }
    return pipeline.encode_prompt(**{key: value for key, value in asked.items() if key in known})


def step_ms(pipeline, device, side):
    """Milliseconds of a step of the pipeline's own loop, sampler and guidance included, without the first one."""
    steps = 11 if device == "cuda" else 5
    moments = {}

    def seen(_, step, timestep, kept):
        if step in (0, steps - 1):
            synchronize(device)
            moments[step] = time.perf_counter()
        return kept

    pipeline(
        PROMPT, width=side, height=side, num_inference_steps=steps, output_type="latent", callback_on_step_end=seen,
        generator=torch.Generator("cpu").manual_seed(0), **guidance(pipeline))
    return (moments[steps - 1] - moments[0]) / (steps - 1) * 1e3


def decode_timer(pipeline, device, side):
    """A function that makes a picture from latents, up to its bytes in main memory, and gives the milliseconds."""
    vae = pipeline.vae
    side //= 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn((1, vae.config.latent_channels, side, side), device=device, dtype=vae.dtype)

    def decode():
        picture = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return pipeline.image_processor.postprocess(picture, output_type="pil")

    return lambda: timed(device, decode)[1]


def guidance(pipeline):
    return {} if "Flux" in type(pipeline).__name__ else {"guidance_scale": 5.0, "negative_prompt": NEGATIVE_PROMPT}


def whole_image(pipeline, side):
    image = pipeline(
        PROMPT, width=side, height=side, num_inference_steps=WHOLE_STEPS,
        generator=torch.Generator("cpu").manual_seed(0), **guidance(pipeline)).images[0]
    image.save(io.BytesIO(), "PNG")


def first_step(directory, device, dtype):
    """What a process does until it has made one small step, and says so."""
    diffusers.utils.logging.disable_progress_bar()
    pipeline = load(directory, device, models.DTYPES[dtype])
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, width=64, height=64, num_inference_steps=1, output_type="latent", **guidance(pipeline))
    synchronize(device)
    print(FIRST_STEP, flush=True)


# What the machine can do, and what there is to do.


def matrix_rate(device, dtype):
    """Operations in a second of a large matrix product, the best of some."""
    side = MATRIX_SIDE[device]
    left, right = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(device, lambda: left @ right)[1] for _ in range(8)) * 1e3


def copy_rate(device):
    """Bytes read and written in a second by a copy, the best of some."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / min(timed(device, lambda: target.copy_(source))[1] for _ in range(8)) * 1e3


def operations(name, side):
    """Those of a step of one image, with guidance where there is one, and of decoding it, the plain way."""
    documents = dict(models.parts(name))
    latents = side // 8
    vae = models.build(documents["vae"])
    with torch.device("meta"):
        found = {"decode": counted(lambda: vae.decode(torch.empty(
            1, documents["vae"]["latent_channels"], latents, latents)))}
        if "unet" in documents:
            config = documents["unet"]
            added = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
            found["step", 1] = counted(lambda: models.build(config)(
                torch.empty(2, 4, latents, latents), torch.empty(()), torch.empty(2, 77, config["cross_attention_dim"]),
                added_cond_kwargs=added if "addition_embed_type" in config else None))
    return found


def counted(work):
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


# The times of both.


def number_format(name, options):
    """Of the weights, and of what PyTorch computes with."""
    return options.dtype or (FAMILIES[name][2] if options.device == "cuda" else "f32")


def measure_family(program, name, options):
    """The rows of a table."""
    title, side, _ = FAMILIES[name]
    dtype = number_format(name, options)
    directory = model_directory(name, dtype)
    whole = name in options.whole
    rounds = {"diffusers": [], "darkroom": []}
    try:
        for number in range(options.rounds):
            say(f"{title}: round {number + 1} of {options.rounds}")
            profiles = {
                "diffusers": (diffusers_command(directory, dtype, side, whole, options), os.environ),
                "darkroom": (profile_command(program, directory, side, whole, options), darkroom_environment()),
            }
            starts = {
                "diffusers": ([*diffusers_command(directory, dtype, side, False, options), "--start"], os.environ),
                "darkroom": (render_command(program, directory, options), darkroom_environment()),
            }
            for whose, (command, environment) in profiles.items():
                found = flat(*watched(command, environment, options.device))
                rounds[whose].append({**found, "start": milliseconds_to_first_step(*starts[whose])})
    finally:
        if options.discard and name != "tiny":
            shutil.rmtree(directory)
    todo = operations(name, side) if name in models.MODELS else {}
    rate = matrix_rate(options.device, models.DTYPES[dtype])
    return table(f"{title}, {side} × {side}, {dtype}", rounds["diffusers"], rounds["darkroom"], todo, rate)


def model_directory(name, dtype):
    """Where the model is. It is written first if it is missing, in a process of its own, which leaves the GPU empty."""
    if name == "tiny":
        return ROOT / "local/models/shapes"
    directory = CACHE / "bench-models" / f"{name}-{dtype}"
    if not (directory / "model_index.json").exists():
        say(f"{name}: writing random weights to {directory}")
        output([sys.executable, ROOT / "local/bench/models.py", name, directory, "--dtype", dtype], os.environ)
    return directory


def no_room(name, options):
    """Why the family cannot be measured here, if it cannot."""
    if name == "tiny":
        return None
    dtype = number_format(name, options)
    needed = models.size(name, dtype)
    (CACHE / "bench-models").mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(CACHE / "bench-models").free
    written = (CACHE / "bench-models" / f"{name}-{dtype}" / "model_index.json").exists()
    if not written and free < needed + DISK_BYTES_SPARE:
        return f"its weights take {needed / 1e9:.0f} GB of disk, of which {free / 1e9:.0f} GB are free"
    if options.device == "cuda" and (free := torch.cuda.mem_get_info()[0]) < needed + GPU_BYTES_SPARE:
        needed += GPU_BYTES_SPARE
        return f"it takes {needed / 1e9:.0f} GB of GPU memory, of which {free / 1e9:.0f} GB are free"
    return None


def diffusers_command(directory, dtype, side, whole, options):
    return [
        sys.executable, __file__, "--diffusers", directory, "--dtype", dtype, "--side", str(side), "--device",
        options.device, "--turns", str(options.turns), *(["--compile"] if options.compile else []),
        *(["--image"] if whole else []),
    ]


def profile_command(program, directory, side, whole, options):
    images = IMAGES if options.device == "cuda" else IMAGES[:1]
    return [
        program, "profile", "--model", directory, "--device", options.device, "--size", f"{side}x{side}", "--images",
        ",".join(map(str, images)), "--turns", str(options.turns), "--json", *precision(options),
        *(["--whole", str(WHOLE_STEPS)] if whole else []),
    ]


def render_command(program, directory, options):
    """A process that makes one small step and says so, as `first_step` does."""
    scratch = CACHE / "bench-models"
    scratch.mkdir(parents=True, exist_ok=True)
    request = {"prompt": PROMPT, "num_inference_steps": 1, "width": 64, "height": 64}
    (scratch / "first-step.json").write_text(json.dumps(request))
    return [
        program, "render", "--model", directory, "--request", scratch / "first-step.json", "--out",
        scratch / "first-step.png", "--device", options.device, *precision(options),
    ]


def precision(options):
    """Darkroom chooses for each part, unless it is told."""
    return ["--dtype", options.dtype] if options.dtype else []


def output(command, environment):
    """Standard output of a command that has to succeed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "nothing was said").splitlines()[-1]
        raise Failure(f"{pathlib.Path(command[0]).name} ended with {done.returncode}: {said}")
    return done.stdout


def milliseconds_to_first_step(command, environment):
    """From the start of a process to the line with which it says that its first step is made."""
    began, made, last = time.perf_counter(), None, "nothing was said"
    with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            last = line.strip()
            if made is None and last.startswith(FIRST_STEP):
                made = (time.perf_counter() - began) * 1e3
    if process.returncode or made is None:
        raise Failure(f"{pathlib.Path(command[0]).name} ended with {process.returncode}: {last}")
    return made


def watched(command, environment, device):
    """What a profiling command found, and the bytes of memory that it took: the GPU's where there is one."""
    with GpuMemory() if device == "cuda" else contextlib.nullcontext() as memory:
        found = json.loads(output(command, environment))
    return found, memory.taken() if memory else found["resident_peak_bytes"]


class GpuMemory:
    """How much more of the GPU's memory is used meanwhile, seen from outside so that it is the same for any program."""

    QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]

    def __enter__(self):
        self.before = int(subprocess.run(self.QUERY, capture_output=True, text=True, check=True).stdout)
        self.peak = self.before
        self.watch = subprocess.Popen([*self.QUERY, "--loop-ms=100"], stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        return self

    def read(self):
        for line in self.watch.stdout:
            self.peak = max(self.peak, int(line))

    def __exit__(self, *_):
        self.watch.terminate()
        self.reader.join()
        self.watch.wait()

    def taken(self):
        return (self.peak - self.before) << 20


def flat(found, peak):
    """The numbers of one round, by name."""
    return {
        **{("step", step["images"]): step["ms"] for step in found["steps"]}, "decode": found["decode"][0]["ms"],
        "encode": found["encode_ms"], "load": found["loading_ms"], "peak": peak,
        **({"whole": found["whole_ms"]} if found.get("whole_ms") else {}),
    }


# What rows are called, and what their numbers are divided by.
ROWS = {
    ("step", 1): ("a step of one image, ms", 1), ("step", 2): ("of two", 1), ("step", 4): ("of four", 1),
    "decode": ("decode, ms", 1), "encode": ("encode two prompts, ms", 1),
    "whole": (f"prompt to PNG, {WHOLE_STEPS} steps, ms", 1), "load": ("load, s", 1e3),
    "start": ("process start to first step, s", 1e3), "peak": ("peak memory, GB", 1e9),
}


def table(title, theirs, ours, todo, rate):
    lines = [[title, *COLUMNS[1:]], ["---"] * len(COLUMNS)]
    for key, (name, unit) in ROWS.items():
        rounds = [[found[key] / unit for found in whose if key in found] for whose in (theirs, ours)]
        if not rounds[1]:
            continue
        medians = [statistics.median(values) if values else None for values in rounds]
        ratio = f"{medians[1] / medians[0]:.2f}" if medians[0] else ""
        shares = [f"{todo[key] / median * 1e3 / rate:.2f}" if key in todo and median else "" for median in medians]
        lines.append([name, *map(spread, rounds), ratio, *shares])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(values):
    """The median, and the least and the most."""
    if not values:
        return ""
    around = f" ({digits(min(values))}–{digits(max(values))})" if len(values) > 1 else ""
    return digits(statistics.median(values)) + around


def digits(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def heading(options):
    """What was measured with what, and when."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--tags"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    compiled = ", compiled" if options.compile else ""
    peak = "GPU memory" if options.device == "cuda" else "resident memory"
    return (
        f"{machine(options.device)}; torch {torch.__version__}; diffusers {diffusers.__version__}{compiled}; Darkroom"
        f" {commit or 'of no commit'}; {datetime.date.today()}. Random weights; an image is two rows where there is"
        f" guidance; medians, least and most of {options.rounds} rounds in turns; peak is {peak}; ratio is Darkroom to"
        f" diffusers. The machine multiplies matrices in f32 at {matrix_rate(options.device, torch.float32) / 1e9:.0f}"
        f" GFLOP/s and copies at {copy_rate(options.device) / 1e9:.0f} GB/s.")


def machine(device):
    if device == "cpu":
        return f"{cpu_name()}, {torch.get_num_threads()} threads"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    built = nvcc.split("release ")[-1].split(",")[0] if "release " in nvcc else "unknown"
    return f"{name}; driver {driver}; CUDA {built} for Darkroom, {torch.version.cuda} for torch"


def cpu_name():
    with contextlib.suppress(OSError, KeyError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
        flags = facts["flags"].split()
        vectors = [name for flag, name in VECTORS.items() if flag in flags]
        return facts["model name"] + "".join(f" with {name}" for name in vectors[:1])
    return platform.processor() or platform.machine()


def print_times(program, options):
    """Prints the tables, and below them what is missing; false if something failed."""
    tables, notes, good = [], [], True
    for name in options.families:
        reason = no_room(name, options)
        try:
            if not reason:
                tables.append(measure_family(program, name, options))
        except Failure as failure:
            reason, good = str(failure), False
        if reason:
            notes.append(f"{FAMILIES[name][0]} was left out: {reason}.")
    print("\n\n".join([heading(options), *tables, *notes]))
    return good


def arguments():
    parser = argparse.ArgumentParser(prog="local/bench/engine", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=[name for name in FAMILIES if name != "tiny"])
    parser.add_argument(
        "--dtype", choices=models.DTYPES, help="of all weights; when absent f32 on the CPU, and on a GPU what suits each")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which parts, all by default")
    parser.add_argument("--program", type=pathlib.Path, help="a darkroom that is built already")
    parser.add_argument("--rounds", type=int, default=3, help="how often diffusers and Darkroom take turns")
    parser.add_argument("--turns", type=int, default=3, help="measurements of everything in each round")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser of diffusers")
    parser.add_argument("--discard", action="store_true", help="remove each model once it was measured")
    parser.add_argument(
        "--whole", nargs="*", choices=FAMILIES, default=["tiny"], help="of which to measure whole images, too")
    # How this program calls itself.
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--image", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--diffusers", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        say("PyTorch finds no NVIDIA GPU; --device cpu measures the processor")
        sys.exit(2)
    if options.diffusers and options.start:
        first_step(options.diffusers, options.device, options.dtype)
        return
    if options.diffusers:
        profile_diffusers(
            options.diffusers, options.device, options.dtype, options.side, options.turns, options.image,
            options.compile)
        return
    logging.getLogger("transformers").setLevel(logging.ERROR)
    program = options.program.resolve() if options.program else build(options.device)
    chosen = {
        "goldens": lambda: check_goldens(options.device),
        "noise": lambda: check_noise(program, options.device),
        "times": lambda: print_times(program, options),
    }
    try:
        good = [chosen[part]() for part in PARTS if part in options.only]
    except Failure as failure:
        sys.exit(f"local/bench/engine: {failure}")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
