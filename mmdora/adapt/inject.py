"""From the `adapt` section to an adapted model: plan, replace, freeze, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mmdora.adapt.budget import even_ranks
from mmdora.adapt.dispatched import check_in_one_place
from mmdora.adapt.entries import check_adaptable
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
from mmdora.adapt.wanted import budget_of, wanted
from mmdora.config import Adapt, as_modalities, validate
from mmdora.errors import MmdoraError
from mmdora.layers import kind_of, place_of
from mmdora.layers.dequantize import form_of, sizes
from mmdora.layers.gates import open_gate


def make_plan(model: nn.Module, adapt: Adapt | Mapping[str, Any], ranks: Mapping[str, int] | None = None) -> Plan:
    """Make the plan that `inject` would carry out; the model is not touched.

    Args:
        model: an untouched base.
        adapt: the `adapt` section.
        ranks: of `adapt.rank: auto`, name of a module -> the rank that a calibration found. Without it the plan has the
            rank that the budget would pay for in all modules alike, and a note says that this is not the last word.

    Raises:
        MmdoraError: already adapted; parts not found; a target without a match; nothing to train.
    """
    check_untouched(model)
    check_in_one_place(model)
    check_usable(model)
    adapt = checked(adapt)
    parts = find_parts(model, adapt.parts)
    if adapt.rank is None:
        return build_plan(model, parts, *wanted(model, parts, adapt))
    if ranks is None:
        claims, budget = budget_of(model, adapt)
        ranks = even_ranks(claims, budget)
        spread = "spread evenly; mmdora train spreads them by the gradients on rows"
        if not any(ranks.values()):
            ranks = dict.fromkeys(ranks, 1)
            spread = "which is less than rank 1 of every module; mmdora train leaves out those with small gradients"
    else:
        spread = "spread by the gradients on rows"
    known = dict(ranks)
    entries, full, notes = wanted(model, parts, adapt, lambda name: known.get(name, 0))
    count = sum(entry.parameters for entry in entries)
    said = f"ranks: {count:,} parameters of adapters, adapt.budget {adapt.budget}, {spread}"
    return build_plan(model, parts, entries, full, [said, *notes])


def checked(adapt: Adapt | Mapping[str, Any]) -> Adapt:
    """The `adapt` section of a config, or of a dict of its keys."""
    return adapt if isinstance(adapt, Adapt) else validate(Adapt, dict(adapt), where=lambda key: "adapt")


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


def inject(
    model: nn.Module,
    adapt: Adapt | Mapping[str, Any],
    *,
    keep_base: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> Plan:
    """Adapt a model in place and freeze the rest. Until it is trained, its outputs equal those of the base.

    Args:
        model: an untouched vision-language model.
        adapt: the `adapt` section: per modality a method, rank, targets and so on.
        keep_base: train copies of what trains in full (method full, bias, norms), so that `disable`, `reference` and
            `unload` can give the base back. It takes the memory of these parameters once more.
        ranks: of `adapt.rank: auto`, name of a module -> rank.

    An adapter that `adapt` names with `from` is gone on with by `mmdora.adapter_files.warm_start.inject`.

    Raises:
        MmdoraError: see `make_plan`; automatic ranks without `ranks`; or `adapt` names such an adapter.
    """
    if (adapt := checked(adapt)).rank is not None and ranks is None:
        raise MmdoraError(
            "adapt.rank: auto needs rows to measure gradients on, which inject has not; mmdora.train does it. "
            "Or set the rank of each modality"
        )
    for modality, settings in as_modalities(adapt).items():
        if settings.start is not None:
            raise MmdoraError(f"adapt.{modality}.from: call mmdora.inject, which reads adapters")
    plan = apply(model, make_plan(model, adapt, ranks), keep_base=keep_base)
    open_gates(model, adapt)
    return plan


def open_gates(model: nn.Module, adapt: Adapt) -> None:
    """Give every adapted module gates if `adapt` asks for them."""
    for module in adapted_modules(model).values() if adapt.gates is not None else ():
        open_gate(module)


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
    """(name, parameter, modality, kind) of everything that trains; kind is low_rank, magnitude, gate or full."""
    plan = _plan(model)
    kinds = {"lora_A": "low_rank", "lora_B": "low_rank", "magnitude": "magnitude", "gate": "gate"}
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
