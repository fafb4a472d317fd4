"""Asks a model in plain values: `mmdora.generate` takes a picture and a question, and gives the answer as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmdora.errors import MmdoraError
from mmdora.families import ask
from mmdora.predict.answers import stream
from mmdora.records.images import FileRef, decode, open_image
from mmdora.records.pixels import to_rgb

Picture = Image.Image | Path | str | bytes
"""A PIL image, the path of a picture's file, or the file's content."""


def generate(
    model: Any,
    processor: Any,
    image: Picture | None,
    question: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Answer one question about a picture, as the page does. `mmdora.evaluate` answers many, in batches.

    Args:
        model: as `mmdora.load` gives it, with its processor; an adapter on it may be merged, unmerged or disabled.
        image: the picture, brought to RGB as in training; None asks without one.
        max_new_tokens: the most tokens of the answer.
        temperature: 0 decodes greedily; otherwise tokens are sampled from the `top_p` nucleus.
        seed: equal seeds give equal samples; the global random state is neither used nor changed.

    Returns:
        The answer, without the end of the turn.

    Raises:
        MmdoraError: the picture cannot be read, or the question is no text.
    """
    if not isinstance(question, str):
        raise MmdoraError(f"generate: the question must be text, not {type(question).__name__}")
    prompt = ask(question, None if image is None else _opened(image))
    answer = ""
    for part in stream(
        model,
        processor,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    ):
        answer = part.text
    return answer


def _opened(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, bytes):
        return decode(image, "given as bytes")
    if not isinstance(image, (str, Path)):
        raise MmdoraError(f"generate: a picture is a PIL image, a path or bytes, not {type(image).__name__}")
    return open_image(FileRef(Path(image).name, Path(image).parent))
