"""Multiple choice by generation: which option a text names, or none.

An answer that names none is wrong and is counted; nothing is drawn at random and no other model is
asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmdora.errors import MmdoraError
from mmdora.evaluate.scoring.bootstrap import Array
from mmdora.evaluate.scoring.parts import Kinds, Parts, means
from mmdora.evaluate.scoring.rows import Prediction, need

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST = 5  # LLaVA looks for A to E however few the options are: naming a missing one is wrong
# what may stand around a letter, in the order of MMBench's scorer
MARKS = [("", mark) for mark in ("", ".", ",", ":", ")", ").")] + [("(", ")"), ("(", ").")]
MARKS += [(":", mark) for mark in ("", ",", ".", ")", ").")]
ARTICLE = 3  # a bare "A" among more words than this is taken for the article
UNPARSABLE = "unparsable"


def parse_letter(text: str, options: int) -> str | None:
    """The letter named in an answer to a question with so many options, as LLaVA's eval_science_qa.py reads it.

    The text is the letter alone, or begins with `B. `, or says `The answer is B`; a new line reads
    as `. `. `B.`, `b` and `(B)` name none.
    """
    letters = LETTERS[: max(options, FEWEST)]
    text = text.replace("\n", ". ")
    alone = re.fullmatch(rf"\s*([{letters}])\s*", text) or re.match(rf"([{letters}])\. ", text)
    named = (
        alone or re.search(rf"The answer is ([{letters}])\.", text) or re.search(rf"The answer is ([{letters}])", text)
    )
    return named.group(1) if named and named.group(1) in LETTERS[:options] else None


def match_option(text: str, options: Sequence[str]) -> str | None:
    """The option named by letter or by words, as MMBench's own scorer reads it before it asks ChatGPT.

    One letter stands among the words, bare or as `B.`, `(B)` and the like, but for a bare `A` among more
    than three words; else the words of one option only are found in the text. What that scorer would
    show to ChatGPT names none here, so that the number is at most the server's.
    """
    letters, words = LETTERS[: max(len(options), FEWEST)], text.split()
    for before, after in MARKS:
        named = [letter for letter in letters if before + letter + after in words]
        article = not (before or after) and named == ["A"] and len(words) > ARTICLE
        if len(named) == 1 and not article:
            return named[0] if named[0] in LETTERS[: len(options)] else None
    held = [letter for letter, option in zip(LETTERS, options, strict=False) if option.lower() in text.lower()]
    return held[0] if len(held) == 1 else None


def letter(row: Prediction) -> str:
    """The letter that the prediction names, or nothing."""
    return parse_letter(row["prediction"], len(need(row, "choices"))) or ""


def right(row: Prediction) -> bool:
    return row["prediction"] == answer(row)


def answer(row: Prediction) -> str:
    """The letter of the right option.

    Raises:
        MmdoraError: if the row's answer names none.
    """
    choices = need(row, "choices")
    named = parse_letter(row["answer"], len(choices))
    if named is None:
        raise MmdoraError(f"row {row['id']}: the answer {row['answer']!r} names none of its {len(choices)} choices")
    return named


def sum_up(rows: Sequence[Prediction], each: Array, kinds: Kinds) -> Parts:
    parts = means(rows, each, kinds)
    parts.counts[UNPARSABLE] = sum(not row["prediction"] for row in rows)
    return parts
