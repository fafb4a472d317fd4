"""Exact match of short answers."""

from __future__ import annotations

YES_NO, OTHER = "yes/no", "other"  # answer types


def normalize(text: str) -> str:
    """Lower case, inner white space made single, no white space or `.!?,` at the end.

    Articles and inner punctuation stay: answers that differ there are different answers.
    """
    return " ".join(text.lower().split()).rstrip(" .!?,")


def exact_match(prediction: str, answer: str) -> bool:
    return normalize(prediction) == normalize(answer)
