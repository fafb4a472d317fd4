"""Names the tensors in checkpoint files by the layout of the hub, which serving engines read.

transformers 5 names a module by its place in the Python tree, and writes a checkpoint in the layout from which it was
*loaded*. A CLIP LLaVA that was built from its config then lacks the `vision_tower.vision_model.` level that vLLM,
llama.cpp and mlx-vlm expect. For the architectures in `HUB` the names are therefore written from this table, wherever
the base came from; other architectures keep the layout of their base. The table follows transformers'
`conversion_mapping` (read backwards) and vLLM's `hf_to_vllm_mapper`. Lists of the resulting names are in
tests/export/layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from mmdora.errors import MmdoraError


class Rule(NamedTuple):
    """Prefix of a place in the Python tree -> prefix in the file; with `towers`, only for these vision model types."""

    module: str
    file: str
    towers: tuple[str, ...] = ()


_LLAVA = (
    Rule("lm_head.", "language_model.lm_head."),
    Rule("model.language_model.", "language_model.model."),
    Rule("model.multi_modal_projector.", "multi_modal_projector."),
    # Names of CLIP and SigLIP towers have one level more in files than in the tree; those of other towers do not.
    Rule("model.vision_tower.", "vision_tower.vision_model.", towers=("clip_vision_model", "siglip_vision_model")),
    Rule("model.vision_tower.", "vision_tower."),
    Rule("model.image_newline", "image_newline"),
)
_QWEN = (
    Rule("lm_head.", "lm_head."),
    Rule("model.language_model.", "model."),
    Rule("model.visual.", "visual."),
)
HUB: dict[str, tuple[Rule, ...]] = {
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "Qwen2VLForConditionalGeneration": _QWEN,
    "Qwen2_5_VLForConditionalGeneration": _QWEN,
}


def save_checkpoint(model: PreTrainedModel, folder: Path, *, shard: str = "5GB") -> None:
    """Write config, generation config and weights (safetensors) in the hub's layout; tied tensors are written once."""
    config_dtype(model.config, model.dtype)
    if hub_naming(model) is None:
        model.save_pretrained(folder, max_shard_size=shard)
    else:
        model.save_pretrained(folder, state_dict=hub_state(model), save_original_format=False, max_shard_size=shard)


def hub_naming(model: PreTrainedModel) -> Callable[[str], str] | None:
    """A function that gives the hub's name of each tensor of this model: place in the tree -> name in the file.

    Returns:
        The function, which raises an MmdoraError for a place that the table does not cover (a tensor of an adapter).
        None for an architecture without a table, whose checkpoints keep the layout that transformers writes.
    """
    if type(model).__name__ not in HUB:
        return None
    rules, tower = HUB[type(model).__name__], model.config.vision_config.model_type

    def hub_name(place: str) -> str:
        for rule in rules:  # The first rule that matches decides.
            if place.startswith(rule.module) and (not rule.towers or tower in rule.towers):
                return rule.file + place.removeprefix(rule.module)
        raise MmdoraError(f"{place}: has no name in the hub's layout; if it belongs to an adapter, merge that first")

    return hub_name


def hub_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of `model` under the hub's names; of tied tensors only the source is included.

    Raises:
        MmdoraError: if the architecture has no table, or the table does not cover a tensor (of an adapted module).
    """
    hub_name = hub_naming(model)
    if hub_name is None:
        raise MmdoraError(f"{type(model).__name__}: the hub's names of its tensors are not known; see export/layout.py")
    tied: Mapping[str, str] = model.all_tied_weights_keys  # type: ignore[assignment] (a dict, typed as tensor)
    state = model.state_dict()
    return {
        hub_name(place): tensor
        for place, tensor in state.items()
        if not (place in tied and state[tied[place]].data_ptr() == tensor.data_ptr())
    }


class Conversion(NamedTuple):
    """How transformers computes a tensor from tensors of the files."""

    operations: list[Any]
    """In their order, of `transformers.core_model_loading`."""
    sources: list[list[str]]
    """For each pattern of its rule, in the rule's order, the names in the files, in the order they are taken in."""


class Places(NamedTuple):
    """The places in a model's tree to which transformers puts the tensors of files."""

    direct: dict[str, str]
    """Name in the files -> place in the tree, of tensors that are taken as they are."""
    converted: dict[str, Conversion]
    """Places of tensors that are computed from several tensors of the files, or from a part of one, such as fused
    experts and split projections."""
    ignored: list[str]
    """Names in the files that transformers ignores: relics such as position_ids, and heads that it does not build."""
    unknown: list[str]
    """Names in the files that have no place in the model, and about which transformers warns."""


def places(model: PreTrainedModel, file_names: Iterable[str]) -> Places:
    """The places to which `from_pretrained` puts tensors with these names; `model` may be on the meta device."""
    state: dict[str, Tensor] = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {source: rule for rule in converters for source in rule.source_patterns}
    relics = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    sorted_out = Places({}, {}, [], [])
    # These are the steps of convert_and_load_state_dict_in_model, in the same order of names, because some renamings
    # remember the names that they have seen.
    for name in sorted(file_names, key=dot_natural_key):
        place, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if place not in state and name in state:
            place, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if place not in state:
            is_relic = any(re.search(relic, place) for relic in relics)
            (sorted_out.ignored if is_relic else sorted_out.unknown).append(name)
        elif pattern is not None:
            rule = by_pattern[pattern]
            for target in rule.target_patterns:
                empty = Conversion(rule.operations, [[] for _ in rule.source_patterns])
                made = sorted_out.converted.setdefault(place.replace(rule.target_patterns[0], target), empty)
                made.sources[rule.source_patterns.index(pattern)].append(name)
        else:
            sorted_out.direct[name] = place
    return sorted_out


def config_dtype(config: Any, dtype: torch.dtype) -> None:
    """Set the dtype in a config and in the configs of its parts; transformers itself changes only the outermost."""
    config.dtype = dtype
    for part in getattr(config, "sub_configs", {}):
        if (own := getattr(config, part, None)) is not None:
            config_dtype(own, dtype)
