"""An adapter merged onto a checkpoint folder, tensor by tensor: no model is loaded, before or after."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmdora.adapt.plan import Entry, Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.adapter_files.tensors import KEYS, from_file
from mmdora.export.layout import HUB, config_dtype, hub_name
from mmdora.export.mapped import MappedCheckpoint
from mmdora.export.shards import FLOATS, UnsureError, write_index, write_shard
from mmdora.layers import wrapper
from mmdora.models.load import DTYPES
from mmdora.ops.merge import merged_rows, pieces
from mmdora.ops.reference import adapted_weight

STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


class DiskMerge:
    """What is to be written; nothing is yet.

    Args:
        base: checkpoint folder with safetensors.
        adapter: folder of an adapter, or None to write the base alone.
        dtype: "fp32", "bf16" or "fp16" for every floating tensor, as in the merge in memory.

    Raises:
        UnsureError: the base's tensors are not the model's one by one (see `MappedCheckpoint`), or the adapter changes
            one that transformers computes from others, or an embedding.
        MmdoraError: the adapter was trained on another base, or its files do not fit it.
    """

    def __init__(self, base: Path, adapter: Path | None, dtype: str):
        self.base, self.dtype = MappedCheckpoint(base), dtype
        self.plan: Plan | None = None
        self._adapter: dict[str, Tensor] = {}
        if adapter is not None:
            self.plan, self._adapter = read_adapter(self.base.model, adapter, lambda _: self.base.fingerprint())
        stored = {name: tensor for shard in self.base.shards for name, tensor in shard.tensors.items()}
        self.names = _hub_names(self.base)
        self.dtypes = {
            name: STORED[dtype] if tensor.dtype in FLOATS else tensor.dtype for name, tensor in stored.items()
        }
        self.merged: dict[str, Entry] = {}
        self.replaced: dict[str, Tensor] = {}
        self._touch()
        changed = {name for name, tensor in stored.items() if tensor.dtype != self.dtypes[name]}
        self._changed = changed | self.merged.keys() | self.replaced.keys()
        self._written = {
            shard.path.name: {
                self.names[name]: tensor.as_dtype(self.dtypes[name]) for name, tensor in shard.tensors.items()
            }
            for shard in self.base.shards
        }

    def __str__(self) -> str:
        count, files = len(self.base.tensors), len(self._written)
        copied = count - len(self._changed)
        kinds = {"merged": len(self.merged), "replaced": len(self.replaced), "copied": copied}
        kinds[f"converted to {self.dtype}"] = count - sum(kinds.values())
        parts = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        return f"{files} file{'s' if files > 1 else ''}, {count} tensors: {parts}"

    @property
    def size(self) -> int:
        """Bytes of the files to write, but for their headers."""
        return sum(tensor.size for shard in self._written.values() for tensor in shard.values())

    @property
    def elements(self) -> int:
        """Numbers in all tensors, each stored tensor counted once."""
        return sum(tensor.numel() for tensor in self.base.tensors.values())

    def write(self, folder: Path) -> None:
        """Write config, shards and index; generation config too if the base's folder has none to copy."""
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
                values = {name: self._values(name) for name in shard.tensors if name in self._changed}
                write_shard(shard, folder / shard.path.name, self.names, self.dtypes, values, bar.update)
        write_index(folder, self._written)

    @torch.no_grad()
    def expected(self, name: str, rows: Tensor) -> Tensor:
        """The rows of a tensor (by its name in the base's files) that the merged model has, in float64.

        Args:
            rows: indices in the first dimension.
        """
        if name in self.replaced:
            return torch.atleast_1d(self.replaced[name])[rows].double()
        weight = torch.atleast_1d(self.base.tensors[name])[rows].double()
        if name not in self.merged:
            return weight
        entry = self.merged[name]
        a, b, magnitude = factors(self.base.model, self._adapter, entry)
        a = None if a is None else a.double()
        b, magnitude = (None if tensor is None else tensor[rows].double() for tensor in (b, magnitude))
        return adapted_weight(weight.flatten(1), a, b, magnitude, entry.scaling).view(weight.shape)

    @torch.no_grad()
    def _values(self, name: str) -> Iterator[Tensor]:
        """The new values of a tensor in pieces of whole rows, in fp32 and then rounded once."""
        dtype = DTYPES[self.dtype]
        tensor = self.replaced.get(name, self.base.tensors[name])
        if name in self.merged:
            entry = self.merged[name]
            for piece in merged_rows(tensor.flatten(1), *factors(self.base.model, self._adapter, entry), entry.scaling):
                yield piece.to(dtype)
            return
        matrix = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, tensor.numel())
        for start, stop in pieces(*matrix.shape):
            yield matrix[start:stop].float().to(dtype)

    def _touch(self) -> None:
        if self.plan is None:
            return
        for entry in self.plan.entries:
            if entry.kind == "embedding":
                raise UnsureError(f"{entry.name} is an adapted embedding, whose norms run over all its rows")
            self.merged[self._file_name(entry.weight)] = entry
        buffers = [name for name, _ in self.base.model.named_buffers() if name in self._adapter]
        for name in [*self.plan.full, *buffers]:
            self.replaced[self._file_name(name)] = self._adapter[name]

    def _file_name(self, place: str) -> str:
        name = self.base.name_of(place)
        if name is None:
            raise UnsureError(f"{place} is computed from other tensors of the files, and the adapter changes it")
        return name


def factors(
    base: nn.Module, adapter: Mapping[str, Tensor], entry: Entry
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A [R, I], B [O, R] and m [O] of an entry of a plan, those that its method has; the file may hold more, for PEFT.

    Args:
        base: the untouched base, or a mapped one.
        adapter: tensors by name in the model, as `read_adapter` gives them.
    """
    if entry.kind in ("linear", "attention"):  # as they lie in the file, mapped; a module would hold them in memory
        a, b, magnitude = (adapter.get(f"{entry.name}.{key}") for key in KEYS.values())
        low_rank, scaled = entry.method != "magnitude", entry.method != "lora"
        return a if low_rank else None, b if low_rank else None, magnitude if scaled else None
    plain = base.get_submodule(entry.name)
    module = wrapper(plain, entry.rank)(plain, entry.method, rank=entry.rank, scaling=entry.scaling)
    from_file(module, adapter, f"{entry.name}.")
    if module.lora_A is None or module.lora_B is None:
        return None, None, module.magnitude
    return *module.factors(module.lora_A, module.lora_B), module.magnitude


def _hub_names(base: MappedCheckpoint) -> dict[str, str]:
    """Name in the base's files -> name to write: the hub's where `layout` has its table, else the same."""
    same = {name: name for shard in base.shards for name in shard.tensors}
    architecture = type(base.model).__name__
    if architecture not in HUB:
        return same
    rules, tower = HUB[architecture], base.model.config.vision_config.model_type
    new = {name: hub_name(place, rules, tower) for name, place in base.places.direct.items()}
    if new == {name: name for name in new}:
        return same
    if base.places.ignored:
        raise UnsureError(f"{base.places.ignored[0]} has no name in the hub's layout, and the base is in another")
    return new
