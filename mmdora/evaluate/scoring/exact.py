"""Exact match of short answers."""

from __future__ import annotations

YES_NO, OTHER = "yes/no", "other"
"""The kinds of answers, where the data names none."""


def normalize(text: str) -> str:
    """A text in lower case, with single spaces, and without white space or `.!?,` at the end.

    Articles and punctuation inside stay, because answers that differ there are different answers.
    """
    return " ".join(text.lower().split()).rstrip(" .!?,")


def exact_match(prediction: str, answer: str) -> bool:
    return normalize(prediction) == normalize(answer)
