"""Adapters of experts' parameters as PEFT's files hold them (`target_parameters`): their names, and their two layouts.

PEFT wraps a module of experts once for each adapted parameter, the first one innermost. So the tensors of the last one
are `experts.lora_A.weight`, and those of the one before it `experts.base_layer.lora_A.weight`.

For E experts of stored matrices [E, D1, D2], a file holds `lora_A.weight` [E R, X], expert by expert, and
`lora_B.weight` [Y, R E], in which the column r E + e is column r of expert e. PEFT 0.18 has (X, Y) = (D1, D2). Since
0.19 they are (D2, D1), unless the module says `is_transposed`. Files are written as 0.19 reads them. Magnitudes, which
PEFT has none of here, are `lora_magnitude_vector` [E, O].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmdora.adapt.plan import Entry
from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedExpertWeight, ExpertWeight

BASE = "base_layer"
LAYOUT = "0.19.0"
"""The version of PEFT whose layout files are written in; a config with experts names it as its `peft_version`."""
KEYS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


def peft_key(entry: Entry) -> str:
    """The name by which PEFT's config means an adapted module, or a parameter of experts."""
    return entry.weight if entry.kind == AdaptedExpertWeight.kind else entry.name


def nested_names(entries: Iterable[Entry]) -> dict[str, str]:
    """Name of each adapted parameter of experts -> the name that its tensors have in a file, without the key.

    Args:
        entries: of a plan, in the order of the model.
    """
    owners: dict[str, list[str]] = {}
    for entry in entries:
        if entry.kind == AdaptedExpertWeight.kind:
            owners.setdefault(AdaptedExpertWeight.place(entry.name), []).append(entry.name)
    return {
        name: owner + f".{BASE}" * (len(names) - 1 - index)
        for owner, names in owners.items()
        for index, name in enumerate(names)
    }


def with_own_names(tensors: Mapping[str, Tensor], nested: Mapping[str, str]) -> dict[str, Tensor]:
    """Give tensors of experts our names (`experts.gate_up.lora_A.weight`); `nested` is what `nested_names` gives."""
    own = {f"{file}.{key}": f"{name}.{key}" for name, file in nested.items() for key in KEYS}
    return {own.get(name, name): tensor for name, tensor in tensors.items()}


def flat(lora_A: Tensor, lora_B: Tensor, base: Any) -> tuple[Tensor, Tensor]:
    """A [E R, X] and B [Y, R E] of a file, given A [E, R, I] and B [E, O, R] of a plain or adapted `base`."""
    first, second = (lora_A, lora_B) if _input_first(base) else (lora_B.mT, lora_A.mT)
    return first.flatten(0, 1), second.permute(1, 2, 0).flatten(1)


def apart(lora_A: Tensor, lora_B: Tensor, base: Any) -> tuple[Tensor, Tensor]:
    """A [E, R, I] and B [E, O, R], given those of a file."""
    first, second = _by_expert(lora_A, lora_B, base.experts)
    return (first, second) if _input_first(base) else (second.mT, first.mT)


def file_shapes(shapes: Mapping[str, tuple[int, ...]], base: Any) -> dict[str, tuple[int, ...]]:
    """Shapes in a file, given ours (`AdaptedExpertWeight.shapes`)."""
    (experts, rank, columns), rows = shapes["lora_A"], shapes["lora_B"][1]
    x, y = (columns, rows) if _input_first(base) else (rows, columns)
    return {"lora_A": (experts * rank, x), "lora_B": (y, rank * experts), "magnitude": shapes["magnitude"]}


def from_target_parameters(
    tensors: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    config: Mapping[str, Any],
    before: Mapping[str, str],
    folder: Path,
) -> None:
    """Bring the tensors of experts in a file of PEFT to our names and today's layout, in place.

    Args:
        tensors: by name in the model.
        modules: the places of the untouched model.
        config: `adapter_config.json`.
        before: name of a module -> its name in the config, where an older transformers had another.
        folder: for messages.

    Raises:
        MmdoraError: the config does not say whose the tensors of a module of experts are.
    """
    targets = config.get("target_parameters") or []
    found: dict[str, tuple[ExpertWeight, str]] = {}
    for owner in {AdaptedExpertWeight.place(name) for name, m in modules.items() if isinstance(m, ExpertWeight)}:
        depths = sorted({name.count(f".{BASE}") for name in tensors if _is_of(name, owner)}, reverse=True)
        own = [(n, m) for n, m in modules.items() if isinstance(m, ExpertWeight) and n.rpartition(".")[0] == owner]
        meant = [(n, m) for n, m in own if _targeted(f"{before.get(owner, owner)}.{m.leaf}", targets)]
        if not depths:
            continue
        if depths != list(reversed(range(len(meant)))):
            raise MmdoraError(
                f"{folder}: {owner} has tensors of {len(depths)} adapted parameters, and target_parameters names "
                f"{len(meant)} of it; load this adapter with peft"
            )
        found |= {n: (m, owner + f".{BASE}" * depth) for (n, m), depth in zip(meant, depths, strict=True)}
    renamed = with_own_names(tensors, {name: file for name, (_, file) in found.items()})
    tensors.clear()
    tensors |= renamed
    _todays_layout(tensors, {name: weight for name, (weight, _) in found.items()}, config)


def _todays_layout(tensors: dict[str, Tensor], weights: Mapping[str, ExpertWeight], config: Mapping[str, Any]) -> None:
    """Bring tensors in the layout of PEFT 0.18 to today's.

    Their shapes tell which it is, except for square matrices: there another tensor of the file, or else the version
    in the config decides. 0.17 did not write one.
    """
    turning = [name for name, weight in weights.items() if not getattr(weight.owner, "is_transposed", False)]
    fits = {name: _fits(tensors, name, weights[name]) for name in turning}
    sure = {older for older in fits.values() if older is not None}
    version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or "0.0"))
    assumed = sure.pop() if len(sure) == 1 else version is None or (int(version[1]), int(version[2])) < (0, 19)
    for name in turning:
        if assumed if fits[name] is None else fits[name]:
            a, b = (tensors[f"{name}.{key}"] for key in KEYS[:2])
            first, second = _by_expert(a, b, weights[name].experts)
            tensors[f"{name}.{KEYS[0]}"] = second.mT.flatten(0, 1)
            tensors[f"{name}.{KEYS[1]}"] = first.mT.permute(1, 2, 0).flatten(1)


def _fits(tensors: Mapping[str, Tensor], name: str, weight: ExpertWeight) -> bool | None:
    """Whether the shapes are those of PEFT 0.18; None if they fit both layouts, and False if they fit none."""
    a, b = (tensors.get(f"{name}.{key}") for key in KEYS[:2])
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] % weight.experts or b.shape[1] != len(a):
        return False
    _, first, second = weight.weight.shape
    return None if first == second else (a.shape[1], b.shape[0]) == (first, second)


def _by_expert(lora_A: Tensor, lora_B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """A file's A and B as [E, R, X] and [E, Y, R]."""
    return lora_A.unflatten(0, (experts, -1)), lora_B.unflatten(1, (-1, experts)).permute(2, 0, 1)


def _input_first(base: Any) -> bool:
    """Whether the A of a file is on the side of the input, as ours is. PEFT goes by `is_transposed` alone, which
    experts that transformers does not dispatch (Llama 4) do not have, whichever way round they are."""
    return bool(getattr(base.owner, "is_transposed", False)) == bool(base.transposed)


def _is_of(name: str, owner: str) -> bool:
    return bool(re.fullmatch(rf"{re.escape(owner)}(\.{BASE})*\.({'|'.join(map(re.escape, KEYS))})", name))


def _targeted(parameter: str, targets: Iterable[str]) -> bool:
    return any(parameter == target or parameter.endswith(f".{target}") for target in targets)
