"""Draws the pictures: one to four coloured shapes that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
"""Width and height of a picture in pixels, the same as in easy-VQA."""
SHAPES = ("circle", "rectangle", "triangle", "star", "cross")
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (25, 25, 30)),
    "gray": ((128, 128, 128), (110, 112, 115), (150, 150, 150)),
    "red": ((255, 0, 0), (220, 20, 30)),
    "green": ((0, 255, 0), (0, 160, 0), (40, 200, 60)),
    "blue": ((0, 0, 255), (30, 60, 220)),
    "yellow": ((255, 255, 0), (240, 220, 20)),
    "teal": ((0, 128, 128), (10, 150, 145)),
    "brown": ((165, 42, 42), (139, 69, 19), (120, 60, 30)),
    "orange": ((255, 140, 0), (240, 120, 20)),
    "purple": ((128, 0, 160), (150, 40, 200)),
    "pink": ((255, 105, 180), (250, 150, 200)),
}


@dataclass(frozen=True)
class Thing:
    """A drawn shape. `x` and `y` are its centre, `width` and `height` its extent, all in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    width: float
    height: float

    @property
    def size(self) -> str:
        return "large" if max(self.width, self.height) >= 17 else "small"

    @property
    def place(self) -> str:
        row = "top" if self.y < SIDE / 3 else "bottom" if self.y > 2 * SIDE / 3 else "middle"
        column = "left" if self.x < SIDE / 3 else "right" if self.x > 2 * SIDE / 3 else "middle"
        return "center" if row == column == "middle" else f"{row} {column}"

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


class Asked(NamedTuple):
    """A question about a draw; `pictures` holds the numbers of the pictures it is about, or None for all of them."""

    text: str
    answer: str
    meta: Mapping[str, Any]
    pictures: Sequence[int] | None = None


@dataclass(frozen=True)
class Draw:
    """Pictures, and the questions about them.

    Attributes:
        about: description of the pictures in words, which is equal for pictures that look alike.
        features: [frames, 512] float32 features that replace the pictures; None if there are pictures.
    """

    about: str
    asked: Sequence[Asked]
    pictures: Sequence[Image.Image] = field(default_factory=list)
    features: np.ndarray | None = None


def in_words(things: Sequence[Thing]) -> str:
    """Describe things as people tell them apart, without fractions of pixels and shades of a colour."""
    return "; ".join(sorted(f"{thing.size} {thing.name} at the {thing.place}" for thing in things))


def scene_of(random: Random, number: int) -> tuple[list[Thing], Image.Image]:
    """Draw a scene of exactly `number` things."""
    while True:
        things, picture = scene(random, number=number)
        if len(things) == number:
            return things, picture


def scene(random: Random, most: int = 4, *, number: int | None = None) -> tuple[list[Thing], Image.Image]:
    """Draw one to `most` (or up to `number`) shapes that do not overlap, mostly on a light background."""
    scale = random.choice((1, 4))  # With 1 the edges are hard, with 4 they are smooth.
    light = random.random() < 0.85
    background = tuple(random.randint(228, 255) if light else random.randint(0, 255) for _ in range(3))
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), background)
    pen, things = ImageDraw.Draw(picture), []
    for _ in range(number or min(most, random.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4)))):
        thing, rgb = place_thing(random, things, background)
        if thing is None:
            continue
        draw_thing(pen, thing, rgb, scale)
        things.append(thing)
    return things, picture.resize((SIDE, SIDE), Image.Resampling.BOX) if scale > 1 else picture


def place_thing(
    random: Random, others: list[Thing], background: tuple[int, ...]
) -> tuple[Thing | None, tuple[int, ...]]:
    """Place a new thing that overlaps no other and differs from the background.

    Returns:
        The thing and its RGB, or None and () after 50 tries.
    """
    for _ in range(50):
        colour = random.choice(tuple(COLOURS))
        rgb = random.choice(COLOURS[colour])
        if math.dist(rgb, background) < 90 or any(thing.colour == colour for thing in others):
            continue
        shape = random.choice(SHAPES[:3] if random.random() < 0.8 else SHAPES[3:])
        width = random.uniform(10, 32)
        height = random.uniform(9, 32) if shape == "rectangle" else width
        x, y = random.uniform(width / 2, SIDE - width / 2), random.uniform(height / 2, SIDE - height / 2)
        if all(abs(x - o.x) > (width + o.width) / 2 + 1 or abs(y - o.y) > (height + o.height) / 2 + 1 for o in others):
            return Thing(shape, colour, x, y, width, height), rgb
    return None, ()


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, rgb: tuple[int, ...], scale: int) -> None:
    """Draw a thing on a picture that is `scale` times larger than SIDE."""
    x, y, w, h = (value * scale for value in (thing.x, thing.y, thing.width / 2, thing.height / 2))
    box = (x - w, y - h, x + w, y + h)
    if thing.shape == "rectangle":
        pen.rectangle(box, fill=rgb)
    elif thing.shape == "circle":
        pen.ellipse(box, fill=rgb)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - h), (x - w, y + h), (x + w, y + h)], fill=rgb)
    elif thing.shape == "cross":
        third = w / 3
        pen.rectangle((x - third, y - h, x + third, y + h), fill=rgb)
        pen.rectangle((x - w, y - third, x + w, y + third), fill=rgb)
    else:
        points = [(w if i % 2 == 0 else w * 0.42, math.pi * (i / 5 - 0.5)) for i in range(10)]
        pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in points], fill=rgb)
