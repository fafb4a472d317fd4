"""A frozen `nn.Linear` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.ops import dropout, linear


class AdaptedLinear(Adapted):
    """y = c (W0 x + s B A d(x)) + bias, with x [..., I] and y [..., O] in x's dtype.

    `weight` [O, I], `bias` [O] or None, `lora_A` [R, I] (Kaiming-uniform), `lora_B` [O, R] (zeros), `magnitude` [O].
    """

    kind = "linear"
    plain = (nn.Linear,)
    in_features: int
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        scaled = scales.current(self)
        dropped, zeros, scaling = None, None, self.scaling
        if (
            self.drops
            and self.dropout_mode == "branch"
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
        ):
            zeros = dropout.zeros(x.numel(), self.dropout)
            scaling /= 1 - self.dropout
        elif self.drops:
            dropped = F.dropout(x, self.dropout)  # in reference mode, the very mask that PEFT draws
        low_rank = self.lora_A, self.lora_B, scaling, self.magnitude, scaled
        if dropped is None or scaled is None or self.dropout_mode == "branch":
            return linear.adapted_linear(x, self.weight, self.bias, *low_rank, dropped, zeros)
        # W0 (x - d(x)) + c (W0 d(x) + s B A d(x)) + bias: PEFT's three terms in two.
        bias = None if self.bias is None else self.bias.to(x.dtype)
        rest = F.linear(x - dropped, self.weight.to(x.dtype), bias)
        return rest + linear.adapted_linear(dropped, self.weight, None, *low_rank)

    @classmethod
    def problem(cls, base: nn.Module, rank: int = 0) -> str | None:
        if isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return (
                f"{type(base).__name__} inside nn.MultiheadAttention is read, not called, "
                "so an adapter on it would do nothing"
            )
        return super().problem(base, rank)

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        rows, columns = base.out_features, base.in_features
        return {"lora_A": (rank, columns), "lora_B": (rows, rank), "magnitude": (rows,)}

    def start(self, lora_A: Tensor, lora_B: Tensor) -> None:
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        return lora_A, lora_B

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix
