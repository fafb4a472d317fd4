"""A checkpoint folder opened without loading it: a model whose parameters are the mapped files.

Reading such a parameter reads the file; the pages belong to the system's cache, so that the process itself needs
no memory for them, whatever the size of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from mmdora.adapt.fingerprint import fingerprint
from mmdora.dtypes import BYTES
from mmdora.export.layout import places
from mmdora.export.shards import UnsureError, read_shards


class MappedCheckpoint:
    """`folder` as transformers would load it.

    A tensor has a *file name*, under which the files hold it, and a *place*, its name in the tree of the model.

    Attributes:
        model: has the base's modules; its parameters are views of the files and must not be written to, but for
            those in `places.converted`, which are zeros without memory.
        shards: the files.
        places: file name -> place, and what has no place of its own.
        file_names: place -> file name.
        tensors: file name -> the tensor as it lies in the file, mapped.

    Raises:
        UnsureError: this is not one tensor of the files to one of the model: something is missing, unknown, converted
            where it should not be, stored twice, of another shape, quantised, or not in safetensors at all.
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
        if absent := sorted(shapes.keys() - self.file_names.keys() - self.places.converted - tied.keys()):
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
        """As `mmdora.adapt.fingerprint.fingerprint`, but converted tensors are not sampled."""
        whole = fingerprint(self.model)
        samples = {place: digits for place, digits in whole["samples"].items() if place not in self.places.converted}
        # These are the very values of the files, whatever their dtype.
        return {**whole, "samples": samples, "exact": True}

    def file_name(self, place: str) -> str | None:
        """The file name of the tensor at `place`, or of the one it is tied to; None if it is computed from others."""
        return self.file_names.get(self.model.all_tied_weights_keys.get(place, place))


def _skeleton(folder: Path) -> Any:
    """The model on the meta device: modules, names and shapes."""
    try:
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "quantization_config", None):
            raise UnsureError("the base is quantised")
        if getattr(config, "transformers_weights", None):
            raise UnsureError(f"the config names {config.transformers_weights} as the file of weights")
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UnsureError(" ".join(str(error).split())[:200]) from None


def _mapped(checkpoint: MappedCheckpoint) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in checkpoint.shards:
        try:
            tensors |= load_file(shard.path)  # maps the file; nothing is read
        except SafetensorError as error:
            raise UnsureError(f"{shard.path}: {error}") from None
    return tensors


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
