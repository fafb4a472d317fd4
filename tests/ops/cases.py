"""Adapted linears of every method, computed by the fused function and by the dense equations in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdora.ops import reference
from mmdora.ops.linear import adapted_linear, scale
from mmdora.ops.norm import row_norm, squared_norm


def case(method, bias, *, dtype=torch.float32, base=None, rows=40, columns=24, rank=4) -> dict[str, Any]:
    torch.manual_seed(1)
    tensors = {
        "x": torch.randn(5, 3, columns, dtype=dtype).requires_grad_(),
        "weight": torch.randn(rows, columns, dtype=dtype).to(base or dtype),
        "bias": torch.randn(rows, dtype=dtype).to(base or dtype) if bias else None,
        "lora_A": None,
        "lora_B": None,
        "magnitude": None,
    }
    if method != "magnitude":
        tensors["lora_A"] = (torch.randn(rank, columns, dtype=dtype) * 0.3).requires_grad_()
        tensors["lora_B"] = (torch.randn(rows, rank, dtype=dtype) * 0.3).requires_grad_()
    if method != "lora":
        tensors["magnitude"] = (3 + torch.rand(rows, dtype=dtype)).requires_grad_()
    return tensors


def fused(t, scaling=2.0, keep=None, exact=True, p=0.0, as_torch=False) -> Tensor:
    scaled = None
    if t["magnitude"] is not None:
        base = squared_norm(t["weight"])
        norm = base.sqrt()
        if t["lora_A"] is not None:
            norm = row_norm(t["weight"], t["lora_A"], t["lora_B"], scaling, base, exact=exact)
        scaled = scale(t["magnitude"], norm, keep=keep)
    return adapted_linear(
        t["x"], t["weight"], t["bias"], t["lora_A"], t["lora_B"], scaling, t["magnitude"], scaled, p, as_torch
    )


def dense(t):
    return reference.adapted_linear(
        t["x"], t["weight"], t["bias"], t["lora_A"], t["lora_B"], t["magnitude"], scaling=2.0
    )


def in_float64(t) -> dict[str, Any]:
    return {k: None if v is None else v.detach().double().requires_grad_(v.requires_grad) for k, v in t.items()}


def max_rel(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def both(t, bound, keep=None):
    """Assert that outputs and all gradients agree up to `bound`."""
    exact = in_float64(t)
    expected = dense(exact)
    found = fused(t, keep=keep)
    torch.manual_seed(2)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient.double())
    assert max_rel(found, expected) <= bound
    for name in ("x", "lora_A", "lora_B", "magnitude"):
        if t[name] is not None:
            assert max_rel(t[name].grad, exact[name].grad) <= bound, name
