"""The base class of all adapted modules: parameters, the scale, merge and unload."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.layers.kept import Scales
from mmdora.ops import norm
from mmdora.ops.merge import merged_rows

Method = Literal["lora", "dora", "magnitude"]
DropoutMode = Literal["branch", "reference"]
HOOKS = tuple(name for name in vars(nn.Module()) if "_hook" in name)
"""Attributes in which torch keeps what is registered on a module: hooks of forward, backward and state dicts."""


class Adapted(nn.Module):
    """A frozen module whose weight, seen as a matrix W0 [O, I], becomes W' = diag(c) (W0 + s B A).

    c = m / ||W0 + s B A|| per row (arXiv 2402.09353, equation 5), or 1 for LoRA. The base's own parameters and modules
    keep their names, frozen, in any float dtype. Beside them, in fp32: `lora_A`, `lora_B` and `magnitude` [O], the
    row norms of W0 at first; each is None where the method has none. So the output starts as the base's.

    Only calls are adapted: code that reads the weight itself gets the base's. An adapter on a module that is never
    called would do nothing; `mmdora.adapt.targets` refuses where the source shows it.

    c is computed once per optimizer step (see `scales`). Code that writes parameters through `.data` outside a
    `torch.optim` step should call `refresh`; `scales` says what sees such a write without it.

    Dropout d acts in training on the input of the low-rank branch: y = c (W0 x + s B A d(x)) + bias. With
    `dropout_mode` "reference" it is PEFT's function, y = W0 x + (c - 1) W0 d(x) + c s B A d(x) + bias, at the price
    of a second base product. For LoRA, and in eval, the two are the same.
    """

    kind: ClassVar[str]
    plain: ClassVar[tuple[type[nn.Module], ...]]
    """The classes that can be adapted, and their subclasses as long as these have no `calls` of their own."""
    calls: ClassVar[tuple[str, ...]] = ("forward",)
    weight_name: ClassVar[str] = "weight"
    bias_name: ClassVar[str] = "bias"
    output_written: bool = False
    """Whether the model writes into this module's output, so that backward cannot read it there; `inject` finds out."""

    lora_A: nn.Parameter | None  # noqa: N815 (the paper's and PEFT's names)
    lora_B: nn.Parameter | None  # noqa: N815
    magnitude: nn.Parameter | None
    gate: nn.Parameter | None
    """g [R], which `layers.gates` may add: B A becomes B diag(g) A wherever this class says B A."""

    def __init__(
        self,
        base: nn.Module,
        method: Method,
        *,
        rank: int = 0,
        scaling: float = 1.0,
        dropout: float = 0.0,
        dropout_mode: DropoutMode = "branch",
    ):
        super().__init__()
        if reason := self.problem(base) or self.rank_problem(base, rank):
            raise MmdoraError(f"cannot adapt this module: {reason}")
        # Code elsewhere reads in_features, stride, padding_idx and the like from the module.
        for name in getattr(base, "__constants__", ()):
            setattr(self, name, getattr(base, name))
        self.method, self.rank, self.scaling = method, rank, scaling
        self.dropout, self.dropout_mode = dropout, dropout_mode
        self.training = base.training
        for name in (self.weight_name, self.bias_name):
            self.register_parameter(name, base._parameters.get(name))
        self._modules.update(base._modules)
        self._share_hooks(base)
        base.requires_grad_(False)
        # The shell is the base without its parameters and modules. As a submodule it would be part of the names, and
        # DDP and FSDP would see it.
        self.__dict__["_shell"] = holding(base, dict.fromkeys(base._parameters), {})
        self.scales = Scales(self)
        dtype, device = norm.wide(self.base_weight.dtype), self.base_weight.device
        for name, shape in self.shapes(base, rank).items():
            unused = name == "magnitude" if method == "lora" else name != "magnitude" and method == "magnitude"
            own = None if unused else nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
            self.register_parameter(name, own)
        self.register_parameter("gate", None)
        with torch.no_grad():
            if self.lora_A is not None and self.lora_B is not None:
                self.start(self.lora_A, self.lora_B)
            if self.magnitude is not None:
                self.magnitude.copy_(norm.squared_norm(self.matrix(self.base_weight)).sqrt())

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Whether this kind is for modules like this one, plain or adapted."""
        return isinstance(module, (*cls.plain, cls))

    @classmethod
    def problem(cls, base: nn.Module) -> str | None:
        """Say why this module cannot be adapted as this kind; None if it can."""
        name = type(base).__name__
        plain = next((kind for kind in cls.plain if isinstance(base, kind)), None)
        if plain is None:
            return f"{name} is not an nn.{' or nn.'.join(kind.__name__ for kind in cls.plain)}"
        if any(getattr(type(base), call) is not getattr(plain, call) for call in cls.calls):
            return f"{name} has a forward of its own, which an adapter would replace"
        if own := next((call for call in cls.calls if call in base.__dict__), None):
            return f"the {own} of this very {name} was replaced (accelerate does so), and an adapter would pass it by"
        weight = base._parameters.get(cls.weight_name)
        if weight is None:
            return f"the weight of this {name} is computed from other tensors (a parametrisation)"
        # torchao's tensors have the dtype that they were made from.
        torchao = type(weight).__module__.partition(".")[0] == "torchao"
        if torchao or not weight.is_floating_point():
            stored = f"torchao's {type(weight).__name__}" if torchao else weight.dtype
            return f"its weight is {stored}, quantised by a library that mmdora has no adapter for"
        return None

    @classmethod
    def rank_problem(cls, base: nn.Module, rank: int) -> str | None:
        """Say why a module that can be adapted cannot be at this rank; None if it can."""
        return None

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        """Shapes of `lora_A`, `lora_B` and `magnitude` beside this base (plain or adapted), in this order."""
        raise NotImplementedError

    def start(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Fill A and B, which are zeros, so that B A = 0."""
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))

    def matrix(self, weight: Tensor) -> Tensor:
        """View the weight as the matrix W0 [O, I]."""
        return weight

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """The factors A [R, I] and B [O, R] of the change s B A of the matrix."""
        return lora_A, lora_B

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """View a matrix [O, I] in the shape of the weight."""
        return matrix

    @classmethod
    def parameter_name(cls, name: str) -> str:
        """The name in the model of the parameter that an adapter of this name changes."""
        return f"{name}.{cls.weight_name}"

    @classmethod
    def place(cls, name: str) -> str:
        """The name of the module in whose place `install` puts one, for an adapter of this name."""
        return name

    def install(self) -> nn.Module:
        """Give the module that takes the base's place in the model."""
        return self

    @property
    def home(self) -> tuple[nn.Module, str]:
        """The module that holds the base's weight, and the name of the weight in it."""
        return self, self.weight_name

    @property
    def base_weight(self) -> nn.Parameter:
        return getattr(self, self.weight_name)

    @property
    def base_bias(self) -> nn.Parameter | None:
        return getattr(self, self.bias_name)

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that the adapter adds, as far as it has them: A, B, m and g."""
        return [p for p in (self.lora_A, self.lora_B, self.magnitude, self.gate) if p is not None]

    @property
    def gated_A(self) -> Tensor | None:  # noqa: N802
        """The A that is multiplied by: `lora_A` itself, or diag(g) A if the module has gates."""
        if self.gate is None or self.lora_A is None:
            return self.lora_A
        return self.lora_A * self.gate.view(self.gate_shape)

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """The shape [R, 1 ...] in which g multiplies A."""
        assert self.lora_A is not None
        return (-1, *(1 for _ in self.lora_A.shape[1:]))

    def row_norm(self) -> Tensor:
        """The row norms ||W0 + s B A|| [O], in fp32 or better."""
        return self.scales.row_norm(self.base_weight, self.gated_A, self.lora_B)

    def merged_weight(self) -> Tensor:
        """Compute W' in the shape of the weight, in fp32 or better."""
        with torch.no_grad():
            low_rank = self.lora_A is not None and self.lora_B is not None
            factors = self.factors(self.gated_A, self.lora_B) if low_rank else (None, None)  # pyright: ignore
            rows = merged_rows(self.matrix(self.base_weight), *factors, self.magnitude, self.scaling)
            return self.from_matrix(torch.cat(list(rows)))

    def merge(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Give the plain module back, with W' written into the very parameter of the base and rounded once.

        Args:
            dtype: dtype of weight and bias; None keeps that of the weight. Another dtype makes new parameters.
        """
        merged = self.merged_weight()
        if dtype is None or dtype == self.base_weight.dtype:
            with torch.no_grad():
                self.base_weight.copy_(merged)
            return self.unload()
        plain = self.unload()
        for name, values in ((self.weight_name, merged), (self.bias_name, self.base_bias)):
            if values is not None:
                plain.register_parameter(name, nn.Parameter(values.detach().to(dtype).contiguous()))
        return plain

    def base_module(self) -> nn.Module:
        """The plain module that shares this one's parameters, as frozen as they are, to take its place for a while.

        It is the same object each time, so that compiled code, which knows its modules, stays valid.
        """
        plain = self.__dict__.setdefault("_base_module", None) or holding(self.shell, {}, {})
        self.__dict__["_base_module"] = plain
        plain._parameters.update({name: getattr(self, name, None) for name in self.shell._parameters})
        plain._modules.update(self._modules)
        plain._is_full_backward_hook = self._is_full_backward_hook
        return plain.train(self.training)

    def unload(self) -> nn.Module:
        """Give the plain module back, with the base's own parameters, trainable as in a fresh module."""
        plain, self.__dict__["_base_module"] = self.base_module(), None
        return plain.requires_grad_(True)

    def _share_hooks(self, base: nn.Module) -> None:
        """Run the hooks of the base around this module.

        The very dictionaries are shared: a handle still removes its hook, and `unload` gives back what is registered
        by then.
        """
        for name in HOOKS:
            self.__dict__[name] = base.__dict__[name]

    def refresh(self) -> None:
        """Forget every norm, so that the next forward computes them."""
        self.scales.forget()

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self.refresh()
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()
        super()._save_to_state_dict(*args, **kwargs)

    @property
    def shell(self) -> Any:
        return self.__dict__["_shell"]

    @property
    def drops(self) -> bool:
        """Whether dropout acts now: in training, on a module with a low-rank branch."""
        return self.training and self.dropout > 0 and self.lora_A is not None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.to(bf16)` is meant for the base: a magnitude in bf16 would not learn.
        own: list[Tensor] = [*self.own_parameters]
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
        return {name: value for name, value in self.__dict__.items() if name != "scales"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.scales = Scales(self)

    def extra_repr(self) -> str:
        shape = f"{tuple(self.base_weight.shape)}, bias={self.base_bias is not None}, method={self.method}"
        return shape if self.lora_A is None else f"{shape}, rank={self.rank}, scaling={self.scaling:g}"


def holding(module: nn.Module, parameters: dict[str, Any], modules: dict[str, Any]) -> nn.Module:
    """A shallow copy that shares everything but has these parameters and submodules."""
    twin = copy.copy(module)
    twin._parameters, twin._modules = parameters, modules
    return twin
