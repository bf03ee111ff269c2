"""Teaches the text encoder to read captions, before it meets the UNet.

    python text.py --work DIR --seconds 300
    python text.py --work DIR --seconds 60 --length 77 --start DIR/text.pt

The denoising loss says little to the text encoder about which colour belongs to which of two objects, and
learning it that way takes very long. Reading is taught directly instead: from the end of the text on (the
end token and the padding, all of which the UNet sees), linear heads must name background, arrangement and
one object: the first of a pair at even positions, the second at odd ones. So the UNet finds both objects
with all their properties side by side and need not work out the grammar. The heads are used in training
only and are not part of the model. Captions are short, so most of the training is done with 40 positions,
which is cheaper; the second command teaches the rest.

Writes DIR/text.pt: the weights of the text encoder and of the heads.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import scenes
import workers
from muon import Muon
from words import decorate

WIDTH = 128
POSITIONS = 77
VOCABULARY = 1024
START_TOKEN, END_TOKEN = VOCABULARY - 2, VOCABULARY - 1  # the end token is the padding too
BATCH = 64
LEARNING_RATE, ADAM_LEARNING_RATE = 0.01, 1.5e-3
PAIR_SHARE = 0.75
PARITY_LENGTH = 1.0

# What the heads name. A pair's arrangement counts as two more places.
PLACE_CLASSES = len(scenes.PLACES) + 2
HEAD_SIZES = {
    "background": len(scenes.COLOURS),
    "place": PLACE_CLASSES,
    "shape": len(scenes.SHAPES),
    "colour": len(scenes.COLOURS),
    "size": len(scenes.SIZES),
}


def build_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_act="quick_gelu",
            projection_dim=WIDTH,
            bos_token_id=START_TOKEN,
            eos_token_id=END_TOKEN,
            pad_token_id=END_TOKEN,
        )
    )


def build_heads() -> torch.nn.Linear:
    """All heads as one linear layer; `reading_loss` cuts its output into the heads."""
    return torch.nn.Linear(WIDTH, sum(HEAD_SIZES.values()))


@torch.no_grad()
def mark_parity(encoder: CLIPTextModel) -> None:
    """Adds a direction to the embeddings of even positions and takes it from those of odd ones.

    Without this hint training stays for long where every position names either object at random.
    """
    direction = torch.randn(WIDTH)
    direction *= PARITY_LENGTH / direction.norm()
    positions = encoder.embeddings.position_embedding.weight
    signs = 1 - 2 * (torch.arange(POSITIONS) % 2)
    positions += signs[:, None] * direction


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    options = {"padding": "max_length", "truncation": True, "max_length": POSITIONS, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


def targets(scene: scenes.Scene) -> list[list[int]]:
    """What to name at even and at odd positions, in the order of HEAD_SIZES."""
    if scene.layout == scenes.SINGLE:
        place, things = scene.place, (scene.things[0], scene.things[0])
    else:
        place, things = len(scenes.PLACES) + scene.layout - 1, scene.things
    return [[scene.background, place, thing.shape, thing.colour, thing.size] for thing in things]


def reading_loss(
    heads: torch.nn.Linear, states: torch.Tensor, tokens: torch.Tensor, drawn: list[scenes.Scene]
) -> tuple[torch.Tensor, list[float]]:
    """Cross entropy of the heads from the end token on, and the share each head names rightly."""
    wanted = torch.tensor([targets(scene) for scene in drawn])  # (captions, parity, heads)
    parity = torch.arange(tokens.size(1)) % 2
    wanted = wanted[:, parity]  # (captions, positions, heads)
    at_end = tokens == END_TOKEN
    outputs = heads(states[at_end]).float().split(list(HEAD_SIZES.values()), -1)
    wanted = wanted[at_end]
    losses = [functional.cross_entropy(output, wanted[:, k]) for k, output in enumerate(outputs)]
    right = [(output.argmax(-1) == wanted[:, k]).float().mean().item() for k, output in enumerate(outputs)]
    return torch.stack(losses).sum(), right


def train(rank: int, world: int, arguments: argparse.Namespace) -> None:
    work: Path = arguments.work
    torch.manual_seed(0)
    encoder, heads = build_text_encoder(), build_heads()
    if arguments.start:
        start = torch.load(arguments.start)
        encoder.load_state_dict(start["text"])
        heads.load_state_dict(start["heads"])
    else:
        mark_parity(encoder)
    torch.manual_seed(rank)
    rng = random.Random(1000 + rank)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    optimizer = Muon(encoder.named_parameters(), LEARNING_RATE, ADAM_LEARNING_RATE, rank=rank, world=world)
    head_optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3, weight_decay=0.0)
    parameters = [*encoder.parameters(), *heads.parameters()]
    weights = scenes.weights_for(PAIR_SHARE)
    started, step, done, history = time.time(), 0, 0.0, []
    while done < 1:
        drawn = [scenes.random_scene(rng, weights) for _ in range(BATCH)]
        tokens = tokenize(tokenizer, [decorate(scenes.caption(scene, rng), rng) for scene in drawn])
        tokens = tokens[:, : arguments.length]
        # On a CPU the fused attention is slow in the backward pass for sizes this small.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            states = encoder(tokens).last_hidden_state
            loss, right = reading_loss(heads, states, tokens, drawn)
        optimizer.zero_grad()
        head_optimizer.zero_grad()
        loss.backward()
        seconds_share = (time.time() - started) / arguments.seconds
        *measured, done = workers.average_gradients(parameters, [loss.item(), *right, seconds_share])
        scale = min(1, (step + 1) / 40) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * max(0, done - 0.3) / 0.7)))
        optimizer.step(scale)
        for group in head_optimizer.param_groups:
            group["lr"] = 3e-3 * scale
        head_optimizer.step()
        step += 1
        history.append(measured)
        if step % 50 == 0 and rank == 0:
            loss_mean, *shares = np.mean(history, 0)
            history = []
            named = ", ".join(f"{name} {share:.3f}" for name, share in zip(HEAD_SIZES, shares))
            print(f"{step} {time.time() - started:.0f} s: loss {loss_mean:.3f}, right: {named}", flush=True)
    if rank == 0:
        torch.save({"text": encoder.state_dict(), "heads": heads.state_dict()}, work / "text.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--seconds", type=float, default=300, help="time to train")
    parser.add_argument("--start", type=Path, help="go on from these weights (text.pt) instead of from scratch")
    parser.add_argument("--length", type=int, default=40, help="positions to train; fewer are faster")
    workers.launch(train, parser.parse_args())


if __name__ == "__main__":
    main()
