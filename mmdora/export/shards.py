"""Reads where each tensor lies in a checkpoint's safetensors files, and rewrites the files without loading them.

The format, from safetensors' README: eight bytes, little-endian, hold the length of the header. The header is JSON with
name -> dtype, shape, and first and last byte of the data. The data follow without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, uint8

from mmdora.files import write_json
from mmdora.models.dtypes import BYTES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PIECE = 8 << 20
"""Bytes that are copied at a time: a small part of the memory, and enough for the full speed of a disk."""


class UnsureError(Exception):
    """Raised if a merge from disk might not be right. The message gives the reason as half a sentence."""


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """Its dtype, as safetensors names it."""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    size: int
    """Its size in bytes."""

    def as_dtype(self, dtype: str) -> Stored:
        """The header of the same tensor in another dtype, with start 0, as its place in the new file is not known."""
        return Stored(dtype, self.shape, 0, math.prod(self.shape) * BYTES[dtype])


class Rewrite(NamedTuple):
    """How one tensor of a shard is written to the new file."""

    name: str
    """Its name in the new file."""
    dtype: str
    """Its dtype in the new file, as safetensors names it."""
    values: Iterable[Tensor] | None = None
    """New values in that dtype, as consecutive pieces; None copies the old bytes."""


class Shard(NamedTuple):
    """One file; `tensors` maps names to tensors, in the order of their bytes."""

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    data: int
    """First byte after the header."""

    @property
    def size(self) -> int:
        return self.data + sum(stored.size for stored in self.tensors.values())


def read_shards(folder: Path) -> list[Shard]:
    """Read the headers of the files that transformers would load: `model.safetensors`, or those that the index names.

    Raises:
        UnsureError: if there is no file, if one is damaged, or if the index does not fit them.
    """
    if (folder / SINGLE).is_file():
        return [read_shard(folder / SINGLE)]
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError:
        raise UnsureError(f"{folder} has no {SINGLE} and no {INDEX}") from None
    except (ValueError, KeyError, TypeError):
        raise UnsureError(f"{folder / INDEX} is no index of safetensors files") from None
    shards = [read_shard(folder / name) for name in sorted(set(places.values()))]
    if {name: shard.path.name for shard in shards for name in shard.tensors} != places:
        raise UnsureError(f"{folder / INDEX} does not name the tensors that the files hold")
    return shards


def read_shard(path: Path) -> Shard:
    """Read the header of one file.

    Raises:
        UnsureError: if the file is missing, cut off, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length)) if length < path.stat().st_size else {}
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: Stored(value["dtype"], tuple(value["shape"]), 8 + length + begin, end - begin)
            for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            for begin, end in [value["data_offsets"]]
        }
    except FileNotFoundError:
        raise UnsureError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnsureError(f"{path} has no readable safetensors header") from None
    shard = Shard(path, tensors, metadata, 8 + length)
    if shard.size != path.stat().st_size:
        raise UnsureError(f"{path} is cut off, or not a safetensors file")
    return shard


def write_shard(
    shard: Shard,
    path: Path,
    rewrites: Mapping[str, Rewrite],
    wrote: Callable[[int], Any],
) -> None:
    """Write `shard` to `path`; tensors that do not change are copied from file to file.

    Args:
        rewrites: name in `shard` -> how the tensor is written; for every tensor.
        wrote: receives the number of bytes after each write.
    """
    tensors = shard.tensors
    same = all(rewrites[old].name == old and rewrites[old].dtype == stored.dtype for old, stored in tensors.items())
    # Like safetensors itself, this puts the widest types first, so that every tensor is aligned.
    order = list(tensors)
    if not same:
        order.sort(key=lambda old: (-BYTES[rewrites[old].dtype], rewrites[old].name))
    with FileIO(shard.path) as source, FileIO(path, "wb") as target:
        if same:
            _copy(source, target, 0, shard.data, wrote)
        else:
            new = {rewrites[old].name: tensors[old].as_dtype(rewrites[old].dtype) for old in order}
            _write(target, _header(new, shard.metadata), wrote)
        for old in order:
            pieces = rewrites[old].values
            if pieces is None:
                _copy(source, target, tensors[old].start, tensors[old].size, wrote)
                continue
            for piece in pieces:
                _write(target, piece.contiguous().view(-1).view(uint8).numpy().data, wrote)


def write_index(folder: Path, shards: Mapping[str, Mapping[str, Stored]]) -> None:
    """Write the index of several files; a single file needs none.

    Args:
        shards: file name -> name of each tensor in the file -> tensor.
    """
    if len(shards) == 1:
        return
    metadata = {
        "total_parameters": sum(math.prod(stored.shape) for shard in shards.values() for stored in shard.values()),
        "total_size": sum(stored.size for shard in shards.values() for stored in shard.values()),
    }
    places = {name: file for file, shard in shards.items() for name in shard}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def _header(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data: the length, and the JSON padded with spaces so that data start at a multiple of 8."""
    values: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for name, stored in tensors.items():
        offsets = [begin, begin := begin + stored.size]
        values[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy(source: FileIO, target: FileIO, start: int, size: int, wrote: Callable[[int], Any]) -> None:
    while size:
        count = 0
        try:
            # The kernel copies by itself, and a file system that can share blocks copies nothing at all.
            count = os.copy_file_range(source.fileno(), target.fileno(), min(size, PIECE), start)
            wrote(count)
        except (AttributeError, OSError):
            pass  # The call needs Linux and one kind of file system. A full disk fails below with its own reason.
        if not count:
            source.seek(start)
            piece = source.read(min(size, PIECE))
            if not piece:
                raise OSError(f"{source.name} became shorter while it was read")
            count = len(piece)
            _write(target, piece, wrote)
        start, size = start + count, size - count


def _write(target: FileIO, content: bytes | memoryview, wrote: Callable[[int], Any]) -> None:
    left = memoryview(content)
    while left:
        count = target.write(left)
        wrote(count)
        left = left[count:]
