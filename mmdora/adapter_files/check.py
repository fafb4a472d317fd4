"""Checks that the tensors of an adapter fit a base: names, shapes, dtypes, and what tied weights allow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapt.entries import check_adaptable
from mmdora.adapt.plan import Plan
from mmdora.adapter_files.experts import peft_key
from mmdora.adapter_files.files import CONFIG, OURS, changed_files, dtype_name
from mmdora.adapter_files.tensors import file_shapes
from mmdora.errors import MmdoraError
from mmdora.layers import places


def expected_shapes(model: nn.Module, plan: Plan, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name of each tensor that the files of this plan hold -> its shape.

    Args:
        model: the untouched base, or its skeleton.
        folder: for messages.

    Raises:
        MmdoraError: the base lacks a module or parameter of the plan, or a module cannot be adapted.
    """
    modules, parameters = places(model), dict(model.named_parameters(remove_duplicate=False))
    for entry in plan.entries:
        if entry.name not in modules:
            raise MmdoraError(
                f"{folder}: {type(model).__name__} has no module {entry.name}; load the adapter's own base"
            )
    check_adaptable(model, plan.parts, {entry.name: entry.rank for entry in plan.entries})
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in plan.entries:
        own = file_shapes(modules[entry.name], entry.rank, magnitude=plan.has_magnitudes)
        shapes |= {f"{entry.name}.{key}": shape for key, shape in own.items()}
    if absent := [name for name in plan.full if name not in parameters]:
        raise MmdoraError(f"{folder}: {type(model).__name__} has no parameter {absent[0]}; load the adapter's own base")
    full = {id(parameters[name]) for name in plan.full}
    shapes |= {name: tuple(p.shape) for name, p in parameters.items() if id(p) in full}
    return shapes


def check_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise one error that lists every tensor that does not fit, or that says that the files are not those written.

    Args:
        model: the untouched base, its skeleton, or a model adapted by the plan of `tensors`.
        shapes: of what the adapter has to hold; it may hold the model's buffers beside that.
        path: of the file of tensors.

    Raises:
        MmdoraError: a tensor is missing, unexpected, of another shape or of a dtype that holds no weights; two
            tensors for one parameter differ; or the files changed after `mmdora.json` was written.
    """
    buffers = dict(model.named_buffers())
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in shapes and name not in buffers]
    for name, tensor in tensors.items():
        shape = shapes.get(name, tuple(buffers[name].shape) if name in buffers else None)
        if shape is not None and tuple(tensor.shape) != shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, not {shape}")
        floating = name in shapes or name not in buffers or buffers[name].is_floating_point()
        if tensor.is_floating_point() != floating:
            problems.append(f"{name} is {dtype_name(tensor.dtype)}, not a float" if floating else f"{name} is a float")
    changed = changed_files(path.parent)
    if problems:
        said = f"{path}: {len(problems)} tensors do not fit: {'; '.join(problems)}"
        said += _resized(model, tensors, shapes)
        raise MmdoraError(said if changed is None else f"{said}; {path.parent}: {changed}")
    if changed is not None:
        raise MmdoraError(f"{path.parent}: {changed}")
    for first, *others in shared_parameters(model):
        for other in others:
            if first in tensors and other in tensors and not torch.equal(tensors[first], tensors[other]):
                raise MmdoraError(
                    f"{path}: {first} and {other} are one tensor of this base (tied), and the adapter holds two that "
                    "differ, which one tensor cannot be; merge it with peft into an untied base, and load that"
                )


def shared_parameters(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several names (tied weights), in the order of the model."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def check_scaling(config: Mapping[str, Any], plan: Plan, folder: Path) -> None:
    """Raise if PEFT's config says something else than the plan beside it: PEFT would compute something else.

    Raises:
        MmdoraError: naming the module and both numbers, or `use_dora`.
    """
    remedy = (
        f"one of the two was changed afterwards. Undo that, or delete {OURS}, and the adapter is read by {CONFIG} alone"
    )
    if bool(config.get("use_dora")) != plan.has_magnitudes:
        raise MmdoraError(
            f"{folder / CONFIG}: use_dora is {config.get('use_dora')}, and by {OURS} the adapter has "
            f"{'' if plan.has_magnitudes else 'no '}magnitudes; {remedy}"
        )
    attentions = {entry.name for entry in plan.entries if entry.kind == "attention"}
    for entry in plan.entries:
        if entry.rank and entry.name.rpartition(".")[0] not in attentions:
            stated = scaling_in(config, peft_key(entry), entry.rank)
            if not math.isclose(stated, entry.scaling, rel_tol=1e-6):
                raise MmdoraError(
                    f"{folder / CONFIG}: its lora_alpha and alpha_pattern make the scaling of {entry.name} {stated:g}, "
                    f"and {OURS} says {entry.scaling:g}; {remedy}"
                )


def scaling_in(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The scaling of a module by `adapter_config.json`; the first pattern that matches wins, as in PEFT."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for p, a in patterns.items() if re.match(rf"(.*\.)?({p})$", name)), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _resized(model: Any, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A sentence that says what to do if the adapter's vocabulary was resized; an empty text if it was not."""
    get: Any = getattr(model, "get_input_embeddings", lambda: None)
    weight = getattr(get(), "weight", None)
    for name, parameter in model.named_parameters():
        if parameter is weight and name in shapes and name in tensors and tensors[name].dim() == 2:
            rows, own = tensors[name].shape[0], shapes[name][0]
            if rows != own and tensors[name].shape[1:] == shapes[name][1:]:
                return (
                    f". The adapter's vocabulary was resized to {rows} tokens, and this base has {own}; load the base, "
                    f"call resize_token_embeddings({rows}), and give that to load_adapter"
                )
    return ""
