"""Makes the entries of a plan: they say how each module that the targets of a modality mean is adapted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from mmdora.adapt.budget import Claim
from mmdora.adapt.modality import ModelParts
from mmdora.adapt.plan import Entry
from mmdora.adapt.targets import ROLES, Refusals, candidates_of, resolve, unused_in_tower
from mmdora.config import Modality
from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedEmbedding, AdaptedExpertWeight, ExpertWeight, Method, kind_of, place_of, places


def entries_of(
    model: nn.Module,
    parts: ModelParts,
    modality: str,
    settings: Modality,
    method: Method,
    rank_of: Callable[[str], int] | None = None,
) -> tuple[list[Entry], list[str]]:
    """Entries of a modality in the model's order, and notes on what was left out.

    Args:
        rank_of: gives the rank of a module by its name, in place of the modality's; with 0 it gets no adapter.

    Raises:
        MmdoraError: a target matches nothing, or means a module that cannot be adapted.
    """
    candidates = candidates_of(model, parts, modality)
    entries, passed_over = [], []
    for name, because in resolve(candidates, settings.targets, modality).items():
        rank = settings.rank_of(modality)
        if rank and rank_of is not None and not (rank := rank_of(name)):
            passed_over.append(name)
            continue
        alpha = (2.0 * rank if settings.alpha is None else settings.alpha) if rank else 0.0
        scaling = (alpha / (math.sqrt(rank) if settings.rslora else rank)) if rank else 1.0
        module = place_of(model, name)
        entry = entry_of(
            module,
            name=name,
            modality=modality,
            method=method,
            rank=rank,
            alpha=alpha,
            scaling=scaling,
            dropout=settings.dropout,
            dropout_mode=settings.dropout_mode,
            because=because,
        )
        entries.append(entry)
    notes = [f"{modality}: the budget has no rank for {_some(passed_over)}, so no adapter"] if passed_over else []
    if method == "dora" and settings.dropout and settings.dropout_mode == "reference":
        notes.append(f"{modality}: dropout_mode is reference, which takes a second base product in training")
    notes += _on_experts(model, parts, modality, entries)
    if candidates.experts:
        notes.append(
            f"{modality}: experts whose parameters no adapter fits are not adapted: {_some(candidates.experts)}"
        )
    if candidates.bare and set(settings.targets) & {"attention", "all"}:
        notes.append(f"{modality}: projections that are no linears are not adapted: {_some(candidates.bare)}")
    if set(settings.targets) & set(ROLES):
        left_out = {**candidates.unused, **candidates.refused}
        roled = (nn.Linear, nn.MultiheadAttention, ExpertWeight)
        meant = {name: why for name, why in left_out.items() if isinstance(place_of(model, name), roled)}
        for reason, names in _by_reason(meant).items():
            notes.append(f"{modality}: left out {_some(names)}: {reason}")
    return entries, notes


def claims_of(model: nn.Module, entries: Iterable[Entry]) -> list[Claim]:
    """The modules of these entries as claims on a budget of ranks; those without a low-rank branch make none.

    No module gets a rank from which on A and B have more parameters than its weight.
    """
    claims = []
    for entry in entries:
        if not entry.rank:
            continue
        kind: Any = kind_of(module := place_of(model, entry.name))
        shapes = kind.shapes(module, 1)
        own_A, own_B = (math.prod(shapes[name]) for name in ("lora_A", "lora_B"))
        experts = module.experts if isinstance(module, ExpertWeight) else 1
        claims.append(
            Claim(
                name=entry.name,
                modality=entry.modality,
                first=own_A + own_B + (0 if entry.method == "lora" else math.prod(shapes["magnitude"])),
                step=own_A + own_B,
                highest=max(1, own_A * own_B // (experts * (own_A + own_B))),
            )
        )
    return claims


def _on_experts(model: nn.Module, parts: ModelParts, modality: str, entries: list[Entry]) -> list[str]:
    """Say what share of a modality its experts are, and what share of them the adapters on them are."""
    held = [m for n, m in places(model).items() if isinstance(m, ExpertWeight) and parts.of(n) == modality]
    if not held:
        return []
    count = sum(weight.weight.numel() for weight in held)
    whole = sum(p.numel() for name, p in model.named_parameters() if parts.of(name) == modality)
    own = [entry.parameters for entry in entries if entry.kind == AdaptedExpertWeight.kind]
    said = (
        f"{modality}: experts hold {count:,} parameters, {count / whole:.1%} of it, in {len(held)} tensors, of which "
    )
    if not own:
        return [said + "none is adapted; the target experts means them"]
    return [said + f"{len(own)} are adapted by {sum(own):,} parameters, {sum(own) / count:.2%} of the experts'"]


def entry_of(module: nn.Module, *, name: str, method: Method, rank: int, dropout: float, **others: Any) -> Entry:
    """The entry of a module, with what follows from the module itself: its kind, and the parameters that are added.

    Args:
        module: the plain module, of which it is known that it can be adapted (`candidates_of`, `check_adaptable`).
        name: its name in the model.
        method: of adaptation.
        rank: 0 for a magnitude alone.
        dropout: 0 is kept instead where none acts: on embeddings, and without a low-rank branch.
        others: the rest of `Entry`.

    Raises:
        MmdoraError: the module cannot be adapted at this rank.
    """
    kind = kind_of(module)
    assert kind is not None
    if reason := kind.rank_problem(module, rank):
        raise MmdoraError(f"{name}: cannot adapt this module: {reason}")
    shapes = kind.shapes(module, rank)
    if method == "lora":
        del shapes["magnitude"]
    return Entry(
        name=name,
        method=method,
        rank=rank,
        dropout=dropout if rank and kind is not AdaptedEmbedding else 0.0,
        parameters=sum(map(math.prod, shapes.values())),
        kind=kind.kind,
        **others,
    )


def check_adaptable(model: nn.Module, parts: ModelParts, ranks: Mapping[str, int]) -> None:
    """Raise if an adapter cannot be put on one of these modules, whether a target or a file names them.

    Args:
        model: the untouched base, or its skeleton.
        ranks: name of a module that the model has -> rank.

    Raises:
        MmdoraError: naming the module and why: no kind fits, its weight is tied, it is read and never called, ...
    """
    refusals = Refusals(model)
    unused: tuple[str, ...] | None = None
    for name, rank in ranks.items():
        kind = kind_of(module := refusals.modules[name])
        if reason := refusals.why(name) or (kind.rank_problem(module, rank) if kind else None):
            raise MmdoraError(f"{name}: cannot adapt this module: {reason}")
        owner = name.rpartition(".")[0]
        if owner not in ranks and isinstance(refusals.modules[owner], nn.MultiheadAttention):
            if unused is None:
                unused = tuple(f"{path}." for path in unused_in_tower(model, parts))
            # An attention that never runs reads nothing, so there an adapter that is not called does no harm.
            if not name.startswith(unused):
                raise MmdoraError(
                    f"{name}: is read, not called, by the nn.MultiheadAttention around it unless that is adapted too; "
                    f"name {owner.rpartition('.')[2]} beside it, or the role attention"
                )


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    return grouped
