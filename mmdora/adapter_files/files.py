"""The files of an adapter: their names, PEFT's names of tensors, reading what may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mmdora.adapt.plan import Plan
from mmdora.errors import MmdoraError
from mmdora.files import read_json

WEIGHTS, CONFIG, OURS = "adapter_model.safetensors", "adapter_config.json", "mmdora.json"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
BASE = "base_layer"
"""PEFT moves what an adapted module held before under this name: its bias, the `out_proj` of an attention."""


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors by their name in the model, PEFT's prefix taken off.

    Raises:
        MmdoraError: there are none, they cannot be read, are not finite, or are not an adapter's.
    """
    path = folder / WEIGHTS
    refuse_pickle(folder)
    if not path.is_file():
        raise MmdoraError(f"{folder}: no adapter here ({WEIGHTS} is missing)")
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors has several classes of errors, without a common base
        raise MmdoraError(f"{path}: not a readable safetensors file ({error})") from None
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise MmdoraError(f"{path}: {bad[0]} is not finite ({len(bad)} of {len(tensors)} tensors); train it again")
    if odd := [name for name in tensors if not name.startswith(PREFIX)]:
        raise MmdoraError(f"{path}: not an adapter of PEFT: {odd[0]} does not start with {PREFIX}")
    return {_own_name(name): tensor for name, tensor in tensors.items()}


def _own_name(name: str) -> str:
    name = name.removeprefix(PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    # The weight of an embedding is a copy that PEFT adds; `peft_config` looks for it under this name.
    return name if name.endswith(f".{BASE}.weight") else name.replace(f".{BASE}.", ".")


def pefts_name(name: str, adapted: set[str]) -> str:
    """A tensor's name in PEFT's files, without its prefix, where these modules are adapted."""
    parts = name.split(".")
    spelled = parts[:1]
    for index, part in enumerate(parts[1:], 1):
        spelled += [BASE, part] if ".".join(parts[:index]) in adapted and not part.startswith("lora_") else [part]
    return ".".join(spelled)


def refuse_pickle(folder: Path) -> None:
    """Raise if the adapter in `folder` is a pickle alone."""
    if (folder / PICKLE).exists() and not (folder / WEIGHTS).exists():
        raise MmdoraError(
            f"{folder}: {PICKLE} is a pickle, which can run code when read; "
            "load it with peft where you trust it and save it again with save_pretrained, which writes safetensors"
        )


def own_plan(folder: Path) -> Plan:
    """The plan in `mmdora.json`.

    Raises:
        MmdoraError: it is missing, damaged, or of a newer mmdora.
    """
    path = folder / OURS
    values = read_config(path)
    if values.get("format") != 1:
        raise MmdoraError(f"{path}: written by a newer mmdora ({values.get('mmdora')}); update mmdora")
    try:
        return Plan.from_dict(values["plan"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MmdoraError(f"{path}: damaged ({type(error).__name__}: {error!s:.200}); save the adapter again") from None


def read_config(path: Path) -> dict[str, Any]:
    """One of the adapter's JSON files.

    Raises:
        MmdoraError: it is missing or damaged.
    """
    if not path.exists():
        raise MmdoraError(f"{path.parent}: no adapter here ({path.name} is missing)")
    return read_json(path, "adapter's file")
