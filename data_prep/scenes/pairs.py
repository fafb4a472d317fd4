"""Statements about two pictures, in NLVR2's form: a sentence with four pairs, two of which make it true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from PIL import Image

from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, Asked, Draw, Thing, in_words, scene_of
from mmdora.data_prep.scenes.language import NUMBERS, article

Things = Sequence[Thing]
Statement = tuple[str, str, Callable[[Things, Things], bool]]
"""(sentence, its kind, function that says whether it is true of two pictures)."""
PAIRS_EACH = 2
"""Number of pairs of which a sentence is true, and also of those of which it is false."""


def statements(random: Random, name: str) -> Draw:
    """A sentence about four pairs. A draw is a set of NLVR2, whose identifiers are split-set-pair-sentence."""
    sentence, kind, holds = _statement(random)
    by_truth: dict[bool, list[list[tuple[list[Thing], Image.Image]]]] = {True: [], False: []}
    while min(map(len, by_truth.values())) < PAIRS_EACH:
        pair = [scene_of(random, random.randint(1, 3)) for _ in range(2)]
        same = by_truth[holds(pair[0][0], pair[1][0])]
        if len(same) < PAIRS_EACH:
            same.append(pair)
    chosen = [(pair, answer) for answer, pairs in by_truth.items() for pair in pairs]
    random.shuffle(chosen)
    asked = []
    for number, (_, answer) in enumerate(chosen):
        meta = {"identifier": f"{name}-{number}-0", "type": kind}
        asked.append(Asked(sentence, str(answer).lower(), meta, (2 * number, 2 * number + 1)))
    shown = [side for pair, _ in chosen for side in pair]
    about = " / ".join([sentence, *(in_words(things) for things, _ in shown)])
    return Draw(about, asked, [picture for _, picture in shown])


def _statement(random: Random) -> Statement:
    shape, colour, number = random.choice(SHAPES[:3]), random.choice(tuple(COLOURS)), random.randint(2, 5)
    a_shape, a_colour = article(shape), f"{article(colour)} object"
    return random.choice(
        (
            (f"both images show {a_shape}.", "both", lambda a, b: _has(a, shape) and _has(b, shape)),
            (f"one image alone shows {a_shape}.", "one", lambda a, b: _has(a, shape) != _has(b, shape)),
            (f"the left image shows {a_shape}.", "side", lambda a, b: _has(a, shape)),
            (f"{a_colour} is in one of the images.", "any", lambda a, b: any(t.colour == colour for t in [*a, *b])),
            ("the right image has more objects than the left one.", "more", lambda a, b: len(b) > len(a)),
            (f"the two images show {NUMBERS[number]} objects in all.", "sum", lambda a, b: len(a) + len(b) == number),
        )
    )


def _has(things: Things, shape: str) -> bool:
    return any(thing.shape == shape for thing in things)
