"""The config keys as help text. It is read from the dataclasses, so that the two cannot differ."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mmdora.config import MODALITIES, RunConfig


@dataclass(frozen=True)
class Key:
    """One config key; `text` is its description with the default."""

    name: str
    kind: str
    text: str


def describe(kind: Any = RunConfig, prefix: str = "") -> dict[str, list[Key]]:
    """The keys of every section. The modalities have the same keys, so they are one section, `adapt.MODALITY`."""
    sections: dict[str, list[Key]] = {}
    fields = kind.__pydantic_fields__
    for name, field in fields.items():
        hint, path = field.annotation, f"{prefix}{field.alias or name}"
        # A section that may be left out is one of a union of types.
        hint = next(filter(dataclasses.is_dataclass, get_args(hint)), hint)
        if not dataclasses.is_dataclass(hint):
            default = "[needed]" if field.is_required() else f"[default: {_plain(field.default)}]"
            text = f"{field.description} {default}" if field.description else default
            sections.setdefault(prefix.rstrip("."), []).append(Key(path, _kind(hint), text))
            continue
        alike = [other for other in fields if fields[other].annotation is hint]
        if not alike or name == alike[0]:
            shown = path if len(alike) < 2 else f"{prefix}MODALITY"
            sections |= describe(hint, f"{shown}.")
    return sections


def _kind(hint: Any) -> str:
    """A type as users write it: `int`, `fp32|bf16`, `list of str`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(args[0])
    if origin in (Union, types.UnionType):
        return _kind(next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        return "|".join(args)
    if origin is tuple:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return "mapping"
    return "path" if hint is Path else str(hint.__name__)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return "none" if value is None else str(value).lower()


def draw(console: Any, options: Any, panel: Any) -> None:
    """A help formatter for cyclopts that lists the config keys below a command's own options."""
    from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel, InlineText

    show = DefaultFormatter()
    show(console, options, panel)
    if panel.title != "Parameters":
        return
    for title, keys in describe().items():
        entries = [
            HelpEntry(
                positive_names=(f"--{key.name}",),
                metavar=key.kind,
                description=InlineText.from_format(key.text, format="plaintext"),
            )
            for key in keys
        ]
        if title.endswith("MODALITY"):
            title += f" ({', '.join(MODALITIES)})"
        show(console, options, HelpPanel(format="parameter", title=f"Config: {title}", entries=entries))
