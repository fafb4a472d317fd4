"""Tasks on one picture: captions, counting, relations, existence in POPE's form, and tiny-vlbart's first lessons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mmdora.data_prep.scenes import language
from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, Asked, Draw, Thing, in_words, scene, scene_of
from mmdora.data_prep.scenes.language import NUMBERS, article, caption, plural, yes

FREQUENT = SHAPES[:3]
"""The shapes that four of five things have; POPE's kind `popular` asks about them."""
APART = 8
"""The fewest pixels between the centres of two things of which one counts as left of or above the other."""
PRESENCE = 0.6
"""The share of the pictures about which most questions ask whether something is there."""


def questions(random: Random, name: str) -> Draw:
    """The questions of a conversation one by one, without captions and follow-ups."""
    asks_presence = random.random() < PRESENCE
    things, picture = scene(random, most=random.choice((1, 1, 1, 2)) if asks_presence else 4)
    said = (language.existence if asks_presence else language.conversation)(random, things)
    asked = [
        Asked(question, answer, {"type": "yes/no" if answer in ("yes", "no") else "other"})
        for question, answer in said
        if answer != caption(things) and "it?" not in question
    ]
    return Draw(in_words(things), asked, [picture])


def places(random: Random, name: str) -> Draw:
    """Questions where things are, how big they are, and what is at a place, in pictures with several things."""
    things, picture = scene_of(random, random.randint(2, 4))
    thing, other = random.sample(things, 2)
    asked = [Asked(f"where is the {thing.name}?", f"at the {thing.place}", {"type": "place"})]
    if sum(one.place == other.place for one in things) == 1:
        asked.append(Asked(f"what is at the {other.place}?", article(other.name), {"type": "thing"}))
    asked.append(Asked(f"how big is the {other.name}?", other.size, {"type": "size"}))
    return Draw(in_words(things), asked, [picture])


def names(random: Random, name: str) -> Draw:
    """The colours and shapes of the things from left to right, which is less than a caption says."""
    things, picture = scene(random)
    said = _and([article(thing.name) for thing in sorted(things, key=lambda thing: thing.x)])
    return Draw(in_words(things), [Asked("name what is drawn.", said, {"type": NUMBERS[len(things)]})], [picture])


def captions(random: Random, name: str) -> Draw:
    """A caption that names every thing; `meta.references` has four true captions, where COCO has five."""
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
    """A question how many things, or things of a shape, there are; all numbers of things are equally frequent."""
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
    """Questions whether one thing is left of, right of, above or below another; yes is as frequent as no."""
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
    """Questions about POPE's three kinds of absent things, each with a question about a thing that is there.

    `random` is any absent thing. `popular` is an absent thing with one of the shapes that most things have.
    `adversarial` is an absent thing with the colour or the shape of something that is there.
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
