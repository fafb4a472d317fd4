"""A quantised linear with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.layers import scales
from mmdora.layers.adapted import holding
from mmdora.layers.dequantize import QuantizedMatrix, form_of
from mmdora.layers.linear import AdaptedLinear
from mmdora.ops import passes, transforms
from mmdora.ops.held import adapted_product


class AdaptedQuantizedLinear(AdaptedLinear):
    """y = c (W0 x + s B A d(x)) + bias, where W0 x is what the quantised linear itself computes (QLoRA, QDoRA).

    `weight` is the library's own parameter, packed, and the module that multiplies by it is held and called, with its
    own backward. Norms are those of the dequantised weight: its rows are dequantised some at a time, once per
    optimizer step, and none of them is kept. So magnitudes start from what the layer really computes.

    Merged, it is an ordinary linear: the dequantised weight with the adapter in it. Quantising that again would lose
    more than the adapter may have changed.
    """

    def __init__(self, base: nn.Module, *args: Any, **kwargs: Any):
        self.__dict__["_quantized"] = _called(base)
        super().__init__(base, *args, **kwargs)

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        return isinstance(module, cls) or (isinstance(module, nn.Linear) and form_of(module) is not None)

    @classmethod
    def problem(cls, base: nn.Module) -> str | None:
        if not cls.adapts(base):
            return f"{type(base).__name__} is no quantised linear"
        if "forward" in base.__dict__:
            return f"the forward of this very {type(base).__name__} was replaced (accelerate does so)"
        if form_of(base) == "int8" and getattr(base, "state", None) and base.state.has_fp16_weights:  # pyright: ignore
            return "its weight is quantised anew in each forward (has_fp16_weights)"
        return None

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if transforms.active():
            raise MmdoraError("torch.func cannot look into a quantised module; load the base without quantisation")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        scaled = scales.current(self)
        adapter = *scales.factors(self, passes.low_rank_dtype(x)), self.scaling, self.magnitude, scaled
        as_peft = self.dropout_mode == "reference"
        if not self.drops or scaled is None or not as_peft:
            p = self.dropout if self.drops else 0.0
            return adapted_product(self.product(x), x, self.bias, *adapter, p=p, as_torch=as_peft)
        # PEFT's three terms in two, as in `linear.with_dropout`.
        dropped = F.dropout(x, self.dropout)
        rest = self.product(x - dropped)
        return rest + adapted_product(self.product(dropped), dropped, self.bias, *adapter)

    def product(self, x: Tensor) -> Tensor:
        """W0 x [..., O] as the quantised linear computes it, without its bias, which a magnitude does not scale."""
        module = self.quantized
        module.training = self.training
        return type(module).forward(module, x)

    @property
    def quantized(self) -> Any:
        """The quantised linear that is called, with this module's weight."""
        module = self.__dict__["_quantized"]
        module._parameters["weight"] = self.weight
        return module

    def matrix(self, weight: Tensor) -> Any:
        return QuantizedMatrix(self.quantized) if weight is self.weight else weight

    def unload(self) -> nn.Module:
        """Give the quantised linear back. Its weight cannot be trained, its bias can, as in a fresh module."""
        plain, self.__dict__["_base_module"] = self.base_module(), None
        if self.bias is not None:
            self.bias.requires_grad_(True)
        return plain

    def merge(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Give a plain linear, with W' rounded once to `dtype`; None is the dtype before the weight was quantised."""
        taken: torch.dtype = dtype or self.matrix(self.weight).dtype
        return _linear(self.merged_weight(), self.bias, taken)


def dequantized(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Linear:
    """A plain linear with the values of a quantised one.

    Args:
        dtype: of its weight; None is the dtype before it was quantised.
    """
    matrix = QuantizedMatrix(module)
    return _linear(matrix.whole(), module._parameters.get("bias"), dtype or matrix.dtype)


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    plain.weight = nn.Parameter(weight.detach().to(dtype))
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(dtype))
    return plain


def _called(base: nn.Module) -> nn.Module:
    """A copy of a quantised linear that shares its weight and has no bias, to be called."""
    module = holding(base, {**base._parameters, "bias": None}, {})
    if hasattr(module, "support_avx512bf16_for_cpu"):
        # In evaluation bitsandbytes would write the weight anew with scales in bf16, which is another weight.
        module.support_avx512bf16_for_cpu = False  # pyright: ignore
    return module
