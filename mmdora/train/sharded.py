"""Puts tensors that are sharded over processes (FSDP2's DTensors, ZeRO-3's partitions) together for saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from mmdora.adapt.inject import adapted_modules, plan_of


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside the block, the parameters that go into adapter files are whole in every process.

    All processes have to enter together. The parameters may only be read: for DTensors they are copies, and writes to
    them are lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    needed = list(_needed(model))
    if partitioned := [owner._parameters[leaf] for owner, leaf in needed if hasattr(owner._parameters[leaf], "ds_id")]:
        from deepspeed import zero  # pyright: ignore[reportMissingImports]

        with zero.GatheredParameters(partitioned):
            yield
        return
    spread = {(owner, leaf): owner._parameters[leaf] for owner, leaf in needed}
    try:
        for (owner, leaf), parameter in spread.items():
            if isinstance(parameter, DTensor):
                owner._parameters[leaf] = nn.Parameter(parameter.full_tensor().detach(), requires_grad=False)
        yield
    finally:
        for (owner, leaf), parameter in spread.items():
            owner._parameters[leaf] = parameter


def _needed(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    plan = plan_of(model)
    if plan is None:
        return
    for module in adapted_modules(model).values():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and leaf not in (module.weight_name, module.bias_name):
                yield module, leaf
        # If some modules have magnitudes, the file of a LoRA module needs one too. It is made of the norms of the
        # base weight's rows, so the base weight is needed as well.
        if plan.has_magnitudes:
            yield module.home
    for name in plan.full:
        path, _, leaf = name.rpartition(".")
        yield model.get_submodule(path), leaf


def whole_state(state: Any, *, keep: bool) -> Any:
    """An optimizer's state dict with tensors on the CPU in place of DTensors. All processes call it together.

    A device holds no more than one whole tensor at a time.

    Args:
        keep: whether this process wants the tensors; where it does not, they are None.
    """

    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()  # Every process takes part in this, whether it keeps the result or not.
        return tensor.cpu() if keep else None

    return tree_map(gathered, state)


def spread_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The reverse of `whole_state`, for `optimizer.load_state_dict`: each tensor is sharded like its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    of = dict(zip(indices, parameters, strict=True))
    return state | {
        "state": {
            index: {key: _like(value, of[index]) for key, value in kept.items()}
            for index, kept in state["state"].items()
        }
    }


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, which is the whole tensor if it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value
