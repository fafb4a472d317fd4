"""The names of dtypes, in one table: ours, torch's, safetensors' and those in the configs of transformers."""

from __future__ import annotations

from typing import Literal

import torch

DtypeName = Literal["fp32", "bf16", "fp16"]
"""A floating dtype of weights as users write it. `mmdora.config`, which must not import torch, spells it out."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Our name -> torch's dtype. `DTYPES[name].itemsize` is the number of bytes of one element."""

STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""Our name -> the name in the header of a safetensors file."""
FLOATS = frozenset(STORED.values())
"""The safetensors names of the dtypes that a merge may change."""
BYTES = {STORED[name]: dtype.itemsize for name, dtype in DTYPES.items()} | {
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element, by safetensors' names: every dtype that can be merged from disk."""

_IN_CONFIGS: dict[str, DtypeName] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def dtype_in_config(text: str | None) -> DtypeName:
    """Our name for the value of `dtype` in a config.json; like transformers, a missing or unknown value is fp32."""
    return _IN_CONFIGS.get(text or "", "fp32")
