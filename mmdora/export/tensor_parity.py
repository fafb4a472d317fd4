"""Checks that a written checkpoint holds what was trained: every number is compared with the equations in float64.

The check tells rounding and error apart. A tensor into which no adapter is merged has to be the trained one, rounded to
the written dtype, bit for bit. A merged number is computed in fp32 and rounded once, so it may be off by half a step of
the dtype, and by the rounding of the fp32 sums. That rounding is relative to the terms of the sums, c (|W0| + s |B|
|A|), and not to the result, in which the terms may cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapt.inject import adapted_modules, plan_of
from mmdora.adapt.plan import Entry
from mmdora.adapter_files.experts import nested_names, with_own_names
from mmdora.adapter_files.files import read_tensors
from mmdora.adapter_files.tensors import keys_of, to_file
from mmdora.errors import MmdoraError
from mmdora.export.fused import Part
from mmdora.export.mapped import MappedCheckpoint
from mmdora.export.merge_disk import DiskMerge, factors
from mmdora.export.rounding import Pair, copied, larger, merged
from mmdora.export.shards import UnsureError
from mmdora.layers import AdaptedExpertWeight
from mmdora.models.dtypes import DTYPES

BEYOND = 1e-5
"""The largest error allowed in a merged number, beyond its one rounding and relative to the largest terms of its row.

The merge in fp32 stays below 1e-6. If one tensor is off by a thousandth of its norm, the error exceeds 1e-4 somewhere.
"""


@dataclass(frozen=True)
class TensorParity:
    """The differences between the written tensors and the trained ones."""

    beyond: float  # max over merged rows of (|written - trained|, less half a step of `dtype`) / largest terms
    max_rel: float  # max over tensors of max|written - trained| / max|trained|
    tensors: int
    merged: int  # number of tensors that an adapter was merged into
    dtype: str
    worst: str = ""  # name of the tensor in which `beyond` occurs
    wrong: tuple[str, ...] = ()  # names of tensors without an adapter that are not the trained ones, rounded

    kind = "tensors"
    how = "The files were read back, their names and shapes checked against the model's, and every number compared"
    how += " with the equations in float64"

    def check(self) -> None:
        """Raise an MmdoraError if a tensor is not the trained one, which a tensor with NaN never is."""
        if self.wrong or not self.beyond <= BEYOND:
            raise MmdoraError(f"the merged tensors are not the trained ones; nothing was exported: {self}")

    def __str__(self) -> str:
        where = f" in {self.worst}" if not self.beyond <= BEYOND else ""
        copies = f"{len(self.wrong)} others differ, such as {self.wrong[0]}" if self.wrong else "the others equal"
        return (
            f"{self.dtype}, tensor by tensor: {self.merged} of {self.tensors} merged, each number against the "
            f"equations in float64: max-rel {self.max_rel:.1e}, beyond one rounding {self.beyond:.1e}{where} "
            f"(at most {BEYOND:.0e}); {copies}"
        )


def tensor_parity(merge: DiskMerge, folder: Path) -> TensorParity:
    """Read back what `merge` wrote to `folder`.

    Raises:
        MmdoraError: if transformers would find a tensor missing, unknown or of another shape.
    """
    try:
        written = MappedCheckpoint(folder)
    except UnsureError as reason:
        raise MmdoraError(f"the written checkpoint does not load: {reason}") from None
    return compare(_disk_pairs(merge, written), merge.dtype)


def _disk_pairs(merge: DiskMerge, written: MappedCheckpoint) -> Iterator[Pair]:
    for name, row in merge.rows.items():
        tensor, weight = written.tensors[row.hub_name], merge.base.tensors[name]
        if isinstance(row.change, Part):
            for (_, new), (old, own) in zip(row.change.matrices(tensor), merge.matrices(row), strict=True):
                yield Pair(name, new, old, own, row.change.entry.scaling)
        elif isinstance(row.change, Entry):
            parts = factors(merge.base.model, merge.adapter, row.change)
            yield Pair(name, tensor.flatten(1), weight.flatten(1), parts, row.change.scaling)
        elif row.change is None:
            yield Pair(name, tensor, weight)
    # They are listed by their names in the adapter's file, because several names may lead to one tensor of the model.
    for place, tensor in merge.trained_whole().items():
        name = merge.base.file_name(place)
        assert name is not None  # Otherwise the merge would have refused.
        yield Pair(place, written.tensors[merge.rows[name].hub_name], tensor)


class TrainedModel:
    """The tensors of an unmerged model, kept for the comparison with a checkpoint while the model itself is merged.

    It takes as much memory as the base's files in their own dtype.

    Args:
        model: an unmerged model, adapted or plain.
        adapter: folder of its adapter. The files in it count as what was trained, not the tensors that were loaded.

    Raises:
        MmdoraError: if a tensor of the adapter is not what the model holds.
    """

    def __init__(self, model: nn.Module, adapter: Path | None):
        plan = plan_of(model)
        nested = nested_names(plan.entries) if plan else {}
        saved = {} if adapter is None else with_own_names(read_tensors(adapter), nested)
        modules = adapted_modules(model)
        self._adapted: dict[str, tuple[Any, list[Tensor | None]]] = {}
        own: set[str] = set()
        for name, module in modules.items():
            parts = (module.lora_A, module.lora_B, module.magnitude)
            kept = [None if part is None else part.detach().clone() for part in parts]
            self._adapted[module.parameter_name(name)] = module, kept
            own |= {f"{name}.{leaf}" for leaf in ("lora_A", "lora_B", "magnitude")}
            _check_loaded(name, module, saved)
        kept_by_storage: dict[int, Tensor] = {}  # Tied tensors are kept only once.
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            if name not in own:
                compact = saved.get(name)
                if compact is None:
                    compact = kept_by_storage.setdefault(tensor.data_ptr(), _compact(tensor))
                self._tensors[name] = compact

    def parity(self, written: nn.Module, dtype: str) -> TensorParity:
        """Compare the tensors of `written`, the checkpoint as it was loaded, with the trained ones."""
        return compare(self._pairs(written.state_dict()), dtype)

    def _pairs(self, written: dict[str, Tensor]) -> Iterator[Pair]:
        for name, weight in self._tensors.items():
            if name not in written:
                raise MmdoraError(f"the written checkpoint does not load: it has no {name}")
            if name not in self._adapted:
                yield Pair(name, written[name], weight)
                continue
            module, (a, b, magnitude) = self._adapted[name]
            if a is not None and b is not None:
                a, b = module.factors(a, b)
            matrices = [module.matrix(tensor) for tensor in (written[name], weight)]
            if isinstance(module, AdaptedExpertWeight):
                for e, (new, old) in enumerate(zip(*matrices, strict=True)):
                    own = tuple(None if part is None else part[e] for part in (a, b, magnitude))
                    yield Pair(name, new, old, own, module.scaling)  # pyright: ignore
                continue
            new, old = (matrix.flatten(1) for matrix in matrices)
            yield Pair(name, new, old, (a, b, magnitude), module.scaling)


def _check_loaded(name: str, module: Any, saved: dict[str, Tensor]) -> None:
    if not saved:
        return
    held = to_file(module, magnitude=module.magnitude is not None)
    for leaf, key in keys_of(type(module)).items():
        if getattr(module, leaf) is None:
            continue
        if not torch.equal(held[key], saved[f"{name}.{key}"].to(held[key].dtype)):
            raise MmdoraError(f"{name}.{key}: the model does not hold what the file does; nothing was exported")


def _compact(tensor: Tensor) -> Tensor:
    """A copy of a tensor, in bf16 if that loses nothing, as for a base whose files are in bf16."""
    if tensor.dtype != torch.float32:
        return tensor.detach().clone()
    half = tensor.detach().to(torch.bfloat16)
    return half if torch.equal(half.float(), tensor) else tensor.detach().clone()


@torch.no_grad()
def compare(pairs: Iterator[Pair], dtype: str) -> TensorParity:
    """Compare every number of every pair, some rows at a time."""
    parity = TensorParity(0.0, 0.0, 0, 0, dtype)
    before = None
    for pair in pairs:
        # The matrices of experts come one after the other, and are one tensor.
        new, before = pair.name != before, pair.name
        exact = pair.factors is None
        error, beyond = (copied if exact else merged)(pair, DTYPES[dtype])
        parity = replace(parity, tensors=parity.tensors + new, merged=parity.merged + (new and not exact))
        parity = replace(parity, max_rel=larger(parity.max_rel, error))
        if exact and beyond != 0:
            parity = replace(parity, wrong=(*parity.wrong, pair.name))
        elif not exact and not beyond <= parity.beyond:
            parity = replace(parity, beyond=larger(parity.beyond, beyond), worst=pair.name)
    return parity
