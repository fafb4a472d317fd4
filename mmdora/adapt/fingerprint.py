"""A base's fingerprint: names and shapes of its parameters, and some of their values, rounded to bf16.

Copies of a base in different dtypes have the same fingerprint. Tensors that are quantised in one of two copies are not
compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED_TENSORS = 96
"""How many tensors are sampled, spread evenly over the sorted names: enough that each block of a 7B model has some."""
VALUES_PER_TENSOR = 8
"""How many values of each are kept. All samples together are 3 kB of JSON and take milliseconds to read."""


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
                # A quantised weight is packed into another shape; this is the one it stands for.
                shape = (module.out_features, module.in_features)
            structure.update(f"{path}.{leaf} {shape}\n".encode())
            if parameter.is_floating_point() and parameter.numel():
                floating[f"{path}.{leaf}" if path else leaf] = parameter
                exact &= parameter.dtype != torch.float16
    names = sorted(floating)
    step = max(1, len(names) / SAMPLED_TENSORS)
    chosen = [names[int(index * step)] for index in range(min(SAMPLED_TENSORS, len(names)))]
    return {
        "structure": structure.hexdigest(),
        "exact": exact,
        "samples": {name: _sample(floating[name].detach()) for name in chosen},
    }


def same_base(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str | None:
    """What differs between an adapter's fingerprint and that of the base at hand; None if nothing does."""
    if saved["structure"] != present["structure"]:
        return "its parameters have other names or shapes"
    # fp16 rounds to another grid than bf16, so a value may come out one bf16 step away.
    slack = 0 if saved["exact"] and present["exact"] else 1
    shared = [name for name in saved["samples"] if name in present["samples"]]
    if not shared:
        return "no tensor is unquantised in both"
    for name in shared:
        ours, theirs = _steps(saved["samples"][name]), _steps(present["samples"][name])
        if len(ours) != len(theirs) or any(abs(a - b) > slack for a, b in zip(ours, theirs, strict=True)):
            return f"its {name} has other values"
    return None


def _sample(parameter: Tensor) -> str:
    flat = parameter.reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, VALUES_PER_TENSOR, dtype=torch.float64).long().to(flat.device)
    bits = flat[index].to(torch.bfloat16).view(torch.int16).tolist()
    return "".join(f"{value & 0xFFFF:04x}" for value in bits)


def _steps(digits: str) -> list[int]:
    """Each value as its number of bf16 steps from zero, so that two neighbours differ by one."""
    bits = [int(digits[i : i + 4], 16) for i in range(0, len(digits), 4)]
    return [-(value & 0x7FFF) if value & 0x8000 else value for value in bits]
