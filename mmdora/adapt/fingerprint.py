"""A base's fingerprint: names, shapes, and the values of every tensor, rounded to bf16.

Every value of every floating tensor is read once: a digest of each tensor names the one that differs, in memory and on
disk alike. Nothing is cached: a file's size and time of change stay the same when a copy of another content is put in
its place (`cp -p`, `rsync -t`), so they cannot stand for its content. Values are rounded to bf16 so that the dtype of a
copy does not matter, and what is smaller than that rounding is not seen. Values that went through fp16 may be off by
one step of bf16, so there only the sampled values of each tensor are compared, with that slack. Tensors that are
quantised in one of the two copies are not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

VALUES_PER_TENSOR = 8
"""Number of values of each tensor that a fingerprint holds themselves, so that values that were only rounded in
another dtype can be compared with some tolerance, which a digest does not allow."""
PIECE = 2**22
"""Values that are rounded at a time, so that a digest takes little memory beside the tensor."""
DIGITS = 16
"""Hexadecimal digits of a digest that are kept; 64 bits tell accidents apart."""


def fingerprint(model: nn.Module, without: Container[str] = ()) -> dict[str, Any]:
    """Fingerprint of an untouched base.

    Args:
        without: names of parameters whose values are not known yet; they count by name and shape alone.

    Returns:
        structure: SHA-256 of the names and sizes of all modules with parameters;
        samples: parameter name -> 8 values spread over it, in bf16, as hexadecimal digits;
        digests: parameter name -> the first 16 digits of the SHA-256 of all its values in bf16. A parameter that is
            one expanded number, as in a skeleton, has none;
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
                shape = (int(module.out_features), int(module.in_features))
            structure.update(f"{path}.{leaf} {shape}\n".encode())
            name = f"{path}.{leaf}" if path else leaf
            if parameter.is_floating_point() and parameter.numel() and name not in without:
                floating[name] = parameter.detach()
                exact &= parameter.dtype != torch.float16
    held = {name: tensor for name, tensor in floating.items() if tensor.numel() == 1 or any(tensor.stride())}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = dict(zip(held, pool.map(_digest, held.values()), strict=True))
    return {
        "structure": structure.hexdigest(),
        "exact": exact,
        "samples": {name: _sample(floating[name]) for name in sorted(floating)},
        "digests": {name: digests[name] for name in sorted(digests)},
    }


def same_base(saved: Mapping[str, Any], present: Mapping[str, Any]) -> str | None:
    """Say what differs between two fingerprints; None if they are of the same base.

    Fingerprints that mmdora before 0.2 wrote hold samples of only 96 tensors.
    """
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
    if not slack:
        ours, theirs = saved.get("digests", {}), present.get("digests", {})
        for name in ours:
            if name in theirs and ours[name] != theirs[name]:
                return f"its {name} has other values"
    return None


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for piece in tensor.reshape(-1).split(PIECE):
        digest.update(piece.to(torch.bfloat16).view(torch.int16).cpu().contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def _sample(parameter: Tensor) -> str:
    flat = parameter.reshape(-1)
    index = torch.linspace(0, flat.numel() - 1, VALUES_PER_TENSOR, dtype=torch.float64).long().to(flat.device)
    bits = flat[index].to(torch.bfloat16).view(torch.int16).tolist()
    return "".join(f"{value & 0xFFFF:04x}" for value in bits)


def _steps(digits: str) -> list[int]:
    """Each value as its number of bf16 steps from zero, so that two neighbours differ by one."""
    bits = [int(digits[i : i + 4], 16) for i in range(0, len(digits), 4)]
    return [-(value & 0x7FFF) if value & 0x8000 else value for value in bits]
