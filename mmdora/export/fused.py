"""Which matrices of experts the tensors of a checkpoint hold, where the model in memory holds all of them in one.

A file may hold the experts one by one, their gate and up apart, or all of them the other way round. transformers puts
such files together with the operations of its `conversion_mapping`; the few that experts have are read backwards here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

from mmdora.adapt.plan import Entry
from mmdora.export.layout import Conversion
from mmdora.export.shards import UnsureError

Factors = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Part:
    """The change that a merge makes to a tensor of a file that holds matrices of experts, or rows of one."""

    entry: Entry
    expert: int | None
    """The expert whose rows the tensor [rows, I] holds; None for a tensor of all experts."""
    start: int
    """The first of these rows among those of the expert."""
    input_first: bool
    """Whether the tensor holds its matrices as [I, O]."""

    def matrices(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each expert of a tensor of this layout, with its rows [rows, I], in the order of the tensor."""
        matrices = tensor.mT if self.input_first else tensor
        yield from enumerate(matrices) if self.expert is None else [(self.expert, matrices)]

    def of(self, expert: int, rows: int, factors: Factors) -> Factors:
        """A, and B and m of so many rows, of one expert, given those of all."""
        lora_A, *by_row = factors
        lora_B, magnitude = (t if t is None else t[expert, self.start : self.start + rows] for t in by_row)
        return None if lora_A is None else lora_A[expert], lora_B, magnitude


def parts(
    entry: Entry, weight: Any, conversion: Conversion | None, direct: str | None, tensors: Mapping[str, Tensor]
) -> dict[str, Part]:
    """Name in the files -> the part of an adapted parameter of experts that the tensor holds.

    Args:
        entry: of the plan.
        weight: the `ExpertWeight` of the skeleton.
        conversion: how transformers makes the parameter from tensors of the files; None if it takes one as it is.
        direct: the name of that one.
        tensors: of the files.

    Raises:
        UnsureError: the operations are others than experts are known to have, or the files do not fit them.
    """
    if direct is not None:
        return {direct: Part(entry, None, 0, weight.transposed)}
    unsure = UnsureError(f"{entry.weight} is made of other tensors of the files in a way that is not known")
    if conversion is None:
        raise unsure
    kinds = [type(operation) for operation in conversion.operations]
    if kinds == [Transpose] and [len(names) for names in conversion.sources] == [1]:
        ((name,),) = conversion.sources
        operation: Any = conversion.operations[0]
        # With `check_dims`, transformers takes a tensor that has the model's shape as it is, square ones too.
        turned = not operation.check_dims or tensors[name].shape != weight.weight.shape
        if turned and {operation.dim0 % 3, operation.dim1 % 3} != {1, 2}:
            raise unsure
        return {name: Part(entry, None, 0, weight.transposed != turned)}
    joins = kinds == [MergeModulelist, Concatenate] and getattr(conversion.operations[1], "dim", None) == 1
    alone = kinds == [MergeModulelist] and len(conversion.sources) == 1
    if not (joins or alone) or getattr(conversion.operations[0], "dim", None) != 0 or (joins and weight.transposed):
        raise unsure
    found, start = {}, 0
    for names in conversion.sources:
        if len(names) != weight.experts:
            raise unsure
        found |= {name: Part(entry, expert, start, weight.transposed) for expert, name in enumerate(names)}
        start += len(tensors[names[0]])
    return found
