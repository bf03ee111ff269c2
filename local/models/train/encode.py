"""Encodes the rendered pictures with the VAE, once, so that training works on latents only.

    python encode.py --work DIR

reads DIR/vae, DIR/pictures.u8 and DIR/scenes.npy and writes DIR/latents-RANK.npz, one file a worker: mean
and standard deviation of each latent (scaled as the UNet wants them) and the rows of the scenes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

import scenes
import workers
from vae import to_tensor

BATCH = 8
UNSEEN = 1000  # the last pictures are kept for tests of the VAE and the scorer


def encode(rank: int, world: int, arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    vae = AutoencoderKL.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    rows = np.load(work / "scenes.npy")
    share = (min(arguments.count or len(rows), len(rows) - UNSEEN)) // world // BATCH * BATCH
    first = rank * share
    scale = vae.config.scaling_factor
    started = time.time()
    means, deviations = [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(first, first + share, BATCH):
            pictures = to_tensor(scenes.load_pictures(work, start, BATCH))
            latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
            means.append((latents.mean.float() * scale).half().numpy())
            deviations.append((latents.std.float() * scale).half().numpy())
    mean, deviation = np.concatenate(means), np.concatenate(deviations)
    np.savez(work / f"latents-{rank}.npz", mean=mean, deviation=deviation, scenes=rows[first : first + share])
    print(
        f"worker {rank}: {share} pictures in {time.time() - started:.0f} s, standard deviation of the latents "
        f"{mean.astype(np.float32).std():.3f}, of their noise {deviation.astype(np.float32).mean():.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--count", type=int, help="encode only so many pictures")
    workers.launch(encode, parser.parse_args())


if __name__ == "__main__":
    main()
