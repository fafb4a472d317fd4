"""What the `adapt` section asks for in a model: entries, what trains in full, and the claims on a budget of ranks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mmdora.adapt.budget import Claim, parameters_of
from mmdora.adapt.entries import claims_of, entries_of
from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.adapt.plan import Entry
from mmdora.adapt.targets import unused_in_tower
from mmdora.config import Adapt, Modality, as_modalities
from mmdora.errors import MmdoraError
from mmdora.layers import BIASES
from mmdora.layers.dequantize import sizes


def wanted(
    model: nn.Module, parts: ModelParts, adapt: Adapt, rank_of: Callable[[str], int] | None = None
) -> tuple[list[Entry], list[str], list[str]]:
    """The entries, the names of what trains in full, and the notes of a plan.

    Args:
        rank_of: as in `entries_of`.

    Raises:
        MmdoraError: a target without a match; nothing to train.
    """
    entries: list[Entry] = []
    full: list[str] = []
    notes: list[str] = []
    for modality, settings in as_modalities(adapt).items():
        if not getattr(parts, modality) and (settings.method != "none" or settings.bias or settings.norms):
            raise MmdoraError(f"adapt.{modality}: {type(model).__name__} has no {modality} part; leave it out")
        if settings.method == "full":
            full += _full(model, parts, modality, settings)
        elif settings.method != "none":
            modality_entries, modality_notes = entries_of(model, parts, modality, settings, settings.method, rank_of)
            entries += modality_entries
            notes += modality_notes
        full += _biases_and_norms(model, parts, modality, settings)
    if adapt.gates is not None:
        if not (count := sum(entry.rank for entry in entries)):
            raise MmdoraError("adapt.gates are on the components of B A, and no module has them; leave them out")
        notes.append(f"gates: {count:,} more that train, one per component; they are folded into A where A is saved")
    if not entries and not full:
        raise MmdoraError("adapt: every modality has method none and no bias or norms, so nothing would be trained")
    return entries, full, notes


def budget_of(model: nn.Module, adapt: Adapt) -> tuple[list[Claim], int]:
    """The modules that may get ranks of `adapt.rank: auto`, and the parameters that there are for them.

    Magnitudes of modalities without a rank are paid first.

    Raises:
        MmdoraError: in the cases of `make_plan`; or the budget does not pay for a single rank.
    """
    assert adapt.budget is not None
    entries, _, _ = wanted(model, find_parts(model, adapt.parts), adapt, lambda name: 1)
    claims, paid = claims_of(model, entries), sum(entry.parameters for entry in entries if not entry.rank)
    budget = parameters_of(adapt.budget, sum(sizes(model).values())) - paid
    if budget < (cheapest := min(claim.first for claim in claims)):
        raise MmdoraError(
            f"adapt.budget {adapt.budget}: {max(budget, 0):,} parameters are left for ranks, and rank 1 of the "
            f"smallest module takes {cheapest:,}; give more"
        )
    return claims, budget


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
