"""Finds the words that differ between several answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from string import punctuation

Piece = tuple[str, bool]
"""A piece of text, and whether another answer lacks it at this place."""


def marked(texts: Sequence[str]) -> list[list[Piece]]:
    """Cut each text into pieces, and mark those that differ from another text.

    Joined together, the pieces are the text again. Words are compared without case and punctuation. Empty texts are
    left out of the comparison.
    """
    pieces = [re.findall(r"\s+|\S+", text) for text in texts]
    words = [[_key(piece) for piece in own if not piece.isspace()] for own in pieces]
    differ = [[False] * len(own) for own in words]
    for i, own in enumerate(words):
        for j, other in enumerate(words[:i]):
            if own and other:
                for verb, a, b, c, d in SequenceMatcher(None, own, other, autojunk=False).get_opcodes():
                    if verb != "equal":
                        differ[i][a:b] = [True] * (b - a)
                        differ[j][c:d] = [True] * (d - c)
    return [_joined(own, flags) for own, flags in zip(pieces, differ, strict=True)]


def _joined(pieces: Sequence[str], flags: Sequence[bool]) -> list[Piece]:
    """Join neighbouring pieces that are both marked or both not; white space between marked words is marked too."""
    joined: list[Piece] = []
    word = 0
    for piece in pieces:
        if piece.isspace():
            differs = 0 < word < len(flags) and flags[word - 1] and flags[word]
        else:
            differs, word = flags[word], word + 1
        if joined and joined[-1][1] == differs:
            piece = joined.pop()[0] + piece
        joined.append((piece, differs))
    return joined


def _key(word: str) -> str:
    return word.strip(punctuation).casefold() or word
