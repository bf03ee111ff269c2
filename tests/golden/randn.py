"""Records what torch.randn gives on the CPU, into randn.json.

    python randn.py        # needs torch, on an x86-64 machine with AVX2 or AVX-512, whose bits are the ones that count

Draws of one sequence come from one generator, one after the other. Short ones are kept whole, as the bits of their f32;
of long ones there are the first values and the SHA-256 of all little-endian bytes.
"""

import hashlib
import json
import pathlib

import torch

SEEDS = [0, 7, 2**32 - 1, 2**32 + 5, 2**53 - 1]
FRESH = [[count] for count in [*range(1, 41), 1000, 16384, 4 * 128 * 96, 4 * 65 * 127, 100_003]]
MIXED = [
    [3, 1, 16, 2, 5, 17, 1, 1, 15, 16384, 7, 33, 15, 15],
    [4096, 4096, 4096],
    [1, 40, 1, 311, 1, 312, 1, 313, 1, 624, 1, 625, 1],
]
WHOLE_MAX = 40
SHOWN = 4


def recorded(values):
    bits = values.contiguous().view(torch.int32).numpy().astype("uint32")
    if len(bits) <= WHOLE_MAX:
        return {"count": len(bits), "bits": bits.tolist()}
    digest = hashlib.sha256(bits.astype("<u4").tobytes()).hexdigest()
    return {"count": len(bits), "bits": bits[:SHOWN].tolist(), "sha256": digest}


def main():
    capability = torch.backends.cpu.get_cpu_capability()
    assert capability in ("AVX2", "AVX512"), capability
    sequences = []
    for seed in SEEDS:
        for counts in FRESH + MIXED:
            generator = torch.Generator().manual_seed(seed)
            draws = [recorded(torch.randn(count, generator=generator)) for count in counts]
            sequences.append({"seed": seed, "draws": draws})
    document = {"torch": torch.__version__, "capability": capability, "sequences": sequences}
    text = json.dumps(document).replace('{"seed"', '\n{"seed"')
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


main()
