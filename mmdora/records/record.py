"""A record: what a row of every dataset becomes.

It is `{"id", "messages", "images", "meta"?}`: `messages` is a list of `{role, content}` with content a list of
`{"type": "text", "text": …}` and `{"type": "image"}` parts, `images` the paths (relative to a declared root) in the
order of the image parts.
"""

from __future__ import annotations

from typing import Any

from mmdora.errors import MmdoraError

Record = dict[str, Any]


def qa_record(name: str, image: str, pairs: list[tuple[str, str]]) -> Record:
    """Questions and answers about one picture as a record; the picture stands in the first turn.

    `meta.type`, by which the evaluation groups, is `yes/no` or `other`, after the last answer.
    """
    messages = []
    for question, answer in pairs:
        picture = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    kind = "yes/no" if pairs[-1][1] in ("yes", "no") else "other"
    return {"id": name, "messages": messages, "images": [image], "meta": {"type": kind}}


def check_record(row: Any, where: str) -> Record:
    """Return `row` if it is a record.

    Raises:
        MmdoraError: saying what is wrong with it and where.
    """
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise MmdoraError(f"{where}: a record needs a non-empty list 'messages'")
    marks = 0
    for message in row["messages"]:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise MmdoraError(f"{where}: every message needs a role: system, user or assistant")
        if not isinstance(message.get("content"), list):
            raise MmdoraError(
                f"{where}: 'content' must be a list of parts, not {type(message.get('content')).__name__}"
            )
        for part in message["content"]:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image":
                marks += 1
            elif kind != "text" or not isinstance(part.get("text"), str):
                raise MmdoraError(
                    f"{where}: a part is {{type: image}} or {{type: text, text: a string}}; found {part!r:.80}"
                )
            if kind == "image" and message["role"] == "assistant":
                raise MmdoraError(f"{where}: an answer (role assistant) cannot hold an image; text is what is learned")
    images = row.get("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise MmdoraError(f"{where}: 'images' must be a list of paths")
    if marks != len(images):
        raise MmdoraError(f"{where}: {marks} image parts for {len(images)} images")
    if not any(message["role"] == "assistant" for message in row["messages"]):
        raise MmdoraError(f"{where}: no assistant message, so there is nothing to learn or to score")
    name, meta = row.get("id", where), row.get("meta") or {}
    if not isinstance(name, (str, int)) or not isinstance(meta, dict):
        wrong = "'meta' must be an object" if isinstance(name, (str, int)) else "'id' must be a string or a number"
        raise MmdoraError(f"{where}: {wrong}")
    return {
        "id": str(name),
        "messages": row["messages"],
        "images": images,
        "meta": meta,
    }
