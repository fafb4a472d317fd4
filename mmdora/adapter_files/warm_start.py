"""Adapts a model so that training goes on with an adapter, also with a trained LoRA as DoRA (`adapt.M.from`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapt import inject as injecting
from mmdora.adapt.fingerprint import fingerprint
from mmdora.adapt.inject import apply, make_plan
from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.adapter_files.files import adapter_folder
from mmdora.adapter_files.tensors import from_file
from mmdora.config import Adapt, Modality, as_modalities
from mmdora.errors import MmdoraError
from mmdora.layers import Adapted

__all__ = ["inject"]


def inject(
    model: nn.Module,
    adapt: Adapt | Mapping[str, Any],
    *,
    keep_base: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> Plan:
    """Adapt a model in place and freeze the rest; see `mmdora.adapt.inject.inject`.

    A modality with `from` begins with A and B of that adapter. DoRA's magnitudes begin with the adapter's, or, after a
    LoRA, as the row norms ||W0 + s B A||, for which c = 1. So the modality computes what the adapter computed.

    Raises:
        MmdoraError: see `make_plan`; or an adapter of `from` is none, is damaged, is of another base, or has other
            modules, ranks or scalings in that modality. The model is untouched then.
    """
    adapt = injecting.checked(adapt)
    starts = {modality: how for modality, how in as_modalities(adapt).items() if how.start is not None}
    if not starts:
        return injecting.inject(model, adapt, keep_base=keep_base, ranks=ranks)
    plan = make_plan(model, adapt)
    read = {modality: _read(model, plan, modality, how) for modality, how in starts.items()}
    apply(model, plan, keep_base=keep_base)
    for modality, (had, tensors) in read.items():
        for entry in _of(plan, modality):
            _fill(model.get_submodule(entry.name), had[entry.name], tensors)
    injecting.open_gates(model, adapt)
    return plan


def _of(plan: Plan, modality: str) -> list[Entry]:
    return [entry for entry in plan.entries if entry.modality == modality]


def _read(model: nn.Module, plan: Plan, modality: str, how: Modality) -> tuple[dict[str, Entry], dict[str, Tensor]]:
    """The adapter's entries of a modality by name, and its tensors.

    Raises:
        MmdoraError: in the cases of `inject`.
    """
    assert how.start is not None
    where = f"adapt.{modality}.from"
    folder = adapter_folder(how.start)
    if folder is None:
        raise MmdoraError(f"{where}: {how.start}: no adapter here; name a run folder or an adapter")
    its, tensors = read_adapter(model, Path(folder), fingerprint)
    if trained := [name for name in its.full if its.parts.of(name) == modality and name not in plan.full]:
        raise MmdoraError(f"{where}: {folder}: has trained {trained[0]} in full, which this config would lose")
    had, wanted = ({entry.name: entry for entry in _of(one, modality)} for one in (its, plan))
    if different := sorted(had.keys() ^ wanted.keys()):
        which = "adapts" if different[0] in had else "does not adapt"
        raise MmdoraError(
            f"{where}: {folder}: {which} {different[0]}, unlike this config; give adapt.{modality} its targets"
        )
    for name, entry in wanted.items():
        old = had[name]
        if (old.rank, old.scaling) != (entry.rank, entry.scaling):
            raise MmdoraError(
                f"{where}: {folder}: {name} has rank {old.rank} and scaling {old.scaling:g}, and this config "
                f"rank {entry.rank} and scaling {entry.scaling:g}; give adapt.{modality} its rank, alpha and rslora"
            )
        if entry.method == "lora" and old.method != "lora":
            raise MmdoraError(
                f"{where}: {folder}: {name} was trained by {old.method}, whose magnitudes LoRA has not; "
                f"use method: dora"
            )
    return had, tensors


def _fill(module: nn.Module, had: Entry, tensors: Mapping[str, Tensor]) -> None:
    """Give an adapted module the adapter's A and B, and magnitudes with which it computes what the adapter did."""
    assert isinstance(module, Adapted)
    magnitude = module.magnitude
    if had.method == "lora":
        module.magnitude = None  # A file with DoRA beside it holds norms for LoRA, too; they are computed anew here.
    from_file(module, tensors, f"{had.name}.")
    module.magnitude = magnitude
    module.refresh()
    if magnitude is not None and had.method == "lora":
        with torch.no_grad():
            magnitude.copy_(module.row_norm().reshape(magnitude.shape))
