"""What a model says of its quantised linears, and how it gets rid of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmdora.adapt.modality import ModelParts
from mmdora.config import MODALITIES, Quantize
from mmdora.layers.dequantize import form_of
from mmdora.layers.quantized import dequantized


def quantized_by(model: nn.Module, parts: ModelParts) -> Quantize | None:
    """How the linears of a model, adapted or plain, are quantised, read off them; None if none is."""
    found = {name: module for name, module in model.named_modules() if form_of(module) is not None}
    if not found:
        return None
    weight: Any = next(iter(found.values())).weight
    form: Any = form_of(next(iter(found.values())))
    only: Any = tuple(m for m in MODALITIES if any(parts.of(name) == m for name in found))
    return Quantize(type=form, double=form != "int8" and bool(weight.compress_statistics), only=only or ("language",))


def dequantize_all(model: Any, dtype: torch.dtype | None = None) -> None:
    """Put plain linears with the dequantised weights in the places of all quantised ones, and forget that there were.

    Args:
        dtype: of these weights; None is the dtype before they were quantised.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and form_of(module) is not None:
            model.set_submodule(name, dequantized(module, dtype))
    if quantizer := getattr(model, "hf_quantizer", None):
        quantizer.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(flag, None)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
