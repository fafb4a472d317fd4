"""The `Plan` of an adapter that PEFT wrote, by its config and its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapt.entries import check_adaptable, entry_of
from mmdora.adapt.inject import build_plan
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.check import scaling_in, shared_parameters
from mmdora.adapter_files.experts import from_target_parameters
from mmdora.adapter_files.files import CONFIG
from mmdora.adapter_files.peft_config import check_config, check_supported
from mmdora.adapter_files.tensors import TWICE, unlike_peft
from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedExpertWeight, ExpertWeight, kind_of, places

ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a linear of one expert, which a fused parameter of all experts has no place for."""


@dataclass(frozen=True)
class PeftAdapter:
    """The files of an adapter that PEFT wrote.

    Attributes:
        config: `adapter_config.json`.
        tensors: by name in the model.
        folder: where the files lie, for messages.
        before: name of a module -> its name in the config, where an older transformers had another.
    """

    config: Mapping[str, Any]
    tensors: dict[str, Tensor]
    folder: Path
    before: Mapping[str, str]

    @property
    def has_magnitudes(self) -> bool:
        return bool(self.config.get("use_dora"))


def plan_from_peft(model: nn.Module, adapter: PeftAdapter, parts: ModelParts) -> Plan:
    """The plan of an adapter that PEFT wrote.

    Which modules are adapted, and at what rank, is read from the tensors; scaling from the config.

    Args:
        model: the untouched base.
        adapter: its copies of the base's own embeddings, which PEFT adds, are taken out of `tensors`.
        parts: of the model.

    Raises:
        MmdoraError: a kind of adapter that mmdora has no layer for, a module the model does not have, or an
            embedding of another base.
    """
    check_supported(adapter.config, adapter.folder)
    check_config(adapter.config, adapter.folder / CONFIG)
    modules = places(model)
    from_target_parameters(adapter.tensors, modules, adapter.config, adapter.before, adapter.folder)
    _take_out_embeddings(adapter, modules)
    ranks = _ranks(adapter, modules)
    if absent := [name for name in ranks if name not in modules]:
        if apart := next((name for name in absent if ONE_EXPERT.search(name)), None):
            raise MmdoraError(
                f"{adapter.folder}: adapts single experts ({apart}), as PEFT did under transformers 4, and this base "
                "holds them fused; merge it with peft under transformers 4, and take the merged checkpoint as the base"
            )
        raise MmdoraError(
            f"{adapter.folder}: {type(model).__name__} has no module {absent[0]}; load the adapter's own base"
        )
    check_adaptable(model, parts, {name: rank for name, rank in ranks.items() if kind_of(modules[name]) is None})
    _check_computed_alike(adapter, modules, ranks)
    # The entries have the order of the model's modules; the file has an order of its own.
    entries = [_entry(adapter, modules, name, ranks[name], parts) for name in modules if name in ranks]
    return build_plan(model, parts, entries, _in_full(model, adapter))


def _ranks(adapter: PeftAdapter, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Name of each adapted module -> its rank, by the A that the file holds for it."""
    ranks = {}
    for key, tensor in adapter.tensors.items():
        if factor := re.fullmatch(r"(.+)\.(lora_A\.weight|lora_embedding_A)", key):
            # The factors of all experts of a parameter lie in one tensor. A wrong size is found with the other shapes.
            place = modules.get(factor[1])
            experts = place.experts if isinstance(place, ExpertWeight) else 1
            ranks[factor[1]] = math.ceil(tensor.shape[0] / experts)
    if not ranks:
        raise MmdoraError(f"{adapter.folder}: no lora_A in the adapter's tensors")
    return ranks


def _check_computed_alike(adapter: PeftAdapter, modules: Mapping[str, nn.Module], ranks: Mapping[str, int]) -> None:
    """Raise if PEFT computes something else with one of the adapted modules than mmdora would."""
    for name in ranks:
        lora_B = adapter.tensors.get(f"{name}.lora_B.weight")
        # Beside an adapted attention, PEFT cannot have trained the `out_proj` in any other way. PEFT has no DoRA there,
        # so such magnitudes are mmdora's own.
        whole = not adapter.has_magnitudes and _attention_of(adapter, modules, name)
        if whole and lora_B is not None and lora_B.any():
            raise MmdoraError(
                f"{adapter.folder}: {name}: {TWICE}; merge this adapter with peft and load the checkpoint"
            )
        lora_A = adapter.tensors.get(f"{name}.lora_A.weight")
        if reason := unlike_peft(modules[name], lora_A, magnitude=adapter.has_magnitudes):
            raise MmdoraError(f"{adapter.folder}: {name}: {reason}; load this adapter with peft")


def _attention_of(adapter: PeftAdapter, modules: Mapping[str, nn.Module], name: str) -> str | None:
    """The name of the attention that PEFT adapted whole, this `out_proj` included; None for any other module."""
    owner = name.rpartition(".")[0]
    whole = isinstance(modules[owner], nn.MultiheadAttention) and f"{owner}.lora_A.weight" in adapter.tensors
    return owner if whole else None


def _entry(adapter: PeftAdapter, modules: Mapping[str, nn.Module], name: str, rank: int, parts: ModelParts) -> Entry:
    """The entry of one adapted module, with the scaling that PEFT's config gives it."""
    config = adapter.config
    module, target = modules[name], _attention_of(adapter, modules, name) or name
    called = adapter.before.get(target, target)
    if isinstance(module, ExpertWeight):
        owner = AdaptedExpertWeight.place(name)
        called = f"{adapter.before.get(owner, owner)}.{module.leaf}"
    scaling = scaling_in(config, called, rank)
    return entry_of(
        modules[name],
        name=name,
        modality=parts.of(name) or "other",
        method="dora" if adapter.has_magnitudes else "lora",
        rank=rank,
        alpha=scaling * (math.sqrt(rank) if config.get("use_rslora") else rank),
        scaling=scaling,
        dropout=float(config.get("lora_dropout") or 0.0),
        because="tensors in PEFT's file",
    )


def _in_full(model: nn.Module, adapter: PeftAdapter) -> list[str]:
    """The names of the parameters that the file brings whole.

    These are biases, what `modules_to_save` names, and embeddings of a resized vocabulary.

    Raises:
        MmdoraError: the file has a tied weight under one of its names only.
    """
    config, tensors, before = adapter.config, adapter.tensors, adapter.before
    wanted = [re.compile(rf"(.*\.)?{re.escape(module)}(\.|$)") for module in config.get("modules_to_save") or ()]
    biases = config.get("bias", "none") != "none"
    embeddings = {id(parameter) for parameter in _embeddings(model)}
    for shared in shared_parameters(model):
        if (there := [name for name in shared if name in tensors]) and len(there) < len(shared):
            other = next(name for name in shared if name not in tensors)
            raise MmdoraError(
                f"{adapter.folder}: {there[0]} and {other} are one tensor of this base (tied), and the adapter trained "
                "the first alone (modules_to_save without ensure_weight_tying), which one tensor cannot be; merge it "
                "with peft into an untied base, and load that"
            )
    return [
        name
        for name, parameter in model.named_parameters()
        if name in tensors
        and (
            biases
            or id(parameter) in embeddings
            or any(pattern.match(n) for pattern in wanted for n in (name, before.get(name, name)))
        )
    ]


def _embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the token embedding and the head, which PEFT saves unasked where the vocabulary was resized."""
    modules = [getattr(model, getter, lambda: None)() for getter in ("get_input_embeddings", "get_output_embeddings")]
    return [module.weight for module in modules if module is not None]


def _take_out_embeddings(adapter: PeftAdapter, modules: Mapping[str, nn.Module]) -> None:
    """Remove the copies of the base's own embeddings from the tensors, and raise if one is not this base's."""
    for key in [key for key in adapter.tensors if key.endswith(".base_layer.weight")]:
        name, copied = key.removesuffix(".base_layer.weight"), adapter.tensors.pop(key)
        own: Any = getattr(modules.get(name), "weight", None)
        if own is None or own.shape != copied.shape or not torch.equal(own.detach().cpu(), copied.to(own.dtype)):
            raise MmdoraError(
                f"{adapter.folder}: this adapter carries another {name} than this base's; load its own base"
            )
