"""Adapter files in PEFT's format, both ways.

`adapter_model.safetensors` and `adapter_config.json` are what `peft.PeftModel.from_pretrained` reads;
`mmdora.json` beside them holds what PEFT has no place for: methods per module, the parts, the base's fingerprint.
`mmdora.adapter_files.tensors` has the tensors of each kind of module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdora.adapt.fingerprint import fingerprint, same_base
from mmdora.adapt.inject import apply, fitted, plan_of, trainable_parameters
from mmdora.adapt.plan import Plan
from mmdora.adapter_files.files import (
    CONFIG,
    OURS,
    PREFIX,
    WEIGHTS,
    own_plan,
    pefts_name,
    read_config,
    read_tensors,
)
from mmdora.adapter_files.peft_config import plan_from_peft, write_peft_config
from mmdora.adapter_files.tensors import file_rank, file_shapes, from_file, to_file, unlike_peft, wrong_in_peft
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.files import write_json, write_whole
from mmdora.layers import Adapted
from mmdora.version import __version__

__all__ = ["adapter_state", "fingerprint", "load_adapter", "load_adapter_state", "restore_adapter", "save_adapter"]


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Everything that trains, by parameter name; the tensors are the model's own, not copies."""
    return {name: parameter.detach() for name, parameter, _, _ in trainable_parameters(model)}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `adapter_state` gave, into a model with the same plan.

    Raises:
        MmdoraError: listing every missing, unexpected or misshapen tensor; nothing is loaded then.
    """
    own = adapter_state(model)
    _compare(state, {name: tuple(tensor.shape) for name, tensor in own.items()}, "adapter state")
    with torch.no_grad():
        for name, tensor in own.items():
            model.get_parameter(name).copy_(state[name].to(tensor.device))


def save_adapter(
    model: nn.Module, folder: Path | str, *, base: str | None = None, image_tokens: ImageTokens | None = None
) -> None:
    """Write the adapter of an adapted model. A plan of `full` parts alone has no PEFT config: PEFT cannot hold it.

    Args:
        model: an adapted model.
        folder: made if need be; files are replaced one by one, each complete.
        base: name of the base, for whoever loads the adapter; default: the model's own `name_or_path`.
        image_tokens: what it was trained with, for whoever loads the processor.
    """
    plan = plan_of(model)
    if plan is None:
        raise MmdoraError("save_adapter: this model is not adapted; call mmdora.inject first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _warn_of_peft(model, plan)
    name = base or getattr(model, "name_or_path", "") or None
    whole = covering_modules(model, plan)
    attentions = {entry.name for entry in plan.entries if entry.kind == "attention"}
    # PEFT adapts the out_proj of an attention with it
    adapted = {entry.name for entry in plan.entries} | {f"{name}.out_proj" for name in attentions}
    tensors = {
        PREFIX + pefts_name(key, adapted): tensor.detach().cpu().contiguous().clone()
        for key, tensor in {**_low_rank_tensors(model, plan), **_full_tensors(model, plan, whole)}.items()
    }
    write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    if plan.entries:
        ranks = {
            entry.name: file_rank(model.get_submodule(entry.name), entry.rank)
            for entry in plan.entries
            if entry.name.rpartition(".")[0] not in attentions
        }
        write_json(folder / CONFIG, write_peft_config(plan, ranks, whole, base=name))
    else:
        (folder / CONFIG).unlink(missing_ok=True)
    budget = {} if image_tokens is None or image_tokens == ImageTokens() else {"image_tokens": asdict(image_tokens)}
    write_json(folder / OURS, {"format": 1, "mmdora": __version__, "base": name, **budget, "plan": plan.to_dict()})


def load_adapter(model: nn.Module, folder: Path | str) -> Plan:
    """Adapt an untouched base by the files that `save_adapter` or PEFT wrote: LoRA and DoRA.

    Raises:
        MmdoraError: already adapted; another base; something PEFT can express and mmdora cannot; or a list of
            every missing, unexpected or misshapen tensor. The model is untouched then.
    """
    folder = Path(folder)
    if plan_of(model) is not None:
        raise MmdoraError(f"{folder}: this model is already adapted; merge or unload it first, or load the base again")
    plan, tensors = read_adapter(model, folder, fingerprint)
    apply(model, plan)
    _fill(model, plan, tensors)
    return plan


def read_adapter(
    model: nn.Module, folder: Path, base: Callable[[nn.Module], Mapping[str, Any]]
) -> tuple[Plan, dict[str, Tensor]]:
    """Plan and tensors (by name in the model, mapped from the file) of an adapter; the model is not touched.

    Args:
        model: the untouched base, or its skeleton.
        base: gives the fingerprint of `model`; called where the adapter carries one.

    Raises:
        MmdoraError: as `load_adapter`.
    """
    tensors = read_tensors(folder)
    if (folder / OURS).exists():
        plan = own_plan(folder)
        if difference := same_base(plan.fingerprint, base(model)):
            raise MmdoraError(f"{folder}: this adapter was trained on another base: {difference}; load its own base")
    else:
        plan = plan_from_peft(model, read_config(folder / CONFIG), tensors, folder)
        warnings.warn(
            f"{folder}: this adapter carries no fingerprint, so it is not checked that this base is its own",
            UserWarning,
            stacklevel=3,
        )
    shapes = _expected(model, plan, folder)
    buffers = {name for name, _ in model.named_buffers()}
    _compare({name: t for name, t in tensors.items() if name not in buffers}, shapes, str(folder / WEIGHTS))
    return plan, tensors


def restore_adapter(model: nn.Module, folder: Path | str) -> None:
    """Put an adapter that `save_adapter` wrote back into a model that is adapted by the same plan (a resumed run).

    Raises:
        MmdoraError: listing every tensor that does not fit; nothing is loaded then.
    """
    folder, plan = Path(folder), plan_of(model)
    if plan is None:
        raise MmdoraError(f"{folder}: this model is not adapted; call mmdora.inject or load_adapter")
    saved = own_plan(folder)
    if difference := same_base(saved.fingerprint, plan.fingerprint):
        raise MmdoraError(f"{folder}: this adapter was trained on another base: {difference}")
    own = {**_low_rank_tensors(model, plan), **_full_tensors(model, plan, covering_modules(model, plan))}
    tensors = read_tensors(folder)
    _compare(tensors, {name: tuple(tensor.shape) for name, tensor in own.items()}, str(folder / WEIGHTS))
    _fill(model, plan, tensors)


def covering_modules(model: nn.Module, plan: Plan) -> list[str]:
    """Largest modules all of whose parameters train in full; PEFT's `modules_to_save` names modules."""
    full = {id(model.get_parameter(name)) for name in plan.full}

    def descend(module: nn.Module, path: str) -> list[str]:
        own = [id(parameter) for parameter in module.parameters()]
        if path and own and all(key in full for key in own) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return [path]
        if not any(key in full for key in own):
            return []
        return [
            name
            for leaf, child in module.named_children()
            for name in descend(child, f"{path}.{leaf}" if path else leaf)
        ]

    return descend(model, "")


def _low_rank_tensors(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    tensors = {}
    for entry in plan.entries:
        module = model.get_submodule(entry.name)
        assert isinstance(module, Adapted)
        own = to_file(module, magnitude=plan.has_magnitudes)
        tensors |= {f"{entry.name}.{key}": tensor for key, tensor in own.items()}
    return tensors


def _warn_of_peft(model: nn.Module, plan: Plan) -> None:
    for entry in plan.entries:
        magnitude = plan.has_magnitudes and entry.method != "magnitude"
        module = model.get_submodule(entry.name)
        if reason := unlike_peft(module, magnitude=magnitude) or wrong_in_peft(module, magnitude=plan.has_magnitudes):
            warnings.warn(f"{entry.name}: {reason}; use this adapter with mmdora, or merged", UserWarning, stacklevel=3)


def _full_tensors(model: nn.Module, plan: Plan, whole: list[str]) -> dict[str, Tensor]:
    """Parameters trained in full, and what else `modules_to_save` must bring: buffers, tied names."""
    tensors: dict[str, Tensor] = {name: model.get_parameter(name) for name in plan.full}
    for name in whole:
        tensors |= {f"{name}.{key}": tensor for key, tensor in model.get_submodule(name).state_dict().items()}
    return tensors


def _expected(model: nn.Module, plan: Plan, folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape that the files of this plan hold, on the untouched base."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in plan.entries:
        if entry.name not in modules:
            raise MmdoraError(
                f"{folder}: {type(model).__name__} has no module {entry.name}; load the adapter's own base"
            )
        own = file_shapes(modules[entry.name], fitted(entry, modules[entry.name]).rank, magnitude=plan.has_magnitudes)
        shapes |= {f"{entry.name}.{key}": shape for key, shape in own.items()}
    if absent := [name for name in plan.full if name not in parameters]:
        raise MmdoraError(f"{folder}: {type(model).__name__} has no parameter {absent[0]}; load the adapter's own base")
    full = {id(parameters[name]) for name in plan.full}
    shapes |= {name: tuple(p.shape) for name, p in parameters.items() if id(p) in full}
    return shapes


def _fill(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for entry in plan.entries:
            module = model.get_submodule(entry.name)
            assert isinstance(module, Adapted)
            from_file(module, tensors, f"{entry.name}.")
        for name in plan.full:
            model.get_parameter(name).copy_(tensors[name])
        for name in buffers.keys() & tensors.keys():
            buffers[name].copy_(tensors[name])


def _compare(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise one error that lists every tensor that is missing, unexpected or of another shape."""
    problems = [f"missing {name}" for name in shapes if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in shapes]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        raise MmdoraError(f"{where}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
