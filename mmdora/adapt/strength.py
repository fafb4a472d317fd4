"""Scales how much an unmerged adapter changes its base: 0 is the base, 1 the adapter as it was trained.

At strength t a module computes W' = m_t (W0 + t s B A) / ||W0 + t s B A||_c with m_t = ||W0||_c + t (m - ||W0||_c), and
LoRA, which has no magnitude, W0 + t s B A. A parameter that was trained in full becomes W0 + t (W - W0). So the change
is scaled before the division by the norm, exactly and without a merge; W' of DoRA does not move on a straight line.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdora.adapt.switch import Adapter
from mmdora.layers import Adapted


class Strength:
    """Sets the strength of one of a model's named adapters.

    What it changes is kept first: magnitudes, and a copy of each parameter that was trained in full. Nothing is kept
    before the strength is first set to anything but 1.

    Args:
        model: the base, on which no adapter is in use.
        adapter: one of `switch.adapters_of(model)`.
    """

    def __init__(self, model: nn.Module, adapter: Adapter):
        self.model, self.adapter, self.now = model, adapter, 1.0
        self._scalings = {name: module.scaling for name, module in adapter.modules.items()}
        self._magnitudes: dict[str, Tensor] | None = None
        self._full: dict[str, Tensor] = {}

    def set(self, strength: float) -> None:
        """Set the strength t, while no adapter of the model is in use; at 1 every value is the trained one again."""
        if strength == self.now:
            return
        with torch.no_grad():
            if self._magnitudes is None:
                self._magnitudes = {name: own.clone() for name, own in _magnitudes(self.adapter).items()}
                self._full = {name: own.detach().clone() for name, own in self.adapter.full.items()}
            for name, module in self.adapter.modules.items():
                module.scaling = self._scalings[name] * strength
                if (magnitude := self._magnitudes.get(name)) is not None:
                    norm = _base_norm(module)
                    trained = magnitude.to(norm.device)
                    assert module.magnitude is not None
                    module.magnitude.copy_(trained if strength == 1 else norm + strength * (trained - norm))
                module.refresh()
            for name, trained in self._full.items():
                own, base = self.adapter.full[name], self.model.get_parameter(name)
                trained = trained.to(own.device)
                start = base.detach().to(own.device, own.dtype)
                own.copy_(trained if strength == 1 else start + strength * (trained - start))
        self.now = strength


def _magnitudes(adapter: Adapter) -> dict[str, nn.Parameter]:
    return {name: module.magnitude for name, module in adapter.modules.items() if module.magnitude is not None}


def _base_norm(module: Adapted) -> Tensor:
    """||W0|| of each row, in the shape of the magnitude."""
    return module.scales.row_norm(module.base_weight, None, None)
