"""Draws short clips of one thing that moves or changes its size, as pictures or as features for VL-BART's videos."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from mmdora.data_prep.scenes.drawing import SIDE, Asked, Draw, Thing, draw_thing, in_words, place_thing

FRAMES = 4
"""Number of frames of a clip."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GROWTH = {"grows": 1.35, "shrinks": 1 / 1.35}
"""Change -> factor of a thing's width and height from one frame to the next."""
STEP = 9
"""Pixels that a moving thing advances from one frame to the next."""
SMALLEST = 5
"""The fewest pixels of a thing's width and height, because a smaller one cannot be recognised."""
THUMBNAIL, WIDTH = 16, 512
"""Features of a frame: the colours of THUMBNAIL x THUMBNAIL pixels, mapped to WIDTH numbers (CLIP's width)."""


def frames(random: Random, name: str) -> Draw:
    """A clip as FRAMES pictures in one record."""
    about, asked, pictures = _clip(random)
    return Draw(about, [asked], pictures)


def features(random: Random, name: str) -> Draw:
    """A clip as features, [FRAMES, WIDTH] float32: a random linear map of the pixels, the same for all clips."""
    about, asked, pictures = _clip(random)
    small = [np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel() for picture in pictures]
    return Draw(about, [asked], features=((np.stack(small) / 127.5 - 1) @ _map()).astype(np.float32))


def npy(values: np.ndarray) -> bytes:
    """Features as the content of a .npy file."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@cache
def _map() -> np.ndarray:
    """The random map from pixels to features, [3 * THUMBNAIL * THUMBNAIL, WIDTH] float64."""
    inputs = 3 * THUMBNAIL * THUMBNAIL
    return np.random.default_rng(0).normal(size=(inputs, WIDTH)) / np.sqrt(inputs)


def _clip(random: Random) -> tuple[str, Asked, list[Image.Image]]:
    ground = tuple(random.randint(228, 255) for _ in range(3))
    change = random.choice((*DIRECTIONS, *GROWTH))
    while True:
        thing, rgb = place_thing(random, [], ground)
        states = [_at(thing, change, number) for number in range(FRAMES)] if thing else []
        if states and all(_inside(state) for state in states):
            break
    pictures = []
    for state in states:
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        draw_thing(ImageDraw.Draw(picture), state, rgb, 1)
        pictures.append(picture)
    if change in DIRECTIONS:
        asked = Asked(f"in which direction does the {states[0].shape} move?", change, {"type": "direction"})
    else:
        asked = Asked(f"how does the {states[0].shape} change?", f"it {change}", {"type": "size"})
    return f"{in_words(states[:1])}, {change}", asked, pictures


def _at(thing: Thing, change: str, number: int) -> Thing:
    if change in GROWTH:
        factor = GROWTH[change] ** number
        return replace(thing, width=thing.width * factor, height=thing.height * factor)
    x, y = DIRECTIONS[change]
    return replace(thing, x=thing.x + STEP * number * x, y=thing.y + STEP * number * y)


def _inside(thing: Thing) -> bool:
    across = thing.width / 2 <= thing.x <= SIDE - thing.width / 2
    down = thing.height / 2 <= thing.y <= SIDE - thing.height / 2
    return across and down and min(thing.width, thing.height) >= SMALLEST
