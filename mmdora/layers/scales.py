"""The scale c = m / n of an adapted module: computed once per optimizer step, in eager mode and in compiled graphs.

n changes only when a parameter is written, so the scale is kept until that happens, and gradient accumulation and
recomputation pay nothing. A write is seen in one of these ways:

- Most writes raise the parameter's version, or put another tensor in its place.
- A step of a `torch.optim` optimizer is counted by a hook; the fused ones raise no version.
- What goes through the module (`load_state_dict`, `to`) forgets the scale.
- A write through `.data` raises no version. On a CPU it is seen at once if it changes one of the few values of each
  parameter that every forward compares (see `stamp`). On other devices reading a value would wait for the device.
- For the rest, everything is forgotten where `train()` or `eval()` switches the mode, and where the module is saved
  (`state_dict`, `save_adapter`) or merged. Between these, call `refresh` after a write through `.data`.

A version cannot be read inside a compiled graph. There the scale comes from an operator of our own. The compiler takes
it for a function of the parameters, and at run time it does the same look-up. So nothing has to be refreshed from
outside, no graph breaks, and one compiled block serves all layers of its shape.

FSDP gathers parameters into buffers whose version and address say nothing about writes, and a CUDA graph replays what
it captured. In both cases the scale is computed in each forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmdora.errors import MmdoraError
from mmdora.layers.stamp import Stamp
from mmdora.ops import linear, norm, reference, transforms

_steps = 0
_slots = count()
_known: weakref.WeakValueDictionary[int, Scales] = weakref.WeakValueDictionary()


class Scaled(Protocol):
    """The attributes of a module that a scale is computed from; `Adapted` has them."""

    scaling: float

    @property
    def base_weight(self) -> Tensor: ...

    @property
    def lora_A(self) -> Tensor | None: ...  # noqa: N802

    @property
    def lora_B(self) -> Tensor | None: ...  # noqa: N802

    @property
    def magnitude(self) -> Tensor | None: ...

    @property
    def scales(self) -> Scales: ...

    def matrix(self, weight: Tensor) -> Tensor:
        """View the weight as the matrix W0 [O, I]."""
        ...

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """The factors A [R, I] and B [O, R]."""
        ...


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Scales:
    """The squared base norms and the `Scale` of one adapted module."""

    def __init__(self, module: Scaled):
        self._module = weakref.ref(module)
        # The module's number is a tensor: a plain int would become a constant of a compiled graph, and each layer
        # would need a graph of its own.
        self.slot = torch.tensor(next(_slots), device="cpu")
        _known[int(self.slot)] = self
        self.forget()

    def forget(self) -> None:
        self._base: tuple[Stamp, Tensor] | None = None
        self._scale: tuple[Stamp, linear.Scale] | None = None

    def of(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of the module's parameters; the kept one if nothing was written to them since."""
        own = [weight, magnitude] if lora_A is None or lora_B is None else [weight, magnitude, lora_A, lora_B]
        if not self._sees(own):
            return self.computed(weight, lora_A, lora_B, magnitude)
        if self._scale is None:
            self._scale = Stamp(own, _steps), self.computed(weight, lora_A, lora_B, magnitude)
        elif not self._scale[0].fits(own, _steps):
            stamp = self._scale[0].renewed(own, _steps)
            self._scale = stamp, self.computed(weight, lora_A, lora_B, magnitude)
        return self._scale[1]

    def computed(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of any parameters of these shapes, computed anew.

        Raises:
            MmdoraError: a magnitude in half precision.
        """
        if magnitude.dtype.itemsize < 4:
            raise MmdoraError(
                f"a magnitude came to forward in {magnitude.dtype}, which rounds its changes away; "
                "leave param_dtype out of FSDP's MixedPrecisionPolicy and use autocast instead"
            )
        # A later backward could not use what was computed in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            n = self.row_norm(weight, lora_A, lora_B)
            # Whether z must be kept takes a look at c, which waits for the device. A scale that is computed in each
            # forward does without that look and keeps z.
            return linear.scale(magnitude, n, keep=None if self._sees([weight]) else True)

    def row_norm(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None) -> Tensor:
        """||W0 + s B A|| [O], fp32 or better, outside autograd."""
        module = self.module
        with torch.no_grad():
            matrix = module.matrix(weight)
            if self._base is not None and self._sees([weight]) and self._base[0].fits([weight], 0):
                base = self._base[1]
            else:
                base = norm.squared_norm(matrix)
                self._base = (Stamp([weight], 0), base) if self._sees([weight]) else None
            if lora_A is None or lora_B is None:
                return base.sqrt()
            factors = module.factors(lora_A, lora_B)
            return norm.row_norm(matrix, *factors, module.scaling, base, exact=not _captured(weight))

    def under_transform(
        self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
    ) -> linear.Scale:
        """The scale of parameters on which a transform of `torch.func` works; B A is formed for it.

        `vmap` lets nobody look at values, which the sum without B A would have to where it cancels.
        """
        module, dtype = self.module, norm.wide(weight.dtype)
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            factors = (None, None) if lora_A is None or lora_B is None else module.factors(lora_A, lora_B)
            dense = reference.direction(module.matrix(weight.detach()).to(dtype), *factors, module.scaling)
            n = torch.linalg.vector_norm(dense, dim=-1).detach()
            return linear.scale(magnitude.detach(), n, keep=True)

    @property
    def module(self) -> Scaled:
        module = self._module()
        assert module is not None
        return module

    def _sees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a write to one of these tensors can be seen at all."""
        if "_is_fsdp_managed_module" in self.module.__dict__ or _captured(tensors[0]):
            return False
        return not any(tensor.is_inference() for tensor in tensors)


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.library.custom_op("mmdora::scale", mutates_args=())
def _scale(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    """Factor and inverse norm of the module with this slot, as copies, which the compiler may overwrite.

    The arguments are usually the module's own parameters. With `functional_call`, or with an optimizer step in the
    same graph, they are not, and then the kept scale is not theirs.
    """
    scales = _known[int(slot)]
    module, given = scales.module, (weight, lora_A, lora_B, magnitude)
    own = module.base_weight, module.lora_A, module.lora_B, module.magnitude
    same = all(a is None or b is None or a.data_ptr() == b.data_ptr() for a, b in zip(own, given, strict=True))
    scaled = scales.of(*own) if same and own[3] is not None else scales.computed(*given)  # pyright: ignore
    return scaled.factor.clone(), scaled.inverse_norm.clone()


@_scale.register_fake
def _(
    slot: Tensor, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(magnitude), torch.empty_like(magnitude)


def current(module: Scaled) -> linear.Scale | None:
    """The module's scale now; None for LoRA. Forward calls this, compiled or not."""
    magnitude = module.magnitude
    if magnitude is None:
        return None
    parts = module.base_weight, module.lora_A, module.lora_B
    if torch.compiler.is_compiling():
        parts = [None if part is None else part.detach() for part in parts]
        return linear.Scale(*_scale(module.scales.slot, *parts, magnitude.detach()), keep=True)
    if transforms.wrapped((*parts, magnitude)):
        return module.scales.under_transform(*parts, magnitude)
    return module.scales.of(*parts, magnitude)
