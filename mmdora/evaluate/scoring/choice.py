"""Scores multiple choice by generation: finds the option that a text names, if any.

An answer that names no option is wrong, and the number of such answers is reported. No option is drawn at random
instead, and no other model is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.parts import Kinds, PartScores, means
from mmdora.evaluate.scoring.rows import Prediction, need

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST_LETTERS = 5
"""The fewest letters to look for. LLaVA looks for A to E even if there are fewer options; an answer that names a
missing option is wrong."""
MARKS = [("", mark) for mark in ("", ".", ",", ":", ")", ").")] + [("(", ")"), ("(", ").")]
MARKS += [(":", mark) for mark in ("", ",", ".", ")", ").")]
"""(text before, text after) a letter, in the order in which MMBench's scorer tries them."""
LONGEST_BARE_A = 3
"""The most words of an answer in which a bare "A" is taken for the letter; in a longer one it is the article."""
UNPARSABLE = "unparsable"


def parse_letter(text: str, options: int) -> str | None:
    """The letter that a text names, as LLaVA's eval_science_qa.py reads it; None if it names none.

    The text is the letter alone, or begins with `B. `, or says `The answer is B`; a line break counts as `. `. The
    texts `B.`, `b` and `(B)` name no letter.

    Args:
        options: the number of options of the question.
    """
    letters = LETTERS[: max(options, FEWEST_LETTERS)]
    text = text.replace("\n", ". ")
    alone = re.fullmatch(rf"\s*([{letters}])\s*", text) or re.match(rf"([{letters}])\. ", text)
    named = (
        alone or re.search(rf"The answer is ([{letters}])\.", text) or re.search(rf"The answer is ([{letters}])", text)
    )
    return named.group(1) if named and named.group(1) in LETTERS[:options] else None


def match_option(text: str, options: Sequence[str]) -> str | None:
    """The option that a text names by letter or by words, as MMBench's own scorer reads it before it asks ChatGPT.

    Either exactly one letter stands among the words, bare or as `B.`, `(B)` and the like (a bare `A` among more than
    three words does not count), or the text contains the words of exactly one option. The result is None for a text
    that MMBench's scorer would pass on to ChatGPT, so that the score is at most the server's.
    """
    letters, words = LETTERS[: max(len(options), FEWEST_LETTERS)], text.split()
    for before, after in MARKS:
        named = [letter for letter in letters if before + letter + after in words]
        article = not (before or after) and named == ["A"] and len(words) > LONGEST_BARE_A
        if len(named) == 1 and not article:
            return named[0] if named[0] in LETTERS[: len(options)] else None
    held = [letter for letter, option in zip(LETTERS, options, strict=False) if option.lower() in text.lower()]
    return held[0] if len(held) == 1 else None


def letter(row: Prediction) -> str:
    """The letter that the prediction names; empty if it names none."""
    return parse_letter(row["prediction"], len(need(row, "choices"))) or ""


def right(row: Prediction) -> bool:
    return row["prediction"] == answer(row)


def answer(row: Prediction) -> str:
    """The letter of the right option.

    Raises:
        MmdoraError: if the row's answer names none of its options.
    """
    choices = need(row, "choices")
    named = parse_letter(row["answer"], len(choices))
    if named is None:
        raise MmdoraError(f"row {row['id']}: the answer {row['answer']!r} names none of its {len(choices)} choices")
    return named


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> PartScores:
    parts = means(rows, each, kinds)
    parts.counts[UNPARSABLE] = sum(not row["prediction"] for row in rows)
    return parts
