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
from mmdora.export.layout import places
from mmdora.export.shards import BYTES, UnsureError, read_shards


class MappedCheckpoint:
    """`folder` as transformers would load it.

    `model` has the base's modules; its parameters are views of the files and must not be written to, but for
    those in `places.converted`, which are zeros without memory. `tensors` are the files' own, by their names there.

    Raises:
        UnsureError: this is not one tensor of the files to one of the model: something is missing, unknown, converted
            where it should not be, stored twice, of another shape, quantised, or not in safetensors at all.
    """

    def __init__(self, folder: Path):
        self.shards = read_shards(folder)
        stored = {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}
        self.model = _skeleton(folder)
        self.places = places(self.model, stored)
        self.names = {place: name for name, place in self.places.direct.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        if odd := next((name for name, tensor in stored.items() if tensor.dtype not in BYTES), None):
            raise UnsureError(f"{odd} is stored as {stored[odd].dtype}")
        if self.places.unknown:
            raise UnsureError(f"{type(self.model).__name__} has no place for {_some(self.places.unknown)}")
        if twice := [name for name, place in self.places.direct.items() if self.names[place] != name]:
            raise UnsureError(f"{twice[0]} and {self.names[self.places.direct[twice[0]]]} are one tensor of the model")
        tied: dict[str, str] = self.model.all_tied_weights_keys
        if both := [name for name in tied if name in self.names]:
            raise UnsureError(f"{both[0]} is tied to {tied[both[0]]} and is stored under its own name")
        if absent := sorted(shapes.keys() - self.names.keys() - self.places.converted - tied.keys()):
            raise UnsureError(f"no file holds {_some(absent)}")
        if other := [name for name, place in self.places.direct.items() if stored[name].shape != shapes[place]]:
            wanted = shapes[self.places.direct[other[0]]]
            raise UnsureError(f"{other[0]} is {stored[other[0]].shape}, and the model's is {wanted}")
        self.tensors = _mapped(self)
        mapped = {place: self.tensors[name] for place, name in self.names.items()}
        self.model.load_state_dict(mapped, strict=False, assign=True)
        for name in self.places.converted:
            module, _, leaf = name.rpartition(".")
            zero = torch.zeros(()).expand(shapes[name])
            setattr(self.model.get_submodule(module), leaf, torch.nn.Parameter(zero, requires_grad=False))
        self.model.tie_weights()

    def fingerprint(self) -> dict[str, Any]:
        """As `mmdora.adapt.fingerprint.fingerprint`, but converted tensors are not sampled."""
        found = fingerprint(self.model)
        samples = {name: digits for name, digits in found["samples"].items() if name not in self.places.converted}
        # These are the very values of the files, whatever their dtype.
        return {**found, "samples": samples, "exact": True}

    def name_of(self, place: str) -> str | None:
        """The name in the files of the model's tensor called `place`, or of the one it is tied to."""
        return self.names.get(self.model.all_tied_weights_keys.get(place, place))


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
    found = {}
    for shard in checkpoint.shards:
        try:
            found |= load_file(shard.path)  # maps the file; nothing is read
        except SafetensorError as error:
            raise UnsureError(f"{shard.path}: {error}") from None
    return found


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
