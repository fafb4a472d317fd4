"""Finds out, by trying, whether a model keeps packed rows apart."""

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
"""Relative difference between a row's loss when packed and when alone that rounding can cause."""


def check_packing(model: Any, collate: PackedCollator, packs: Packs) -> None:
    """Pack some of the shortest rows, with and without images, and compare each with the same row alone.

    The loss of each packed row must equal its loss alone, up to rounding. Its gradient with respect to text and images
    of other rows must be exactly 0 in any precision, which shows that nothing leaks from row to row, through attention
    or otherwise.

    It is called under the autocast of the run.

    Raises:
        MmdoraError: if a row is affected by another.
    """
    if problem := leak(model, collate, _chosen(packs)):
        raise MmdoraError(f"data.packing: this model cannot train on packed rows: {problem}; leave out data.packing")


def leak(model: Any, collate: PackedCollator, records: list[Any]) -> str | None:
    """A phrase that says what goes wrong if `records` share a packed row; None if nothing does."""
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
    """The loss of the labels inside a slice, and its gradient by the input of the language model [1, T, H]."""
    seen: list[Tensor] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embedded = kwargs.get("inputs_embeds")  # A model without pictures gives its decoder the ids.
        embedded = model.get_input_embeddings()(kwargs["input_ids"]) if embedded is None else embedded
        seen.append(embedded.detach().requires_grad_())
        return args, {**kwargs, "input_ids": None, "inputs_embeds": seen[-1]}

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
    """At most four of the shortest rows that fit together, taken in turns from those with and without an image."""
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
