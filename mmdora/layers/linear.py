"""A frozen `nn.Linear` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmdora.errors import MmdoraError
from mmdora.ops import linear, norm, reference

Method = Literal["lora", "dora", "magnitude"]

_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


# The fused optimizers write parameters without raising their version, so versions alone would miss a step.
register_optimizer_step_post_hook(_count_step)


class AdaptedLinear(nn.Module):
    """y = c (W0 x + s B A d(x)) + bias (arXiv 2402.09353, equation 5), with c = m / ||W0 + s B A||, or 1 for LoRA.

    `weight` [O, I] and `bias` [O] are the base's own parameters under their own names, frozen, in any float dtype.
    Beside them, in fp32: `lora_A` [R, I] (Kaiming-uniform), `lora_B` [O, R] (zeros), `magnitude` [O] (row norms
    of W0); each is None where the method has none. So the output starts as the base's.

    Dropout d works on the input of the low-rank branch only. The paper's code also scales the base output of a
    second, dropped pass; that needs another base matmul and is the same function in eval and at dropout 0.

    The norms are computed once per optimizer step: gradient accumulation and recomputation pay nothing. Code that
    writes parameters through `.data` outside a `torch.optim` step must call `refresh`.
    """

    bias: nn.Parameter | None
    lora_A: nn.Parameter | None  # noqa: N815
    lora_B: nn.Parameter | None  # noqa: N815
    magnitude: nn.Parameter | None

    def __init__(self, base: nn.Linear, method: Method, *, rank: int = 0, scaling: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check(base)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.method, self.rank, self.scaling, self.dropout = method, rank, scaling, dropout
        self.training = base.training
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        base.requires_grad_(False)
        self.refresh()
        dtype, device = norm.wide(self.weight.dtype), self.weight.device
        for name, shape in (("lora_A", (rank, self.in_features)), ("lora_B", (self.out_features, rank))):
            values = None if method == "magnitude" else nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
            self.register_parameter(name, values)
        if self.lora_A is not None:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_parameter("magnitude", None)
        if method != "lora":
            with torch.no_grad():
                self.magnitude = nn.Parameter(norm.squared_norm(self.weight).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        dropped = None
        if self.dropout and self.training and self.lora_A is not None:
            dropped = F.dropout(x, self.dropout)
        scaled = None if self.magnitude is None else self._scale(self.magnitude)
        return linear.adapted_linear(
            x, self.weight, self.bias, self.lora_A, self.lora_B, self.scaling, self.magnitude, scaled, dropped
        )

    def row_norm(self, *, exact: bool = True) -> Tensor:
        """||W0 + s B A|| [O], fp32 or better."""
        if self._base_norm is None:
            self._base_norm = norm.squared_norm(self.weight.detach())
        if self.lora_A is None or self.lora_B is None:
            return self._base_norm.sqrt()
        return norm.row_norm(self.weight, self.lora_A, self.lora_B, self.scaling, self._base_norm, exact=exact)

    def merged_weight(self) -> Tensor:
        """W' [O, I], composed in fp32 or better."""
        with torch.no_grad():
            dtype = norm.wide(self.weight.dtype)
            return reference.adapted_weight(
                self.weight.to(dtype), self.lora_A, self.lora_B, self.magnitude, self.scaling
            )

    def merge(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """The plain linear with W', written into the very `weight` parameter and rounded once.

        Args:
            dtype: of the result; default the weight's own. Another dtype makes a new parameter.
        """
        merged = self.merged_weight()
        if dtype is None or dtype == self.weight.dtype:
            with torch.no_grad():
                self.weight.copy_(merged)
            return self.unload()
        plain = self.unload()
        plain.weight = nn.Parameter(merged.to(dtype))
        if plain.bias is not None:
            plain.bias = nn.Parameter(plain.bias.detach().to(dtype))
        return plain

    def unload(self) -> nn.Linear:
        """The plain linear with the base's own parameters, trainable as a fresh linear's are."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = self.weight
        plain.register_parameter("bias", self.bias)
        return plain.requires_grad_(True).train(self.training)

    def refresh(self) -> None:
        """Forget every cached norm."""
        self._base_norm: Tensor | None = None
        self._cached: tuple[tuple[int, ...], linear.Scale] | None = None

    def _scale(self, magnitude: Tensor) -> linear.Scale:
        if torch.compiler.is_compiling():
            return linear.scale(magnitude, self.row_norm(exact=False), keep=True)
        trained = [p for p in (magnitude, self.lora_A, self.lora_B) if p is not None]
        key = (_steps, *(p._version for p in trained), *(p.data_ptr() for p in trained))
        if self._cached is None or self._cached[0] != key:
            self._cached = key, linear.scale(magnitude, self.row_norm())
        return self._cached[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLinear:
        # `model.to(bf16)` is meant for the base; a magnitude in bf16 would not learn.
        own = [p for p in (self.lora_A, self.lora_B, self.magnitude) if p is not None]
        own += [p.grad for p in own if p.grad is not None]

        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if any(tensor is p for p in own) and moved.dtype.itemsize < 4 else moved

        self.refresh()
        return super()._apply(keep_wide, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_base_norm": None, "_cached": None}

    def extra_repr(self) -> str:
        shape = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, method={self.method}"
        return shape if self.lora_A is None else f"{shape}, rank={self.rank}, scaling={self.scaling:g}"


def problem(base: nn.Module) -> str | None:
    """Why this module cannot be adapted as a linear, or None."""
    kind = type(base).__name__
    if isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return f"{kind} inside nn.MultiheadAttention is read, not called, so an adapter on it would do nothing"
    if not isinstance(base, nn.Linear):
        return f"{kind} is not an nn.Linear"
    if type(base).forward is not nn.Linear.forward:
        return f"{kind} has a forward of its own, which an adapter would replace"
    if not base.weight.is_floating_point():
        return f"its weight is {base.weight.dtype}; quantised linears are not supported yet"
    return None


def check(base: nn.Module) -> None:
    """Raise `MmdoraError` for a module that cannot be adapted as a linear."""
    if reason := problem(base):
        raise MmdoraError(f"cannot adapt this module: {reason}")
