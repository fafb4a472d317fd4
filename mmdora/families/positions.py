"""Positions of text and image tokens by a model's own rule, such as Qwen-VL's three-dimensional rotary embedding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class RopeIndex:
    """A model's rule of positions without its weights, so that loader processes can carry it.

    Args:
        owner: the module that has `get_rope_index`. The rule reads only its config, so no weights are kept.
    """

    def __init__(self, owner: Any):
        self.shell = object.__new__(type(owner))
        self.shell.__dict__["config"] = owner.config
        self.wanted = set(inspect.signature(type(owner).get_rope_index).parameters) - {"self", "kwargs"}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The positions [3, rows, tokens] int64 of a batch's tokens."""
        return self.shell.get_rope_index(**{key: batch[key] for key in self.wanted if key in batch})[0]
