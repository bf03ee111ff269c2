"""What every script here makes its tiny models of: weights that are a function of tensor name and shape, which `tiny.rs` has
too, and a vocabulary for CLIP.
"""

import hashlib

import numpy as np
import torch

MERGES = ["a n", "an d</w>", "r e", "re d</w>", "s t", "st a", "sta r</w>"]
START, END = "<|startoftext|>", "<|endoftext|>"


def versions(*libraries):
    """What a golden was recorded with; the tests compare it with requirements.txt."""
    names = {"PIL": "pillow"}
    return {names.get(library.__name__, library.__name__): library.__version__.split("+")[0] for library in libraries}


def uniform(name, count):
    """`count` values from -1 to 1 that depend on `name` alone: splitmix64."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)


def tensor(name, shape):
    values = torch.from_numpy(uniform(name, int(np.prod(shape)))).reshape(tuple(shape))
    if len(shape) > 1:
        return values * np.float32(1.7 / np.sqrt(np.prod(shape[1:])))
    # Weights of normalisations lie around one, biases around zero.
    return values * np.float32(0.1) + np.float32("norm" in name and name.endswith("weight"))


def fill(module):
    """Gives `module` its weights, and returns their names and shapes."""
    shapes = {}
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("position_ids"):
                continue
            shapes[name] = list(value.shape)
            value.copy_(tensor(name, value.shape))
    return shapes


def numbers(value):
    return [float(f"{v:.6g}") for v in value.flatten().tolist()]


def alphabet():
    """The printable stand-ins of the 256 bytes, as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
