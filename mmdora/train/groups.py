"""Sorts trainable parameters into optimizer groups, one per modality and kind, each with its own learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmdora.adapt.inject import trainable_parameters
from mmdora.config import Adapt, Gates, Modality, Training
from mmdora.errors import MmdoraError


def parameter_groups(model: nn.Module, adapt: Adapt, training: Training) -> list[dict[str, Any]]:
    """Make groups named `modality/kind`, where kind is low_rank, low_rank_B, magnitude, gate, full or full_no_decay.

    With `lora_plus_ratio`, B has a group of its own with lr(B) = ratio * lr(A), as in LoRA+ (arXiv 2402.12354,
    section 5).

    Vectors of fully trained parts (biases, norms) and gates get no weight decay, and magnitudes get none unless the
    config asks for it. Every trainable parameter is in exactly one group.

    Raises:
        MmdoraError: if nothing is trainable.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, parameter, modality, kind in trainable_parameters(model):
        if kind == "low_rank" and key.endswith("lora_B") and getattr(adapt, modality).lora_plus_ratio is not None:
            kind = "low_rank_B"
        if kind == "full" and parameter.ndim < 2:
            kind = "full_no_decay"
        name = f"{modality}/{kind}"
        if name not in groups:
            rates = _rates(getattr(adapt, modality), kind, training, adapt.gates)
            groups[name] = {"name": name, "params": [], **rates}
        groups[name]["params"].append(parameter)
    grouped = sum(len(group["params"]) for group in groups.values())
    if not grouped:
        raise MmdoraError("adapt: every modality has method 'none', so there is nothing to train")
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    if grouped != trainable:
        raise RuntimeError(f"{trainable} trainable tensors, {grouped} in optimizer groups")
    return list(groups.values())


def _rates(modality: Modality, kind: str, training: Training, gates: Gates | None) -> dict[str, float]:
    lr = training.lr if modality.lr is None else modality.lr
    decay = training.weight_decay if modality.weight_decay is None else modality.weight_decay
    if kind == "low_rank_B":
        assert modality.lora_plus_ratio is not None
        lr *= modality.lora_plus_ratio
    elif kind == "magnitude":
        lr = lr if modality.magnitude_lr is None else modality.magnitude_lr
        decay = modality.magnitude_weight_decay
    elif kind == "gate":
        lr, decay = (gates.lr if gates is not None and gates.lr is not None else lr), 0.0
    elif kind == "full_no_decay":
        decay = 0.0
    return {"lr": lr, "weight_decay": decay}
