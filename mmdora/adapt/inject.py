"""From the `adapt` section to an adapted model: plan, replace, freeze, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mmdora.adapt.dispatched import check_in_one_place
from mmdora.adapt.entries import check_adaptable, entries_of
from mmdora.adapt.fingerprint import fingerprint
from mmdora.adapt.in_place import writes_into
from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.adapt.plan import Entry, Plan
from mmdora.adapt.quantized import dequantize_all
from mmdora.adapt.switch import (
    KEPT,
    PLAN,
    adapted_modules,
    adapters_of,
    exchange,
    forget,
    plan_of,
    take_off,
    use,
)
from mmdora.adapt.targets import unused_in_tower
from mmdora.config import Adapt, Modality, as_modalities, validate
from mmdora.errors import MmdoraError
from mmdora.layers import BIASES, kind_of, place_of
from mmdora.layers.dequantize import form_of, sizes


def make_plan(model: nn.Module, adapt: Adapt | Mapping[str, Any]) -> Plan:
    """Make the plan that `inject` would carry out; the model is not touched.

    Raises:
        MmdoraError: already adapted; parts not found; a target without a match; nothing to train.
    """
    check_untouched(model)
    check_in_one_place(model)
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


def check_untouched(model: nn.Module) -> None:
    """Raise an MmdoraError if a model is adapted, or has named adapters."""
    if plan_of(model) is not None or adapters_of(model):
        raise MmdoraError("this model is already adapted; merge or unload it first, or load the base again")


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
    for name, size in sizes(model).items():
        modality = parts.of(name) or "other"
        base_sizes[modality] = base_sizes.get(modality, 0) + size
        if name in chosen:
            full_sizes[modality] = full_sizes.get(modality, 0) + size
    return Plan(parts, tuple(entries), tuple(full), base_sizes, full_sizes, tuple(notes), fingerprint(model))


def inject(model: nn.Module, adapt: Adapt | Mapping[str, Any], *, keep_base: bool = False) -> Plan:
    """Adapt a model in place and freeze the rest. Until it is trained, its outputs equal those of the base.

    Args:
        model: an untouched vision-language model.
        adapt: the `adapt` section: per modality a method, rank, targets and so on.
        keep_base: train copies of what trains in full (method full, bias, norms), so that `disable`, `reference` and
            `unload` can give the base back. It takes the memory of these parameters once more.

    An adapter that `adapt` names with `from` is gone on with by `mmdora.adapter_files.warm_start.inject`.

    Raises:
        MmdoraError: see `make_plan`; or `adapt` names such an adapter.
    """
    for modality, settings in as_modalities(adapt).items():
        if settings.start is not None:
            raise MmdoraError(f"adapt.{modality}.from: call mmdora.inject, which reads adapters")
    return apply(model, make_plan(model, adapt), keep_base=keep_base)


def apply(model: nn.Module, plan: Plan, *, keep_base: bool = False) -> Plan:
    """Carry out a plan that was made for this model; see `inject`."""
    model.requires_grad_(False)
    if keep_base and plan.full:
        kept = {name: model.get_parameter(name) for name in plan.full}
        exchange(model, {name: nn.Parameter(own.detach().clone()) for name, own in kept.items()})
        setattr(model, KEPT, kept)
    for entry in plan.entries:
        base = place_of(model, entry.name)
        kind: Any = kind_of(base)
        adapted = kind(
            base,
            entry.method,
            rank=entry.rank,
            scaling=entry.scaling,
            dropout=entry.dropout,
            dropout_mode=entry.dropout_mode,
        )
        path, _, leaf = entry.name.rpartition(".")
        adapted.output_written = writes_into(type(model.get_submodule(path)), leaf)
        model.set_submodule(adapted.place(entry.name), adapted.install())
    for name in plan.full:
        model.get_parameter(name).requires_grad_(True)
    setattr(model, PLAN, plan)
    return plan


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


def merge(
    model: nn.Module, dtype: torch.dtype | None = None, *, weights: Mapping[str, float] | None = None
) -> nn.Module:
    """Write the adapters into the weights, merged in fp32 and rounded once, and put plain modules back, in place.

    A quantised base is dequantised: what was trained is the adapter on those values, and to quantise them again would
    round the adapter's change away.

    Args:
        model: an adapted model. Of several named adapters, the one in use is merged, and all are gone afterwards.
        dtype: of every floating parameter afterwards; default: each keeps its own, or has the one from before it was
            quantised.
        weights: name of an adapter -> its factor f, for a weighted sum: each weight becomes W0 + the sum of
            f (W' - W0), with W' as the adapter alone would merge it.

    Raises:
        MmdoraError: not adapted; no adapter of such a name; or a weighted sum on a quantised base.
    """
    if weights is not None:
        _write_sum(model, weights, dtype)
    else:
        _plan(model)
        with torch.no_grad():
            for name, module in adapted_modules(model).items():
                model.set_submodule(module.place(name), module.merge(dtype))
    dequantize_all(model, dtype)
    for parameter in model.parameters():
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return _plain(model)


def _write_sum(model: nn.Module, weights: Mapping[str, float], dtype: torch.dtype | None) -> None:
    adapters = adapters_of(model)
    if not weights or (unknown := weights.keys() - adapters.keys()):
        wrong = f"no adapter {min(unknown)!r} on this model" if weights else "weights is empty"
        known = ", ".join(map(repr, adapters)) or "none; mmdora.load_adapter(model, folder, name=…) adds one"
        raise MmdoraError(f"merge: {wrong}; there is {known}")
    if any(form_of(module) for module in model.modules()):
        raise MmdoraError("merge: weights: a weighted sum needs weights that are not quantised; load the base without")
    use(model, None)
    sums: dict[nn.Parameter, torch.Tensor] = {}
    with torch.no_grad():
        for name, factor in weights.items():
            own = {module.base_weight: module.merged_weight() for module in adapters[name].modules.values()}
            own |= {model.get_parameter(full): trained for full, trained in adapters[name].full.items()}
            for parameter, trained in own.items():
                base = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
                summed = sums.setdefault(parameter, base.clone())
                summed.add_(trained.to(base.device, base.dtype) - base, alpha=float(factor))
        for parameter, summed in sums.items():
            parameter.data = summed.to(dtype or parameter.dtype)


def unload(model: nn.Module) -> nn.Module:
    """Take all adapters off, in place; the weights of the base are as they were before.

    Raises:
        MmdoraError: not adapted; or parts of this model were trained in full, and the base was not kept.
    """
    if plan_of(model) is not None:
        take_off(model)
    elif not adapters_of(model):
        _plan(model)
    return _plain(model)


def _plain(model: nn.Module) -> nn.Module:
    forget(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _plan(model: nn.Module) -> Plan:
    if (plan := plan_of(model)) is None:
        raise MmdoraError(
            "this model has named adapters, and none is in use; call mmdora.use first"
            if adapters_of(model)
            else "this model is not adapted; call mmdora.inject or mmdora.load_adapter first"
        )
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
