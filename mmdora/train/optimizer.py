"""Prepares model, optimizer and schedule for the processes of a run, with accelerate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from mmdora.adapt.inject import plan_of
from mmdora.config import RunConfig, Training
from mmdora.errors import MmdoraError
from mmdora.train import fsdp
from mmdora.train.checkpointing import checkpoint_activations
from mmdora.train.gates import restore
from mmdora.train.groups import parameter_groups
from mmdora.train.processes import Processes


@dataclass(frozen=True)
class Trained:
    """The objects that a step changes.

    Attributes:
        model: the model itself.
        wrapped: the object to call for forward: DDP's or DeepSpeed's wrapper around the model, or the model.
        optimizer: accelerate's wrapper of AdamW.
        schedule: torch's schedule, with one learning rate per group of parameters.
        l1: strength of the L1 term of gates; 0 without gates.
    """

    model: Any
    wrapped: Any
    optimizer: Any
    schedule: Any
    l1: float = 0.0


def prepare(model: Any, config: RunConfig, processes: Processes, steps: int, checkpoint: Path | None) -> Trained:
    """Put the model on its device and wrap it.

    Args:
        steps: number of steps of the whole run, for the schedule.
        checkpoint: a checkpoint to go on from. Its adapter is loaded first, before parameters are sharded (DeepSpeed
            loads its own files later).
    """
    training = config.training
    model.config.use_cache = False  # A key-value cache is of no use in training.
    if training.gradient_checkpointing:
        plan = plan_of(model)
        assert plan is not None
        checkpoint_activations(model, training.gradient_checkpointing, plan.parts)
    with processes.together():  # DDP waits for all processes, so none of them may fail alone before that.
        if not processes.sharded:
            model.to(processes.device)
        if checkpoint is not None and not processes.deepspeed:
            restore(model, checkpoint)
        plain = optimizer_of(parameter_groups(model, config.adapt, training), model, training)
    if processes.fsdp:
        fsdp.choose_blocks(model, processes.accelerator)
    wrapped, optimizer = processes.accelerator.prepare(model, plain)
    if processes.fsdp:
        fsdp.complete(wrapped, processes.accelerator)
    l1 = 0.0 if config.adapt.gates is None else config.adapt.gates.l1
    return Trained(model, wrapped, optimizer, schedule_of(optimizer, training, steps), l1)


def optimizer_of(groups: Sequence[dict[str, Any]], model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Make AdamW (arXiv 1711.05101): fused, or with its moments in 8 bits (arXiv 2110.02861)."""
    options = {"lr": training.lr, "betas": (0.9, training.adam_beta2), "eps": training.adam_eps}
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options, fused=True)
    import bitsandbytes

    optim: Any = bitsandbytes.optim
    manager = optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        # The gradients of embeddings are too uneven for 8 bits (section 2.3 of that paper).
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optim.AdamW(groups, **options, optim_bits=8)


def schedule_of(optimizer: Any, training: Training, steps: int) -> Any:
    """Make the schedule by its name in transformers, with a linear warmup."""
    warmup = int(training.warmup) if training.warmup >= 1 else math.ceil(steps * training.warmup)
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """The settings (learning rate, betas, weight decay, …) of each group of parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def go_on(trained: Trained, settings: Sequence[Mapping[str, Any]], step: int) -> None:
    """Put the settings of the config back after an optimizer's state was loaded, and the schedule at a step.

    The state holds the settings of the run that was stopped, and a resume may have changed them. Where it has not, the
    learning rates are those that were saved, to the bit.
    """
    schedule: Any = trained.schedule
    schedule.last_epoch, schedule._step_count = step, step + 1
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, own, rate in zip(trained.optimizer.param_groups, settings, rates, strict=True):
        group.update({**own, "lr": rate})
    schedule._last_lr = rates


def check_state(state: Mapping[str, Any], optimizer: Any, stored: Path) -> None:
    """Raise if an optimizer's saved state is of other groups of parameters, or of another optimizer."""
    groups = [(group.get("name"), len(group["params"])) for group in optimizer.param_groups]
    before = [(group.get("name"), len(group["params"])) for group in state["param_groups"]]
    if groups != before:
        differing = ", ".join(sorted({str(name) for name, _ in set(groups) ^ set(before)}))
        raise MmdoraError(
            f"{stored}: its optimizer has other groups of parameters ({differing}); undo the change of adapt, or start "
            "anew in another folder"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    eight_bits = not isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.AdamW)
    for index, parameter in zip(indices, parameters, strict=True):
        kept = state["state"].get(index, {})
        if kept and ("exp_avg" in kept) == eight_bits:
            raise MmdoraError(f"{stored}: its optimizer is another; undo the change of training.optimizer")
        if "exp_avg" in kept and kept["exp_avg"].shape != parameter.shape:
            raise MmdoraError(f"{stored}: its optimizer is of parameters of other shapes; undo the change of adapt")
