"""LLaVA's own instruction layout: a JSON list of {id, image, conversations: [{from, value}]}."""

from __future__ import annotations

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
KEYS = ("id", "image", "conversations")
"""The keys of a row that are read."""
PLACEHOLDER = "<image>"
"""The text that marks where an image stands."""


def to_record(row: dict[str, Any], where: str) -> Record:
    """One LLaVA row as a record. A row about text alone has no `image`; `image` may also be a list.

    `PLACEHOLDER` in a value marks the place of an image. If a row has one image and no mark, the image comes first in
    the first turn of the user.
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
    check_keys(row, KEYS, ("image",), where)
    images = row.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list):
        raise MmdoraError(f"{where}: 'image' must be a path or a list of paths, not {type(images).__name__}")
    messages: list[Message] = []
    for turn in turns:
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise MmdoraError(f"{where}: a turn needs 'from' (human or gpt) and a text 'value'")
        messages.append({"role": role, "content": text_parts(turn["value"])})
    marks = place_unmarked(messages, len(images))
    if marks != len(images):
        raise MmdoraError(f"{where}: {marks} {PLACEHOLDER} marks for {len(images)} images")
    return {"id": str(row.get("id", where)), "messages": messages, "images": list(images), "meta": {}}


def place_unmarked(messages: list[Message], images: int) -> int:
    """Put the only image of a conversation that marks no place into the first message of the user, as its first part.

    Args:
        messages: messages of the conversation, which are changed in place.
        images: number of images.

    Returns:
        The number of places that the messages mark afterwards.
    """
    marks = sum(part["type"] == "image" for message in messages for part in message["content"])
    first = next((message for message in messages if message["role"] == "user"), None)
    if marks or images != 1 or first is None:
        return marks
    first["content"].insert(0, {"type": "image"})
    return 1


def _other_layout(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "; it has 'messages', as records do: write one a line in a .jsonl file (mmdora prep messages --in FILE)"
    return ""


def text_parts(value: str) -> list[Part]:
    """Split a text into the parts of a message, with an image part for each `PLACEHOLDER` and without blank texts."""
    parts: list[Part] = []
    for index, text in enumerate(value.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return parts
