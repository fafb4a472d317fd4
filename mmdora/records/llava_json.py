"""LLaVA's own instruction layout: a JSON list of {id, image, conversations: [{from, value}]}."""

from __future__ import annotations

from typing import Any

from mmdora.errors import MmdoraError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"


def to_record(row: dict[str, Any], where: str) -> dict[str, Any]:
    """One LLaVA row as a record. Text-only rows have no `image`; `image` may be a list.

    `<image>` in a value marks the place of an image; a row with one image and no mark gets it first.

    Raises:
        MmdoraError: naming `where`, for a missing field, an unknown speaker, or marks that do not
            match the images.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise MmdoraError(f"{where}: 'conversations' must be a list of turns")
    images = row.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list):
        raise MmdoraError(f"{where}: 'image' must be a path or a list of paths, not {type(images).__name__}")
    messages = []
    for turn in turns:
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise MmdoraError(f"{where}: a turn needs 'from' (human or gpt) and a text 'value'")
        messages.append({"role": role, "content": _content(turn["value"])})
    marks = sum(part["type"] == "image" for message in messages for part in message["content"])
    if not marks and len(images) == 1:
        messages[0]["content"].insert(0, {"type": "image"})
        marks = 1
    if marks != len(images):
        raise MmdoraError(f"{where}: {marks} {PLACEHOLDER} marks for {len(images)} images")
    return {"id": str(row.get("id", where)), "messages": messages, "images": list(images)}


def _content(value: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for index, text in enumerate(value.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return parts
