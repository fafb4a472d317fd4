"""Refuses rows in which a picture, video or sound stands under a key that is not read.

Without this check, a row with its picture under a wrong key would silently be learned as a row without a picture.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from mmdora.errors import MmdoraError

STILLS = frozenset(["image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"])
"""Words that occur in the keys of pictures."""
OTHERS = frozenset(
    ["video", "videos", "clip", "clips", "frame", "frames", "audio", "audios", "sound", "sounds", "speech"]
)
"""Words that occur in the keys of videos and sounds."""
VIDEOS = frozenset(["video", "videos", "clip", "clips"])
"""Those of them that occur in the keys of videos."""
FACTS = frozenset(
    [
        "id",
        "ids",
        "width",
        "height",
        "size",
        "count",
        "num",
        "number",
        "index",
        "hash",
        "type",
        "format",
        "caption",
        "source",
        "licence",
        "license",
    ]
)
"""Last words of keys that hold a fact about a picture, and not the picture."""
ENDINGS = re.compile(
    r"[^\n]{1,500}\.(png|jpe?g|webp|bmp|gif|tiff?|heic|heif|avif|mp4|mov|webm|mkv|avi|wav|mp3|flac)", re.I
)


def check_keys(
    row: Mapping[str, Any],
    known: Collection[str],
    pictures: Collection[str],
    where: str = "",
    *,
    videos: Collection[str] = (),
) -> None:
    """Raise an MmdoraError if a row's picture, video or sound stands under a key that is not read.

    Args:
        row: the row.
        known: keys that are read, including those of pictures.
        pictures: keys under which pictures are read; the first is the usual one.
        where: name of the row in errors.
        videos: keys under which videos are read; none in layouts that hold no videos.

    Raises:
        MmdoraError: if there is a video or sound; or if there is a picture under an unknown key, and the row has none
            under a known key or the keys differ in their form only (`images` for `image`).
    """
    has_pictures = any(row.get(key) for key in pictures)
    for key, value in row.items():
        if key in known or not isinstance(key, str) or not _holds_something(value):
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_").replace(" ", "_").split("_")
        told = f"{where}: " if where else ""
        if OTHERS & set(words) and words[-1] not in FACTS:
            if videos and VIDEOS & set(words):
                raise MmdoraError(
                    f"{told}the key {key!r} is not read; a video stands under {next(iter(videos))!r}. Rename it, or "
                    "take it out"
                )
            held = "pictures and videos" if videos else "pictures"
            raise MmdoraError(
                f"{told}the key {key!r} is not read, and this layout holds {held} only; take such rows out, or give "
                f"single frames as {next(iter(pictures))!r}"
            )
        same = "_".join(words) in STILLS
        named = bool(STILLS & set(words)) and words[-1] not in FACTS
        if same or (not has_pictures and (named or _is_picture(value))):
            close = difflib.get_close_matches(key.lower(), pictures, 1, 0) or list(pictures)[:1]
            raise MmdoraError(
                f"{told}the key {key!r} looks like a picture and is not read; did you mean {close[0]!r}? Rename it, or "
                "take it out"
            )


def _holds_something(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _is_picture(value: Any) -> bool:
    """Whether a value is the name of a picture's file, or a picture as `datasets` stores it in Parquet."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict):
        return set(first) == {"bytes", "path"}
    return isinstance(first, str) and ENDINGS.fullmatch(first.strip()) is not None
