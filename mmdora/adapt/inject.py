"""From the `adapt` section to an adapted model: plan, replace, freeze, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mmdora.adapt.entries import check_adaptable, entries_of
from mmdora.adapt.fingerprint import fingerprint
from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.adapt.plan import Entry, Plan
from mmdora.adapt.targets import unused_in_tower
from mmdora.config import Adapt, Modality, as_modalities, validate
from mmdora.errors import MmdoraError
from mmdora.layers import BIASES, Adapted, kind_of


def make_plan(model: nn.Module, adapt: Adapt | Mapping[str, Any]) -> Plan:
    """Make the plan that `inject` would carry out; the model is not touched.

    Raises:
        MmdoraError: already adapted; parts not found; a target without a match; nothing to train.
    """
    if plan_of(model) is not None:
        raise MmdoraError("this model is already adapted; merge or unload it first, or load the base again")
    check_usable(model)
    if not isinstance(adapt, Adapt):
        adapt = validate(Adapt, dict(adapt), where=lambda key: "adapt")
    parts = find_parts(model, adapt.parts)
    entries: list[Entry] = []
    full: list[str] = []
    notes: list[str] = []
    for modality, settings in as_modalities(adapt).items():
        if not getattr(parts, modality) and (settings.method != "none" or settings.bias or settings.norms):
            raise MmdoraError(f"adapt.{modality}: {type(model).__name__} has no {modality} part; leave it out")
        if settings.method == "full":
            full += _full(model, parts, modality, settings)
        elif settings.method != "none":
            modality_entries, modality_notes = entries_of(model, parts, modality, settings, settings.method)
            entries += modality_entries
            notes += modality_notes
        full += _biases_and_norms(model, parts, modality, settings)
    if not entries and not full:
        raise MmdoraError("adapt: every modality has method none and no bias or norms, so nothing would be trained")
    return build_plan(model, parts, entries, full, notes)


def check_usable(model: nn.Module) -> None:
    """Raise if the model's tensors hold no values, or if they cannot take part in training.

    Raises:
        MmdoraError: a parameter is on the meta device, or was made under `torch.inference_mode`; or that mode is on
            now, so that the adapter's own parameters would be made under it.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MmdoraError(f"{name} is on the meta device and has no values; load the model's weights first")
        if parameter.is_inference():
            raise MmdoraError(
                f"{name} was made under torch.inference_mode, so nothing can be trained with it; load the model outside"
            )
    if torch.is_inference_mode_enabled():
        raise MmdoraError("torch.inference_mode is on, under which no adapter can be made; leave it, or use no_grad")


def build_plan(
    model: nn.Module, parts: ModelParts, entries: list[Entry], full: list[str], notes: list[str] | tuple[str, ...] = ()
) -> Plan:
    """Make a plan of these entries, with the counts of parameters and the fingerprint of `model`, the untouched base.

    Raises:
        MmdoraError: in the cases of `check_adaptable`.
    """
    check_adaptable(model, parts, {entry.name: entry.rank for entry in entries})
    base_sizes, full_sizes, chosen = {}, {}, set(full)
    for name, parameter in model.named_parameters():
        modality = parts.of(name) or "other"
        base_sizes[modality] = base_sizes.get(modality, 0) + parameter.numel()
        if name in chosen:
            full_sizes[modality] = full_sizes.get(modality, 0) + parameter.numel()
    return Plan(parts, tuple(entries), tuple(full), base_sizes, full_sizes, tuple(notes), fingerprint(model))


def inject(model: nn.Module, adapt: Adapt | Mapping[str, Any]) -> Plan:
    """Adapt a model in place and freeze the rest. Until it is trained, its outputs equal those of the base.

    Args:
        model: an untouched vision-language model.
        adapt: the `adapt` section: per modality a method, rank, targets and so on.

    Raises:
        MmdoraError: see `make_plan`.
    """
    return apply(model, make_plan(model, adapt))


def apply(model: nn.Module, plan: Plan) -> Plan:
    """Carry out a plan that was made for this model."""
    model.requires_grad_(False)
    for entry in plan.entries:
        base = model.get_submodule(entry.name)
        kind: Any = kind_of(base)
        adapted = kind(
            base,
            entry.method,
            rank=entry.rank,
            scaling=entry.scaling,
            dropout=entry.dropout,
            dropout_mode=entry.dropout_mode,
        )
        model.set_submodule(entry.name, adapted)
    for name in plan.full:
        model.get_parameter(name).requires_grad_(True)
    model.mmdora_plan = plan  # type: ignore[assignment] (nn.Module types attributes as tensors)
    return plan


def plan_of(model: nn.Module) -> Plan | None:
    """The plan by which a model was adapted; None for a model that is not adapted."""
    return getattr(model, "mmdora_plan", None)


def adapted_modules(model: nn.Module) -> dict[str, Adapted]:
    """Name -> adapted module, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str, str]]:
    """(name, parameter, modality, kind) of everything that trains; kind is low_rank, magnitude or full."""
    plan = _plan(model)
    kinds = {"lora_A": "low_rank", "lora_B": "low_rank", "magnitude": "magnitude"}
    modalities = {entry.name: entry.modality for entry in plan.entries}
    full = set(plan.full)
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if module in modalities and leaf in kinds:
            yield name, parameter, modalities[module], kinds[leaf]
        elif name in full:
            yield name, parameter, plan.parts.of(name) or "other", "full"


def merge(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Write the adapters into the weights, merged in fp32 and rounded once, and put plain modules back, in place.

    Args:
        model: an adapted model.
        dtype: of every floating parameter afterwards; default: each keeps its own.
    """
    _plan(model)
    with torch.no_grad():
        for name, module in adapted_modules(model).items():
            model.set_submodule(name, module.merge(dtype))
        for parameter in model.parameters():
            if dtype is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return _plain(model)


def unload(model: nn.Module) -> nn.Module:
    """Take the adapters off, in place; the weights of the base are as they were before.

    Raises:
        MmdoraError: parts were trained in full, so the base's weights are gone.
    """
    if _plan(model).full:
        raise MmdoraError("unload: parts of this model were trained in full; load the base again instead")
    for name, module in adapted_modules(model).items():
        model.set_submodule(name, module.unload())
    return _plain(model)


def _plain(model: nn.Module) -> nn.Module:
    del model.mmdora_plan
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _plan(model: nn.Module) -> Plan:
    if (plan := plan_of(model)) is None:
        raise MmdoraError("this model is not adapted; call mmdora.inject or mmdora.load_adapter first")
    return plan


def _full(model: nn.Module, parts: ModelParts, modality: str, settings: Modality) -> list[str]:
    if settings.targets != ("all",):
        raise MmdoraError(f"adapt.{modality}.targets: method full trains the whole part; leave targets out")
    parameters = {name: p for name, p in model.named_parameters() if parts.of(name) == modality}
    if not parameters:
        raise MmdoraError(f"adapt.{modality}: {type(model).__name__} has no {modality} parameters to train in full")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise MmdoraError(f"adapt.{modality}: {name} is {parameter.dtype} (quantised); it cannot train in full")
    return list(parameters)


def _biases_and_norms(model: nn.Module, parts: ModelParts, modality: str, settings: Modality) -> list[str]:
    """Names of the biases and of the weights of norms that the settings of a modality train."""
    wanted = {"bias": settings.bias, "norms": settings.norms}
    names_of: dict[str, list[str]] = {key: [] for key, on in wanted.items() if on}
    norms = {name for name, module in model.named_modules() if "Norm" in type(module).__name__}
    unused = tuple(f"{name}." for name in (unused_in_tower(model, parts) if modality == "vision" else ()))
    for name, _ in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        kind = "bias" if leaf in BIASES else "norms" if leaf == "weight" and module in norms else None
        if kind in names_of and parts.of(name) == modality and not name.startswith(unused):
            names_of[kind].append(name)
    for key, names in names_of.items():
        if not names:
            what = "bias" if key == "bias" else "norm with a weight"
            raise MmdoraError(f"adapt.{modality}.{key}: the {modality} part has no {what}; leave it out")
    chosen = set().union(*names_of.values())
    return [name for name, _ in model.named_parameters() if name in chosen]
