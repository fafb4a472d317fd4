"""Fused experts with LoRA, DoRA or a magnitude on each expert's matrices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.layers import scales
from mmdora.layers.adapted import HOOKS, Adapted, holding
from mmdora.layers.expert_view import ExpertsView
from mmdora.layers.expert_weight import SUFFIX, ExpertWeight
from mmdora.ops.experts import Segments, adapted_experts
from mmdora.ops.merge import merged_rows
from mmdora.ops.products import wide


class AdaptedExpertWeight(Adapted):
    """c[e] (W0[e] + s B[e] A[e]) for each of E experts: an adapted linear for each, in three tensors.

    `lora_A` [E, R, I] (Kaiming-uniform per expert), `lora_B` [E, O, R] (zeros), `magnitude` [E, O]. The base's
    parameter stays in the module of experts. `AdaptedExperts` calls this where that module multiplies by it.
    """

    kind = "experts"
    plain = (ExpertWeight,)
    owner: AdaptedExperts
    leaf: str
    transposed: bool

    def __init__(self, base: Any, *args: Any, **kwargs: Any):
        if reason := self.problem(base):
            raise MmdoraError(f"cannot adapt this module: {reason}")
        if not isinstance(base.owner, AdaptedExperts):
            base.__dict__["owner"] = AdaptedExperts(base.owner)
        self.__dict__.update(owner=base.owner, leaf=base.leaf, transposed=bool(base.transposed))
        super().__init__(base, *args, **kwargs)
        del self._parameters["weight"]

    @property
    def base_weight(self) -> nn.Parameter:
        own = self.owner._parameters[self.leaf]
        assert own is not None
        return own

    @property
    def experts(self) -> int:
        return len(self.base_weight)

    @property
    def home(self) -> tuple[nn.Module, str]:
        return self.owner, self.leaf

    def install(self) -> nn.Module:
        self.owner._modules[self.leaf.removesuffix(SUFFIX)] = self
        return self.owner

    def forward(self, x: Tensor, routed: Segments) -> Tensor:
        """The products [S, O] of the rows x [S, I], sorted by expert, with the matrices of their experts."""
        # Some experts add their bias in place to what this returns, which then cannot be kept for backward.
        in_place = self.owner._parameters.get(f"{self.leaf}_bias") is not None
        scaled = scales.current(self)
        scaled = scaled and scaled._replace(keep=scaled.keep or in_place)
        matrices = self.matrix(self.base_weight)
        adapter = self.gated_A, self.lora_B, self.scaling, self.magnitude, scaled
        as_peft = self.dropout_mode == "reference"
        if not self.drops or scaled is None or not as_peft:
            return adapted_experts(x, routed, matrices, *adapter, self.dropout if self.drops else 0.0, as_peft)
        # This is `reference`, as in `linear.with_dropout`: W0 (x - d(x)) + c (W0 d(x) + s B A d(x)). The first term is
        # an adapter of rank 0.
        dropped = nn.functional.dropout(x, self.dropout)
        zero = self.lora_A.detach()[:, :0], self.lora_B.detach()[:, :, :0]  # pyright: ignore
        return adapted_experts(x - dropped, routed, matrices, *zero, 1.0) + adapted_experts(
            dropped, routed, matrices, *adapter
        )

    @classmethod
    def problem(cls, base: Any) -> str | None:
        if not isinstance(base, ExpertWeight):
            return f"{type(base).__name__} is no parameter of experts"
        if base.transposed is None:
            return f"the code of {type(base.owner).__name__} does not show which axis of {base.leaf} is its output"
        if "forward" in getattr(base.owner, "shell", base.owner).__dict__:
            return "the forward of these very experts was replaced (accelerate does so)"
        if base.weight.is_floating_point() and base.weight.element_size() < 2:
            return f"its weight is {base.weight.dtype}; quantised experts are not supported yet"
        return super().problem(base)

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        if isinstance(base, cls):
            count, rows, columns = base.matrix(base.base_weight).shape
        else:
            count, rows, columns = base.experts, base.rows, base.columns
        return {"lora_A": (count, rank, columns), "lora_B": (count, rows, rank), "magnitude": (count, rows)}

    @classmethod
    def parameter_name(cls, name: str) -> str:
        return name + SUFFIX

    @classmethod
    def place(cls, name: str) -> str:
        return name.rpartition(".")[0]

    def start(self, lora_A: Tensor, lora_B: Tensor) -> None:
        nn.init.kaiming_uniform_(lora_A.flatten(0, 1), a=math.sqrt(5))

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """The shape [R, 1] in which g, one for all experts, multiplies A [E, R, I]."""
        return (-1, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """View the weight as matrices [E, O, I]."""
        return weight.transpose(1, 2) if self.transposed else weight

    def merged_weight(self) -> Tensor:
        merged = torch.empty_like(self.base_weight, dtype=wide(self.base_weight.dtype), requires_grad=False)
        self._write(merged)
        return merged

    def merge(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Write W' into the base's parameter expert by expert; gives back what `unload` does."""
        if dtype is None or dtype == self.base_weight.dtype:
            self._write(self.base_weight)
        else:
            merged = torch.empty_like(self.base_weight, dtype=dtype, requires_grad=False)
            self._write(merged)
            self.owner._parameters[self.leaf] = nn.Parameter(merged)
        return self.unload()

    @torch.no_grad()
    def _write(self, into: Tensor) -> None:
        pairs = zip(self.matrix(self.base_weight), self.matrix(into), strict=True)
        for e, (weight, merged) in enumerate(pairs):
            own = (None if tensor is None else tensor[e] for tensor in (self.gated_A, self.lora_B, self.magnitude))
            start = 0
            for rows in merged_rows(weight, *own, scaling=self.scaling):
                merged[start : start + len(rows)] = rows
                start += len(rows)

    def base_module(self) -> nn.Module:
        """Take this adapter off its experts, and give them back: plain ones if it was the last."""
        return self.owner.without(self)

    def unload(self) -> nn.Module:
        plain = self.base_module()
        return plain if plain is self.owner else plain.requires_grad_(True)


class AdaptedExperts(nn.Module):
    """A module of experts of which at least one parameter is adapted. Parameters and submodules keep their names.

    Routing, activation and gating are the base's: its own forward runs, by whatever `experts_implementation` the
    config names. Where that reads an adapted parameter it gets an `ExpertsView`, which multiplies by W' in its place.
    A compiler skips this module, as the rows of each expert are only known at run time.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        for store in ("_parameters", "_buffers", "_modules"):
            self.__dict__[store].update(base.__dict__[store])
        self._non_persistent_buffers_set.update(base._non_persistent_buffers_set)
        for name in HOOKS:
            self.__dict__[name] = base.__dict__[name]
        self.training = base.training
        base.requires_grad_(False)
        # The shell is the base with the dictionaries of this module, so it always holds what this holds.
        self.__dict__["_shell"] = holding(base, self._parameters, self._modules)

    @property
    def shell(self) -> Any:
        return self.__dict__["_shell"]

    def adapters(self) -> Iterator[AdaptedExpertWeight]:
        """The adapted parameters, in the order of the base's."""
        own = {child.leaf: child for child in self._modules.values() if isinstance(child, AdaptedExpertWeight)}
        return (own[leaf] for leaf in self._parameters if leaf in own)

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # An attribute of the object itself is found before a parameter. The copy is this call's own, so that calls in
        # several threads do not meet.
        running = copy.copy(self.shell)
        for adapter in self.adapters():
            running.__dict__[adapter.leaf] = ExpertsView(adapter)
        return type(running).forward(running, *args, **kwargs)

    def without(self, adapter: AdaptedExpertWeight) -> nn.Module:
        """Take one adapter off. Gives this module back, or the plain experts where no other adapter is left."""
        del self._modules[adapter.leaf.removesuffix(SUFFIX)]
        if any(self.adapters()):
            return self
        plain = holding(self.shell, dict(self._parameters), dict(self._modules))
        plain._is_full_backward_hook = self._is_full_backward_hook
        return plain.train(self.training)

    def __getattr__(self, name: str) -> Any:
        # Code around the experts may read what they know of themselves (`num_experts`, `config`).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_shell" not in self.__dict__:
                raise
            return getattr(self.shell, name)
