"""FSDP2 by accelerate, with the settings that adapters need and accelerate does not choose by itself."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    convert_outputs_to_fp32,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method

from mmdora.config import Training
from mmdora.errors import MmdoraError


def set_up(accelerator: Accelerator, training: Training) -> None:
    """Choose the settings of FSDP2, if the launcher asks for it. On CPUs, where accelerate silently runs DDP, use it.

    Raises:
        MmdoraError: if it is FSDP of version 1, if there is nothing to spread parameters over, or if two settings ask
            for checkpointing.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return
    state: Any = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Two shared states hold the type: that of accelerate's operations, and that of the accelerator.
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.distributed_type != DistributedType.FSDP:
        raise MmdoraError(
            "FSDP was asked for, but this is one process without a GPU, and accelerate would leave FSDP out, without a "
            "word; start several (torchrun), or leave it out (--use_fsdp, or distributed_type: FSDP in its config)"
        )
    plugin = state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise MmdoraError("FSDP of version 1 is not supported; set fsdp_version: 2 in the accelerate config")
    if training.gradient_checkpointing and plugin.activation_checkpointing:
        raise MmdoraError(
            "training.gradient_checkpointing: the accelerate config asks for it too; "
            "leave out fsdp_activation_checkpointing there"
        )
    # accelerate's policy for bf16 would gather adapters in bf16, which rounds the changes of a magnitude away, and sum
    # gradients in bf16. Here parameters keep their dtypes, gradients are summed in fp32, and the computation is in bf16
    # by autocast, as it is in runs that are not sharded.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)


def choose_blocks(model: Any, accelerator: Accelerator) -> None:
    """Choose what is gathered at a time: the blocks that the model's classes name, where the config names none.

    A composed model names the blocks of all parts that it could have. accelerate stops at one that is not there.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(there & set(getattr(model, "_no_split_modules", None) or ()))


def complete(wrapped: Any, accelerator: Accelerator) -> None:
    """Let `generate` gather the parameters too, and put autocast around forward, as accelerate does without FSDP2."""
    register_fsdp_forward_method(wrapped, "generate")
    if accelerator.native_amp:
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
        wrapped.forward = convert_outputs_to_fp32(autocast(wrapped.forward))
