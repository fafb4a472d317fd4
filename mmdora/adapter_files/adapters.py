"""Writes and reads adapters in the format of PEFT.

`adapter_model.safetensors` and `adapter_config.json` are what `peft.PeftModel.from_pretrained` reads;
`mmdora.json` beside them holds what PEFT has no place for: methods per module, the parts, the base's fingerprint.
`mmdora.adapter_files.tensors` has the tensors of each kind of module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdora.adapt.fingerprint import fingerprint, same_base
from mmdora.adapt.inject import adapted_modules, apply, check_untouched, check_usable, plan_of
from mmdora.adapt.modality import find_parts
from mmdora.adapt.plan import Plan
from mmdora.adapt.quantized import quantized_by
from mmdora.adapt.switch import adding
from mmdora.adapter_files.check import check_scaling, check_tensors, expected_shapes
from mmdora.adapter_files.experts import KEYS, nested_names, peft_key, with_own_names
from mmdora.adapter_files.files import (
    CONFIG,
    OURS,
    PREFIX,
    WEIGHTS,
    own_plan,
    pefts_name,
    read_config,
    read_tensors,
    write_facts,
)
from mmdora.adapter_files.names import todays_names
from mmdora.adapter_files.peft_config import check_config, write_peft_config
from mmdora.adapter_files.peft_plan import PeftAdapter, plan_from_peft
from mmdora.adapter_files.tensors import file_rank, from_file, to_file, unlike_peft, wrong_in_peft
from mmdora.config import ImageTokens
from mmdora.errors import MmdoraError
from mmdora.files import write_json, write_whole
from mmdora.layers import Adapted

__all__ = ["fingerprint", "load_adapter", "restore_adapter", "save_adapter"]


def save_adapter(
    model: nn.Module,
    folder: Path | str,
    *,
    base: str | None = None,
    image_tokens: ImageTokens | None = None,
    template: str | None = None,
) -> None:
    """Write the adapter of an adapted model. A plan of `full` parts alone has no PEFT config: PEFT cannot hold it.

    Args:
        model: an adapted model.
        folder: made if need be; files are replaced one by one, each complete.
        base: name of the base, for whoever loads the adapter; default: the model's own `name_or_path`. The path of a
            folder is kept as an absolute one.
        image_tokens: what it was trained with, for whoever loads the processor.
        template: the chat template that it was trained with, if that is not the base's own.
    """
    plan = plan_of(model)
    if plan is None:
        raise MmdoraError("save_adapter: this model is not adapted; call mmdora.inject first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _warn_of_peft(model, plan)
    name = base or getattr(model, "name_or_path", "") or None
    if name and "/" in name and Path(name).is_dir():
        name = str(Path(name).absolute())
    # Whoever wrote to a parameter's `.data` did not tell its module. What is saved shall be what forward computes.
    for module in adapted_modules(model).values():
        module.refresh()
    whole = covering_modules(model, plan)
    attentions = {entry.name for entry in plan.entries if entry.kind == "attention"}
    # PEFT adapts the out_proj of an attention together with the attention.
    adapted = {entry.name for entry in plan.entries} | {f"{name}.out_proj" for name in attentions}
    filed = {f"{own}.{key}": f"{file}.{key}" for own, file in nested_names(plan.entries).items() for key in KEYS}
    tensors = {
        PREFIX + pefts_name(filed.get(key, key), adapted): tensor
        for key, tensor in _apart({**_low_rank_tensors(model, plan), **_full_tensors(model, plan, whole)}).items()
    }
    write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    if plan.entries:
        ranks = {
            peft_key(entry): file_rank(model.get_submodule(entry.name), entry.rank)
            for entry in plan.entries
            if entry.name.rpartition(".")[0] not in attentions
        }
        write_json(folder / CONFIG, write_peft_config(plan, ranks, whole, base=name))
    else:
        (folder / CONFIG).unlink(missing_ok=True)
    quantize = quantized_by(model, plan.parts)
    write_facts(folder, plan, base=name, image_tokens=image_tokens, template=template, quantize=quantize)


def load_adapter(
    model: nn.Module,
    folder: Path | str,
    *,
    name: str | None = None,
    parts: Mapping[Any, tuple[str, ...]] | None = None,
) -> Plan:
    """Adapt an untouched base by the files that `save_adapter` or PEFT wrote: LoRA and DoRA.

    PEFT's may be of transformers 4, whose names of modules are brought to today's.

    Args:
        model: the untouched base.
        folder: with the adapter's files.
        name: of the adapter, for several on one base; this one is then in use, and `mmdora.use` switches. Named
            adapters leave the base's own weights as they are.
        parts: modality -> prefixes of modules, where PEFT wrote the files and the parts cannot be found; as the
            config's `adapt.parts`.

    Raises:
        MmdoraError: already adapted; another base; something PEFT can express and mmdora cannot; or a list of
            every missing, unexpected or misshapen tensor; a name that is taken, or for an adapter that carries
            buffers. The model is untouched then.
    """
    folder = Path(folder)
    with adding(model, name) if name is not None else nullcontext():
        if name is None:
            try:
                check_untouched(model)
            except MmdoraError as error:
                raise MmdoraError(f"{folder}: {error}") from None
        check_usable(model)
        plan, tensors = read_adapter(model, folder, fingerprint, parts)
        if name is not None and (buffers := tensors.keys() & {buffer for buffer, _ in model.named_buffers()}):
            raise MmdoraError(f"{folder}: carries the buffer {min(buffers)}, which cannot be switched; load it unnamed")
        apply(model, plan, keep_base=name is not None)
        fill(model, plan, tensors)
    return plan


def read_adapter(
    model: nn.Module,
    folder: Path,
    base: Callable[[nn.Module], Mapping[str, Any]],
    parts: Mapping[Any, tuple[str, ...]] | None = None,
) -> tuple[Plan, dict[str, Tensor]]:
    """Read plan and tensors of an adapter; the tensors are mapped from the file, and the model is not touched.

    Args:
        model: the untouched base, or its skeleton.
        base: gives the fingerprint of `model`; called where the adapter carries one.
        parts: as `load_adapter`.

    Raises:
        MmdoraError: in the cases of `load_adapter`.
    """
    tensors = read_tensors(folder)
    if (folder / OURS).exists():
        plan = own_plan(folder)
        tensors = with_own_names(tensors, nested_names(plan.entries))
        if difference := same_base(plan.fingerprint, base(model)):
            raise MmdoraError(f"{folder}: this adapter was trained on another base: {difference}; load its own base")
        if parts is not None and find_parts(model, parts) != plan.parts:
            raise MmdoraError(f"{folder}: {OURS} holds the parts that this adapter was trained with; leave parts out")
        if (folder / CONFIG).exists() and plan.entries:
            config = read_config(folder / CONFIG)
            check_config(config, folder / CONFIG)
            check_scaling(config, plan, folder)
    else:
        tensors, before = todays_names(model, tensors)
        adapter = PeftAdapter(read_config(folder / CONFIG), tensors, folder, before)
        plan = plan_from_peft(model, adapter, find_parts(model, parts))
        warnings.warn(
            f"{folder}: this adapter carries no fingerprint, so it is not checked that this base is its own",
            UserWarning,
            stacklevel=3,
        )
    check_tensors(model, tensors, expected_shapes(model, plan, folder), folder / WEIGHTS)
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
    tensors = with_own_names(read_tensors(folder), nested_names(plan.entries))
    check_tensors(model, tensors, {name: tuple(tensor.shape) for name, tensor in own.items()}, folder / WEIGHTS)
    fill(model, plan, tensors)


def covering_modules(model: nn.Module, plan: Plan) -> list[str]:
    """Names of the largest modules in which every parameter trains in full, for `modules_to_save` in PEFT's config."""
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


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each in memory of its own, which safetensors demands.

    Only tied tensors are copied for that. A copy of all would take as much memory as the adapter.
    """
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if storage in seen else own
        seen.add(storage)
    return apart


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
    """The parameters trained in full, and the buffers and tied names of the modules in `modules_to_save`."""
    tensors: dict[str, Tensor] = {name: model.get_parameter(name) for name in plan.full}
    for name in whole:
        tensors |= {f"{name}.{key}": tensor for key, tensor in model.get_submodule(name).state_dict().items()}
    return tensors


def fill(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, as `read_adapter` gives them, into a model that is adapted by their plan."""
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
