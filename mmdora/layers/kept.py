"""What an adapted module computes from its parameters and keeps until one of them is written; see `scales`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmdora.errors import MmdoraError
from mmdora.layers.stamp import Stamp
from mmdora.ops import linear, norm, reference, transforms
from mmdora.ops.products import UPCAST_ROWS

_steps = 0
_slots = count()
known: weakref.WeakValueDictionary[int, Scales] = weakref.WeakValueDictionary()
"""A module's number -> its scales, for the operator that a compiled graph calls."""


class Scaled(Protocol):
    """The attributes of a module that a scale is computed from; `Adapted` has them."""

    scaling: float
    training: bool
    output_written: bool

    @property
    def base_weight(self) -> Tensor: ...

    @property
    def lora_A(self) -> Tensor | None: ...  # noqa: N802

    @property
    def lora_B(self) -> Tensor | None: ...  # noqa: N802

    @property
    def magnitude(self) -> Tensor | None: ...

    @property
    def gate(self) -> Tensor | None: ...

    @property
    def gated_A(self) -> Tensor | None: ...  # noqa: N802

    @property
    def scales(self) -> Scales: ...

    def matrix(self, weight: Tensor) -> Any:
        """View the weight as the matrix W0 [O, I], whose rows may be dequantised when they are read."""
        ...

    def factors(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """The factors A [R, I] and B [O, R]."""
        ...


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Scales:
    """The squared base norms, the `Scale` and the cast factors of one adapted module."""

    def __init__(self, module: Scaled):
        self._module = weakref.ref(module)
        # The module's number is a tensor: a plain int would become a constant of a compiled graph, and each layer
        # would need a graph of its own.
        self.slot = torch.tensor(next(_slots), device="cpu")
        known[int(self.slot)] = self
        self.forget()

    def forget(self) -> None:
        self._base: tuple[Stamp, Tensor] | None = None
        self._scale: tuple[Stamp, linear.Scale] | None = None
        self._factors: tuple[Stamp, Tensor, Tensor] | None = None

    def of(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of the module's parameters; the kept one if nothing was written to them since."""
        own = _present(weight, lora_A, lora_B, magnitude)
        if not self._sees(own):
            return self.computed(weight, lora_A, lora_B, magnitude)
        if self._scale is None or not self._scale[0].fits(own, _steps):
            renewed = [self._renewed(weight, lora_A, lora_B, magnitude)]
            renewed += [scales._renewed(*parts) for scales, parts in self._stale_beside(weight)]
            keeps = linear.small([scaled.factor for _, _, scaled in renewed])
            for (scales, stamp, scaled), keep in zip(renewed, keeps, strict=True):
                scales._scale = stamp, scaled._replace(keep=keep)
            assert self._scale is not None
        return self._scale[1]

    def _renewed(
        self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor
    ) -> tuple[Scales, Stamp, linear.Scale]:
        own = _present(weight, lora_A, lora_B, magnitude)
        stamp = Stamp(own, _steps) if self._scale is None else self._scale[0].renewed(own, _steps)
        self._scale = None  # Should memory run out below, the renewed stamp must not vouch for the old scale.
        return self, stamp, self.computed(weight, lora_A, lora_B, magnitude)

    def _stale_beside(self, weight: Tensor) -> Iterator[tuple[Scales, Any]]:
        """Yield the other modules that learn on this device and whose scale no longer fits, with their parameters."""
        if not _waits(weight.device) or not self.module.training or transforms.active():
            return
        for scales in list(known.values()):
            module = scales._module()
            if scales is self or module is None or not module.training or module.gate is not None:
                continue
            parts = module.base_weight, module.lora_A, module.lora_B, module.magnitude
            learns = parts[3] is not None and parts[3].requires_grad and parts[3].dtype.itemsize >= 4
            own = _present(*parts)
            if not learns or any(tensor.device != weight.device for tensor in own) or not scales._sees(own):
                continue
            if scales._scale is None or not scales._scale[0].fits(own, _steps):
                yield scales, parts

    def computed(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor) -> linear.Scale:
        """The scale of any parameters of these shapes, computed anew. It keeps z, so that nobody has to look at c.

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
            return linear.scale(magnitude, self.row_norm(weight, lora_A, lora_B), keep=True)

    def row_norm(self, weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None) -> Tensor:
        """||W0 + s B A|| [O], fp32 or better, outside autograd."""
        module = self.module
        with torch.no_grad():
            matrix = module.matrix(weight)
            if not isinstance(matrix, Tensor):
                factors = (None, None) if lora_A is None or lora_B is None else module.factors(lora_A, lora_B)
                return norm.norm_of_rows(matrix.split(UPCAST_ROWS), *factors, module.scaling)
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

    def factors(self, lora_A: Tensor, lora_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B in another dtype; the kept copies if nothing was written to them since."""
        own = [lora_A, lora_B]
        if not self._sees(own):
            return lora_A, lora_B
        if self._factors is None or self._factors[1].dtype != dtype or not self._factors[0].fits(own, _steps):
            with torch.inference_mode(False), torch.no_grad():
                self._factors = Stamp(own, _steps), lora_A.to(dtype), lora_B.to(dtype)
        return self._factors[1:]

    def _sees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a write to one of these tensors can be seen at all."""
        if "_is_fsdp_managed_module" in self.module.__dict__ or "ds_id" in tensors[0].__dict__:
            return False
        return not _captured(tensors[0]) and not any(tensor.is_inference() for tensor in tensors)


def _present(weight: Tensor, lora_A: Tensor | None, lora_B: Tensor | None, magnitude: Tensor | None) -> list[Tensor]:
    return [part for part in (weight, magnitude, lora_A, lora_B) if part is not None]


def _waits(device: torch.device) -> bool:
    """Whether reading a value waits for work that was given to the device before."""
    return device.type != "cpu"


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
