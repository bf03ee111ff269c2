"""Makes a tiny pipeline of every family that moment, with weights, size, seed and guidance that no golden has, and compares
the image of `darkroom render` with that of diffusers.

    pip install -r requirements.txt && cargo build --bins
    python check_fresh.py ../../target/debug/darkroom [seed]

Prints the errors and fails when one is too large.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import PIL.Image
import safetensors.torch
import torch

from make import FAMILIES, build, starting_picture

LATENTS_MAX, BYTES_MAX, SHARE_MAX = 1e-3, 2, 0.001


def check(program, name, options, seed):
    pipeline, _ = build(options, seed)
    directory = pathlib.Path(tempfile.mkdtemp())
    pipeline.save_pretrained(str(directory / "model"))
    pipeline.scheduler = type(pipeline.scheduler).from_pretrained(str(directory / "model"), subfolder="scheduler")
    request = {
        "prompt": "two stars and a red star", "num_inference_steps": 9, "guidance_scale": 4.5, "width": 16, "height": 24,
        "seed": seed,
    }
    inputs = {}
    asked = dict(request)
    if "Inpaint" in options["class"].__name__:
        picture, mask = (image.transpose(PIL.Image.Transpose.ROTATE_90) for image in starting_picture())
        picture.save(directory / "picture.png")
        mask.save(directory / "mask.png")
        inputs = {"image": picture, "mask_image": mask, "strength": 1.0}
        asked |= {"init_image": "picture.png", "mask_image": "mask.png"}
    (directory / "request.json").write_text(json.dumps(asked))
    # FLUX's configuration does not say that it is tiny.
    (directory / "model/darkroom.toml").write_text("[limits]\nside_min = 8\n")
    run = subprocess.run(
        [program, "render", "--model", "model", "--request", "request.json", "--out", "image.png", "--latents",
         "latents.safetensors", "--device", "cpu"],
        cwd=directory, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{name}: {run.stderr}")
    kept = []
    original = pipeline.vae.decode
    pipeline.vae.decode = lambda latents, *rest, **named: (kept.append(latents.clone()), original(latents, *rest, **named))[1]
    arguments = {key: value for key, value in request.items() if key != "seed"}
    with torch.no_grad():
        image = pipeline(
            **arguments, **inputs, generator=torch.Generator("cpu").manual_seed(seed), output_type="np").images[0]
    theirs = kept[0]
    scale, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor or 0.0
    ours = safetensors.torch.load_file(directory / "latents.safetensors")["latents"] / scale + shift
    latents = float((ours - theirs).abs().max() / theirs.abs().max())
    found = np.asarray(PIL.Image.open(directory / "image.png")).astype(int)
    off = np.abs(found - np.clip(image * 255, 0, 255).round().astype(int))
    share = float((off > 1).mean())
    good = latents <= LATENTS_MAX and off.max() <= BYTES_MAX and share <= SHARE_MAX
    print(f"{name:14} latents {latents:.1e}  image {off.max()}/255, {share:.2%} beyond 1/255  {'' if good else 'TOO FAR'}")
    return good


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20_231
    good = [check(program, name, options, seed) for name, options in FAMILIES.items()]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
