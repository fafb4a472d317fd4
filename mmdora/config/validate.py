"""Plain values become a section of the config; what is wrong with them first becomes one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from mmdora.errors import MmdoraError

T = TypeVar("T")


def validate(kind: type[T], values: Any, where: Callable[[str], str]) -> T:
    """Build `kind` from plain values; the first problem becomes one `MmdoraError` line."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise MmdoraError(_first_problem(kind, error, where)) from None


def _first_problem(kind: type, error: ValidationError, where: Callable[[str], str]) -> str:
    problems, unknown = error.errors(include_url=False), ("unexpected_keyword_argument", "extra_forbidden")
    # A misspelt key is also reported as a missing one; the unknown key tells more.
    problem = next((one for one in problems if one["type"] in unknown), problems[0])
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] in unknown:
        if location[-1] == "trust_remote_code":
            return f"{where(key)}: {key}: code of a checkpoint is not run on a file's word; add --trust-remote-code"
        known = _fields_at(kind, location[:-1])
        close = difflib.get_close_matches(location[-1], known, 1, 0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        return f"{where(key)}: {key}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (found {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where(key)}: {key}: {message}{shown}" if key else f"{where(key)}: {message}"


def _fields_at(kind: Any, location: Iterable[str]) -> list[str]:
    for name in location:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        field = getattr(kind, "__pydantic_fields__", {}).get(name)
        hint = field.annotation if field is not None else None
        kind = next((part for part in get_args(hint) if part is not type(None)), hint) if _optional(hint) else hint
    if not dataclasses.is_dataclass(kind):
        return []
    aliases = {name: field.alias for name, field in getattr(kind, "__pydantic_fields__", {}).items()}
    return [aliases.get(field.name) or field.name for field in dataclasses.fields(kind)]


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)
