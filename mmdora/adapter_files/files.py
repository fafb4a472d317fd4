"""The files of an adapter: their names, the names of tensors in them, and how they are read if they may be damaged."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.names import without_adapter_name
from mmdora.config import ImageTokens, Quantize
from mmdora.errors import MmdoraError
from mmdora.files import checksum_holds, digest_of, read_json, sha256, with_checksum, write_json
from mmdora.outputs.folder import check_finished
from mmdora.version import __version__

WEIGHTS, CONFIG, OURS = "adapter_model.safetensors", "adapter_config.json", "mmdora.json"
PICKLE = "adapter_model.bin"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Dtypes that only buffers have, such as the counters of a module that was trained in full."""
PREFIX = "base_model.model."
FREE = ("base",)
"""Keys of `mmdora.json` that a user may edit. A base may be moved; the fingerprint tells whether it is the same."""
BASE = "base_layer"
"""The name under which PEFT puts what an adapted module held before: its bias, or the `out_proj` of an attention."""
KEPT = re.compile(rf"\.{BASE}\.(weight$|lora_)")
"""Matches the names of tensors that keep this level when they are read."""


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter; their names are those in the model, without PEFT's prefix.

    Raises:
        MmdoraError: there are no tensors, they cannot be read, are not finite, or do not belong to an adapter.
    """
    path = folder / WEIGHTS
    refuse_pickle(folder)
    if not path.is_file():
        raise MmdoraError(f"{folder}: no adapter here ({WEIGHTS} is missing)")
    try:
        tensors = load_file(path)
    except Exception as error:  # The several classes of errors in safetensors have no base class in common.
        raise MmdoraError(f"{path}: not a readable safetensors file ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in (*FLOATS, *INTEGERS):
            raise MmdoraError(
                f"{path}: {name} is {dtype_name(tensor.dtype)}; an adapter's tensors are "
                f"{', '.join(map(dtype_name, FLOATS))}"
            )
    if bad := [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
        raise MmdoraError(
            f"{path}: {bad[0]} is not finite in fp32 ({len(bad)} of {len(tensors)} tensors); take the file from a "
            "copy, or train it again"
        )
    if odd := [name for name in tensors if not name.startswith(PREFIX)]:
        raise MmdoraError(f"{path}: not an adapter of PEFT: {odd[0]} does not start with {PREFIX}")
    return {_own_name(name): tensor for name, tensor in without_adapter_name(tensors, path).items()}


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as people write it: "float32"."""
    return str(dtype).removeprefix("torch.")


def _own_name(name: str) -> str:
    name = name.removeprefix(PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    # The weight of an embedding is a copy that PEFT adds; `peft_plan` looks for it under this name. Of experts with
    # several adapted parameters, this level tells which one a tensor belongs to.
    return name if KEPT.search(name) else name.replace(f".{BASE}.", ".")


def pefts_name(name: str, adapted: set[str]) -> str:
    """The name that PEFT gives a tensor in its files, without the prefix, if the modules in `adapted` are adapted."""
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


def adapter_folder(name: str | Path) -> Path | None:
    """The folder of the adapter: `name` itself, or a folder in it if `name` is a run; None if there is no adapter.

    Raises:
        MmdoraError: if the adapter is a pickle, or `name` is a folder that is not finished.
    """
    check_finished(Path(name))
    for folder in (Path(name), Path(name) / "adapter"):
        try:
            if (folder / WEIGHTS).is_file():
                return folder
        except (OSError, ValueError):  # The name cannot be a path: it is too long, or contains a NUL.
            return None
        refuse_pickle(folder)
    return None


def own_facts(folder: Path) -> dict[str, Any]:
    """Read `mmdora.json`; the value of "plan" is a `Plan`.

    Raises:
        MmdoraError: it is missing, damaged, or of a newer mmdora.
    """
    path = folder / OURS
    values = read_config(path)
    if values.get("format") != 1:
        raise MmdoraError(f"{path}: written by a newer mmdora ({values.get('mmdora')}); update mmdora")
    try:
        plan = Plan.from_dict(values["plan"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MmdoraError(f"{path}: damaged ({type(error).__name__}: {error!s:.200}); save the adapter again") from None
    if not checksum_holds(values, FREE):
        raise MmdoraError(
            f"{path}: damaged: its content is not what was written; take it from a copy, or save the adapter again"
        )
    return {**values, "plan": plan}


def write_facts(
    folder: Path,
    plan: Plan,
    *,
    base: str | None,
    image_tokens: ImageTokens | None = None,
    template: str | None = None,
    quantize: Quantize | None = None,
) -> None:
    """Write `mmdora.json` beside the other files of an adapter, which must be complete: it holds their checksums, by
    which it is seen when a kill came between two of them.

    Args:
        base: name or folder of the base.
        image_tokens: the budget of tokens per picture of the training, if it had one.
        template: the chat template of the training, if it was not the base's own.
        quantize: how the base was quantised in training, if it was.
    """
    budget = {} if image_tokens is None or image_tokens == ImageTokens() else {"image_tokens": asdict(image_tokens)}
    asked = {} if template is None else {"chat_template": template}
    packed = {} if quantize is None else {"quantize": asdict(quantize)}
    facts = {"format": 1, "mmdora": __version__, "base": base, **budget, **asked, **packed}
    facts |= {"why": plan.reasons(), "plan": plan.to_dict()}
    write_json(folder / OURS, with_checksum({**facts, "files": checksums(folder)}, FREE))


def own_plan(folder: Path) -> Plan:
    """Read the plan in `mmdora.json`; raises the errors of `own_facts`."""
    return own_facts(folder)["plan"]


def checksums(folder: Path) -> dict[str, str]:
    """Name of each file beside `mmdora.json` -> its SHA-256; that of PEFT's config is taken of the values in it.

    The name of the base is left out, as a base may be moved; its fingerprint tells whether it is the right one.
    """
    digests = {WEIGHTS: sha256(folder / WEIGHTS)}
    if (folder / CONFIG).exists():
        digests[CONFIG] = digest_of(read_config(folder / CONFIG), ("base_model_name_or_path",))
    return digests


def changed_files(folder: Path) -> str | None:
    """Say how the files beside `mmdora.json` differ from those it was written with; None if they do not.

    Adapters that hold no checksums (PEFT's, and those of mmdora before 0.2) have nothing to compare.
    """
    if not (folder / OURS).exists() or (kept := own_facts(folder).get("files")) is None:
        return None
    current = checksums(folder)
    changed = [name for name in (WEIGHTS, CONFIG) if current.get(name) != kept.get(name)]
    if not changed:
        return None
    return (
        f"{' and '.join(changed)} changed after {OURS} was written: damaged, or another program saved here. Take the "
        f"folder from a copy; if PEFT saved it and that is what you mean, delete {OURS}, and it is read as PEFT's"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read one of the JSON files of an adapter.

    Raises:
        MmdoraError: it is missing or damaged.
    """
    if not path.exists():
        raise MmdoraError(f"{path.parent}: no adapter here ({path.name} is missing)")
    return read_json(path, "adapter's file")
