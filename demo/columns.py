"""Turns NAME=MODEL on the command line into columns whose models are loaded and have answered once. Without Gradio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmdora.adapt.inject import plan_of
from mmdora.demo.answering import in_batches, local, served, switched
from mmdora.demo.shared_base import SharedBase
from mmdora.demo.turns import ALL_BAD, MAX_COLUMNS, TIE, UNDONE, AnswerSettings, ModelColumn
from mmdora.errors import MmdoraError
from mmdora.export.facts import methods_of, read_facts
from mmdora.families import ask, family_of
from mmdora.families.boxes import BoxRule
from mmdora.layers.dequantize import form_of, sizes
from mmdora.models.load import load
from mmdora.models.locate import Location, bundled, locate
from mmdora.predict.endpoint import Endpoint

SERVED = "openai:"
RESERVED = (TIE, ALL_BAD, UNDONE)
METHODS = {"lora": "LoRA", "dora": "DoRA", "magnitude": "magnitude", "full": "full fine-tuning"}


def parse_specs(specs: Sequence[str]) -> dict[str, str]:
    """Parse texts `NAME=MODEL` into a dict, in their order.

    Raises:
        MmdoraError: if there is none or there are more than four, if one is not NAME=MODEL, if a name occurs twice, or
            if a folder does not exist.
    """
    if not 1 <= len(specs) <= MAX_COLUMNS:
        raise MmdoraError(f"the page shows 1 to {MAX_COLUMNS} models; found {len(specs)} (give NAME=MODEL for each)")
    named: dict[str, str] = {}
    for spec in specs:
        name, joined, path = (part.strip() for part in spec.partition("="))
        if not (joined and name and path):
            raise MmdoraError(f"{spec!r}: expected NAME=MODEL, for example base=tiny-llava")
        if name in RESERVED:
            raise MmdoraError(f"{spec!r}: the name {name!r} is a vote's; choose another")
        if name in named:
            raise MmdoraError(f"{spec!r}: the name {name!r} is there twice; each column needs its own")
        named[name] = path if path.startswith(SERVED) or _is_hub_id(path) else str(Path(path).expanduser())
        if not path.startswith(SERVED) and not _is_hub_id(path) and not Path(named[name]).exists():
            raise MmdoraError(f"{spec!r}: there is no folder {path}")
    return named


def load_columns(
    specs: Sequence[str],
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    shared_base: bool = False,
    say: Callable[[str], Any] = print,
) -> list[ModelColumn]:
    """Open every `NAME=MODEL` and let it answer once, because the first answer of a model is slower than others.

    Args:
        specs: texts `NAME=MODEL`.
        dtype: dtype of the weights, as for `load`; None for each checkpoint's own.
        quantize: as for `load`.
        device: device for the models; by default the GPU if there is one.
        shared_base: whether to keep one base in memory for all adapters on it.
        say: receives a line for each model.

    Raises:
        MmdoraError: if `parse_specs` refuses the specs, or a model cannot be loaded.
    """
    named = parse_specs(specs)
    place = _device(device)
    locations = locate_models(named)
    shared: dict[Any, SharedBase] = {}
    bases = {(own.base, own.quantize) for own in locations.values() if own.adapter} if shared_base else set()
    if shared_base and not bases:
        raise MmdoraError("--shared-base: none of the models is an adapter; name adapter or run folders")

    open_model = partial(load, dtype=dtype, quantize=quantize, device=None if place == "cpu" else place)

    def column(name: str, path: str) -> ModelColumn:
        if name not in locations:
            endpoint = Endpoint.parse(path.removeprefix(SERVED))
            return ModelColumn(name, f"{endpoint.model}, served by {endpoint.host}", endpoint.url, served(endpoint))
        location = locations[name]
        key = location.base, location.quantize
        if key not in bases:
            model, processor = open_model(location)
            sees, reply = family_of(processor).sees, in_batches(model, processor)
            speak, boxes = local(model, processor), BoxRule(processor).in_answer
            return ModelColumn(name, describe(model, location), place, speak, sees, reply=reply, boxes=boxes)
        if key not in shared:
            shared[key] = SharedBase(*open_model(replace(locate(location.base), quantize=location.quantize)))
        base = shared[key]
        adapter = base.add(location) if location.adapter else None
        base.wear(adapter)
        kind = describe(base.model, location) + (", switched onto a shared base" if adapter else "")
        reply = in_batches(base.model, base.processor, lambda: base.wear(adapter))
        sees, boxes = family_of(base.processor).sees, BoxRule(base.processor).in_answer
        return ModelColumn(name, kind, place, switched(base, adapter), sees, adapter is not None, reply, boxes)

    columns = []
    for number, (name, path) in enumerate(named.items(), 1):
        try:
            columns.append(_warm(column(name, path), served=name not in locations))
        except MmdoraError as error:
            raise MmdoraError(f"column {name}: {error}") from None
        say(f"{number}/{len(named)} {name}: {columns[-1].kind}")
    return columns


def _warm(column: ModelColumn, *, served: bool) -> ModelColumn:
    """The column, whose model has answered once.

    A server does not tell whether its model reads pictures, so one that refuses a picture is asked without.

    Raises:
        MmdoraError: if the model does not answer.
    """
    first = ask("?", Image.new("RGB", (64, 64)) if column.sees else None)
    try:
        for _ in column.speak(first, AnswerSettings(max_tokens=2), threading.Event()):
            pass  # The answer is not read; giving it once makes the next one as fast as all others.
    except MmdoraError:
        if not (served and column.sees):
            raise
        return _warm(replace(column, kind=f"{column.kind}, without pictures", sees=False), served=True)
    return column


def _device(asked: str | None) -> str:
    place = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # A torch built without CUDA raises AssertionError.
        raise MmdoraError(f"--device {place}: {str(error).partition(chr(10))[0]}") from None
    return place


def locate_models(named: Mapping[str, str]) -> dict[str, Location]:
    """Name -> location of each model that this process opens itself; models on a server are left out.

    Raises:
        MmdoraError: if an adapter cannot be read; the message names its column.
    """
    locations: dict[str, Location] = {}
    for name, path in named.items():
        if not path.startswith(SERVED):
            try:
                locations[name] = locate(path)
            except MmdoraError as error:
                raise MmdoraError(f"column {name}: {error}") from None
    return locations


def describe(model: Any, location: Location) -> str:
    """A line that describes a model: its base and adapter, or the methods that its `mmdora.json` says were merged.

    Raises:
        MmdoraError: if its `mmdora.json` is damaged.
    """
    size, forms = sum(sizes(model).values()), {form for module in model.modules() if (form := form_of(module))}
    stored = f" in {' and '.join(sorted(forms))}" if forms else ""
    if plan := plan_of(model):
        share = f"{_short(plan.trainable)} of {_short(size)} trained"
        return f"{_methods(methods_of(plan))} on {Path(model.name_or_path).name}{stored}, {share}"
    if location.base in bundled():
        kind = "base"
    else:
        facts = read_facts(Path(location.source))
        kind = f"{_methods(facts.methods)}, merged" if facts and facts.methods else "checkpoint"
    return f"{kind}{stored}, {_short(size)} parameters"


def _is_hub_id(path: str) -> bool:
    """Whether the text can be NAME or OWNER/NAME on the hub. Any other text has to be a folder that exists."""
    return (
        path.count("/") < 2
        and not path.startswith((".", "/", "~"))
        and not ("/" in path and Path(path).parent.is_dir())
        and not Path(path).exists()
    )


def _methods(names: Sequence[str]) -> str:
    return " + ".join(METHODS[name] for name in names)


def _short(count: int) -> str:
    return (
        f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} K"
    )
