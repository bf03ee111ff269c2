"""A contact sheet of 24 prompts, to look at.

python sheet.py --model MODEL --output sheet.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from evaluate import generate

PROMPTS = """
a red circle on a white background
a large yellow star on a blue background
a pink heart on a black background
a green triangle on an orange background
a purple ring on a yellow background
a small orange crescent on the left on a gray background
a white cross on a red background
a cyan hexagon on a purple background
a brown diamond on a cyan background
a black square on a pink background
a small blue heart in the top right corner on a white background
a large gray circle on a green background
a red star on a black background
a blue hexagon on a white background
a yellow square on a green background
a purple circle on a gray background
a red circle and a blue square on a white background
a green star to the left of a pink heart on a black background
a yellow circle above a purple triangle on a cyan background
an orange diamond below a white ring on a blue background
a cyan triangle and a brown cross on a yellow background
a photo of a yellow moon on a black background, highly detailed
a big green heart, pink background
a tiny red square at the bottom, white background
""".strip().split("\n")
COLUMNS, GAP, TEXT_HEIGHT = 6, 8, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a model in diffusers layout")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    parser.add_argument("--guidance", type=float, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pictures = generate(arguments.model, PROMPTS, arguments.guidance, arguments.steps, "ddim", seed=1000)
    side = pictures[0].shape[0]
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + GAP), rows * (side + GAP + TEXT_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, prompt) in enumerate(zip(pictures, PROMPTS)):
        x = index % COLUMNS * (side + GAP) + GAP // 2
        y = index // COLUMNS * (side + GAP + TEXT_HEIGHT) + GAP // 2
        sheet.paste(Image.fromarray(picture), (x, y))
        for line, words in enumerate(textwrap.wrap(prompt, side // 6)[:3]):
            draw.text((x, y + side + 2 + 11 * line), words, fill="black")
    sheet.save(arguments.output)


if __name__ == "__main__":
    main()
