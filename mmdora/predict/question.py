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
from mmdora.records.videos import FRAMES, VideoRef, open_video

Picture = Image.Image | Path | str | bytes
"""A PIL image, the path of a picture's file, or the file's content."""


def generate(
    model: Any,
    processor: Any,
    image: Picture | None,
    question: str,
    *,
    video: Path | str | None = None,
    frames: int = FRAMES,
    fps: float | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Answer one question about a picture or a video, as the page does. `mmdora.evaluate` answers many, in batches.

    Args:
        model: as `mmdora.load` gives it, with its processor; an adapter on it may be merged, unmerged or disabled.
        image: the picture, brought to RGB as in training; None asks without one.
        video: path of a video's file, or of a folder of its frames.
        frames: number of its frames that are shown, evenly spaced.
        fps: frames per second of the whole video, where its file does not say it.
        max_new_tokens: the most tokens of the answer.
        temperature: 0 decodes greedily; otherwise tokens are sampled from the `top_p` nucleus.
        seed: equal seeds give equal samples; the global random state is neither used nor changed.

    Returns:
        The answer, without the end of the turn.

    Raises:
        MmdoraError: picture or video cannot be read, the model reads no videos, or the question is no text.
    """
    if not isinstance(question, str):
        raise MmdoraError(f"generate: the question must be text, not {type(question).__name__}")
    place = None if video is None else Path(video).resolve()
    shown = None if place is None else open_video(VideoRef(place.name, place.parent, frames, fps))
    prompt = ask(question, None if image is None else _opened(image), shown)
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
