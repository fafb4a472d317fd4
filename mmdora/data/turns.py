"""A record's conversation, cut where its last answer begins. No torch: scores are read from records too."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]


def prompt_messages(record: dict[str, Any]) -> Messages:
    """The conversation up to, not including, its last answer."""
    messages = record["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def answer_text(record: dict[str, Any]) -> str:
    """The text of the last answer."""
    message = [m for m in record["messages"] if m["role"] == "assistant"][-1]
    return "".join(part["text"] for part in message["content"])
