"""Writes a comparison as Markdown, as JSON, and as the query string of a link that repeats it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from mmdora.demo.turns import Answer, AnswerSettings, Turn
from mmdora.errors import MmdoraError

KEYS = {"n": "max_tokens", "t": "temperature", "p": "top_p", "s": "seed", "a": "strength", "system": "system_prompt"}
WHOLE = ("max_tokens", "seed")


def shown(turn: Turn) -> list[Answer]:
    """The answers from left to right, as "A", "B", … while the turn is hidden."""
    answers = [turn.answers[index] for index in turn.order]
    return [_hidden(answer, place) for place, answer in enumerate(answers)] if turn.hidden else answers


def as_json(turns: Sequence[Turn], kinds: Mapping[str, str], picture: Mapping[str, Any]) -> str:
    """The comparison as JSON, with everything that the page shows and no more: a hidden turn stays hidden.

    Args:
        kinds: name of each model -> a line that describes the model.
        picture: facts about the picture.
    """
    rows = [
        {
            "question": turn.question,
            "settings": asdict(turn.settings),
            "blind": turn.blind,
            "vote": turn.vote,
            "answers": [answer.to_dict() for answer in shown(turn)],
        }
        for turn in turns
    ]
    models = {} if any(turn.hidden for turn in turns) else dict(kinds)
    return json.dumps({"picture": dict(picture), "models": models, "turns": rows}, indent=2, ensure_ascii=False)


def as_markdown(turns: Sequence[Turn], kinds: Mapping[str, str], picture: Mapping[str, Any]) -> str:
    """The comparison as Markdown. Text of users and models is quoted, so that it cannot act as markup."""
    lines = ["# mmdora: a comparison", "", ", ".join(f"{key} {value}" for key, value in picture.items()), ""]
    for number, turn in enumerate(turns, 1):
        settings = ", ".join(f"{key.replace('_', ' ')} {value!r}" for key, value in asdict(turn.settings).items())
        lines += [f"## {number}. Question", "", *_fenced(turn.question), "", f"Settings: {settings}", ""]
        for answer in shown(turn):
            kind = "" if turn.hidden else f" ({kinds[answer.name]})"
            lines += [f"### {_inline(answer.name + kind)}", "", *_fenced(answer.text or f"({answer.status})"), ""]
            if answer.error:
                lines += [f"Failed: {_inline(answer.error)}", ""]
            if answer.first_token_s is not None:
                rate = "" if answer.tokens_per_s is None else f", {answer.tokens_per_s:.1f} tokens/s"
                lines += [f"First token {1000 * answer.first_token_s:.0f} ms{rate}, {answer.tokens} tokens", ""]
        if turn.vote:
            lines += [f"Vote (blind): {_inline(turn.vote)}", ""]
    return "\n".join(lines)


def link(question: str, settings: AnswerSettings, example: int | None, *, blind: bool) -> str:
    """The query string that fills in the page with these values; it cannot hold an uploaded picture."""
    default = AnswerSettings()
    values: dict[str, Any] = {"q": question} | ({} if example is None else {"example": example + 1})
    for key, name in KEYS.items():
        if (value := getattr(settings, name)) != getattr(default, name):
            values[key] = value
    return "?" + urlencode(values | ({"blind": 1} if blind else {}))


def from_link(query: Mapping[str, str], examples: int) -> tuple[str, AnswerSettings, int | None, bool]:
    """Read question, settings, number of the example, and whether to compare blindly, from a link.

    Raises:
        MmdoraError: if the page itself would not accept a value.
    """
    values: dict[str, Any] = {}
    for key, name in KEYS.items():
        if key in query:
            try:
                kind: Any = int if name in WHOLE else str if name == "system_prompt" else float
                values[name] = kind(query[key])
            except ValueError:
                raise MmdoraError(f"link: {key}={query[key]:.20} is not a number") from None
    example = query.get("example")
    if example is not None and not (
        example.isascii() and example.isdigit() and len(example) < 9 and 1 <= int(example) <= examples
    ):
        raise MmdoraError(f"link: there is no example {example:.20}")
    return (
        query.get("q", ""),
        AnswerSettings(**values),
        int(example) - 1 if example else None,
        query.get("blind") == "1",
    )


def _hidden(answer: Answer, place: int) -> Answer:
    """The answer without name, speed and error, which could reveal the model."""
    error = "This model failed." if answer.error else None
    return Answer(f"Model {'ABCD'[place]}", answer.status, answer.text, error=error, position=answer.position)


def _fenced(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()] or ["    "]


def _inline(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#!|&" else c for c in " ".join(text.split()))
