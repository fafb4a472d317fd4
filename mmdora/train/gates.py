"""Gates in training: the L1 term that closes them, and the file by which a resume has them to the bit.

The term is l1 |g|, added to the loss by its proximal operator: after each optimizer step every gate moves towards zero
by learning rate x l1, and stops there (soft thresholding). So it does not pass through Adam's moments, which would
divide it by the size of the gradient, and a gate reaches exactly zero. It may open again if its gradient says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmdora.adapt.switch import adapted_modules
from mmdora.adapter_files.adapters import restore_adapter
from mmdora.errors import MmdoraError

GATES = "gates.safetensors"
"""The gates of a checkpoint and the A that they scale, which its adapter holds as one product."""
KIND = "gate"


@torch.no_grad()
def shrink(optimizer: Any, l1: float) -> None:
    """Move every gate towards zero by its learning rate x `l1`, at most to zero."""
    for group in optimizer.param_groups:
        if group.get("name", "").endswith(f"/{KIND}"):
            for gate in group["params"]:
                gate.copy_(nn.functional.softshrink(gate, group["lr"] * l1))


def write_gates(model: nn.Module, folder: Path) -> None:
    """Write the gates of a model beside its adapter; no file if it has none."""
    if tensors := dict(_of(model)):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / GATES)


def restore(model: nn.Module, folder: Path) -> None:
    """Put the adapter of a checkpoint back into a model that is adapted by its plan, and its gates.

    Raises:
        MmdoraError: something does not fit.
    """
    restore_adapter(model, folder)
    if not (tensors := dict(_of(model))):
        return
    if not (folder / GATES).is_file():
        raise MmdoraError(f"{folder}: has no {GATES}, and adapt.gates is set; undo the change of adapt")
    stored = load_file(folder / GATES)
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: own.shape for name, own in stored.items()}:
        raise MmdoraError(f"{folder / GATES}: its gates are of other modules or ranks; undo the change of adapt")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def _of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in adapted_modules(model).items():
        if module.gate is not None and module.lora_A is not None:
            yield f"{name}.gate", module.gate
            yield f"{name}.lora_A", module.lora_A
