"""Writes questions, answers and captions of a scene. No sentence is a question of easy-VQA; a test compares them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mmdora.data_prep.scenes.drawing import COLOURS, SHAPES, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

Pairs = list[tuple[str, str]]


def existence(random: Random, things: list[Thing]) -> Pairs:
    """Four questions whether something is there; in half of the cases, questions about shape and colour come first."""
    pairs = [*_shape(random, things), *_colour(random, things)] if random.random() < 0.5 else []
    makers = [_exists, _exists, random.choice((_absent, _statement)), random.choice((_exists, _absent))]
    return pairs + [pair for make in makers for pair in make(random, things)]


def conversation(random: Random, things: list[Thing]) -> Pairs:
    """Three or more turns about a scene, in which a follow-up directly follows its question.

    A caption comes last. It contains the answers to the other questions, so from an earlier one a model would learn to
    read answers from the conversation instead of the picture.
    """
    makers: list[Callable[[Random, list[Thing]], Pairs]] = [_colour, _shape, _exists, _exists, _absent, _statement]
    makers += [_caption, _size_place, _count]
    if len(things) > 1:
        makers += [_relation, _count, _caption]
    chosen = random.sample(makers, 3)
    chosen.sort(key=lambda make: make is _caption)
    return [pair for make in chosen for pair in make(random, things)]


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(words: str) -> str:
    return f"{words}es" if words.endswith("cross") else f"{words}s"


def _said(random: Random, *forms: str) -> str:
    return random.choice(forms)


def caption(things: list[Thing]) -> str:
    """Every thing with size, colour, shape and place, from left to right."""
    parts = [f"{article(f'{t.size} {t.name}')} at the {t.place}" for t in sorted(things, key=lambda t: t.x)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _caption(random: Random, things: list[Thing]) -> Pairs:
    ask = _said(random, "describe the picture.", "what does this image show?", "tell me what you see here.",
                "give a short caption for the image.")  # fmt: skip
    return [(ask, caption(things))]


def _one(random: Random, things: list[Thing], key: str) -> Thing:
    """A thing that shares its value of `key` with no other thing, if there is such a thing; else any thing."""
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
    """A description of something, and whether it is in the scene (in half of the cases it is)."""
    thing, kind = random.choice(things), random.choice(("colour", "shape", "both", "both"))
    present = random.random() < 0.5
    colour, shape = thing.colour, thing.shape
    if not present:
        other_colour = random.choice([c for c in COLOURS if all(c != t.colour for t in things)])
        other_shape = random.choice([s for s in SHAPES if all(s != t.shape for t in things)])
        swap = random.choice(("colour", "shape")) if kind == "both" else kind
        colour, shape = (other_colour, shape) if swap == "colour" else (colour, other_shape)
    return {"colour": f"{colour} object", "shape": shape, "both": f"{colour} {shape}"}[kind], present


def yes(value: bool) -> str:
    return "yes" if value else "no"


def _exists(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    ask = _said(random, f"can you see {article(words)}?", f"do you find {article(words)} here?",
                f"does this picture show {article(words)}?", f"has anyone drawn {article(words)}?")  # fmt: skip
    return [(ask, yes(present))]


def _absent(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    return [(_said(random, f"is the picture without {article(words)}?", f"are we missing {article(words)} here?",
                   f"did they not draw {article(words)}?"), yes(not present))]  # fmt: skip


def _statement(random: Random, things: list[Thing]) -> Pairs:
    words, present = _described(random, things)
    if random.random() < 0.5:
        return [(f"true or false: you can see {article(words)}.", str(present).lower())]
    return [(f"true or false: there are no {plural(words)}.", str(not present).lower())]


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
    return [(f"how many {plural(shape)} do you see?", NUMBERS[sum(t.shape == shape for t in things)])]


def _relation(random: Random, things: list[Thing]) -> Pairs:
    a, b = random.sample(things, 2)
    if random.random() < 0.5:
        words, holds = ("left of", a.x < b.x) if random.random() < 0.5 else ("right of", a.x > b.x)
    else:
        words, holds = ("above", a.y < b.y) if random.random() < 0.5 else ("below", a.y > b.y)
    return [(f"is the {a.name} {words} the {b.name}?", yes(holds))]
