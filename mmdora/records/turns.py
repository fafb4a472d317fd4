"""Takes a record's conversation apart: the prompt before the last answer, that answer, and pieces of a few turns.

This module imports no torch, because scorers read records too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

Messages = list[dict[str, Any]]
"""A conversation as models read it: the messages of a record, or messages that a caller wrote."""
MEDIA = ("image", "video")
"""The types of the parts that are no text."""
RecordOrRow = TypeVar("RecordOrRow", bound=Mapping[str, Any])


def prompt_messages(record: Mapping[str, Any]) -> Messages:
    """The conversation before its last answer."""
    messages = record["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def answer_text(record: Mapping[str, Any]) -> str:
    """The text of the last answer."""
    message = [m for m in record["messages"] if m["role"] == "assistant"][-1]
    return "".join(part["text"] for part in message["content"])


def split_turns(record: RecordOrRow, most: int | None) -> list[RecordOrRow]:
    """Cut a conversation into records of at most `most` turns; a turn is a question and its answer.

    Each piece has the images, videos and system text of the whole conversation. A conversation with one after its
    first answer cannot be cut like this, and is returned whole.

    Args:
        most: the most turns of a piece; None leaves every conversation whole.
    """
    messages = record["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if most is None or len(answers) <= most:
        return [record]
    first = answers[0]
    if any(part["type"] in MEDIA for message in messages[first:] for part in message["content"]):
        return [record]
    head = [message for message in messages[:first] if message["role"] == "system"]
    images = [part for message in messages[:first] for part in message["content"] if part["type"] in MEDIA]
    pieces, start = [], len(head)
    for number, last in enumerate(range(most - 1, len(answers) + most - 1, most)):
        end = answers[min(last, len(answers) - 1)] + 1
        turns = [dict(message) for message in messages[start:end]]
        if number:
            turns[0] = turns[0] | {"content": images + turns[0]["content"]}
        pieces.append(cast(RecordOrRow, {**record, "id": f"{record['id']}#{number}", "messages": head + turns}))
        start = end
    return pieces
