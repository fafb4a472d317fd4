"""Whether a model keeps packed rows apart, found by asking it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdora.batches.packing import PackedCollator, Packs
from mmdora.errors import MmdoraError
from mmdora.families import IGNORE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 5e-3}
"""Relative difference of a row's loss, packed and alone, that rounding may make."""


def check_packing(model: Any, collate: PackedCollator, packs: Packs, *, bf16: bool = False) -> None:
    """Pack some of the shortest rows, with and without images, and compare with each row alone.

    Each row's loss must be what it is alone, up to rounding; and its gradient by text and images of other rows
    exactly 0, in whatever precision: nothing leaks from row to row, through attention or otherwise.

    Args:
        bf16: compute under autocast, as the run does.

    Raises:
        MmdoraError: if it is not so.
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        problem = leak(model, collate, _chosen(packs))
    if problem is not None:
        raise MmdoraError(f"data.packing: this model cannot train on packed rows: {problem}; leave out data.packing")


def leak(model: Any, collate: PackedCollator, records: list[Any]) -> str | None:
    """What goes wrong when `records` share a packed row; None if nothing does."""
    training, start = model.training, 0
    model.eval()
    try:
        packed = _on(model.device, collate([records]))
        autocast = torch.get_autocast_dtype if torch.is_autocast_enabled(model.device.type) else lambda _: model.dtype
        tolerance = max(TOLERANCE[model.dtype], TOLERANCE[autocast(model.device.type)])
        for record in records:
            by_itself = _on(model.device, collate.family.batch([record]))
            with torch.no_grad():
                alone = model(**by_itself).loss
            inside = slice(start, start := start + by_itself["labels"].shape[1])
            loss, gradient = _loss_of(model, packed, inside)
            if gradient is None:
                return "what its decoder is given does not reach the loss"
            gradient[:, inside] = 0
            if bool(gradient.any()):
                return "the loss of a row depends on another row"
            if not torch.allclose(loss.float(), alone.float(), rtol=tolerance, atol=0):
                return f"the loss of record {record['id']} is {float(alone):.7g} alone and {float(loss):.7g} packed"
    except MmdoraError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    finally:
        model.train(training)
    return None


def _loss_of(model: Any, packed: Mapping[str, Any], inside: slice) -> tuple[Tensor, Tensor | None]:
    """The loss of the labels inside, and its gradient by what the language model gets: text and images [1, T, H]."""
    seen: list[Tensor] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen.append(kwargs["inputs_embeds"].detach().requires_grad_())
        return args, {**kwargs, "inputs_embeds": seen[-1]}

    labels = torch.full_like(packed["labels"], IGNORE)
    labels[:, inside] = packed["labels"][:, inside]
    hook = model.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.enable_grad():
            loss = model(**{**packed, "labels": labels}).loss
        gradient = torch.autograd.grad(loss, seen[0], allow_unused=True)[0] if seen else None
    finally:
        hook.remove()
    return loss.detach(), gradient


def _chosen(packs: Packs) -> list[Any]:
    """The shortest rows, with an image and without by turns, as many as fit together and at most four."""
    lengths, has_image = packs.rows.lengths, packs.rows.has_image
    shortest = np.argsort(lengths, kind="stable")
    kinds = [shortest[has_image[shortest] == pictured][:2] for pictured in (True, False)]
    by_turns = [kind[i] for i in range(2) for kind in kinds if i < len(kind)]
    chosen, room = [], packs.capacity
    for index in by_turns:
        if lengths[index] <= room:
            chosen.append(index)
            room -= lengths[index]
    return [packs.rows[int(index)] for index in (chosen if len(chosen) > 1 else shortest[:2])]


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "samples"}
