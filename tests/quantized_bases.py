"""Quantised linears of bitsandbytes, and bundled bases that are quantised while they are loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

bnb = pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")

FORMS: dict[str, Any] = {
    "nf4": {"quant_type": "nf4", "compress_statistics": True},
    "nf4-single": {"quant_type": "nf4", "compress_statistics": False},
    "fp4": {"quant_type": "fp4", "compress_statistics": True},
    "int8": None,
}


def quantized(form: str, columns: int = 48, rows: int = 96, dtype: torch.dtype = torch.float32) -> Any:
    """A linear [rows, columns] of bitsandbytes with random values."""
    torch.manual_seed(0)
    plain = nn.Linear(columns, rows, dtype=dtype)
    if FORMS[form] is None:
        packed = bnb.nn.Linear8bitLt(columns, rows, has_fp16_weights=False)
    else:
        packed = bnb.nn.Linear4bit(columns, rows, compute_dtype=dtype, **FORMS[form])
    packed.to(dtype).load_state_dict(plain.state_dict())
    return packed.to("cpu")


def values(module: Any) -> torch.Tensor:
    """The weight that a quantised linear computes with, by the library's own function for the whole of it."""
    if isinstance(module, bnb.nn.Linear8bitLt):
        scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, scales)
    return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
