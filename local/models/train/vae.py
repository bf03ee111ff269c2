"""Trains the autoencoder (AutoencoderKL) on rendered scenes: small crops first, whole pictures at the end.

    python vae.py --work DIR --seconds 560      trains from scratch into DIR/vae
    python vae.py --work DIR --weights FILE     only writes DIR/vae from saved weights (vae_ema.pt)

The learning rate follows the share of the time that is over, so that it has fallen to almost nothing when
the time is up, however fast the machine is.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL

import scenes
import workers
from muon import Muon

CHANNELS = (16, 32, 64, 64)
SCALING_FACTOR = 0.34746  # one over the standard deviation of the latents of the weights in use
KL_WEIGHT = 2e-4
PICTURES_PER_WORKER = 3000
LEARNING_RATE, ADAM_LEARNING_RATE = 0.01, 1e-3
CONSTANT_SHARE = 0.35  # the learning rate falls after this share of the time
# (until this share of the time, pictures a step and worker, side of the crops)
PHASES = [(0.30, 16, 32), (0.58, 6, 64), (0.78, 2, 128), (1.1, 1, 256)]


def build() -> AutoencoderKL:
    """An untrained autoencoder: 256 x 256 pictures to 32 x 32 latents of four channels.

    Only two norm groups: a group norm takes the mean out of its group, and with few channels a group the
    absolute colour of a plain area would be lost.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=scenes.RESOLUTION,
        scaling_factor=SCALING_FACTOR,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Bytes (count, height, width, 3) to floats (count, 3, height, width) from -1 to 1."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def random_crops(pictures: np.ndarray, count: int, side: int) -> torch.Tensor:
    """Of three crops of a picture the one with most contrast: most of a scene is plain background."""
    crops = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        picture = pictures[random.randrange(len(pictures))]
        best = -1.0
        for _ in range(1 if side == scenes.RESOLUTION else 3):
            y, x = (random.randrange(0, (scenes.RESOLUTION - side) // 8 + 1) * 8 for _ in range(2))
            crop = picture[y : y + side, x : x + side]
            contrast = crop[::8, ::8].astype(np.float32).std((0, 1)).sum()
            if contrast > best:
                best, crops[index] = contrast, crop
    return to_tensor(crops)


def image_gradients(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., :, 1:] - pictures[..., :, :-1]


def learning_rate_share(done: float, step: int) -> float:
    warm_up = min(1, (step + 1) / 30)
    if done < CONSTANT_SHARE:
        return warm_up
    falling = (done - CONSTANT_SHARE) / (1 - CONSTANT_SHARE)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))


def train(rank: int, world: int, arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    torch.manual_seed(0)
    vae = build()
    torch.manual_seed(rank)
    random.seed(rank)
    pictures = scenes.load_pictures(work, rank * PICTURES_PER_WORKER, PICTURES_PER_WORKER)
    parameters = list(vae.parameters())
    optimizer = Muon(vae.named_parameters(), LEARNING_RATE, ADAM_LEARNING_RATE, rank=rank, world=world)
    average = {name: value.detach().clone() for name, value in vae.state_dict().items()}
    started, step, done, history = time.time(), 0, 0.0, []
    while done < 1:
        count, side = next((count, side) for end, count, side in PHASES if done < end)
        scale = learning_rate_share(done, step)
        original = random_crops(pictures, count, side)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(original).latent_dist
            decoded = vae.decode(latents.sample()).sample
        decoded = decoded.float()
        absolute = functional.l1_loss(decoded, original)
        squared = functional.mse_loss(decoded, original)
        edges = sum(
            functional.l1_loss(ours, theirs)
            for ours, theirs in zip(image_gradients(decoded), image_gradients(original))
        )
        mean, variance, log_variance = latents.mean.float(), latents.var.float(), latents.logvar.float()
        divergence = 0.5 * (mean**2 + variance - 1 - log_variance).mean()
        optimizer.zero_grad()
        (absolute + squared + edges + KL_WEIGHT * divergence).backward()
        losses = [absolute.item(), squared.item(), edges.item(), divergence.item()]
        # The share of the time is averaged too: the workers must agree on it, or they would wait for ever.
        *losses, done = workers.average_gradients(parameters, [*losses, (time.time() - started) / arguments.seconds])
        optimizer.step(scale)
        step += 1
        decay = min(0.99, step / (step + 10))
        for name, value in vae.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        history.append(losses)
        if step % 100 == 0 and rank == 0:
            absolute_mean, squared_mean, edges_mean, divergence_mean = np.mean(history, 0)
            history = []
            print(
                f"{step} {time.time() - started:.0f} s, {side} px: L1 {absolute_mean:.4f} MSE {squared_mean:.5f} "
                f"gradients {edges_mean:.4f} KL {divergence_mean:.3f}",
                flush=True,
            )
    if rank == 0:
        vae.load_state_dict(average)
        torch.save(average, work / "vae_ema.pt")
        finish(vae.eval(), work)


@torch.no_grad()
def finish(vae: AutoencoderKL, work: Path) -> None:
    """Measures the autoencoder on unseen pictures and writes it with its scaling factor."""
    total = (work / "pictures.u8").stat().st_size // scenes.PICTURE_BYTES
    original = to_tensor(scenes.load_pictures(work, total - 64, 64))
    latents = vae.encode(original).latent_dist
    error = functional.mse_loss(vae.decode(latents.mode()).sample.clamp(-1, 1), original).item()
    deviation = latents.sample().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(work / "vae")
    print(f"PSNR on unseen pictures {10 * math.log10(4 / error):.1f} dB, latents' deviation {deviation:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--seconds", type=float, default=560, help="time to train")
    parser.add_argument("--weights", type=Path, help="saved weights: do not train, only write the folder")
    arguments = parser.parse_args()
    if arguments.weights:
        vae = build()
        vae.load_state_dict(torch.load(arguments.weights))
        vae.save_pretrained(arguments.work / "vae")
    else:
        workers.launch(train, arguments)


if __name__ == "__main__":
    main()
