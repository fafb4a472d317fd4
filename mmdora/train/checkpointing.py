"""Activations that are computed again in backward instead of kept: of the whole model, or of some modalities."""

from __future__ import annotations

from typing import Any

from mmdora.adapt.modality import ModelParts
from mmdora.errors import MmdoraError

FLAG = "gradient_checkpointing"
"""The attribute by which transformers turns a layer's checkpointing on."""


def checkpoint_activations(model: Any, what: bool | tuple[str, ...], parts: ModelParts) -> None:
    """Turn activation checkpointing on, by transformers' own layers.

    Args:
        what: True for all layers that can, or the modalities whose layers shall.

    Raises:
        MmdoraError: if a modality has no such layer.
    """
    # transformers renamed this method in 5.23 and warns if the old name is used.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if what is True or not what:
        return
    layers = {
        name: module for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)
    }
    there = {parts.of(name) for name in layers}
    if missing := [modality for modality in what if modality not in there]:
        able = ", ".join(sorted(filter(None, there))) or "none"
        raise MmdoraError(
            f"training.gradient_checkpointing: {missing[0]} has no layers that can compute activations again; "
            f"these parts have: {able}"
        )
    for name, module in layers.items():
        setattr(module, FLAG, parts.of(name) in what)
