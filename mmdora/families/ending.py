"""How an answer ends: the token that is learned as the end of a turn has to be one that generation stops at.

Three files of a base can disagree about it: the chat template, the tokenizer's configuration and the generation config.
Templates that write no end of turn (LLaVA-1.5's on the hub: `USER: … ASSISTANT: …`) would teach a model never to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdora.records.turns import Messages


def end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of a tokenizer, any of which a template may write behind an answer."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()))


def written_end(text: str, ends: Sequence[str]) -> str | None:
    """The token that a rendered turn ends with, blanks behind it left out; None where it ends with its text."""
    body = text.rstrip()
    return max((end for end in ends if body.endswith(end)), key=len, default=None)


def with_end(messages: Messages, end: str) -> Messages:
    """The conversation, `end` behind the text of each answer."""
    return [_ended(message, end) if message["role"] == "assistant" else message for message in messages]


def _ended(message: dict[str, Any], end: str) -> dict[str, Any]:
    *before, last = message["content"] or [{"type": "text", "text": ""}]
    return message | {"content": [*before, last | {"text": last["text"] + end}]}


def stop_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """The ids that a base's generation stops at, by its own files."""
    stops = generation_config.eos_token_id if generation_config is not None else None
    stops = tokenizer.eos_token_id if stops is None else stops
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
