"""Which trained parameters get a gradient from which kind of row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdora.data.fit import Rows
from mmdora.data.packing import Packs


def unreached(model: nn.Module, collate: Callable[[list[Any]], Any], rows: Rows | Packs) -> dict[str, list[str]]:
    """Names of trained parameters without a gradient, by kind of row: "image" and "text", where there are such rows.

    The projector and the tower get none from text. From an image, none reaches a tower's layers behind the one that
    the language model reads, which LLaVA's `vision_feature_layer` chooses. Found by running the shortest row of each
    kind, once; the state of the random numbers is as before.
    """
    found = {}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for kind, chosen in (("image", rows.has_image), ("text", ~rows.has_image)):
            if chosen.any():
                index = np.flatnonzero(chosen)[rows.lengths[chosen].argmin()]
                batch = {k: v for k, v in collate([rows[int(index)]]).items() if k != "samples"}
                batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                loss = model(**batch).loss
                gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
                found[kind] = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    return found
