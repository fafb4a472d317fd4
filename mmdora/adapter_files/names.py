"""Renames the tensors of adapters that a live PEFT model or an older transformers named differently than today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from mmdora.errors import MmdoraError
from mmdora.layers import WEIGHTS

NAMED = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save)\.([^.]+)(?=\.|$)"
)
"""Matches the place in a name where the state dict of a live PEFT model has the name of the adapter, as in
`lora_A.default.weight`."""
LOW_RANK = re.compile(
    r"(.+?)(?:\.base_layer)*\.((?:lora_A|lora_B)\.weight|lora_embedding_[AB]|lora_magnitude_vector|base_layer\.weight)"
)


def without_adapter_name(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take the name of the adapter out of the names of tensors: `state_dict()` keeps it, `save_pretrained` does not.

    Args:
        path: path of the file, for the message.

    Raises:
        MmdoraError: the file holds several adapters.
    """
    renamed: dict[str, Tensor] = {}
    adapters: set[str] = set()
    for name, tensor in tensors.items():
        match = NAMED.search(name)
        if match is None or match[2] == "weight":
            renamed[name] = tensor
            continue
        adapters.add(match[2])
        kept = "" if match[1] == "modules_to_save" else f".{match[1]}"
        renamed[name[: match.start()] + kept + name[match.end() :]] = tensor
    if len(adapters) > 1:
        raise MmdoraError(
            f"{path}: holds {len(adapters)} adapters ({', '.join(sorted(adapters))}); save the one you mean alone"
        )
    return renamed


def todays_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename tensors to the names that this version of transformers gives the modules.

    Older versions had `language_model.model.layers` where there is `model.language_model.layers` now. transformers
    knows the renamings of its own checkpoints, and the base's names in an adapter follow the same rules. A name that
    they do not explain stays as it is.

    Args:
        model: the untouched base, or its skeleton.
        tensors: by name in the file.

    Returns:
        The tensors, and today's name of a module or parameter -> its name in the file, of those that differ.
    """
    state = model.state_dict()
    known = {name for name, _ in model.named_modules()} | state.keys()
    older = [name for name in tensors if _place(name) not in known and _place(name).rpartition(".")[0] not in known]
    if not older or not hasattr(model, "base_model_prefix"):
        return dict(tensors), {}
    today = _renamed(model, sorted({_place(name) for name in older}, key=dot_natural_key), state)
    renamed, before = {}, {}
    for name, tensor in tensors.items():
        place = _place(name)
        if place in today:
            before[today[place]] = place
        renamed[today.get(place, place) + name[len(place) :]] = tensor
    return renamed, before


def _place(name: str) -> str:
    """The module that a low-rank tensor belongs to, or the parameter that a tensor replaces."""
    match = LOW_RANK.fullmatch(name)
    return match[1] if match else name


def _renamed(model: Any, names: list[str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of a module or parameter in an older file -> its name today, as far as the rules of transformers tell."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    todays = {}
    for name in names:
        for suffix in ("", *(f".{leaf}" for leaf in sorted(WEIGHTS, reverse=True))):
            place, pattern = rename_source_key(
                name + suffix, renamings, converters, model.base_model_prefix, dict(state)
            )
            if place in state and pattern is None:
                todays[name] = place.removesuffix(suffix)
                break
    return todays
