"""The app that the commands register with, and what several of them share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from mmdora.errors import MmdoraError
from mmdora.version import __version__

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
Flag = Parameter(negative=())
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]

app = App(
    name="mmdora",
    version=__version__,
    help="Adapt vision-language models with DoRA and LoRA, modality by modality.\n\nStart with `mmdora quickstart`.",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)


def named_models(models: Iterable[str]) -> dict[str, str]:
    """Name -> model of arguments like NAME=MODEL; a mere MODEL is named by its last part.

    Raises:
        MmdoraError: there is none, or two have the same name.
    """
    named: dict[str, str] = {}
    for spec in models:
        name, joined, path = spec.partition("=")
        name, path = (name, path) if joined else (Path(spec).name, spec)
        if not name or not path or name in named:
            raise MmdoraError(f"{spec!r}: give each model its own name, as in base=tiny-llava dora=runs/dora")
        named[name] = path
    if not named:
        raise MmdoraError("name at least one model")
    return named
