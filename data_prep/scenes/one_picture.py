"""Tasks on one picture: captions, counting, relations, and existence in POPE's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, Asked, Draw, Thing, in_words, scene_of
from mmdora.data_prep.scenes.language import NUMBERS, article, caption, plural, yes

FREQUENT = SHAPES[:3]  # four of five things have one of these shapes
APART = 8  # pixels, from which on things stand left of or above each other


def captions(random: Random, name: str) -> Draw:
    """A caption with every thing; `meta.references` has four true ones, as COCO has five."""
    things, picture = scene_of(random, random.randint(1, 3))
    by_row = sorted(things, key=lambda thing: thing.y)
    names = sorted((article(thing.name) for thing in things), key=lambda text: text.split()[1])
    references = [
        caption(things),
        f"the picture shows {_and([f'{article(t.name)} at the {t.place}' for t in by_row])}",
        f"there {'is' if len(things) == 1 else 'are'} {_and(names)}",
        _and([f"{article(f'{t.size} {t.colour} {t.shape}')}" for t in by_row]),
    ]
    meta = {"references": references, "type": NUMBERS[len(things)]}
    return Draw(in_words(things), [Asked("give a short caption for the image.", references[0], meta)], [picture])


def counts(random: Random, name: str) -> Draw:
    """How many things, or things of a shape, there are; every number of things is as frequent."""
    things, picture = scene_of(random, random.randint(1, 4))
    shape = random.choice([*(thing.shape for thing in things), random.choice(SHAPES)])
    asked = [
        Asked("how many objects are there?", NUMBERS[len(things)], {"type": "all"}),
        Asked(
            f"how many {plural(shape)} are there?", NUMBERS[sum(t.shape == shape for t in things)], {"type": "shape"}
        ),
    ]
    return Draw(in_words(things), asked, [picture])


RELATIONS: dict[str, Callable[[Thing, Thing], float]] = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}


def relations(random: Random, name: str) -> Draw:
    """Whether one thing stands left of, right of, above or below another; yes is as frequent as no."""
    while True:
        things, picture = scene_of(random, random.randint(2, 4))
        a, b = random.sample(things, 2)
        wanted = random.random() < 0.5
        fitting = [words for words, by in RELATIONS.items() if abs(by(a, b)) >= APART and (by(a, b) > 0) == wanted]
        if fitting:
            words = random.choice(fitting)
            question = Asked(f"is the {a.name} {words} the {b.name}?", yes(wanted), {"type": words})
            return Draw(in_words(things), [question], [picture])


def existence(random: Random, name: str) -> Draw:
    """POPE's three kinds of absent things, each beside a question on a present one.

    `random`: any that is absent; `popular`: absent, of the shapes that most things have; `adversarial`:
    absent, of the colour or the shape of something that is there.
    """
    things, picture = scene_of(random, random.randint(1, 3))
    there = {(thing.colour, thing.shape) for thing in things}
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]
    pools = {
        "random": absent,
        "popular": [pair for pair in absent if pair[1] in FREQUENT],
        "adversarial": [pair for pair in absent if any(pair[0] == c or pair[1] == s for c, s in there)],
    }
    asked = []
    for strategy, pool in pools.items():
        for pair, answer in ((random.choice(sorted(there)), "yes"), (random.choice(pool), "no")):
            question = f"is there {article(' '.join(pair))} in the image?"
            meta = {"question_id": f"{name}-{len(asked)}", "question": question, "type": strategy}
            asked.append(Asked(question, answer, meta))
    return Draw(in_words(things), asked, [picture])


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
