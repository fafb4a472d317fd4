"""Drawn scenes: pictures of one to four coloured shapes with conversations about them.

What the bundled bases are pretrained on, so that the quickstart needs no network. Every scene
follows from `seed` and its number alone. Shapes have a colour, a size and a place; the conversations
hold captions, questions on colour, shape, size, place, number and relation, statements to confirm
or deny, and follow-up turns. No sentence here is a question of easy-VQA (a test compares them).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from mmdora.data.prepare.run import write_splits
from mmdora.data.records import qa_record

NAME = "scenes"
LICENCE = "Apache-2.0 (drawn by this package)"
SOURCE = "mmdora data_prep/scenes.py"
UNVERIFIED = ()

SIDE = 64
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
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    x: float  # centre, pixels
    y: float
    width: float  # extent, pixels
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


def prepare(
    out: Path, *, rows: int = 1000, seed: int = 0, held_out: int = 500, presence: float = 0.0, workers: int = 2
) -> dict[str, int]:
    """Write `train.jsonl`, `test.jsonl` (single questions, other scenes), `images/`, card and report below `out`.

    Args:
        presence: share of the records that mostly show one thing and ask whether something is there,
            what a small model learns last.
    """
    with ProcessPoolExecutor(workers) as pool:
        splits = {}
        for split, amount, first in (("train", rows, 0), ("test", held_out, 10**9)):
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
            jobs = [(out, split, seed, first + i, presence) for i in range(amount)]
            splits[split] = pool.map(_make, jobs, chunksize=200)
        return write_splits(out, __name__, splits)


def _make(job: tuple[Path, str, int, int, float]) -> dict[str, Any]:
    out, split, seed, number, presence = job
    random = Random(f"{seed}:{number}")
    asks_presence = random.random() < presence
    things, picture = scene(random, most=random.choice((1, 1, 1, 2)) if asks_presence else 4)
    name = f"images/{split}/{number}.png"
    picture.save(out / name, optimize=False, compress_level=1)
    pairs = (existence if asks_presence else conversation)(random, things)
    if split == "test":
        pairs = [random.choice([pair for pair in pairs if "it?" not in pair[0]])]  # no follow-up without its question
    return qa_record(f"{split}-{number}", name, pairs)


# --- drawing ---------------------------------------------------------------------------------


def scene(random: Random, most: int = 4) -> tuple[list[Thing], Image.Image]:
    """Draw one to `most` shapes that do not overlap, on a light, seldom a dark, background."""
    scale = random.choice((1, 4))  # hard or smooth edges
    light = random.random() < 0.85
    background = tuple(random.randint(228, 255) if light else random.randint(0, 255) for _ in range(3))
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), background)
    pen, things = ImageDraw.Draw(picture), []
    for _ in range(min(most, random.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4)))):
        thing, rgb = _place(random, things, background)
        if thing is None:
            continue
        _draw(pen, thing, rgb, scale)
        things.append(thing)
    return things, picture.resize((SIDE, SIDE), Image.Resampling.BOX) if scale > 1 else picture


def _place(random: Random, others: list[Thing], background: tuple[int, ...]) -> tuple[Thing | None, tuple[int, ...]]:
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


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, rgb: tuple[int, ...], scale: int) -> None:
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


# --- language --------------------------------------------------------------------------------

Pairs = list[tuple[str, str]]


def existence(random: Random, things: list[Thing]) -> Pairs:
    """What is there, and four questions whether something is."""
    pairs = [*_shape(random, things), *_colour(random, things)] if random.random() < 0.5 else []
    makers = [_exists, _exists, random.choice((_absent, _statement)), random.choice((_exists, _absent))]
    return pairs + [pair for make in makers for pair in make(random, things)]


def conversation(random: Random, things: list[Thing]) -> Pairs:
    """Three or more turns about a scene; follow-ups stay behind their question.

    A caption comes last: what it gives away would otherwise teach to read the conversation instead
    of the picture.
    """
    makers: list[Callable[[Random, list[Thing]], Pairs]] = [_colour, _shape, _exists, _exists, _absent, _statement]
    makers += [_caption, _size_place, _count]
    if len(things) > 1:
        makers += [_relation, _count, _caption]
    chosen = random.sample(makers, 3)
    chosen.sort(key=lambda make: make is _caption)
    return [pair for make in chosen for pair in make(random, things)]


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plural(words: str) -> str:
    return f"{words}es" if words.endswith("cross") else f"{words}s"


def _said(random: Random, *forms: str) -> str:
    return random.choice(forms)


def caption(things: list[Thing]) -> str:
    """Every thing with size, colour, shape and place, from left to right."""
    parts = [f"{_article(f'{t.size} {t.name}')} at the {t.place}" for t in sorted(things, key=lambda t: t.x)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _caption(random: Random, things: list[Thing]) -> Pairs:
    ask = _said(random, "describe the picture.", "what does this image show?", "tell me what you see here.",
                "give a short caption for the image.")  # fmt: skip
    return [(ask, caption(things))]


def _one(random: Random, things: list[Thing], key: str) -> Thing:
    """A thing that is alone with its value of `key`, if there is one."""
    single = [t for t in things if sum(getattr(o, key) == getattr(t, key) for o in things) == 1]
    return random.choice(single or things)


def _colour(random: Random, things: list[Thing]) -> Pairs:
    thing = _one(random, things, "shape")
    if sum(o.shape == thing.shape for o in things) > 1:
        return _shape(random, things)
    return [(_ask_colour(random, thing.shape if random.random() < 0.7 or len(things) > 1 else "object"), thing.colour)]


def _ask_colour(random: Random, what: str) -> str:
    return _said(random, f"name the color of the {what}.", f"the {what} has which color?",
                 f"which color was the {what} painted in?", f"tell me how the {what} is colored.")  # fmt: skip


def _shape(random: Random, things: list[Thing]) -> Pairs:
    thing = random.choice(things)
    if len(things) == 1:
        ask = _said(random, "name the form in this picture.", "which kind of shape do you see?",
                    "the picture holds which shape?")  # fmt: skip
    else:
        ask = _said(random, f"the {thing.colour} object is which shape?", f"name the form of the {thing.colour} thing.",
                    f"which shape was drawn in {thing.colour}?")  # fmt: skip
    return [(ask, thing.shape)]


def _described(random: Random, things: list[Thing]) -> tuple[str, bool]:
    """A description of something that is in the scene, or is not, evenly."""
    thing, kind = random.choice(things), random.choice(("colour", "shape", "both", "both"))
    present = random.random() < 0.5
    colour, shape = thing.colour, thing.shape
    if not present:
        other_colour = random.choice([c for c in COLOURS if all(c != t.colour for t in things)])
        other_shape = random.choice([s for s in SHAPES if all(s != t.shape for t in things)])
        swap = random.choice(("colour", "shape")) if kind == "both" else kind
        colour, shape = (other_colour, shape) if swap == "colour" else (colour, other_shape)
    return {"colour": f"{colour} object", "shape": shape, "both": f"{colour} {shape}"}[kind], present


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _exists(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    ask = _said(random, f"can you see {_article(words)}?", f"do you find {_article(words)} here?",
                f"does this picture show {_article(words)}?", f"has anyone drawn {_article(words)}?")  # fmt: skip
    return [(ask, _yes(present))]


def _absent(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    return [(_said(random, f"is the picture without {_article(words)}?", f"are we missing {_article(words)} here?",
                   f"did they not draw {_article(words)}?"), _yes(not present))]  # fmt: skip


def _statement(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    if random.random() < 0.5:
        return [(f"true or false: you can see {_article(words)}.", str(present).lower())]
    return [(f"true or false: there are no {_plural(words)}.", str(not present).lower())]


def _size_place(random: Random, things: list[Thing]) -> Pairs:
    thing = random.choice(things)
    pairs = [(_said(random, f"where is the {thing.name}?", f"find the {thing.name}."), f"at the {thing.place}")]
    if random.random() < 0.5:
        pairs.append(("how big is it?", thing.size))
    else:
        pairs = [(f"how big is the {thing.name}?", thing.size)]
    return pairs


def _count(random: Random, things: list[Thing]) -> Pairs:
    if random.random() < 0.6:
        return [(_said(random, "how many objects are there?", "count the objects."), NUMBERS[len(things)])]
    shape = random.choice(things).shape if random.random() < 0.7 else random.choice(SHAPES)
    return [(f"how many {_plural(shape)} do you see?", NUMBERS[sum(t.shape == shape for t in things)])]


def _relation(random: Random, things: list[Thing]) -> Pairs:
    a, b = random.sample(things, 2)
    if random.random() < 0.5:
        words, holds = ("left of", a.x < b.x) if random.random() < 0.5 else ("right of", a.x > b.x)
    else:
        words, holds = ("above", a.y < b.y) if random.random() < 0.5 else ("below", a.y > b.y)
    return [(f"is the {a.name} {words} the {b.name}?", _yes(holds))]
