"""Writes the trained model in diffusers layout, in half precision.

    python export.py --work DIR --output MODEL

reads DIR/tokenizer, DIR/vae and DIR/ema.pt. The files are written beside their place first and moved there
one by one, so that nobody who reads the folder meanwhile finds half a file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file

import text
import train

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def assemble(work: Path, weights: Path, folder: Path) -> None:
    saved = torch.load(weights)
    encoder, unet = text.build_text_encoder(), train.build_unet()
    encoder.load_state_dict(saved["text"])
    unet.load_state_dict(saved["unet"])
    encoder.half().save_pretrained(folder / "text_encoder")
    rename_text_weights(folder / "text_encoder" / "model.safetensors")
    unet.half().save_pretrained(folder / "unet")
    AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(folder / "vae")
    forget_path(folder / "vae" / "config.json")
    DDIMScheduler(
        beta_start=train.BETA_START,
        beta_end=train.BETA_END,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(work / "tokenizer", folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2))


def rename_text_weights(path: Path) -> None:
    """Gives the weights the names that Stable Diffusion checkpoints have; newer libraries drop the prefix."""
    prefix = "text_model."
    weights = {name if name.startswith(prefix) else prefix + name: value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def forget_path(path: Path) -> None:
    """Takes the folder that the weights were loaded from out of a configuration."""
    configuration = json.loads(path.read_text())
    configuration.pop("_name_or_path", None)
    path.write_text(json.dumps(configuration, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--weights", type=Path, help="the averaged weights (DIR/ema.pt if not given)")
    parser.add_argument("--output", type=Path, required=True, help="where the model goes")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    total = 0
    with tempfile.TemporaryDirectory(dir=arguments.output.parent, prefix=".export-") as temporary:
        assemble(arguments.work, arguments.weights or arguments.work / "ema.pt", Path(temporary))
        for path in sorted(Path(temporary).rglob("*")):
            if path.is_file():
                target = arguments.output / path.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                total += path.stat().st_size
                path.chmod(0o644)
                os.replace(path, target)
    print(f"{arguments.output}: {total:,} bytes")


if __name__ == "__main__":
    main()
