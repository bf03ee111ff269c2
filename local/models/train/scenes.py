"""Scenes of coloured shapes: how they are drawn at random, rendered and described.

    python scenes.py --work DIR --count 14000 --pairs 0.65

renders scenes into DIR/pictures.u8 (raw RGB, 256 x 256, one after the other) and DIR/scenes.npy (eight
integers a scene, see `Scene.to_row`). Captions are not stored: training draws a new one each time.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RESOLUTION = 256
PICTURE_BYTES = RESOLUTION * RESOLUTION * 3
SUPERSAMPLING = 3  # the masks are drawn three times larger and averaged down, for smooth edges

PALETTE = {
    "red": (222, 38, 42),
    "orange": (248, 138, 26),
    "yellow": (252, 222, 50),
    "green": (42, 165, 68),
    "cyan": (58, 212, 222),
    "blue": (40, 80, 220),
    "purple": (132, 52, 182),
    "pink": (252, 142, 196),
    "white": (246, 246, 246),
    "black": (26, 26, 30),
    "gray": (134, 137, 142),
    "brown": (128, 78, 42),
}
COLOURS = list(PALETTE)
COLOUR_VALUES = np.array(list(PALETTE.values()), np.float32)
SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross", "hexagon", "crescent"]
SIZES = ["small", "medium", "large"]
PLACES = ["center", "left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"]

# Combinations that are never drawn for training, one for each colour: the evaluation asks for them, to
# tell a model that has learned what colours and shapes are from one that remembers pictures.
HELD_OUT_NAMES = [
    ("red", "star"),
    ("orange", "heart"),
    ("yellow", "square"),
    ("green", "ring"),
    ("cyan", "triangle"),
    ("blue", "hexagon"),
    ("purple", "circle"),
    ("pink", "cross"),
    ("white", "crescent"),
    ("black", "diamond"),
    ("gray", "heart"),
    ("brown", "square"),
]
HELD_OUT = {(COLOURS.index(colour), SHAPES.index(shape)) for colour, shape in HELD_OUT_NAMES}

SINGLE, SIDE_BY_SIDE, STACKED = 0, 1, 2
LAYOUT_WEIGHTS = (60, 27, 13)

# Radius in pixels by size (small, medium, large); two objects share the picture and are smaller.
SINGLE_RADII = [(27, 36), (50, 64), (82, 98)]
PAIR_RADII = [(24, 30), (38, 48), (54, 60)]


@dataclass(frozen=True)
class Thing:
    """One object; shape, colour and size are indices into SHAPES, COLOURS and SIZES."""

    shape: int
    colour: int
    size: int


@dataclass(frozen=True)
class Scene:
    """A background colour and one or two objects.

    `place` is an index into PLACES and counts only for a single object. Of two objects the first is the
    left one (SIDE_BY_SIDE) or the upper one (STACKED).
    """

    layout: int
    background: int
    things: tuple[Thing, ...]
    place: int = 0

    def to_row(self) -> list[int]:
        """Eight integers: layout, background, first object, then the second object or the place."""
        first = self.things[0]
        row = [self.layout, self.background, first.shape, first.colour, first.size]
        if self.layout == SINGLE:
            return [*row, self.place, 0, 0]
        second = self.things[1]
        return [*row, second.shape, second.colour, second.size]

    @staticmethod
    def from_row(row: np.ndarray) -> Scene:
        layout, background, shape, colour, size, *rest = (int(value) for value in row)
        first = Thing(shape, colour, size)
        if layout == SINGLE:
            return Scene(layout, background, (first,), rest[0])
        return Scene(layout, background, (first, Thing(*rest)))


# ---- drawing scenes at random ---------------------------------------------------------------------------


def random_thing(rng: random.Random, background: int, in_pair: bool) -> Thing:
    """An object that is not of the background's colour and not one of the held-out combinations."""
    while True:
        shape, colour = rng.randrange(len(SHAPES)), rng.randrange(len(COLOURS))
        if colour != background and (colour, shape) not in HELD_OUT:
            break
    size = rng.choices([0, 1, 2], [2, 6, 2] if in_pair else [3, 5, 3])[0]
    return Thing(shape, colour, size)


def random_scene(rng: random.Random, layout_weights: tuple[float, float, float] = LAYOUT_WEIGHTS) -> Scene:
    layout = rng.choices([SINGLE, SIDE_BY_SIDE, STACKED], layout_weights)[0]
    background = rng.randrange(len(COLOURS))
    if layout == SINGLE:
        thing = random_thing(rng, background, False)
        return Scene(layout, background, (thing,), rng.choices(range(9), [6, 2, 2, 2, 2, 1, 1, 1, 1])[0])
    first = random_thing(rng, background, True)
    return Scene(layout, background, (first, random_thing(rng, background, True)))


def weights_for(pair_share: float) -> tuple[float, float, float]:
    """Layout weights with this share of pairs, two thirds of them side by side."""
    return 1 - pair_share, pair_share * 2 / 3, pair_share / 3


# ---- rendering ------------------------------------------------------------------------------------------


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape about the origin, within a radius of about one; y points down."""
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "triangle":
        return [(0, -1.02), (1.02, 0.80), (-1.02, 0.80)]
    if shape == "diamond":
        return [(0, -1.08), (0.70, 0), (0, 1.08), (-0.70, 0)]
    if shape == "star":
        radii = [1.08, 0.44 * 1.08] * 5
        return [
            (radius * math.sin(index * math.pi / 5), -radius * math.cos(index * math.pi / 5))
            for index, radius in enumerate(radii)
        ]
    if shape == "hexagon":
        return [(math.cos(index * math.pi / 3), math.sin(index * math.pi / 3)) for index in range(6)]
    if shape == "cross":
        arm, end = 0.34, 1.0
        return [
            (-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm),
            (arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm), (-arm, -arm),
        ]  # fmt: skip
    if shape == "heart":
        angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        x = 16 * np.sin(angle) ** 3
        y = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle))
        return list(zip(x / 16.5, (y - 2.5) / 15.5))
    raise ValueError(f"{shape} has no corners")


def shape_mask(shape: str, centre_x: float, centre_y: float, radius: float, rotation: float) -> Image.Image:
    """How much of each pixel the shape covers, 0 to 255."""
    mask = Image.new("L", (RESOLUTION * SUPERSAMPLING, RESOLUTION * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = centre_x * SUPERSAMPLING, centre_y * SUPERSAMPLING, radius * SUPERSAMPLING

    def disc(disc_x: float, disc_y: float, disc_radius: float, value: int) -> None:
        draw.ellipse(
            [disc_x - disc_radius, disc_y - disc_radius, disc_x + disc_radius, disc_y + disc_radius],
            fill=value,
        )

    if shape == "circle":
        disc(x, y, 0.96 * r, 255)
    elif shape == "ring":
        disc(x, y, r, 255)
        disc(x, y, 0.56 * r, 0)
    elif shape == "crescent":
        disc(x - 0.1 * r, y, r, 255)
        angle = rotation - 0.35
        disc(x - 0.1 * r + 0.56 * r * math.cos(angle), y + 0.56 * r * math.sin(angle), 0.80 * r, 0)
    else:
        cosine, sine = math.cos(rotation), math.sin(rotation)
        corners = [(x + r * (cosine * u - sine * v), y + r * (sine * u + cosine * v)) for u, v in outline(shape)]
        draw.polygon(corners, fill=255)
    return mask.reduce(SUPERSAMPLING)


_axis = (np.arange(RESOLUTION, dtype=np.float32) + 0.5) / RESOLUTION * 2 - 1
GRID_X, GRID_Y = _axis[None, :, None], _axis[:, None, None]  # pixel centres, -1 to 1


def jittered_colour(rng: random.Random, colour: int) -> np.ndarray:
    brightness = rng.uniform(-7, 7)
    return np.array([COLOUR_VALUES[colour][i] + brightness + rng.uniform(-6, 6) for i in range(3)], np.float32)


def placements(scene: Scene, rng: random.Random) -> list[tuple[Thing, float, float, float, float]]:
    """For each object: itself, centre x, centre y, radius, and how far its centre may stray (pixels)."""
    half = RESOLUTION / 2
    if scene.layout == SINGLE:
        thing = scene.things[0]
        radius = rng.uniform(*SINGLE_RADII[thing.size])
        right, down = place_direction(scene.place)
        offset = min(0.25 * RESOLUTION, half - radius - 6)
        stray = min(8, half - radius - 6) if scene.place == 0 else 6
        return [(thing, half + right * offset, half + down * offset, radius, stray)]
    placed = []
    for sign, thing in zip((-1, 1), scene.things):
        radius = rng.uniform(*PAIR_RADII[thing.size])
        along = half + sign * 0.245 * RESOLUTION
        x, y = (along, half) if scene.layout == SIDE_BY_SIDE else (half, along)
        placed.append((thing, x, y, radius, 4))
    return placed


def place_direction(place: int) -> tuple[int, int]:
    """Where a place lies from the centre: (right, down), each -1, 0 or 1."""
    name = PLACES[place]
    return ("right" in name) - ("left" in name), ("bottom" in name) - ("top" in name)


def render(scene: Scene, rng: random.Random) -> np.ndarray:
    """The picture of a scene, 256 x 256 x 3 bytes.

    Colours, place, size and rotation vary a little, backgrounds have a gradient and a vignette, objects a
    shadow and a light side: with flat pictures the model would have nothing to learn from noise.
    """
    placed = placements(scene, rng)
    direction = rng.uniform(0, 2 * math.pi)
    amplitude = rng.uniform(4, 14)
    base = jittered_colour(rng, scene.background)
    gradient = amplitude * (math.cos(direction) * GRID_X + math.sin(direction) * GRID_Y)
    picture = base + gradient - rng.uniform(0, 9) * (GRID_X**2 + GRID_Y**2)
    for thing, x, y, radius, stray in placed:
        x += rng.uniform(-stray, stray)
        y += rng.uniform(-stray, stray)
        mask = shape_mask(SHAPES[thing.shape], x, y, radius, rng.uniform(-0.10, 0.10))
        picture *= 1 - 0.26 * soft_shadow(mask, radius)
        coverage = np.asarray(mask, np.float32)[..., None] / 255
        across, down = GRID_X - (x / RESOLUTION * 2 - 1), GRID_Y - (y / RESOLUTION * 2 - 1)
        extent = 2 * radius / RESOLUTION
        colour = jittered_colour(rng, thing.colour)
        colour = colour - rng.uniform(8, 20) * (0.5 * across / extent + 0.8 * down / extent)  # the light side
        picture += coverage * (colour - picture)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def soft_shadow(mask: Image.Image, radius: float) -> np.ndarray:
    """The mask blurred and moved down and a little to the right; done at a quarter of the size, for speed."""
    distance = 3 + radius * 0.06
    small = mask.resize((64, 64), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur((2 + radius * 0.05) / 4))
    moved = small.transform(
        (RESOLUTION, RESOLUTION),
        Image.Transform.AFFINE,
        (0.25, 0, -distance * 0.5 / 4, 0, 0.25, -distance / 4),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(moved, np.float32)[..., None] / 255


# ---- captions -------------------------------------------------------------------------------------------

# Each word is drawn from its list; a word that occurs more often is likelier.
SYNONYMS = {
    "circle": ["circle"] * 4 + ["disc", "ball"],
    "cross": ["cross"] * 4 + ["plus sign"],
    "crescent": ["crescent"] * 3 + ["moon", "crescent moon"],
    "diamond": ["diamond"] * 5 + ["rhombus"],
    "ring": ["ring"] * 5 + ["donut"],
    "gray": ["gray", "grey"],
    "small": ["small"] * 3 + ["tiny", "little"],
    "large": ["large"] * 3 + ["big", "huge"],
}


def synonym(rng: random.Random, word: str) -> str:
    return rng.choice(SYNONYMS.get(word, [word]))


def with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe_thing(rng: random.Random, thing: Thing, article: bool) -> str:
    size = SIZES[thing.size]
    size_word = "" if size == "medium" and rng.random() < 0.8 else synonym(rng, size) + " "
    words = f"{size_word}{synonym(rng, COLOURS[thing.colour])} {synonym(rng, SHAPES[thing.shape])}"
    return with_article(words) if article else words


def describe_background(rng: random.Random, background: int) -> str:
    word = synonym(rng, COLOURS[background])
    if rng.random() < 0.07:
        return ""
    phrases = {
        f" on {with_article(word)} background": 10,
        f", {word} background": 4,
        f" on {word}": 2,
        f" with {with_article(word)} background": 2,
        f" against {with_article(word)} background": 1,
        f" in front of {with_article(word)} background": 1,
    }
    return weighted_choice(rng, phrases)


def describe_place(rng: random.Random, place: int) -> str:
    name = PLACES[place]
    if place > 4:
        rng.choice(["on", "at"])  # unused; keeps the sequence of random numbers, and so the evaluation's prompts
        return rng.choice([f" in the {name}", f" in the {name} corner", f" at the {name}"])
    if name == "center":
        return "" if rng.random() < 0.7 else rng.choice([" in the center", " in the middle", " at the center"])
    if name in ("left", "right"):
        return rng.choice([f" on the {name}", f" on the {name}", f" on the {name} side"])
    return rng.choice([f" at the {name}", f" at the {name}", f" at the {name} of the image"])


def weighted_choice(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many ways to say what is in a scene."""
    background = describe_background(rng, scene.background)
    article = rng.random() < 0.8
    first = describe_thing(rng, scene.things[0], article)
    if scene.layout == SINGLE:
        place = describe_place(rng, scene.place)
        body = first + background + place if place and rng.random() < 0.3 else first + place + background
    else:
        second = describe_thing(rng, scene.things[1], article)
        if scene.layout == SIDE_BY_SIDE:
            phrases = {
                f"{first} and {second}": 8,
                f"{first} next to {second}": 2,
                f"{first} beside {second}": 1,
                f"{first} to the left of {second}": 2,
                f"{second} to the right of {first}": 2,
                f"{first} on the left and {second} on the right": 2,
                f"{first}, {second}": 1,
            }
        else:
            phrases = {
                f"{first} above {second}": 4,
                f"{second} below {first}": 4,
                f"{first} over {second}": 1,
                f"{second} under {first}": 2,
                f"{first} on top of {second}": 2,
                f"{first} at the top and {second} at the bottom": 2,
            }
        body = weighted_choice(rng, phrases) + background
    openings = {"": 12, "a picture of ": 2, "an image of ": 1, "a drawing of ": 1, "a photo of ": 1}
    text = weighted_choice(rng, openings) + body
    return text + "." if rng.random() < 0.05 else text


# ---- rendering many -------------------------------------------------------------------------------------


def load_pictures(work: Path, start: int, count: int) -> np.ndarray:
    data = np.fromfile(work / "pictures.u8", np.uint8, count * PICTURE_BYTES, offset=start * PICTURE_BYTES)
    return data.reshape(-1, RESOLUTION, RESOLUTION, 3)


def _render_range(job: tuple[int, int, int, float, str]) -> tuple[int, list[list[int]]]:
    start, stop, total, pair_share, path = job
    pictures = np.memmap(path, np.uint8, "r+", shape=(total, RESOLUTION, RESOLUTION, 3))
    rows = []
    for index in range(start, stop):
        rng = random.Random(index * 7919 + 13)  # a picture depends on its number only, not on the process
        scene = random_scene(rng, weights_for(pair_share))
        pictures[index] = render(scene, rng)
        rows.append(scene.to_row())
    return start, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--count", type=int, default=14000, help="number of pictures")
    parser.add_argument("--pairs", type=float, default=0.65, help="share of scenes with two objects")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    path, count = arguments.work / "pictures.u8", arguments.count
    np.memmap(path, np.uint8, "w+", shape=(count, RESOLUTION, RESOLUTION, 3)).flush()
    rows = np.zeros((count, 8), np.int8)
    jobs = [(i, min(i + 500, count), count, arguments.pairs, str(path)) for i in range(0, count, 500)]
    started = time.time()
    with Pool(arguments.processes) as pool:
        for start, part in pool.imap_unordered(_render_range, jobs):
            rows[start : start + len(part)] = part
    np.save(arguments.work / "scenes.npy", rows)
    print(f"{count} pictures in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
