"""Trains the UNet on encoded pictures; the text encoder stays as text.py taught it.

    python train.py --work DIR --seconds 7200 [--start FILE]

reads DIR/text.pt, DIR/tokenizer and DIR/latents-RANK.npz. Everything is saved to DIR/training.pt every two
minutes; the same command goes on from there after a stop. The averaged weights, the ones to export, are in
DIR/ema.pt, with those of the text encoder.

The learning rate follows the share of the training time that is over: constant at first, then falling
linearly to almost nothing. Most of the gain shows only when it falls, so choose the time beforehand.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

import scenes
import text
import workers
from muon import Muon
from words import decorate

# The end of the noise schedule. Stable Diffusion's .012 leaves too much of a plain background's colour at
# the noisiest step (alpha_bar .0047): in generation, which starts from pure noise, the model would not
# have learned to choose that colour. With .025 alpha_bar ends at .00004.
BETA_START, BETA_END, NOISE_LEVELS = 0.00085, 0.025, 1000

BATCH = 24  # a worker; divisible by four
LEARNING_RATE, ADAM_LEARNING_RATE = 0.01, 1.5e-3
EMPTY_SHARE = 0.10  # captions emptied, for classifier-free guidance
OBJECT_WEIGHT, LATE_OBJECT_WEIGHT, LATE = 5.0, 2.0, 0.75
EMA_DECAY = 0.998
SAVE_SECONDS = 120


def alpha_bars() -> torch.Tensor:
    """The share of the picture left at each noise level ("scaled_linear" schedule)."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NOISE_LEVELS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet. `attention_head_dim` is the number of heads, by an old quirk of diffusers."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=text.WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


def draw_levels(count: int) -> torch.Tensor:
    """Noise levels for a batch, stratified.

    A quarter lies anywhere, the rest between .40 and .97 of the range, more or less evenly: there it is
    decided what is drawn where. Below, only edges are left to tidy up.
    """
    anywhere = count // 4
    low = (torch.arange(anywhere) + torch.rand(anywhere)) / anywhere
    decisive = (torch.arange(count - anywhere) + torch.rand(count - anywhere)) / (count - anywhere)
    share = torch.cat([low, 0.40 + 0.57 * decisive])
    return (share * NOISE_LEVELS).long().clamp(0, NOISE_LEVELS - 1)


def object_weights(latents: torch.Tensor, weight: float) -> torch.Tensor:
    """Weight of each cell: `weight` in the box around the objects, 1 elsewhere, then brought to mean 1.

    Objects fill a small part of the picture; without weights they ignore the caption for very long. Cells
    belong to an object when their latent differs from that of the picture's border.
    """
    border = torch.cat([latents[:, :, 0], latents[:, :, -1], latents[..., 0], latents[..., -1]], -1)
    background = border.median(-1).values[..., None, None]
    differs = ((latents - background).norm(dim=1) > 0.6).float()
    differs = functional.max_pool2d(differs, 3, 1, 1)
    box = differs.amax(1, keepdim=True) * differs.amax(2, keepdim=True)
    weights = 1 + (weight - 1) * box
    return weights / weights.mean((1, 2), keepdim=True)


def learning_rate_share(done: float, step: int, constant: float) -> float:
    warm_up = min(1, (step + 1) / 100)
    return warm_up * (1.0 if done < constant else max(0.005, (1 - done) / (1 - constant)))


class Pictures:
    """Encoded pictures of one worker, drawn without repetition so long as there are new ones."""

    def __init__(self, path: Path, rng: random.Random, pair_share: float) -> None:
        data = np.load(path)
        self.mean, self.deviation = torch.from_numpy(data["mean"]), torch.from_numpy(data["deviation"])
        self.scenes = [scenes.Scene.from_row(row) for row in data["scenes"]]
        self.rng = rng
        self.pair_share = pair_share
        self.waiting: dict[bool, list[int]] = {True: [], False: []}

    def draw(self, count: int) -> list[int]:
        return [self._next(self.rng.random() < self.pair_share) for _ in range(count)]

    def _next(self, pair: bool) -> int:
        if not self.waiting[pair]:
            members = [i for i, scene in enumerate(self.scenes) if (scene.layout != scenes.SINGLE) == pair]
            self.waiting[pair] = self.rng.sample(members, len(members))
        return self.waiting[pair].pop()


def save(value: object, path: Path) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".part")
    torch.save(value, temporary)
    os.replace(temporary, path)


def train(rank: int, world: int, arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    checkpoint = work / "training.pt"
    saved = torch.load(checkpoint) if checkpoint.exists() else None
    encoder = text.build_text_encoder()
    encoder.load_state_dict(torch.load(work / "text.pt")["text"])
    torch.manual_seed(0)
    unet = build_unet().to(memory_format=torch.channels_last)
    if saved is not None:
        unet.load_state_dict(saved["unet"])
    elif arguments.start:
        unet.load_state_dict(torch.load(arguments.start)["unet"])
    optimizer = Muon(unet.named_parameters(), LEARNING_RATE, ADAM_LEARNING_RATE, rank=rank, world=world)
    average = {name: value.detach().clone() for name, value in unet.state_dict().items()}
    step, before = 0, 0.0
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        average, step, before = saved["average"], saved["step"], saved["seconds"]

    def save_all(seconds: float) -> None:
        state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        save({**state, "step": step, "seconds": seconds}, checkpoint)
        save({"text": encoder.state_dict(), "unet": average}, work / "ema.pt")

    torch.manual_seed(100 * step + rank)
    rng = random.Random(100 * step + rank)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    pictures = Pictures(work / f"latents-{rank}.npz", rng, arguments.pairs)
    alpha_bar = alpha_bars()
    parameters = list(unet.parameters())
    if rank == 0:
        print(f"{len(pictures.scenes)} pictures a worker, from step {step}, {before:.0f} s", flush=True)
    started = last_saved = time.time()
    done, history = before / arguments.seconds, []
    while done < 1:
        chosen = pictures.draw(BATCH)
        drawn = [pictures.scenes[index] for index in chosen]
        captions = [
            "" if rng.random() < EMPTY_SHARE else decorate(scenes.caption(scene, rng), rng) for scene in drawn
        ]
        tokens = text.tokenize(tokenizer, captions)
        mean = pictures.mean[chosen].float()
        latents = mean + pictures.deviation[chosen].float() * torch.randn_like(mean)
        latents = latents.contiguous(memory_format=torch.channels_last)
        levels = draw_levels(BATCH)
        signal = alpha_bar[levels].sqrt().view(-1, 1, 1, 1)
        noise_share = (1 - alpha_bar[levels]).sqrt().view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        velocity = signal * noise - noise_share * latents
        # On a CPU the fused attention is slow in the backward pass for sizes this small.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                states = encoder(tokens).last_hidden_state
            predicted = unet(signal * latents + noise_share * noise, levels, states).sample
        error = (predicted.float() - velocity).square().mean(1)
        weights = object_weights(mean, OBJECT_WEIGHT if done < LATE else LATE_OBJECT_WEIGHT)
        weighted = (error * weights).mean((1, 2))
        optimizer.zero_grad()
        weighted.mean().backward()
        # For the log: the error as such, and the weighted one where it is decided what is drawn.
        measured = [error.mean().item(), weighted[BATCH // 4 :].mean().item()]
        seconds = before + time.time() - started
        # The share of the time is averaged too: the workers must agree on when to stop.
        *measured, done = workers.average_gradients(parameters, [*measured, seconds / arguments.seconds])
        scale = learning_rate_share(done, step, arguments.constant)
        optimizer.step(scale)
        step += 1
        if rank == 0:
            decay = min(EMA_DECAY, (step + 1) / (step + 12))
            current = unet.state_dict()
            torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - decay)
            history.append(measured)
            if step % 50 == 0:
                error_mean, weighted_mean = np.mean(history, 0)
                history = []
                print(
                    f"{step} {seconds:.0f} s: error {error_mean:.4f}, weighted at decisive levels "
                    f"{weighted_mean:.4f}, rate {scale:.3f}",
                    flush=True,
                )
            if time.time() - last_saved > SAVE_SECONDS or done >= 1:
                last_saved = time.time()
                save_all(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--seconds", type=float, required=True, help="whole training time, stops included")
    parser.add_argument("--start", type=Path, help="start from this UNet (an ema.pt) instead of from scratch")
    parser.add_argument("--pairs", type=float, default=0.7, help="share of pictures with two objects")
    parser.add_argument("--constant", type=float, default=0.4, help="share of the time before the rate falls")
    workers.launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
