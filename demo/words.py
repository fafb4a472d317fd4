"""Finds the words that differ between two answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from string import punctuation

Piece = tuple[str, bool]
"""A piece of text, and whether another answer lacks it at this place."""


def marked(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Cut two texts into pieces, and mark the words in which they differ.

    Joined together, the pieces are the text again. Words are compared without case and punctuation. If a text is empty,
    nothing is marked.
    """
    ours, theirs = (re.findall(r"\s+|\S+", text) for text in (first, second))
    words, others = ([_key(piece) for piece in pieces if not piece.isspace()] for pieces in (ours, theirs))
    differ, differ_there = [False] * len(words), [False] * len(others)
    if words and others:
        for verb, a, b, c, d in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
            if verb != "equal":
                differ[a:b], differ_there[c:d] = [True] * (b - a), [True] * (d - c)
    return _joined(ours, differ), _joined(theirs, differ_there)


def _joined(pieces: Sequence[str], flags: Sequence[bool]) -> list[Piece]:
    """Join neighbouring pieces that are both marked or both not; white space between marked words is marked too.

    A line break is not: it would be shown as a stripe in an empty line.
    """
    joined: list[Piece] = []
    word = 0
    for piece in pieces:
        if piece.isspace():
            differs = "\n" not in piece and 0 < word < len(flags) and flags[word - 1] and flags[word]
        else:
            differs, word = flags[word], word + 1
        if joined and joined[-1][1] == differs:
            piece = joined.pop()[0] + piece
        joined.append((piece, differs))
    return joined


def _key(word: str) -> str:
    return word.strip(punctuation).casefold() or word
