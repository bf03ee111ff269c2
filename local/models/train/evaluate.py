"""Measures how well pictures follow their prompts.

    python evaluate.py scorer --work DIR
    python evaluate.py model --work DIR --model MODEL [--count 200 --guidance 5 --steps 20 --sampler ddim]

`scorer` trains the small classifier of shapes that the measurement uses (DIR/scorer.pt) and tells what it
gets on true pictures. `model` generates pictures for prompts of scenes and prints, for each group of
prompts, the share of right backgrounds, object colours, shapes and places and of pictures with everything
right. Half of the prompts ask for one object of a held-out combination of colour and shape, a quarter for
two objects one of which is held out, and a quarter for two ordinary objects.

Colours are read by the nearest entry of the palette, shapes by the classifier from the object's outline.
Of two objects each is looked for in its own half of the picture.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

import scenes
from scenes import RESOLUTION, Scene, Thing

HALVES = {
    "all": np.s_[:, :],
    "left": np.s_[:, : RESOLUTION // 2],
    "right": np.s_[:, RESOLUTION // 2 :],
    "top": np.s_[: RESOLUTION // 2],
    "bottom": np.s_[RESOLUTION // 2 :],
}
SMALLEST_AREA = 150  # pixels that differ from the background, or nothing was drawn
SMALLEST_DIFFERENCE = 45  # from the background's colour
MASK_SIDE = 32
GENERATION_BATCH = 8  # pictures at a time


# ---- looking at a picture -------------------------------------------------------------------------------


@dataclass
class Sight:
    """What is seen in a part of a picture; `colour` is None when no object is there."""

    background: int
    colour: int | None = None
    mask: np.ndarray | None = None  # outline of the object, MASK_SIDE x MASK_SIDE, 0 to 1
    centre: tuple[float, float] = (0.0, 0.0)  # of the object in the picture, -.5 to .5


def nearest_colour(value: np.ndarray) -> int:
    return int(((scenes.COLOUR_VALUES - value) ** 2).sum(1).argmin())


def fit_background(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth (quadratic) surface through the picture's border, and the border's median colour."""
    y, x = np.mgrid[0:RESOLUTION, 0:RESOLUTION] / RESOLUTION * 2 - 1
    border = np.zeros((RESOLUTION, RESOLUTION), bool)
    border[:5] = border[-5:] = True
    border[:, :5] = border[:, -5:] = True
    basis = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)
    coefficients, *_ = np.linalg.lstsq(basis[border][::7], picture[border][::7], rcond=None)
    return basis @ coefficients, np.median(picture[border], 0)


def look(picture: np.ndarray, half: str) -> Sight:
    picture = picture.astype(np.float64)
    surface, median = fit_background(picture)
    seen = Sight(nearest_colour(median))
    pixels, behind = picture[HALVES[half]], surface[HALVES[half]]
    difference = np.sqrt(((pixels - behind) ** 2).sum(-1))
    striking = difference > max(SMALLEST_DIFFERENCE, 0.6 * np.percentile(difference, 99))
    if striking.sum() < SMALLEST_AREA:
        return seen
    colour = np.median(pixels[striking], 0)
    mask = ((pixels - colour) ** 2).sum(-1) < ((pixels - behind) ** 2).sum(-1)
    mask &= difference > 25
    rows, columns = np.where(mask)
    if len(rows) < SMALLEST_AREA:
        return seen
    top, bottom = np.percentile(rows, [0.5, 99.5]).astype(int)
    left, right = np.percentile(columns, [0.5, 99.5]).astype(int)
    seen.colour = nearest_colour(np.median(pixels[mask], 0))
    seen.mask = square_mask(mask[top : bottom + 1, left : right + 1])
    shift_y = RESOLUTION // 2 if half == "bottom" else 0
    shift_x = RESOLUTION // 2 if half == "right" else 0
    seen.centre = (
        ((left + right) / 2 + shift_x) / RESOLUTION - 0.5,
        ((top + bottom) / 2 + shift_y) / RESOLUTION - 0.5,
    )
    return seen


def square_mask(mask: np.ndarray) -> np.ndarray:
    """The mask in the middle of a square with a small margin, at the size that the classifier takes."""
    image = Image.fromarray((mask * 255).astype(np.uint8))
    side = max(image.size) + 4
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
    return np.asarray(square.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX), np.float32) / 255


def halves_of(scene: Scene) -> list[tuple[str, Thing]]:
    """Where to look for which object."""
    names = {scenes.SINGLE: ["all"], scenes.SIDE_BY_SIDE: ["left", "right"], scenes.STACKED: ["top", "bottom"]}
    return list(zip(names[scene.layout], scene.things))


# ---- scoring --------------------------------------------------------------------------------------------


@dataclass
class Score:
    background: bool
    place: bool
    colours: list[bool]
    shapes: list[bool]

    @property
    def all_right(self) -> bool:
        return self.background and self.place and all(self.colours) and all(self.shapes)


def build_classifier() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * (MASK_SIDE // 4) ** 2, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, len(scenes.SHAPES)),
    )


@torch.no_grad()
def score(picture: np.ndarray, scene: Scene, classifier: torch.nn.Module) -> Score:
    """A single object's place counts as right when its centre lies clearly on the side asked for; two
    objects are in place when each half has one."""
    result = Score(False, True, [], [])
    for half, thing in halves_of(scene):
        seen = look(picture, half)
        result.background = seen.background == scene.background
        if seen.mask is None:
            result.place = False
            result.colours.append(False)
            result.shapes.append(False)
            continue
        shape = int(classifier(torch.from_numpy(seen.mask)[None, None]).argmax())
        result.colours.append(seen.colour == thing.colour)
        result.shapes.append(shape == thing.shape)
        if scene.layout == scenes.SINGLE:
            for offset, direction in zip(seen.centre, scenes.place_direction(scene.place)):
                result.place &= abs(offset) < 0.09 if direction == 0 else offset * direction > 0.05
    return result


def report(name: str, scores: list[Score]) -> str:
    colours = [right for entry in scores for right in entry.colours]
    shapes = [right for entry in scores for right in entry.shapes]
    return (
        f"{name:<14} n={len(scores):<3} background {np.mean([entry.background for entry in scores]):.3f}  "
        f"colour {np.mean(colours):.3f}  shape {np.mean(shapes):.3f}  "
        f"place {np.mean([entry.place for entry in scores]):.3f}  "
        f"all right {np.mean([entry.all_right for entry in scores]):.3f}"
    )


def train_classifier(work: Path) -> None:
    """Trains on outlines from true pictures and reports the measurement's own ceiling on other ones."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training, test = 1500, 200
    rows = np.load(work / "scenes.npy")
    drawn = [Scene.from_row(row) for row in rows[: training + test]]
    pictures = scenes.load_pictures(work, 0, training + test)
    masks, shapes = [], []
    for picture, scene in zip(pictures[:training], drawn):
        for half, thing in halves_of(scene):
            seen = look(picture, half)
            if seen.mask is not None:
                masks.append(seen.mask)
                shapes.append(thing.shape)
    inputs, wanted = torch.from_numpy(np.stack(masks))[:, None], torch.tensor(shapes)
    classifier = build_classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
    for _ in range(20):
        for batch in torch.randperm(len(inputs)).split(64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            outputs = classifier(torch.roll(inputs[batch], shift, (2, 3)))
            loss = functional.cross_entropy(outputs, wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(classifier.state_dict(), work / "scorer.pt")
    scores = [score(picture, scene, classifier) for picture, scene in zip(pictures[training:], drawn[training:])]
    print(report("true pictures", scores))


# ---- prompts and pictures -------------------------------------------------------------------------------


GROUPS = ["one, held out", "one, held out", "two, held out", "two, ordinary"]  # of each quarter of the prompts


@dataclass
class Prompt:
    group: str
    scene: Scene
    text: str


def prompts(count: int, seed: int = 77) -> list[Prompt]:
    """The prompts of the evaluation: always the same for the same count and seed."""
    rng = random.Random(seed)
    held_out = sorted(scenes.HELD_OUT)

    def held_out_thing(background: int) -> Thing:
        colour, shape = rng.choice([pair for pair in held_out if pair[0] != background])
        return Thing(shape, colour, 1)

    result = []
    for index in range(count):
        quarter = index * 4 // count
        single = quarter < 2
        scene = scenes.random_scene(rng)
        while (scene.layout == scenes.SINGLE) != single:
            scene = scenes.random_scene(rng)
        if single:
            colour, shape = held_out[index % len(held_out)]
            background = rng.choice([other for other in range(len(scenes.COLOURS)) if other != colour])
            thing = Thing(shape, colour, rng.choice([0, 1, 1, 2]))
            scene = Scene(scenes.SINGLE, background, (thing,), rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 8]))
        elif quarter == 2:
            things = (held_out_thing(scene.background), scene.things[1])
            if rng.random() >= 0.5:
                things = things[::-1]
            scene = Scene(scene.layout, scene.background, things)
        while True:  # only captions that name the background can be judged
            text = scenes.caption(scene, rng)
            if "background" in text or f" on {scenes.COLOURS[scene.background]}" in text:
                break
        result.append(Prompt(GROUPS[quarter], scene, text))
    return result


def generate(
    model: Path, texts: list[str], guidance: float, steps: int, sampler: str, seed: int = 0
) -> list[np.ndarray]:
    """Pictures for texts, through diffusers, with the stored (half precision) weights computed in single."""
    # Imported here: it takes seconds, and the scorer does not need it.
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    if sampler == "euler":
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    elif sampler == "dpm++":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for start in range(0, len(texts), GENERATION_BATCH):
        part = texts[start : start + GENERATION_BATCH]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        images = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        ).images
        pictures.extend((images * 255).round().astype(np.uint8))
    return pictures


def generate_and_score(job: tuple[argparse.Namespace, list[Prompt], int]) -> list[Score]:
    """The scores of some of the prompts; `first` is the number of the first one, which sets the noise."""
    arguments, wanted, first = job
    torch.set_num_threads(1)
    classifier = build_classifier()
    classifier.load_state_dict(torch.load(arguments.work / "scorer.pt"))
    texts = [prompt.text for prompt in wanted]
    pictures = generate(arguments.model, texts, arguments.guidance, arguments.steps, arguments.sampler, first)
    return [score(picture, prompt.scene, classifier) for picture, prompt in zip(pictures, wanted)]


def evaluate_model(arguments: argparse.Namespace) -> None:
    """Shares the prompts among single-threaded processes, in parts of whole batches."""
    wanted = prompts(arguments.count, arguments.seed)
    share = -(-len(wanted) // arguments.processes)
    share = -(-share // GENERATION_BATCH) * GENERATION_BATCH
    jobs = [(arguments, wanted[first : first + share], first) for first in range(0, len(wanted), share)]
    started = time.time()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        scores = [entry for part in pool.map(generate_and_score, jobs, chunksize=1) for entry in part]
    seconds = (time.time() - started) / len(wanted)
    print(f"guidance {arguments.guidance}, {arguments.steps} steps, {arguments.sampler}: {seconds:.2f} s a picture")
    print(report("everything", scores))
    for group in dict.fromkeys(prompt.group for prompt in wanted):
        print(report(group, [entry for entry, prompt in zip(scores, wanted) if prompt.group == group]))
    print(report("two objects", [entry for entry, prompt in zip(scores, wanted) if len(prompt.scene.things) == 2]))
    if arguments.details:
        rows = [
            {
                "prompt": prompt.text,
                "group": prompt.group,
                "background": bool(entry.background),
                "place": bool(entry.place),
                "colours": entry.colours,
                "shapes": entry.shapes,
            }
            for prompt, entry in zip(wanted, scores)
        ]
        arguments.details.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    scorer = commands.add_parser("scorer", help="train the classifier of shapes")
    scorer.add_argument("--work", type=Path, required=True, help="scratch folder")
    model = commands.add_parser("model", help="measure a model")
    model.add_argument("--work", type=Path, required=True, help="scratch folder, with scorer.pt")
    model.add_argument("--model", type=Path, required=True, help="a model in diffusers layout")
    model.add_argument("--count", type=int, default=200, help="number of prompts")
    model.add_argument("--seed", type=int, default=77, help="which prompts; 77 are those of the table in README.md")
    model.add_argument("--guidance", type=float, default=5)
    model.add_argument("--steps", type=int, default=20)
    model.add_argument("--sampler", choices=["ddim", "euler", "dpm++"], default="ddim")
    model.add_argument("--processes", type=int, default=2)
    model.add_argument("--details", type=Path, help="write the score of each prompt to this JSON file")
    arguments = parser.parse_args()
    if arguments.command == "scorer":
        train_classifier(arguments.work)
    else:
        evaluate_model(arguments)


if __name__ == "__main__":
    main()
