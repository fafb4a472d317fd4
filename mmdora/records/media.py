"""Keys of a row that seem to name a picture, a video or a sound, and that nothing reads.

A row whose picture stands under another key than the one that is read would be learned as a row about text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from mmdora.errors import MmdoraError

STILLS = frozenset(["image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"])
"""Words of keys for pictures."""
OTHERS = frozenset(
    ["video", "videos", "clip", "clips", "frame", "frames", "audio", "audios", "sound", "sounds", "speech"]
)
"""Words of keys for what no row of this layout can hold."""
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
"""A key that ends in one of these words tells something about a picture, but is none."""
ENDINGS = re.compile(
    r"[^\n]{1,500}\.(png|jpe?g|webp|bmp|gif|tiff?|heic|heif|avif|mp4|mov|webm|mkv|avi|wav|mp3|flac)", re.I
)


def check_keys(row: Mapping[str, Any], known: Collection[str], pictures: Collection[str], where: str = "") -> None:
    """Raise if a row's picture stands under a key that is not read.

    Args:
        known: the keys that are read, those of pictures among them.
        pictures: the keys under which pictures are read; of these the first is the usual one.
        where: how errors name the row.

    Raises:
        MmdoraError: for a video or sound; for pictures under an unknown key, if the row has none under a known one or
            the key differs from a known one by its form only (`images` for `image`).
    """
    has_pictures = any(row.get(key) for key in pictures)
    for key, value in row.items():
        if key in known or not isinstance(key, str) or not _holds_something(value):
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_").replace(" ", "_").split("_")
        told = f"{where}: " if where else ""
        if OTHERS & set(words) and words[-1] not in FACTS:
            raise MmdoraError(
                f"{told}the key {key!r} is not read, and this layout holds pictures only; take such rows out, or give "
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
