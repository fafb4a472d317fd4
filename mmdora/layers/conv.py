"""A frozen `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.ops.linear import varying
from mmdora.ops.norm import wide


class AdaptedConv(Adapted):
    """y = c (W0 * x + s B (A * d(x))) + bias, with * the base's convolution and one c per output channel.

    For O output and C input channels, G groups and a kernel of shape K: `weight` [O, C/G, K], `lora_A` [R, C/G, K]
    (Kaiming-uniform), R filters convolved as the base's are (stride, padding, dilation, groups), `lora_B`
    [O, R/G, 1...] (zeros), `magnitude` [O]. Their matrix has O rows and I = C/G * |K| columns.

    The parametrisation is that of PEFT, with two differences. PEFT's A is convolved without the base's dilation and
    padding mode, which fails or cannot be merged. And with groups its A [R, C, K] sees all channels, which no grouped
    kernel can hold (PEFT refuses to merge it), and its norm mixes the groups up (peft#2549). Here the filters of a
    group see the channels of that group; in PEFT's layout the rest is zeros.

    A convolution rounds its sum to its input's dtype. c shall meet the sum before that one rounding, so everything is
    computed in fp32 or better here. In a tower this is the first layer: a small share of the work, and no gradient
    for its input.
    """

    kind = "conv"
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    calls = ("forward", "_conv_forward")
    weight: nn.Parameter
    bias: nn.Parameter | None
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        scaled, acc = scales.current(self), wide(x.dtype)
        per_channel = (-1, *(1 for _ in self.kernel_size))
        with torch.autocast(device, enabled=False):
            x, weight = x.to(acc), self.weight.to(acc)
            dropped = F.dropout(x, self.dropout) if self.drops else x
            scaled_input = dropped if scaled is not None and self.dropout_mode == "reference" else x
            z = self._convolve(scaled_input, weight)
            if (lora_A := self.gated_A) is not None and self.lora_B is not None:
                z = z + self._pointwise(self._convolve(dropped, lora_A), self.lora_B * self.scaling)
            if scaled is not None and self.magnitude is not None:
                c = varying(self.magnitude, scaled.factor, scaled.inverse_norm)
                z = z * c.view(per_channel)
            if scaled_input is not x:
                z = z + self._convolve(x - scaled_input, weight)
            if self.bias is not None:
                z = z + self.bias.to(acc).view(per_channel)
            return z.to(dtype)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.shell._conv_forward(x, weight, None)

    def _pointwise(self, hidden: Tensor, lora_B: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        return conv(hidden, lora_B, groups=self.groups)

    @classmethod
    def rank_problem(cls, base: Any, rank: int) -> str | None:
        if rank % base.groups:
            return f"its {base.groups} groups need a rank that is a multiple of {base.groups}, not {rank}"
        return None

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        ones = tuple(1 for _ in base.kernel_size)
        return {
            "lora_A": (rank, base.in_channels // base.groups, *base.kernel_size),
            "lora_B": (base.out_channels, rank // base.groups, *ones),
            "magnitude": (base.out_channels,),
        }

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """B [O, R] has zeros where a row and a filter are of different groups."""
        blocks = lora_B.flatten(1).unflatten(0, (self.groups, -1))
        return lora_A.flatten(1), torch.block_diag(*blocks) if self.groups > 1 else blocks[0]

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.weight.shape)
