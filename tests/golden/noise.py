"""Records torch's normally distributed numbers, as digests, into noise.json.

    python noise.py           # torch's own way on x86-64; ATEN_CPU_CAPABILITY=default has other last bits
"""

import hashlib
import json
import pathlib

import torch
from tiny import versions

SEEDS = [0, 7, 2**32 - 1, 2**32 + 5, 2**53 - 1]
DRAWS = [
    *([count] for count in range(1, 41)),
    [1000], [16384], [4 * 128 * 96], [65537], [3, 5, 16384, 1, 1, 40, 15, 16, 2],
]


def main():
    cases = []
    for seed in SEEDS:
        for counts in DRAWS:
            generator = torch.Generator("cpu").manual_seed(seed)
            draws = []
            for count in counts:
                values = torch.randn(count, generator=generator).numpy()
                draws.append({"count": count, "sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()})
            cases.append({"seed": seed, "draws": draws})
    document = {"versions": versions(torch), "cases": cases}
    pathlib.Path(__file__).with_name("noise.json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
