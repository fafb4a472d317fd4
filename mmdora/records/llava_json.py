"""LLaVA's own instruction layout: a JSON list of {id, image | video, conversations: [{from, value}]}."""

from __future__ import annotations

import re
from typing import Any, Literal

from mmdora.errors import MmdoraError
from mmdora.records.media import check_keys
from mmdora.records.record import Message, Part, Record

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Name of a speaker in LLaVA's layout -> role of the message."""
KEYS = ("id", "image", "video", "conversations")
"""The keys of a row that are read."""
PLACEHOLDER, VIDEO = "<image>", "<video>"
"""The texts that mark where an image and a video stand."""


def to_record(row: dict[str, Any], where: str) -> Record:
    """One LLaVA row as a record. A row about text alone has no `image` or `video`; both may also be lists.

    `PLACEHOLDER` in a value marks the place of an image, and `VIDEO` that of a video; in a row with videos alone, as
    LLaVA-Video's, `PLACEHOLDER` marks a video. If a row has one image or one video and no mark for it, it comes first
    in the first turn of the user.
    `meta` is empty.

    Args:
        row: an object of the list.
        where: name of the row in errors; it also becomes the id of a row that has none.

    Raises:
        MmdoraError: naming `where`, for a missing field, an unknown speaker, or marks that do not
            match the images.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise MmdoraError(f"{where}: 'conversations' must be a list of turns{_other_layout(row)}")
    check_keys(row, KEYS, ("image",), where, videos=("video",))
    images, videos = _paths(row, "image", where), _paths(row, "video", where)
    messages: list[Message] = []
    for turn in turns:
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise MmdoraError(f"{where}: a turn needs 'from' (human or gpt) and a text 'value'")
        value = turn["value"].replace(PLACEHOLDER, VIDEO) if videos and not images else turn["value"]
        messages.append({"role": role, "content": text_parts(value)})
    kinds: tuple[tuple[Literal["image", "video"], list[str], str], ...]
    kinds = ("image", images, PLACEHOLDER), ("video", videos, VIDEO)
    for kind, paths, mark in kinds:
        marks = place_unmarked(messages, len(paths), kind)
        if marks != len(paths):
            raise MmdoraError(f"{where}: {marks} {mark} marks for {len(paths)} {kind}s")
    record: Record = {"id": str(row.get("id", where)), "messages": messages, "images": images, "meta": {}}
    return {**record, "videos": videos} if videos else record


def _paths(row: dict[str, Any], kind: str, where: str) -> list[str]:
    paths = row.get(kind) or []
    if not isinstance(paths, (str, list)):
        raise MmdoraError(f"{where}: {kind!r} must be a path or a list of paths, not {type(paths).__name__}")
    return [paths] if isinstance(paths, str) else list(paths)


def place_unmarked(messages: list[Message], files: int, kind: Literal["image", "video"] = "image") -> int:
    """Put the only image (or video) of a conversation that marks no place first into the first message of the user.

    Args:
        messages: messages of the conversation, which are changed in place.
        files: number of images or videos.

    Returns:
        The number of places that the messages mark afterwards.
    """
    marks = sum(part["type"] == kind for message in messages for part in message["content"])
    first = next((message for message in messages if message["role"] == "user"), None)
    if marks or files != 1 or first is None:
        return marks
    first["content"].insert(0, {"type": "image"} if kind == "image" else {"type": "video"})
    return 1


def _other_layout(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "; it has 'messages', as records do: write one a line in a .jsonl file (mmdora prep messages --in FILE)"
    return ""


def text_parts(value: str) -> list[Part]:
    """Split a text into the parts of a message, with a part for each `PLACEHOLDER` and `VIDEO`, without blank texts."""
    parts: list[Part] = []
    for piece in re.split(f"({PLACEHOLDER}|{VIDEO})", value):
        if piece == PLACEHOLDER:
            parts.append({"type": "image"})
        elif piece == VIDEO:
            parts.append({"type": "video"})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts
