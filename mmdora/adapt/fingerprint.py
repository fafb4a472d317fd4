"""A base's fingerprint: names, shapes, and sampled values rounded to bf16.

The dtype of a copy does not change it, and tensors that are quantised in one of the two copies are not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

TENSORS = 96
VALUES = 8


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Fingerprint of an untouched base.

    Returns:
        structure: SHA-256 of the names and sizes of all modules with parameters;
        samples: parameter name -> bf16 values as hexadecimal digits, from tensors spread over the model;
        exact: whether values were held in a dtype that bf16 rounds without an intermediate step.
    """
    structure = hashlib.sha256()
    floating: dict[str, Tensor] = {}
    exact = True
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if isinstance(module, nn.Linear) and leaf == "weight":
                shape = (module.out_features, module.in_features)  # a quantised weight is packed
            structure.update(f"{path}.{leaf} {shape}\n".encode())
            if parameter.is_floating_point() and parameter.numel():
                floating[f"{path}.{leaf}" if path else leaf] = parameter
                exact &= parameter.dtype != torch.float16
    names = sorted(floating)
    step = max(1, len(names) / TENSORS)
    chosen = [names[int(index * step)] for index in range(min(TENSORS, len(names)))]
    return {
        "structure": structure.hexdigest(),
        "exact": exact,
        "samples": {name: _sample(floating[name].detach()) for name in chosen},
    }


def same_base(saved: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What differs between two fingerprints, or None."""
    if saved["structure"] != found["structure"]:
        return "its parameters have other names or shapes"
    slack = 0 if saved["exact"] and found["exact"] else 1
    shared = [name for name in saved["samples"] if name in found["samples"]]
    if not shared:
        return "no tensor is unquantised in both"
    for name in shared:
        ours, theirs = _steps(saved["samples"][name]), _steps(found["samples"][name])
        if len(ours) != len(theirs) or any(abs(a - b) > slack for a, b in zip(ours, theirs, strict=True)):
            return f"its {name} has other values"
    return None


def _sample(parameter: Tensor) -> str:
    flat = parameter.reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, VALUES, dtype=torch.float64).long().to(flat.device)
    bits = flat[index].to(torch.bfloat16).view(torch.int16).tolist()
    return "".join(f"{value & 0xFFFF:04x}" for value in bits)


def _steps(digits: str) -> list[int]:
    """Values as a count of bf16 steps from zero, so that neighbours differ by one."""
    bits = [int(digits[i : i + 4], 16) for i in range(0, len(digits), 4)]
    return [-(value & 0x7FFF) if value & 0x8000 else value for value in bits]
