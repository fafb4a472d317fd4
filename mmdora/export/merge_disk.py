"""Merges an adapter into a checkpoint folder, tensor by tensor from disk to disk, without loading a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.adapter_files.experts import apart
from mmdora.adapter_files.tensors import KEYS, from_file
from mmdora.export.fused import Factors, Part, parts
from mmdora.export.layout import config_dtype, hub_naming
from mmdora.export.mapped import MappedCheckpoint
from mmdora.export.shards import Rewrite, Stored, UnsureError, write_index, write_shard
from mmdora.layers import AdaptedExpertWeight, ExpertWeight, place_of, wrapper
from mmdora.models.dtypes import DTYPES, FLOATS, STORED
from mmdora.ops.merge import merged_rows, pieces


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the base: its names, and the change that the merge makes to it."""

    file_name: str
    """Its name in the base's files."""
    place: str | None
    """Its name in the model's tree of modules.

    None if the model ignores the tensor, or computes other tensors from it.
    """
    hub_name: str
    """Its name in the written files."""
    dtype_in: str
    """Its dtype in the base's file, as safetensors names it."""
    dtype_out: str
    """Its dtype in the written file."""
    change: Entry | Part | Tensor | None
    """The entry of the plan that is merged into the tensor, or the part of one on experts, or the tensor that replaces
    it, or None."""

    @property
    def entry(self) -> Entry | None:
        """The entry of the plan that is merged into the tensor; None if none is."""
        change = self.change.entry if isinstance(self.change, Part) else self.change
        return change if isinstance(change, Entry) else None

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are copied unchanged."""
        return self.change is None and self.dtype_in == self.dtype_out


class DiskMerge:
    """A merge that is planned when this object is made, and written by `write`.

    Args:
        base: checkpoint folder with safetensors.
        adapter: folder of an adapter, or None to write the base alone.
        dtype: "fp32", "bf16" or "fp16", to which all floating-point tensors are converted, as in the merge in memory.

    Attributes:
        rows: file name of each tensor -> its row, in the order of the files.

    Raises:
        UnsureError: if the base's tensors are not exactly the model's (see `MappedCheckpoint`), or if the adapter
            changes an embedding or a tensor that transformers computes from others.
        MmdoraError: if the adapter was trained on another base, or its files do not fit the base.
    """

    def __init__(self, base: Path, adapter: Path | None, dtype: str):
        self.base, self.dtype = MappedCheckpoint(base), dtype
        self.plan: Plan | None = None
        self.adapter: dict[str, Tensor] = {}
        if adapter is not None:
            self.plan, self.adapter = read_adapter(self.base.model, adapter, lambda _: self.base.fingerprint())
        self.rows = self._table()

    def __str__(self) -> str:
        count, files = len(self.rows), len(self.base.shards)
        kinds = {
            "merged": len(self.merged),
            "replaced": sum(isinstance(row.change, Tensor) for row in self.rows.values()),
            "copied": sum(row.is_copied for row in self.rows.values()),
        }
        kinds[f"converted to {self.dtype}"] = count - sum(kinds.values())
        parts = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        return f"{files} file{'s' if files > 1 else ''}, {count} tensors: {parts}"

    @property
    def merged(self) -> dict[str, Entry]:
        """File name of a tensor -> the entry of the plan that is merged into it."""
        return {name: row.entry for name, row in self.rows.items() if row.entry is not None}

    @property
    def size(self) -> int:
        """Bytes of the files to write, without their headers."""
        return sum(stored.size for shard in self._written().values() for stored in shard.values())

    @property
    def elements(self) -> int:
        """Number of elements in all stored tensors."""
        return sum(tensor.numel() for tensor in self.base.tensors.values())

    def write(self, folder: Path) -> None:
        """Write config, shards and index, and the generation config if the base's folder has none to copy."""
        model = self.base.model
        config = copy.deepcopy(model.config)
        config_dtype(config, DTYPES[self.dtype])
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        if model.can_generate() and not (self.base.shards[0].path.parent / "generation_config.json").is_file():
            model.generation_config.save_pretrained(folder)
        look: Any = {"desc": "merging", "unit": "B", "unit_scale": True, "leave": False, "delay": 1, "disable": None}
        with tqdm(total=self.size, **look) as bar:
            for shard in self.base.shards:
                rows = [self.rows[file_name] for file_name in shard.tensors]
                rewrites = {
                    row.file_name: Rewrite(row.hub_name, row.dtype_out, None if row.is_copied else self._values(row))
                    for row in rows
                }
                write_shard(shard, folder / shard.path.name, rewrites, bar.update)
        write_index(folder, self._written())

    def trained_whole(self) -> dict[str, Tensor]:
        """Name in the adapter's file -> tensor, for the tensors that replace those of the base."""
        state = self.base.model.state_dict()
        return {place: tensor for place, tensor in self.adapter.items() if place in state}

    @torch.no_grad()
    def _values(self, row: TensorRow) -> Iterator[Tensor]:
        """Yield the new values of a tensor in pieces of whole rows, computed in fp32 and rounded once."""
        dtype = DTYPES[self.dtype]
        tensor = row.change if isinstance(row.change, Tensor) else self.base.tensors[row.file_name]
        if isinstance(row.change, Part):
            for weight, own in self.matrices(row):
                merged = merged_rows(weight, *own, row.change.entry.scaling)
                # A matrix that lies the other way round is put together first: one expert's, in fp32.
                for piece in [torch.cat(list(merged)).T.contiguous()] if row.change.input_first else merged:
                    yield piece.to(dtype)
            return
        if isinstance(row.change, Entry):
            own = factors(self.base.model, self.adapter, row.change)
            for piece in merged_rows(tensor.flatten(1), *own, row.change.scaling):
                yield piece.to(dtype)
            return
        matrix = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, tensor.numel())
        for start, stop in pieces(*matrix.shape):
            yield matrix[start:stop].float().to(dtype)

    def matrices(self, row: TensorRow) -> Iterator[tuple[Tensor, Factors]]:
        """Each matrix [O, I] of experts that a tensor of the base holds, with its A, B and m."""
        part = row.change
        assert isinstance(part, Part)
        whole = factors(self.base.model, self.adapter, part.entry)
        for expert, weight in part.matrices(self.base.tensors[row.file_name]):
            yield weight, part.of(expert, len(weight), whole)

    def _table(self) -> dict[str, TensorRow]:
        changes, rename = self._changes(), _renaming(self.base)
        rows: dict[str, TensorRow] = {}
        for shard in self.base.shards:
            for file_name, stored in shard.tensors.items():
                place = self.base.places.direct.get(file_name)
                rows[file_name] = TensorRow(
                    file_name=file_name,
                    place=place,
                    hub_name=file_name if rename is None or place is None else rename(place),
                    dtype_in=stored.dtype,
                    dtype_out=STORED[self.dtype] if stored.dtype in FLOATS else stored.dtype,
                    change=changes.get(file_name),
                )
        return rows

    def _changes(self) -> dict[str, Entry | Part | Tensor]:
        """The change that the adapter makes to each tensor, by the name of the tensor in the files of the base."""
        changes: dict[str, Entry | Part | Tensor] = {}
        if self.plan is None:
            return changes
        for entry in self.plan.entries:
            if entry.kind == "embedding":
                raise UnsureError(f"{entry.name} is an adapted embedding, whose norms run over all its rows")
            if entry.kind == AdaptedExpertWeight.kind:
                place, direct = place_of(self.base.model, entry.name), self.base.file_name(entry.weight)
                changes |= parts(entry, place, self.base.places.converted.get(entry.weight), direct, self.base.tensors)
            else:
                changes[self._file_name(entry.weight)] = entry
        buffers = [place for place, _ in self.base.model.named_buffers() if place in self.adapter]
        for place in [*self.plan.full, *buffers]:
            changes[self._file_name(place)] = self.adapter[place]
        return changes

    def _file_name(self, place: str) -> str:
        file_name = self.base.file_name(place)
        if file_name is None:
            raise UnsureError(f"{place} is computed from other tensors of the files, and the adapter changes it")
        return file_name

    def _written(self) -> dict[str, dict[str, Stored]]:
        """File -> hub name of each tensor in it -> how the tensor will be stored."""
        return {
            shard.path.name: {
                self.rows[file_name].hub_name: stored.as_dtype(self.rows[file_name].dtype_out)
                for file_name, stored in shard.tensors.items()
            }
            for shard in self.base.shards
        }


def factors(base: nn.Module, adapter: Mapping[str, Tensor], entry: Entry) -> Factors:
    """A [R, I], B [O, R] and m [O] of an entry of the plan; for experts, of each of E, as one tensor [E, ...].

    A factor is None if the entry's method does not use it, even if PEFT's file holds one.

    Args:
        base: the untouched base, which may be a mapped one.
        adapter: name in the model -> tensor, as `read_adapter` gives them.
    """
    if entry.kind in ("linear", "attention"):  # The factors are used as they lie in the file; a module would copy them.
        a, b, magnitude = (adapter.get(f"{entry.name}.{key}") for key in KEYS.values())
        low_rank, scaled = entry.method != "magnitude", entry.method != "lora"
        return a if low_rank else None, b if low_rank else None, magnitude if scaled else None
    plain = place_of(base, entry.name)
    if isinstance(plain, ExpertWeight):
        a, b, magnitude = (adapter.get(f"{entry.name}.{key}") for key in KEYS.values())
        if entry.method == "magnitude" or a is None or b is None:
            a = b = None
        else:
            a, b = apart(a, b, plain)
        return a, b, None if entry.method == "lora" else magnitude
    module = wrapper(plain, entry.rank)(plain, entry.method, rank=entry.rank, scaling=entry.scaling)
    from_file(module, adapter, f"{entry.name}.")
    if module.lora_A is None or module.lora_B is None:
        return None, None, module.magnitude
    return *module.factors(module.lora_A, module.lora_B), module.magnitude


def _renaming(base: MappedCheckpoint) -> Callable[[str], str] | None:
    """A function that gives the hub's name of a place; None if the base's files already have the names to write."""
    hub_name, direct = hub_naming(base.model), base.places.direct
    if hub_name is None or all(hub_name(place) == file_name for file_name, place in direct.items()):
        return None
    nowhere = [file_name for shard in base.shards for file_name in shard.tensors if file_name not in direct]
    if nowhere:
        raise UnsureError(f"{nowhere[0]} has no name in the hub's layout, and the base is in another")
    return hub_name
