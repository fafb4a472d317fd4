"""Scores short answers by exact match."""

from __future__ import annotations

YES_NO, OTHER = "yes/no", "other"
"""The kinds of answers if the data names none."""


def normalize(text: str) -> str:
    """A text in lower case, with single spaces, and without white space or `.!?,` at the end.

    Articles, and punctuation inside the text, are kept, because answers that differ in them are different answers.
    """
    return " ".join(text.lower().split()).rstrip(" .!?,")


def exact_match(prediction: str, answer: str) -> bool:
    return normalize(prediction) == normalize(answer)
