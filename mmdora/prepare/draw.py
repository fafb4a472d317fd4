"""Draws the rows that `--held-out` puts into the test split: by picture, so that no picture is in both splits."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mmdora.errors import MmdoraError
from mmdora.prepare.convert import ROW_ERRORS, Job, first_usable, parsed
from mmdora.prepare.inputs import OwnInputs
from mmdora.prepare.read import OfficialRow
from mmdora.prepare.record import RecordDraft
from mmdora.records.images import FileRef, image_bytes

SPLITS = ("train", "test")
"""The splits of rows that are not drawn, and of those that are."""
NONE = 0
"""Stands for the pictures of a row that cannot be used."""


def check(inputs: OwnInputs) -> None:
    """Raise if `--held-out` is no share, or comes with `--split`."""
    share = inputs.held_out
    if share is not None and not 0 < share < 1:
        raise MmdoraError(f"--held-out {share}: give a share of the pictures between 0 and 1, such as 0.2")
    if share is not None and inputs.split is not None:
        raise MmdoraError("--held-out makes train and test itself; leave out --split")


def draw(rows: Iterable[OfficialRow], job: Job, share: float, seed: int, *, skip_bad: bool) -> bytearray:
    """Read all rows once and draw the pictures to hold out; nothing is decoded, but every picture's file is read.

    Rows that share a picture, directly or through other rows, stay together. Pictures are the same if their files have
    the same content, whatever their names are. Rows without a picture stay together if they ask the same. About 200
    bytes of memory are needed for each picture.

    Args:
        share: of the pictures, in (0, 1).
        skip_bad: whether the run goes on without rows that cannot be used; if not, nothing is drawn where there is one,
            because converting it will end the run and say what is wrong.

    Returns:
        [rows] 1 for a row of the test split, else 0. It depends on the pictures and the seed, not on the order of rows.

    Raises:
        MmdoraError: a row tells a split of its own other than train, or there are too few pictures to hold one out.
    """
    groups, pictures = _Groups(), array("q")
    for row in rows:
        try:
            drafts = list(job.records(row._replace(value=parsed(row.value))))
        except ROW_ERRORS:
            pictures.append(NONE)
            continue
        told = next((split for draft in drafts if (split := draft.get("split", SPLITS[0])) != SPLITS[0]), None)
        if told is not None:
            raise MmdoraError(f"{row.where}: the data say that this row is of the split {told}; leave out --held-out")
        shown = [key for draft in drafts for key in _keys(draft, job.root)]
        pictures.append(groups.join(shown) if shown and NONE not in shown else NONE)
    if NONE in pictures and not skip_bad:
        return bytearray(len(pictures))
    held_out = groups.drawn(share, seed)
    return bytearray(picture != NONE and groups.first(picture) in held_out for picture in pictures)


class _Groups:
    """Pictures, by the hashes of their contents, in groups that share rows (disjoint sets)."""

    def __init__(self):
        self._before: dict[int, int] = {}

    def first(self, key: int) -> int:
        """The key that stands for the group: its smallest, so that the order of rows does not matter."""
        while (before := self._before[key]) != key:
            self._before[key] = self._before[before]
            key = before
        return key

    def join(self, keys: list[int]) -> int:
        """Put pictures into one group; gives one of them."""
        for key in keys:
            self._before.setdefault(key, key)
        firsts = {self.first(key) for key in keys}
        smallest = min(firsts)
        self._before.update(dict.fromkeys(firsts, smallest))
        return smallest

    def drawn(self, share: float, seed: int) -> set[int]:
        """The first keys of groups that hold the wanted share of all pictures together, and at least one picture."""
        sizes: dict[int, int] = {}
        for key in self._before:
            first = self.first(key)
            sizes[first] = sizes.get(first, 0) + 1
        if len(sizes) < 2:
            raise MmdoraError(
                "--held-out: all rows are about one picture, or about pictures that rows show together, so none can be "
                "held out"
            )
        order = sorted(sizes, key=lambda first: hashlib.sha256(f"{seed}:{first}".encode()).digest())
        wanted, count, taken = round(share * len(self._before)), 0, set()
        for first in order[:-1]:  # One group at least is left to train on.
            if count + sizes[first] <= wanted:
                count += sizes[first]
                taken.add(first)
        return taken or {min(order, key=lambda first: sizes[first])}


def _keys(draft: RecordDraft, root: Path | None) -> list[int]:
    videos = [_hash(f"video {name}".encode()) for name in draft.get("videos", ())]
    if draft["images"] or videos:
        return [_hash(p) if isinstance(p, bytes) else _hash_of_file(p, root) for p in draft["images"]] + videos
    return [_hash(json.dumps([message for message in draft["messages"] if message["role"] != "assistant"]).encode())]


@lru_cache(maxsize=1 << 16)
def _hash_of_file(picture: str | tuple[str, ...], root: Path | None) -> int:
    try:
        assert root is not None
        name = first_usable(picture, root) if isinstance(picture, tuple) else picture
        return _hash(image_bytes(FileRef(name, root))[0])
    except (MmdoraError, AssertionError, TypeError):
        return NONE


def _hash(content: bytes) -> int:
    """63 bits, and never `NONE`."""
    return (int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1) or 1
