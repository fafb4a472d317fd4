"""Finds out which trained parameters get no gradient from which kind of row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdora.batches.fit import Rows
from mmdora.batches.packing import Packs
from mmdora.batches.tasks import TaskRows


def unreached(
    model: nn.Module, collate: Callable[[list[Any]], Any], rows: Rows | TaskRows | Packs
) -> dict[str, list[str]]:
    """Kind of row -> names of the trained parameters that get no gradient from it.

    The kinds are "image" and "text" of each task, as far as there are such rows. A row of text gives projector and
    tower no gradient. A row with an image gives none to the layers of the tower after the one whose output is used
    (LLaVA's `vision_feature_layer`). To find out, the shortest row of each kind is run once; the random states are
    unchanged afterwards. It is called under the autocast of the run.
    """
    unreached = {}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for kind, chosen in _kinds(rows):
            if chosen.any():
                index = np.flatnonzero(chosen)[rows.lengths[chosen].argmin()]
                batch = {k: v for k, v in collate([rows[int(index)]]).items() if k != "samples"}
                batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                loss = model(**batch).loss
                gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
                unreached[kind] = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    return unreached


def _kinds(rows: Rows | TaskRows | Packs) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each kind of row with [rows] bool: whether a row is of this kind."""
    tasks = rows.tasks if isinstance(rows, TaskRows) else np.zeros(len(rows), np.int32)
    for task in np.unique(tasks):
        name = f" of {rows.names[task]}" if isinstance(rows, TaskRows) else ""
        yield f"image{name}", rows.has_image & (tasks == task)
        yield f"text{name}", ~rows.has_image & (tasks == task)
