"""Compares an adapter with its base, one weight at a time. Both are read from their files; no model is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.analysis.decomposition import (
    Change,
    changed_rows,
    decompose,
    effective_rank,
    singular_values,
    singular_values_of_product,
    stable_rank,
)
from mmdora.analysis.points import Point
from mmdora.errors import MmdoraError
from mmdora.export.base import base_folder
from mmdora.export.mapped import MappedCheckpoint
from mmdora.export.merge_disk import factors
from mmdora.export.shards import UnsureError
from mmdora.layers import AdaptedEmbedding, AdaptedExpertWeight, place_of
from mmdora.layers import kind_of as layer_of
from mmdora.ops.merge import pieces

OTHER = "other"
About = tuple[str, str, str, str, int]
"""Name, modality, kind, method and rank of a weight."""


@dataclass(frozen=True)
class WeightRow:
    """The change of one weight in one checkpoint, which is one line of the CSV.

    Biases, norms and other parameters that cannot be adapted (kind "other", trained in full) cannot be decomposed. For
    them the columns from `delta_m` to `stable_rank` are None. A parameter of experts counts as one matrix, with the
    rows of all its experts; its ranks are None, because each expert has a rank of its own.
    """

    run: str
    step: int | None
    """The step of a checkpoint; None for an adapter that is no checkpoint of the run."""
    name: str
    """The name of the module, or of the parameter if its kind is "other"."""
    modality: str
    layer: int | None
    """The number of the block: the first number in the name; None for a name without one."""
    kind: str
    """The kind of the layer: linear, conv, embedding, attention, experts or other."""
    method: str
    """How the weight was trained: lora, dora, magnitude or full."""
    rank: int
    """The rank of the adapter; 0 without an adapter."""
    rows: int
    """The number of rows of the matrix, which is also that of magnitudes: output features, channels, or dimensions of
    an embedding."""
    columns: int
    delta_m: float | None
    """dM: the mean over the rows of the absolute change of the norm, in the unit of the weights."""
    delta_d: float | None
    """dD: the mean over the rows of 1 - cos of the angle to the same row of the base, from 0 to 2."""
    effective_rank: float | None
    """Effective rank of the change: exp of the entropy of its singular values."""
    stable_rank: float | None
    """Stable rank of the change: squared Frobenius norm over squared spectral norm."""
    base_norm: float
    """Frobenius norm of the base's weight."""
    delta_norm: float
    """Frobenius norm of the change."""
    relative: float | None
    """`delta_norm` / `base_norm`; None if the base's weight is zero."""
    share: float = 0.0
    """Share of the squared norm of all that this checkpoint changed; the shares of a checkpoint sum to 1."""


class Base:
    """The files of a base, read a tensor at a time.

    Raises:
        MmdoraError: if there are no files, or their tensors are not one by one those of the model (see
            `MappedCheckpoint`).
    """

    def __init__(self, name: str):
        self.name = name
        try:
            self.mapped = MappedCheckpoint(base_folder(name))
        except UnsureError as reason:
            raise MmdoraError(f"base {name}: its files cannot be read tensor by tensor: {reason}") from None
        self.model = self.mapped.model

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return self.mapped.fingerprint()

    def weight(self, name: str) -> Tensor:
        """The parameter `name`, memory-mapped from its file. It must not be written to."""
        if self.mapped.file_name(name) is None:
            raise MmdoraError(
                f"base {self.name}: {name} is not one tensor in its files, and such weights cannot be analyzed yet"
            )
        return self.model.get_parameter(name).detach()


class MappedAdapter:
    """The plan and the memory-mapped tensors of one adapter; iterating gives its rows, in the order of the plan.

    Raises:
        MmdoraError: if the adapter is damaged or belongs to another base, as in `read_adapter`.
    """

    def __init__(self, run: str, point: Point, base: Base):
        self.run, self.step, self.base = run, point.step, base
        self.plan: Plan
        self.plan, self._tensors = read_adapter(base.model, point.folder, lambda _: base.fingerprint)

    def __len__(self) -> int:
        return len(self.plan.entries) + len(self.plan.full)

    def __iter__(self) -> Iterator[WeightRow]:
        for entry in self.plan.entries:
            yield self._adapted(entry)
        for name in self.plan.full:
            yield self._full(name)

    def _adapted(self, entry: Entry) -> WeightRow:
        if entry.kind == AdaptedExpertWeight.kind:
            return self._experts(entry)
        weight = as_matrix(entry.kind, self.base.weight(entry.weight))
        a, b, magnitude = factors(self.base.model, self._tensors, entry)
        changed = changed_rows(weight, a, b, magnitude, entry.scaling)
        about = (entry.name, entry.modality, entry.kind, entry.method, entry.rank)
        if a is None or b is None or magnitude is not None:
            return self._decomposed(about, weight, changed)
        return self._row(about, weight, decompose(weight, changed), singular_values_of_product(b, a))

    def _experts(self, entry: Entry) -> WeightRow:
        stored, place = self.base.weight(entry.weight), place_of(self.base.model, entry.name)
        matrices = stored.mT if getattr(place, "transposed", False) else stored
        parts = factors(self.base.model, self._tensors, entry)
        changed = (
            rows
            for expert, weight in enumerate(matrices)
            for rows in changed_rows(weight, *(t if t is None else t[expert] for t in parts), scaling=entry.scaling)
        )
        about = (entry.name, entry.modality, entry.kind, entry.method, entry.rank)
        weight = matrices.flatten(0, 1)
        return self._row(about, weight, decompose(weight, changed), None)

    def _full(self, name: str) -> WeightRow:
        owner, _, leaf = name.rpartition(".")
        layer = layer_of(self.base.model.get_submodule(owner))
        layer = layer if layer and leaf == layer.weight_name else None
        kind = layer.kind if layer else OTHER
        weight, new = (as_matrix(kind, tensor) for tensor in (self.base.weight(name), self._tensors[name]))
        changed = (new[start:stop] for start, stop in pieces(*weight.shape))
        about = (owner if layer else name, self.plan.parts.of(name) or "other", kind, "full", 0)
        if layer:
            return self._decomposed(about, weight, changed)
        return self._row(about, weight, decompose(weight, changed), None)

    def _decomposed(self, about: About, weight: Tensor, changed: Iterable[Tensor]) -> WeightRow:
        delta = torch.empty(weight.shape, dtype=torch.float32)
        return self._row(about, weight, decompose(weight, changed, delta), singular_values(delta))

    def _row(self, about: About, weight: Tensor, change: Change, values: Tensor | None) -> WeightRow:
        name, modality, kind, method, rank = about
        number = re.search(r"\.(\d+)(\.|$)", name)
        matrix = kind != OTHER
        return WeightRow(
            run=self.run,
            step=self.step,
            name=name,
            modality=modality,
            layer=int(number[1]) if number else None,
            kind=kind,
            method=method,
            rank=rank,
            rows=weight.shape[0],
            columns=weight.shape[1],
            delta_m=change.delta_m if matrix else None,
            delta_d=change.delta_d if matrix and not math.isnan(change.delta_d) else None,
            effective_rank=None if values is None else effective_rank(values),
            stable_rank=None if values is None else stable_rank(values),
            base_norm=change.base_norm,
            delta_norm=change.delta_norm,
            relative=change.delta_norm / change.base_norm if change.base_norm else None,
        )


def shared(rows: Sequence[WeightRow]) -> list[WeightRow]:
    """The rows of one checkpoint, with `share` filled in."""
    total = sum(row.delta_norm**2 for row in rows)
    return [replace(row, share=row.delta_norm**2 / total if total else 0.0) for row in rows]


def as_matrix(kind: str, weight: Tensor) -> Tensor:
    """The weight of a layer of some kind as the matrix W [O, I] that its adapter changes, with O magnitudes."""
    if kind == AdaptedEmbedding.kind:
        return weight.T
    return weight.flatten(1) if kind != OTHER else weight.reshape(-1, weight.shape[-1] if weight.ndim else 1)
