"""Questions about two pictures, worded differently from the statements of `pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, Asked, Draw, Thing, in_words, scene_of
from mmdora.data_prep.scenes.language import NUMBERS, Pairs, article, yes

QUESTIONS = 4
"""Number of questions about a pair of pictures."""
ABSENT = 3
"""Number of looks ("a circle", "a red object") that neither picture has and that can be asked for, beside all looks
that a picture has."""
LOOKS = (*(article(shape) for shape in SHAPES), *(f"{article(colour)} object" for colour in COLOURS))


def questions(random: Random, name: str) -> Draw:
    """Questions of four kinds about one pair; yes is as frequent as no wherever the pair allows both."""
    pair = [scene_of(random, random.randint(1, 3)) for _ in range(2)]
    left, right = (things for things, _ in pair)
    kinds, asked = _kinds(random, left, right), []
    for kind in random.sample(sorted(kinds), QUESTIONS):
        wanted = yes(random.random() < 0.5)
        fitting = [made for made in kinds[kind] if made[1] == wanted] or kinds[kind]
        asked.append(Asked(*random.choice(fitting), {"type": kind}))
    return Draw(f"{in_words(left)} / {in_words(right)}", asked, [picture for _, picture in pair])


def _kinds(random: Random, left: Sequence[Thing], right: Sequence[Thing]) -> dict[str, Pairs]:
    """Every question that can be asked about the two pictures, with its answer, by its kind."""
    sides = {"left": left, "right": right}
    seen = {side: {look for t in things for look in (article(t.shape), f"{article(t.colour)} object")}
            for side, things in sides.items()}  # fmt: skip
    both, some = seen["left"] & seen["right"], seen["left"] | seen["right"]
    looks = [*sorted(some), *random.sample([look for look in LOOKS if look not in some], ABSENT)]
    more = len(right) - len(left)
    alone = [(side, t) for side, things in sides.items() for t in things
             if sum(other.shape == t.shape for other in things) == 1]  # fmt: skip
    kinds = {
        "both": [(f"do both pictures show {look}?", yes(look in both)) for look in looks],
        "one": [(f"does just one of the pictures show {look}?", yes(look in some - both)) for look in looks],
        "any": [(f"does any of the pictures show {look}?", yes(look in some)) for look in looks],
        "side": [
            (f"does the {side} picture show {look}?", yes(look in seen[side])) for side in sides for look in looks
        ],
        "more": [("which picture has more objects?", "right" if more > 0 else "left" if more else "neither")],
        "count": [(f"how many objects are in the {side} picture?", NUMBERS[len(sides[side])]) for side in sides],
        "sum": [("how many objects do the pictures show together?", NUMBERS[len(left) + len(right)])],
        "color": [(f"name the color of the {t.shape} in the {side} picture.", t.colour) for side, t in alone],
    }
    return {kind: pairs for kind, pairs in kinds.items() if pairs}
