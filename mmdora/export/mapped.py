"""Opens a checkpoint folder without loading it: the parameters of the model are the memory-mapped files.

Reading such a parameter reads the file. The pages belong to the cache of the operating system, so the process itself
needs no memory for them, however large the model is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from mmdora.adapt.fingerprint import fingerprint
from mmdora.export.layout import places
from mmdora.export.shards import UnsureError, read_shards
from mmdora.models.base import model_class
from mmdora.models.dtypes import BYTES


class MappedCheckpoint:
    """The model in `folder`, as transformers would load it.

    A tensor has a *file name*, its name in the files, and a *place*, its name in the model's tree of modules.

    Attributes:
        model: the base's modules. The parameters are views of the files and must not be written to. Those in
            `places.converted` are zeros without memory instead.
        shards: the files.
        places: the place of each file name, and the tensors that have no place of their own.
        file_names: place -> file name.
        tensors: file name -> tensor as it lies in the file, memory-mapped.

    Raises:
        UnsureError: if the tensors in the files are not, one by one, those of the model: a tensor is missing, unknown,
            stored twice or of another shape, or the base is quantised or not in safetensors.
    """

    def __init__(self, folder: Path):
        self.shards = read_shards(folder)
        stored = {name: kept for shard in self.shards for name, kept in shard.tensors.items()}
        self.model = _skeleton(folder)
        self.places = places(self.model, stored)
        self.file_names = {place: name for name, place in self.places.direct.items()}
        shapes = {place: tuple(tensor.shape) for place, tensor in self.model.state_dict().items()}
        if odd := next((name for name, kept in stored.items() if kept.dtype not in BYTES), None):
            raise UnsureError(f"{odd} is stored as {stored[odd].dtype}")
        if self.places.unknown:
            raise UnsureError(f"{type(self.model).__name__} has no place for {_some(self.places.unknown)}")
        if twice := [name for name, place in self.places.direct.items() if self.file_names[place] != name]:
            raise UnsureError(
                f"{twice[0]} and {self.file_names[self.places.direct[twice[0]]]} are one tensor of the model"
            )
        tied: dict[str, str] = self.model.all_tied_weights_keys
        if both := [place for place in tied if place in self.file_names]:
            raise UnsureError(f"{both[0]} is tied to {tied[both[0]]} and is stored under its own name")
        if absent := sorted(shapes.keys() - self.file_names.keys() - self.places.converted.keys() - tied.keys()):
            raise UnsureError(f"no file holds {_some(absent)}")
        if other := [name for name, place in self.places.direct.items() if stored[name].shape != shapes[place]]:
            wanted = shapes[self.places.direct[other[0]]]
            raise UnsureError(f"{other[0]} is {stored[other[0]].shape}, and the model's is {wanted}")
        self.tensors = _mapped(self)
        mapped = {place: self.tensors[name] for place, name in self.file_names.items()}
        self.model.load_state_dict(mapped, strict=False, assign=True)
        for place in self.places.converted:
            module, _, leaf = place.rpartition(".")
            zero = torch.zeros(()).expand(shapes[place])
            setattr(self.model.get_submodule(module), leaf, torch.nn.Parameter(zero, requires_grad=False))
        self.model.tie_weights()

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the model (`mmdora.adapt.fingerprint`), without the values of converted tensors."""
        # It is exact, because the values are those of the files, without a change of dtype.
        return {**fingerprint(self.model, self.places.converted), "exact": True}

    def file_name(self, place: str) -> str | None:
        """The file name of the tensor at `place`, or of the one it is tied to; None if it is computed from others."""
        return self.file_names.get(self.model.all_tied_weights_keys.get(place, place))


def _skeleton(folder: Path) -> Any:
    """The model on the meta device, which has modules, names and shapes, but no values."""
    try:
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "quantization_config", None):
            raise UnsureError("the base is quantised")
        if getattr(config, "transformers_weights", None):
            raise UnsureError(f"the config names {config.transformers_weights} as the file of weights")
        with torch.device("meta"):
            return model_class(config).from_config(config).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UnsureError(" ".join(str(error).split())[:200]) from None


def _mapped(checkpoint: MappedCheckpoint) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in checkpoint.shards:
        try:
            tensors |= load_file(shard.path)  # This maps the file into memory; its data are not read yet.
        except SafetensorError as error:
            raise UnsureError(f"{shard.path}: {error}") from None
    return tensors


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
