"""Reads the events of a streamed chat answer of OpenAI's API, and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmdora.errors import MmdoraError
from mmdora.predict.replies import short

MAX_TOKENS = 10**9  # The largest count of tokens that is believed.


@dataclass(frozen=True)
class Usage:
    """The numbers of tokens of a prompt and its answer, as the server counts them.

    Attributes:
        prompt_ids: the prompt's tokens; None if the server does not give them.
        answer_ids: the answer's tokens, with or without its end; None likewise.
    """

    prompt: int
    answer: int
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Usage | None:
        """Read the member `usage` of an event; None if it does not hold both numbers.

        Raises:
            MmdoraError: if a number is none, or none that can be.
        """
        counts = values.get("prompt_tokens"), values.get("completion_tokens")
        for count in counts:
            if count is not None and (type(count) is not int or not 0 <= count <= MAX_TOKENS):
                raise MmdoraError(f"sends a number of tokens that cannot be: {short(repr(count)[:100])}")
        prompt, answer = counts
        return None if prompt is None or answer is None else cls(prompt, answer)


@dataclass(frozen=True)
class Event:
    """What one event of a streamed answer adds: a piece of text, token counts, or nothing.

    Token ids come from servers that know `return_token_ids` (vLLM): those of the prompt once, those of the answer with
    the piece of text that they write.
    """

    text: str = ""
    usage: Usage | None = None
    prompt_ids: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Event:
        """Read an event of `chat.completion.chunk`; what may be missing or null there may be so here.

        Raises:
            MmdoraError: if the event is an error, or a value has another type.
        """
        if values.get("error"):
            raise MmdoraError(reason_of(values))
        choices = _typed(values, "choices", list) or [{}]
        choice = choices[0]
        if not isinstance(choice, dict):
            raise MmdoraError(f"sends no answer: choices[0] is {short(repr(choice))}")
        delta = _typed(choice, "delta", dict) or {}
        usage = _typed(values, "usage", dict)
        counted = Usage.parse(usage) if usage else None
        return cls(
            _typed(delta, "content", str) or "", counted, _ids(values, "prompt_token_ids"), _ids(choice, "token_ids")
        )


def _ids(values: dict[str, Any], key: str) -> tuple[int, ...] | None:
    ids = _typed(values, key, list)
    if ids and (wrong := [one for one in ids if type(one) is not int or not 0 <= one <= MAX_TOKENS]):
        raise MmdoraError(f"sends a token that cannot be: {short(repr(wrong[0])[:100])}")
    return None if ids is None else tuple(ids)


def _typed(values: dict[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    if value is not None and not isinstance(value, kind):
        raise MmdoraError(f"sends no answer: {key} is {short(repr(value))}")
    return value


def reason_of(values: dict[str, Any]) -> str:
    """What an error of the API says; servers write it as `error.message`, `error` or `message`."""
    error = values.get("error") or values
    return short((error.get("message") if isinstance(error, dict) else None) or error)
